"""The tables of `twostream_jax.summary`: what each recipe is."""

import runpy
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
from absl import flags

import twostream_jax
from twostream_jax import configs
from twostream_jax.data import synthetic
from twostream_jax.files import tables
from twostream_jax.stages import settings
from twostream_jax.summary import networks, recipes

HEADER = (
  "stage",
  "network",
  "a clip",
  "parameters",
  "GFLOPs a clip",
  "clips a second",
)


def find_recipes(folder: Path, names: Sequence[str]) -> dict[str, Path]:
  """The files of recipes by name.

  Args:
    folder: of the configs.
    names: of configs in it, or files; none: all of it but default.py.

  Raises:
    ValueError: there is no such recipe; the message lists those that are.
  """
  names = names or list(configs.list_recipes(folder))
  if not names:
    raise ValueError(
      f"no recipes in {folder.absolute()}: name their folder with --configs"
    )
  paths = [configs.find_recipe(name, folder) for name in names]
  return {path.stem: path for path in paths}


def read_config(path: Path) -> ml_collections.ConfigDict:
  """The config of a file, as `--config` of twostream_jax.main reads it.

  Raises:
    ValueError: the file defines no `get_config`.
  """
  names = runpy.run_path(str(path))
  if "get_config" not in names:
    raise ValueError(f"{path} is not a config: it defines no get_config()")
  return names["get_config"]()


def count_classes(
  name: str, config: ml_collections.ConfigDict, own: int
) -> tuple[int, int, str]:
  """Classes of a dataset and of a second head, and how they are described.

  Args:
    name: of the recipe.
    config: of it.
    own: classes of a dataset that nothing is known of.
  """
  if name in recipes.RECIPES:
    recipe = recipes.RECIPES[name]
    data = recipes.DATASETS[recipe.dataset]
    words = f"{data.title}, {data.num_classes} classes ({data.source})"
    if not recipe.second_dataset:
      return data.num_classes, 0, words
    second = recipes.DATASETS[recipe.second_dataset]
    words += f", with {second.title}, {second.num_classes}"
    return data.num_classes, second.num_classes, words
  if any(config.data.synthetic.to_dict().values()):
    count = len(synthetic.APPEARANCES) * len(synthetic.MOTIONS)
    return count, 0, f"synthetic clips, {count} classes"
  second = own if config.data.second_dir else 0
  return own, second, f"your videos, here {own} classes (--num_classes)"


def paper(name: str) -> tuple[str, str]:
  """The paper of a recipe and its published numbers."""
  if name not in recipes.RECIPES:
    return "none", "none"
  return recipes.RECIPES[name].paper, recipes.RECIPES[name].published


def cells(row: networks.Row) -> tuple[str, ...]:
  """A row as texts, in the order of HEADER."""
  speed = row.clips_per_second
  return (
    row.stage,
    row.model,
    row.inputs,
    f"{row.parameters / 1e6:.2f} M",
    f"{row.flops / 1e9:.3g}",
    "" if speed is None else number(speed),
  )


def number(value: float) -> str:
  """Three digits, or more before the point."""
  return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def text_block(name: str, data: str, rows: Sequence[networks.Row]) -> str:
  """A recipe and its stages, for a terminal."""
  written, published = paper(name)
  table = [HEADER, *map(cells, rows)]
  if rows[0].clips_per_second is None:
    table = [line[:-1] for line in table]
  lines = [f"{name}: {data}"]
  if written != "none":
    lines.append(f"  {written}; published: {published}")
  lines.append(textwrap.indent(tables.columns(table, words=3), "  "))
  return "\n".join(lines)


def markdown_rows(name: str, rows: Sequence[networks.Row]) -> str:
  """The lines of a recipe's stages in the one table."""
  published = paper(name)[1]
  lines = []
  for i, row in enumerate(rows):
    first = (f"`{name}`", published) if i == 0 else ("", "")
    lines.append(tables.markdown_row((*first, *cells(row))))
  return "\n".join(lines)


def foot(batch_size: int) -> str:
  """What the numbers mean and where they were measured.

  Args:
    batch_size: clips a device in a batch; 0: nothing was measured.
  """
  lines = [
    "A clip is one training sample. A multiply-add is two operations. A stage"
    " that reads features counts without the streams that they are of."
    " Published numbers are the papers', top-1 in per cent where nothing else"
    " is said; none has been reproduced here."
  ]
  if batch_size:
    devices = jax.devices()
    lines.append(
      f"Clips a second: forward pass, batches of {batch_size} a device,"
      f" {len(devices)} x {devices[0].device_kind}, twostream_jax"
      f" {twostream_jax.__version__}, jax {jax.__version__}; random weights and"
      " codes in memory, no decoding."
    )
  return "\n".join(lines)


def run(values: flags.FlagValues) -> None:
  """Prints the summary that the flags ask for.

  Raises:
    ValueError: there is no such recipe, or a setting of one is wrong.
  """
  batch_size = values.batch_size if values.throughput else 0
  chosen = find_recipes(Path(values.configs), values.recipe)
  if values.markdown:
    print(tables.markdown_head(("recipe", "published", *HEADER)))
  for name, path in chosen.items():
    config = read_config(path)
    settings.check_numbers(config)
    num_classes, second, data = count_classes(name, config, values.num_classes)
    rows = networks.summarise(
      config,
      num_classes=num_classes,
      second_classes=second,
      batch_size=batch_size,
    )
    if values.markdown:
      print(markdown_rows(name, rows), flush=True)
    else:
      print(text_block(name, data, rows) + "\n", flush=True)
  print(("\n" if values.markdown else "") + foot(batch_size))
