"""The floors of the package: a module imports only from lower ones."""

import ast
import functools
import graphlib

import pytest

from tests.paths import ROOT

PACKAGE = "twostream_jax"

# A room imports from lower floors and from the ground only.
GROUND = ("files",)
FLOORS = (
  (
    *("models", "flow", "steps", "losses", "optim", "metrics", "scores"),
    *("parallel", "launch", "checkpoints", "selection", "metric_logger"),
    *("interrupts", "configs", "data_prep"),
  ),
  ("data", "fuse", "pretrained"),
  ("stages", "evaluate", "report"),
  ("train", "results", "predict", "export", "summary"),
  ("experiment",),
  ("main", "scripts"),
)
# The floors within data.
DATA = (
  ("video", "record_index"),
  ("records", "datasets", "loader"),
  ("dataset",),
  ("build",),
  ("synthetic",),
)

FORBIDDEN = {
  "models": {"cv2", "grain", "tensorflow_datasets"},
  "data": {"flax", "torch", "tensorflow"},
  "pretrained": {"cv2", "grain", "tensorflow_datasets"},
  "report": {"jax", "flax"},
  "fuse": {"jax", "flax"},
  "scores": {"jax", "flax"},
  "metrics": {"jax", "flax"},
}


@functools.cache
def modules():
  """Module name below the package to its file."""
  base = ROOT / PACKAGE
  found = {}
  for path in base.rglob("*.py"):
    parts = path.relative_to(base).with_suffix("").parts
    if parts[-1] == "__init__":
      parts = parts[:-1]
    found[".".join(parts)] = path
  return found


@functools.cache
def imports(path):
  """Absolute names that a file imports, anywhere in it."""
  return tuple(_imports(path))


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path, known):
  """Modules of the package that a file imports."""
  for name in imports(path):
    if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
      continue
    tail = name.removeprefix(PACKAGE).removeprefix(".")
    while tail not in known:
      tail = tail.rpartition(".")[0]
    yield tail


def room(module):
  return module.split(".")[0]


def floor(name, floors):
  (found,) = (i for i, rooms in enumerate(floors) if name in rooms)
  return found


def test_every_room_is_there_and_on_one_floor():
  rooms = {room(module) for module in modules()} - {"", *GROUND}
  assert rooms == {name for rooms in FLOORS for name in rooms}


@pytest.mark.parametrize("module", sorted(set(modules()) - {""}))
def test_modules_import_only_from_lower_floors(module):
  known = modules()
  for other in set(own_imports(known[module], known)) - {"", module}:
    mine, theirs = room(module), room(other)
    if mine == theirs == "data" and "." in other and "." in module:
      mine, theirs, floors = module.split(".")[1], other.split(".")[1], DATA
    else:
      floors = FLOORS
    if mine != theirs and theirs not in GROUND:
      lower = mine not in GROUND and floor(theirs, floors) < floor(mine, floors)
      assert lower, f"{module} imports {other}"


def test_no_module_imports_in_a_circle():
  known = modules()
  graph = {
    module: set(own_imports(path, known)) - {module, "", room(module)}
    for module, path in known.items()
  }
  graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", sorted(modules()))
def test_layers_do_not_see_each_other_s_libraries(module):
  forbidden = FORBIDDEN.get(room(module), set())
  seen = {name.split(".")[0] for name in imports(modules()[module])}
  assert not seen & forbidden


@pytest.mark.parametrize(
  "attribute, allowed",
  [
    ("pmap", "parallel"),
    # It removes saves that are under way: all others read by `open_reader`.
    ("open_manager", "train"),
  ],
)
def test_one_module_alone_names_it(attribute, allowed):
  naming = {
    module
    for module, path in modules().items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and node.attr == attribute
  }
  assert naming == {allowed}


def test_nothing_imports_from_the_folders_of_what_is_run():
  for path in modules().values():
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"configs", "data_prep", "benchmarks", "tests"}
