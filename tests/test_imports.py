"""The layers of the package: a module imports only from lower levels."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

PACKAGE = "twostream_jax"
ROOT = Path(__file__).parent.parent

# Longest prefix wins.
LEVELS = {
  "": 10,
  "arrays": 0,
  "checkpoints": 0,
  "configs": 0,
  "data": 0,
  "data.annotations": 4,
  "data.augment": 0,
  "data.beam": 8,
  "data.batch_processes": 1,
  "data.build_errors": 6,
  "data.builder": 8,
  "data.check": 4,
  "data.clip_task": 7,
  "data.clips": 0,
  "data.combine": 0,
  "data.dataset": 3,
  "data.command": 10,
  "data.decode": 2,
  "data.encode": 5,
  "data.eval_pipeline": 2,
  "data.faults": 1,
  "data.features": 1,
  "data.find_videos": 3,
  "data.forecast": 6,
  "data.frame_times": 1,
  "data.frames": 0,
  "data.images": 0,
  "data.input_pipeline": 2,
  "data.kinetics": 3,
  "data.lists": 2,
  "data.official": 5,
  "data.pictures": 1,
  "data.plan": 5,
  "data.protocols": 1,
  "data.record_index": 1,
  "data.records": 2,
  "data.sampling": 0,
  "data.ssv2": 3,
  "data.staging": 7,
  "data.store": 6,
  "data.summary": 9,
  "data.synthetic": 2,
  "data.texts": 1,
  "data.video": 3,
  "data.views": 1,
  "data.workers": 0,
  "data_prep": 0,
  "effects": 2,
  "evaluate": 3,
  "examples": 9,
  "experiment": 13,
  "explain": 0,
  "export": 9,
  "files": 0,
  "flops": 0,
  "flow": 1,
  "flow.colorwheel": 0,
  "flow.opencv": 0,
  "flow.pyramid": 0,
  "flow.spec": 0,
  "flow.tvl1": 0,
  "flow.tvl1_kernel": 0,
  "fuse": 2,
  "inputs": 6,
  "interrupts": 0,
  "json_files": -1,
  "launch": 0,
  "logging": 1,
  "losses": 0,
  "main": 14,
  "metrics": 0,
  "models": 1,
  "models.cnn_m": 0,
  "models.fusion": 0,
  "models.kernels": 0,
  "models.layers": 0,
  "models.lstm": 0,
  "models.resnet": 0,
  "models.stream": 0,
  "models.two_stream": 0,
  "models.vgg": 0,
  "optim": 0,
  "parallel": 2,
  "pickles": 0,
  "predict": 9,
  "preprocess": 1,
  "pretrained": 2,
  "recipe_tables": 9,
  "recipes": 0,
  "report": 4,
  "rescore": 12,
  "results": 10,
  "rules": 3,
  "run": 11,
  "samples": 1,
  "scores": 1,
  "selection": 0,
  "settings": 0,
  "stage_data": 4,
  "stage_views": 5,
  "stages": 7,
  "steps": 1,
  "summary": 10,
  "train": 9,
  "trained": 8,
  "trained_weights": 4,
  "warm_start": 5,
  "window": 8,
  "words": -2,
  "workdir": 1,
  "zoo": 8,
}

FORBIDDEN = {
  "models": {"cv2", "grain", "tensorflow_datasets"},
  "data": {"flax", "torch", "tensorflow"},
  "pretrained": {"cv2", "grain", "tensorflow_datasets"},
  "report": {"jax", "flax"},
  "fuse": {"jax", "flax"},
  "scores": {"jax", "flax"},
  "metrics": {"jax", "flax"},
}

# Packages whose modules form one unit of a level; none imports in a circle.
UNITS = (
  "export",
  "report",
  "models",
  "flow",
  "fuse",
  "pretrained",
  "predict",
)


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


def level(module):
  while module not in LEVELS:
    module = module.rpartition(".")[0]
  return LEVELS[module]


def unit(module):
  return module.split(".")[0]


def test_every_level_is_of_a_module_that_exists():
  assert set(LEVELS) <= set(modules())


@pytest.mark.parametrize("module", sorted(modules()))
def test_modules_import_only_from_lower_levels(module):
  known = modules()
  for other in own_imports(known[module], known):
    if other == module or other == "":
      continue
    same_unit = unit(module) == unit(other) and unit(module) in UNITS
    assert same_unit or level(other) < level(module), (
      f"{module} (level {level(module)}) imports {other} (level {level(other)})"
    )


def test_no_module_imports_in_a_circle():
  known = modules()
  graph = {
    module: set(own_imports(path, known)) - {module, "", unit(module)}
    for module, path in known.items()
  }
  graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", sorted(modules()))
def test_layers_do_not_see_each_other_s_libraries(module):
  forbidden = FORBIDDEN.get(unit(module), set())
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
