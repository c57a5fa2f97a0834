"""Converts weights of another project to this project's .safetensors.

  python data_prep/convert_weights.py vgg16-397923af.pth \\
      --backbone=vgg16 --out=weights/vgg16.safetensors

Every array of the file and of the network is listed with what became of it.
The layout is told by the file's keys, behind any prefix and inside of what
training programs wrap around weights; --layout, --prefix and --wrapper name
them where the keys mislead.
Where the file has convolutions only, --partial converts them.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import traverse_util

from twostream_jax import words
from twostream_jax.models import BACKBONES, create_model
from twostream_jax.pretrained import (
  LAYOUTS,
  Choice,
  Metadata,
  count_classes,
  fit_layout,
  map_weights,
  printable,
  read_source,
  save_weights,
)

# Of the images that every published network here was trained on, in pixels.
_IMAGE_SIZE = 224


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_enum(
    "backbone",
    None,
    list(BACKBONES),
    "Network that the weights are of.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "out", None, "File to write, .safetensors.", flag_values=values
  )
  flags.DEFINE_enum(
    "layout",
    None,
    list(LAYOUTS),
    "How the file names and stores its arrays; by default told by its keys.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "wrapper",
    None,
    "Name of the dict in the file that holds the weights, such as state_dict;"
    " names of nested ones are joined by dots. By default the one with a known"
    " layout.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "prefix",
    None,
    "Text before the keys of the network, such as backbone. with its dot. By"
    " default the one behind which the layout is known.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "partial",
    False,
    "Convert a file without fully connected layers. Who loads the converted"
    " file must take it in part too.",
    flag_values=values,
  )
  flags.mark_flags_as_required(["backbone", "out"], values)


def run(source: str, values: flags.FlagValues) -> int:
  """Converts a file as the flags ask for and prints a report.

  Args:
    source: path of the file to convert.
    values: see `define_flags`.

  Returns:
    The exit code: 0; 1 after an error that is explained on stderr.
  """
  try:
    _convert(source, values)
  except (ValueError, OSError) as error:
    print(f"error: {words.lines(str(error))}", file=sys.stderr)
    return 1
  return 0


def _convert(path: str, values: flags.FlagValues) -> None:
  source, layout = fit_layout(
    read_source(path),
    values.backbone,
    values.layout,
    Choice(values.wrapper, values.prefix),
  )
  shapes = _shapes(values.backbone, num_classes=2)
  num_classes = count_classes(source, layout, shapes)
  if num_classes is not None:
    shapes = _shapes(values.backbone, num_classes)
  variables, report = map_weights(
    source,
    layout,
    backbone=values.backbone,
    variables=shapes,
    partial=values.partial,
  )
  convention = layout.convention(source)
  metadata = Metadata(
    values.backbone, num_classes, convention and convention.as_rgb()
  )
  try:
    save_weights(values.out, _only_arrays(variables), metadata)
  except OSError as error:
    # Where writing fails, the system does not say in which file.
    raise OSError(
      error.errno, f"no weights were written: {error.strerror}", values.out
    ) from error
  print(report.table())
  print(f"{report.layout}: {report.summary()}")
  if source.prefix:
    print(f"prefix    {printable(source.prefix)}")
  if convention:
    print(f"rgb_mean  {convention.rgb_mean}\nrgb_std   {convention.rgb_std}")
  print(f"written   {values.out}")


def _shapes(backbone: str, num_classes: int) -> dict[str, Any]:
  """Shapes of a backbone's variables; nothing is computed."""
  model = create_model(backbone, num_classes=max(2, num_classes))
  images = jnp.zeros((1, _IMAGE_SIZE, _IMAGE_SIZE, 3))
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )


def _only_arrays(variables: dict[str, Any]) -> dict[str, Any]:
  """Leaves out what the file did not have and only a shape stands for."""
  flat = traverse_util.flatten_dict(variables)
  return traverse_util.unflatten_dict(
    {
      path: leaf
      for path, leaf in flat.items()
      if not isinstance(leaf, jax.ShapeDtypeStruct)
    }
  )


def main(argv: Sequence[str]) -> int:
  if len(argv) != 2:
    print(
      "error: give one file to convert, as in"
      " convert_weights.py SOURCE --backbone=vgg16 --out=vgg16.safetensors",
      file=sys.stderr,
    )
    return 1
  return run(argv[1], flags.FLAGS)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
