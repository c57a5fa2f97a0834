"""docs/extend.md, followed step by step."""

import ast
import functools
import inspect
import re
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
from absl import flags

from configs import default
from data_prep import build_tfds, convert_weights
from tests.fuse.test_fuse_command import VALIDATION, make
from tests.models import test_create_model
from tests.paths import ROOT
from tests.test_walkthroughs import write_clip
from twostream_jax import fuse, losses, models
from twostream_jax.data.datasets import official
from twostream_jax.fuse import __main__ as fuse_command
from twostream_jax.fuse import catalogue
from twostream_jax.stages import create, effects, settings
from twostream_jax.summary import networks, tables


def blocks():
  """Code by what its first line says: a file, and a name in it or ""."""
  text = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
  found = {}
  for code in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.M | re.S):
    first, _, rest = textwrap.dedent(code).partition("\n")
    path, _, name = first.removeprefix("# ").partition(", in ")
    found[path, name] = rest
  return found


BLOCKS = blocks()


def add_module(monkeypatch, path):
  """Imports the block of a new file under the name that it would have."""
  name = path.removesuffix(".py").replace("/", ".")
  module = types.ModuleType(name)
  monkeypatch.setitem(sys.modules, name, module)
  exec(BLOCKS[path, ""], module.__dict__)
  return module


def read_entry(path, name, **names):
  """The entry of a dictionary, given the names that it is written in."""
  return eval(f"{{{BLOCKS[path, name]}}}", names)


def read_item(path, name):
  """The item of a tuple."""
  return ast.literal_eval(BLOCKS[path, name])


@pytest.mark.parametrize("path, name", BLOCKS)
def test_places_are_there(path, name):
  file = ROOT / path
  assert file.parent.is_dir()
  if not name:
    # New files, and a new function of one that is there.
    assert not file.exists() or path == "twostream_jax/losses.py"
    return
  tree = ast.parse(file.read_text())
  defined = {
    getattr(target, "id", "")
    for node in tree.body
    for target in (
      node.targets
      if isinstance(node, ast.Assign)
      else [getattr(node, "target", None)]
    )
  } | {getattr(node, "name", "") for node in tree.body}
  assert name in defined


def test_a_dataset(monkeypatch, tmp_path):
  package = "twostream_jax/data/datasets"
  gestures = add_module(monkeypatch, f"{package}/gestures.py")
  entry = read_entry(f"{package}/official.py", "DATASETS", gestures=gestures)
  ((name, _),) = entry.items()
  monkeypatch.setitem(official.DATASETS, name, entry[name])
  values = flags.FlagValues()
  build_tfds.define_flags(values)
  taken = inspect.signature(entry[name]).parameters
  assert set(taken) - {"videos"} <= set(values)
  values(["", f"--dataset={name}", "--videos=.", "--check"])
  for number, split in enumerate(("train", "test")):
    rows = ""
    for label in ("wave", "nod"):
      write_clip(tmp_path / f"deep/{label}{number}.mp4", number, number)
      rows += f"{label}{number}.mp4 {label}\n"
    (tmp_path / f"{split}.txt").write_text(rows)
  clips = official.DATASETS[name](tmp_path, tmp_path)
  assert [(clip.split, clip.label) for clip in clips] == [
    ("train", "wave"),
    ("train", "nod"),
    ("test", "wave"),
    ("test", "nod"),
  ]
  (tmp_path / "train.txt").write_text("wave0.mp4\n")
  with pytest.raises(ValueError, match="1 row without a video and a label"):
    official.DATASETS[name](tmp_path, tmp_path)


def test_a_backbone(monkeypatch):
  plain = add_module(monkeypatch, "twostream_jax/models/plain.py")
  path = "twostream_jax/models/__init__.py"
  entry = read_entry(path, "BACKBONES", PlainNet=plain.PlainNet)
  ((name, _),) = entry.items()
  monkeypatch.setitem(models.BACKBONES, name, entry[name])
  assert isinstance(convert_weights.BACKBONES, tuple)
  assert read_item("data_prep/convert_weights.py", "BACKBONES") == name
  counted = read_entry("tests/models/test_create_model.py", "NUM_PARAMS")
  monkeypatch.setitem(test_create_model.NUM_PARAMS, name, counted[name])
  test_create_model.test_every_backbone_is_listed()
  test_create_model.test_number_of_parameters_is_the_published_one(name)
  test_create_model.test_every_backbone_has_the_shared_fields(name)
  test_create_model.test_images_below_the_minimum_are_refused(name)
  config = default.get_config()
  config.temporal.model.name = name
  config.temporal.model.fields = {}
  config.spatial.model.name = name
  with config.unlocked():
    config.joint = default.get_joint(("spatial", "temporal"))
  config.joint.model.name = "conv"
  config.stages = ("spatial", "temporal", "joint")
  for stage, feature in (("temporal", "pool"), ("joint", "fused_pool")):
    network = networks.create_network(config, stage, 12)
    logits, features = jax.eval_shape(
      network.forward, network.variables, network.example
    )
    assert logits.shape == (1, 12)
    assert features[feature].shape == (1, 1, 128)


def test_a_fusion_rule(monkeypatch):
  rule = add_module(monkeypatch, "twostream_jax/fuse/by_accuracy.py")
  fit = rule.fit_by_accuracy
  path = "twostream_jax/fuse/catalogue.py"
  ((name, _),) = read_entry(path, "FITS", fit_by_accuracy=fit).items()
  monkeypatch.setitem(catalogue.FITS, name, fit)
  assert isinstance(fuse_command.FITTED, tuple)
  assert read_item("twostream_jax/fuse/__main__.py", "FITTED") == name
  streams = {
    "spatial": make(0, VALIDATION, strength=0.0),
    "temporal": make(1, VALIDATION, strength=5.0),
  }
  fitted = fuse.FITS[name](streams, split="validation")
  assert sum(fitted.weights) == pytest.approx(1)
  assert fitted.weights[1] > 2 * fitted.weights[0] > 0
  assert fuse.apply(fitted, streams).ids == tuple(VALIDATION)


def test_a_loss(monkeypatch):
  exec(BLOCKS["twostream_jax/losses.py", ""], names := vars(losses).copy())
  focal = names["focal_cross_entropy"]
  monkeypatch.setattr(losses, "focal_cross_entropy", focal, raising=False)
  config = default.get_config()
  with config.unlocked():
    for stage in (config.spatial, config.temporal):
      code = BLOCKS["configs/default.py", "get_optim"]
      exec(code, {"optim": stage.optim})
  ranges = read_entry(
    "twostream_jax/stages/settings.py", "_STAGE", **vars(settings)
  )
  ((key, allowed),) = ranges.items()
  assert allowed.allows(0.5) and not allowed.allows(-1)
  assert key.removeprefix("optim.") in config.spatial.optim

  # The block before the last return of the function.
  tree = ast.parse(inspect.getsource(create.create_loss))
  code = BLOCKS["twostream_jax/stages/create.py", "create_loss"]
  tree.body[0].body[-1:-1] = ast.parse(code).body
  space = vars(create).copy()
  exec(compile(ast.fix_missing_locations(tree), "", "exec"), space)
  data = types.SimpleNamespace(multi_label=False)
  find = functools.partial(space["create_loss"], config, "spatial", data)
  functions = [find(), functools.partial(focal, gamma=0.0)]
  config.spatial.optim.focal_gamma = 2.0
  functions.append(find())

  @jax.jit
  def compute(logits, labels):
    return [function(logits, labels) for function in functions]

  logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  plain, zero, two = compute(logits, np.array([0, 1, 2, 1, 0]))
  np.testing.assert_allclose(zero, plain, rtol=1e-5)
  assert (two < plain).all()


def test_a_recipe(tmp_path):
  path = tmp_path / "gestures_resnet.py"
  path.write_text(BLOCKS["configs/gestures_resnet.py", ""])
  config = tables.read_config(path)
  settings.check_numbers(config)
  for stage in config.stages:
    create.check_kind(config, stage)
    effects.check_effects(config, stage)
  network = networks.create_network(config, "temporal", 7)
  assert network.example["flow"].shape == (1, 1, 10, 224, 224)
