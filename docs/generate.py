"""Writes what the documentation repeats of the code.

  python docs/generate.py

docs/configuration.md is made from configs/default.py: names, comments, values.
The tables of docs/recipes.md are made from `twostream_jax.summary`: published
numbers and sizes. Tests compare both with what is written.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))

from twostream_jax.configs import default  # noqa: E402
from twostream_jax.files.workdir import flatten  # noqa: E402
from twostream_jax.summary import recipes  # noqa: E402

# Defaults that depend on the machine.
MACHINE = {
  "data.threads": "number of CPU cores",
  "data.processes": "number of CPU cores, at most 8; 0 where not Linux",
}
# Values and names in a comment: "rgb", twostream_jax.models.BACKBONES.
_AS_CODE = re.compile(r'"\w*"|twostream_jax(\.\w+)+|\w+/\w+\.py')
_KEY = re.compile(r"  (?:stage|optim|config)\.([\w.]+) = (.*)")

INTRODUCTION = """\
# Configuration

Every setting of a run, with its default; made from `configs/default.py` by
`python docs/generate.py`. A config is a locked `ConfigDict`: unknown names are
rejected. Change a setting in a config file, or on the command line:

```sh
python -m twostream_jax.main --config=configs/quickstart.py --config.seed=1 --config.temporal.optim.learning_rate=0.01
```

A config file begins with the defaults and changes them; see
[Extending](extend.md#a-recipe). Each stage that `config.stages` names has its
settings under its own name: `config.spatial.…`, `config.temporal.…`.
"""
STREAM = """
## A stage of one stream

Below `config.<stage>`, from `default.get_stream("rgb")` or
`default.get_stream("flow")`. Where the defaults differ, the first is that of
`"rgb"`.
"""
OPTIMISER = """
## The optimiser of a stage

Below `config.<stage>`, for stages of every kind.
"""
JOINT = """
## A joint stage

From `default.get_joint(towers)`. It has the settings of a stage of one stream, of
which `modality`, `feature`, `init` and all of `model` but its name are those of
its towers, and these:
"""
FEATURES = """
## A stage that reads features

From `default.get_features(model, sources)`, below `config.<stage>`:
"""


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


def configuration_page() -> str:
  """Returns docs/configuration.md."""
  comments = read_comments()
  run = default.get_config().to_dict()
  streams = [default.get_stream(m).to_dict() for m in ("rgb", "flow")]
  joint = default.get_joint(("spatial", "temporal")).to_dict()
  features = default.get_features("lstm", ("spatial",)).to_dict()
  groups: dict[str, dict[str, str]] = {}
  for key, text in comments["get_config"].items():
    group = key.split(".")[0] if "." in key else ""
    groups.setdefault(group, {})[key] = text
  parts = [INTRODUCTION]
  for group, texts in groups.items():
    title = f"`config.{group}`" if group else "The run"
    lines = _rows(texts, [run], prefix="config.")
    parts.append(f"\n## {title}\n\n{_table(lines)}")
  parts.append(f"{STREAM}\n{_table(_rows(comments['get_stream'], streams))}")
  optim = {f"optim.{k}": v for k, v in comments["get_optim"].items()}
  parts.append(f"{OPTIMISER}\n{_table(_rows(optim, streams))}")
  for title, function, values in (
    (JOINT, "get_joint", joint),
    (FEATURES, "get_features", features),
  ):
    parts.append(f"{title}\n{_table(_rows(comments[function], [values]))}")
  return "".join(parts)


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
  """Writes the pages."""
  (ROOT / "docs/configuration.md").write_text(configuration_page())
  path = ROOT / "docs/recipes.md"
  text = replace_table(path.read_text(), "published", published_table())
  path.write_text(replace_table(text, "sizes", sizes_table()))


if __name__ == "__main__":
  main()
