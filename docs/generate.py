"""Writes what the documentation repeats of the code.

  python docs/generate.py

Tables between marks (`<!-- name -->`). Those of docs/configuration.md are made
from the names, comments and values of configs/default.py, those of
docs/recipes.md by `twostream_jax.summary`: published numbers and sizes. Tests
compare them with the code.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twostream_jax.configs import default
from twostream_jax.files.workdir import flatten
from twostream_jax.summary import recipes

ROOT = Path(__file__).resolve().parent.parent

# Defaults that depend on the machine.
MACHINE = {
  "data.threads": "number of CPU cores",
  "data.processes": "number of CPU cores, at most 8; 0 where not Linux",
}
# Values and names in a comment: "rgb", twostream_jax.models.BACKBONES.
_AS_CODE = re.compile(r'"\w*"|twostream_jax(\.\w+)+|\w+/\w+\.py')
_KEY = re.compile(r"  (?:stage|optim|config)\.([\w.]+) = (.*)")


def read_comments() -> dict[str, dict[str, str]]:
  """Reads the comments of configs/default.py.

  Returns:
    By the function that sets them, texts by setting. A setting without a
    comment of its own belongs to the one above it.
  """
  found: dict[str, dict[str, str]] = {}
  function, comment, last = "", [], ""
  for line in Path(default.__file__).read_text().splitlines():
    if match := re.match(r"def (\w+)", line):
      function = match[1]
      found[function] = {}
    elif line.startswith("  # "):
      comment.append(line.removeprefix("  # "))
    elif match := _KEY.match(line):
      key, value = match[1], match[2]
      last = " ".join(comment) or last
      is_branch = not comment and "ConfigDict(" in value
      if not is_branch and not value.startswith("get_"):
        found[function][key] = last
      comment = []
    elif not line:
      comment, last = [], ""
  return found


def settings_tables() -> dict[str, str]:
  """Returns the tables of docs/configuration.md by the name of their marks."""
  comments = read_comments()
  run = default.get_config().to_dict()
  groups: dict[str, dict[str, str]] = {}
  for key, text in comments["get_config"].items():
    group = f"config.{key.split('.')[0]}" if "." in key else "config"
    groups.setdefault(group, {})[key] = text
  streams = [default.get_stream(m).to_dict() for m in ("rgb", "flow")]
  optim = {f"optim.{k}": v for k, v in comments["get_optim"].items()}
  joint = default.get_joint(("spatial", "temporal")).to_dict()
  features = default.get_features("lstm", ("spatial",)).to_dict()
  rows = {k: _rows(texts, [run], "config.") for k, texts in groups.items()}
  rows |= {
    "stream": _rows(comments["get_stream"], streams),
    "optim": _rows(optim, streams),
    "joint": _rows(comments["get_joint"], [joint]),
    "features": _rows(comments["get_features"], [features]),
  }
  return {name: _table(found) for name, found in rows.items()}


def _rows(
  texts: Mapping[str, str],
  trees: Iterable[Mapping[str, Any]],
  prefix: str = "",
) -> Iterator[tuple[str, str, str]]:
  flat = [_leaves(tree, texts) for tree in trees]
  for key, text in texts.items():
    values = list(dict.fromkeys(_code(values[key]) for values in flat))
    default_text = MACHINE.get(key) or ", ".join(values)
    text = text.replace("See get_stream.", "As for a stage of one stream.")
    text = _AS_CODE.sub(lambda match: f"`{match[0]}`", text)
    yield f"`{prefix}{key}`", default_text, text


def _leaves(tree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
  """Values by whole name; some settings are themselves mappings."""
  values = flatten(tree)
  for key in keys:
    if key not in values:
      value: Any = tree
      for part in key.split("."):
        value = value[part]
      values[key] = value
  return values


def _code(value: Any) -> str:
  return f"`{value!r}`".replace("'", '"')


def _table(rows: Iterable[tuple[str, ...]]) -> str:
  lines = [("setting", "default", "meaning"), ("---",) * 3, *rows]
  escaped = ([cell.replace("|", "\\|") for cell in row] for row in lines)
  return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def published_table() -> str:
  """Returns the table of the papers' numbers, in Markdown."""
  lines = ["| recipe | paper | published |", "|---|---|---|"]
  for name, recipe in recipes.RECIPES.items():
    paper = re.sub(
      r"\d{4}\.\d{5}|\d{4}\.\d{4}",
      lambda match: f"[{match[0]}](https://arxiv.org/abs/{match[0]})",
      recipe.paper,
    )
    if recipe.second_dataset:
      second = recipes.DATASETS[recipe.second_dataset].title
      paper += f", multi-task with {second}"
    lines.append(f"| `{name}` | {paper} | {recipe.published} |")
  return "\n".join(lines) + "\n"


def sizes_table() -> str:
  """Returns the table of the recipes' networks, in Markdown."""
  from twostream_jax.summary import networks, tables

  lines = [
    "| recipe | stage | network | one example | parameters | GFLOPs |",
    "|---|---|---|---|---|---|",
  ]
  for name, path in tables.find_recipes(ROOT / "configs", []).items():
    config = tables.read_config(path)
    num_classes, second, _ = tables.count_classes(name, config, own=10)
    found = networks.summarise(
      config, num_classes=num_classes, second_classes=second
    )
    for i, row in enumerate(found):
      cells = (f"`{name}`" if i == 0 else "", *tables.cells(row)[:-1])
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def replace_table(text: str, name: str, table: str) -> str:
  """Returns a page with a table between its marks.

  Args:
    text: The page.
    name: Name in the marks `<!-- name -->` and `<!-- /name -->`.
    table: What is put between them.
  """
  begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
  before, _, rest = text.partition(begin)
  after = rest.partition(end)[2]
  return f"{before}{begin}\n\n{table}\n{end}{after}"


def main() -> None:
  """Writes the tables into their pages."""
  pages = {
    "configuration": settings_tables(),
    "recipes": {"published": published_table(), "sizes": sizes_table()},
  }
  for page, tables in pages.items():
    path = ROOT / f"docs/{page}.md"
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
      text = replace_table(text, name, table)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
  main()
