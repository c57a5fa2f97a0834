"""The configs by name, and what their docstrings promise."""

import importlib
import shlex

from tests.paths import ROOT

CONFIGS = sorted(
  path.stem
  for path in (ROOT / "configs").glob("*.py")
  if not path.stem.startswith("_")
)
# Classes of the known sets, by their name in build_tfds.
NUM_CLASSES = {"ucf101": 101, "hmdb51": 51, "ccv": 20, "ssv2": 174}
NUM_CLASSES["ssv2_mini"] = NUM_CLASSES["ssv2"]


def get_module(name):
  return importlib.import_module(f"configs.{name}")


def get_config(name):
  return get_module(name).get_config()


def commands(name):
  """The commands in a config's docstring, as lists of words."""
  text = get_module(name).__doc__.replace("\\\n", " ")
  lines = [line.strip() for line in text.splitlines()]
  return [shlex.split(line) for line in lines if line.startswith("python ")]


def dataset_of(name):
  """What a config's docstring builds, by the name in build_tfds, or ""."""
  words = [word for command in commands(name) for word in command]
  built = [w.partition("=")[2] for w in words if w.startswith("--dataset=")]
  return built[0] if built else ""


RECIPES = [name for name in CONFIGS if dataset_of(name) in NUM_CLASSES]
