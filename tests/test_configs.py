"""Every config of the project works, and is complete."""

import functools
import importlib
import re
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from configs import default, ssv2_two_stream
from twostream_jax import parallel, run, stages, steps
from twostream_jax.data.features import FeatureError

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
  path.stem
  for path in (ROOT / "configs").glob("*.py")
  if not path.stem.startswith("_")
)


def get_config(name):
  return importlib.import_module(f"configs.{name}").get_config()


def for_tests(config):
  """The same recipe on few, small samples."""
  for name in config.stages:
    stage = config[name]
    stage.batch_size = 8
    stage.total_steps = 2
    if stage.kind != "features":
      stage.model.width = 0.02
      stage.input.image_size = 64
      stage.init.weights = ""
    stage.optim.schedule = "cosine"
    stage.optim.boundaries = ()
    stage.optim.warmup_steps = 0
  config.data.validation_split = ""
  config.fusion.rules = ("average",)
  config.fusion.fit_split = ""
  config.eval.num_clips = 2
  config.eval.batch_size = 8
  config.train.log_every = 1
  config.train.checkpoint_every = 2
  config.report.num_examples = 2
  return config


def test_the_recipes_are_there():
  assert {
    "default",
    "quickstart",
    "folder_two_stream",
    "ssv2_two_stream",
  } <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_locked_and_say_what_they_are(name):
  module = importlib.import_module(f"configs.{name}")
  assert module.__doc__
  config = module.get_config()
  with pytest.raises(AttributeError, match="sede"):
    config.sede = 1
  with pytest.raises(AttributeError, match="learning_rat"):
    config.temporal.optim.learning_rat = 0.1
  with pytest.raises(TypeError):
    config.temporal.total_steps = "many"


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_of_every_config_can_be_created(name, tiny, tmp_path):
  config = get_config(name)
  for stage_name in config.stages:
    if config[stage_name].kind == "features":
      stages.create_model(config, stage_name, 12)
      with pytest.raises(FeatureError, match="no features in"):
        stages.create_stage(config, stage_name, tiny, tmp_path)
      continue
    stage = stages.create_stage(config, stage_name, tiny, tmp_path)
    state = jax.eval_shape(stage.init_state)
    assert jax.tree.leaves(state.params)
    float(stage.schedule(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder_two_stream"])
def test_a_recipe_trains_evaluates_and_reports(name, tiny, tmp_path):
  outcome = run.train_and_evaluate(for_tests(get_config(name)), tmp_path, tiny)
  assert outcome["videos"] == 12
  assert (tmp_path / "report.html").exists()


def test_every_key_has_a_comment():
  """A line above it, or above the run of keys that it ends."""
  lines = (ROOT / "configs" / "default.py").read_text().splitlines()
  lines = [line.strip() for line in lines]

  def is_key(line):
    return (
      re.match(r"(stage|config)\.[a-z_.]+ = ", line)
      and "ConfigDict()" not in line
      and "get_stream" not in line
      and "get_optim" not in line
    )

  keys = [i for i, line in enumerate(lines) if is_key(line)]
  assert len(keys) > 40
  bare = [
    lines[i]
    for i in keys
    if not (lines[i - 1].startswith("#") or is_key(lines[i - 1]))
  ]
  assert not bare


def test_default_keys_are_those_of_the_streams():
  config = default.get_config()
  assert set(config.spatial.keys()) == set(config.temporal.keys())
  assert isinstance(config.spatial.model.fields, ml_collections.ConfigDict)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_ssv2_takes_a_real_step_at_full_size(name, tiny, tmp_path):
  """174 classes, 224 px, full width; only the batch is small (2)."""
  config = ssv2_two_stream.get_config()
  stage = stages.create_stage(config, name, tiny, tmp_path)
  backbone = stage.model.backbone.clone(num_classes=174)
  model = stage.model.clone(backbone=backbone)
  assert not stage.inputs.train.flip
  batches = stage.inputs.train_batches("train", batch_size=2, seed=0)
  batch = next(iter(batches))
  batch.pop("video_id")
  channels = {"spatial": ("rgb", 3), "temporal": ("flow", 20)}[name]
  assert batch[channels[0]].shape == (2, 1, 224, 224, channels[1])
  state = steps.create_train_state(
    jax.random.key(0, impl="rbg"), model, stage.tx, stage.preprocess, batch
  )
  # The published counts at 1000 classes and 3 channels, less 826 rows of the
  # head, and 17 more channels in the first 7 x 7 x 96 kernel.
  expected = {
    "spatial": 25_557_032 - 826 * (2048 + 1),
    "temporal": 92_469_864 - 826 * (2048 + 1) + 17 * 7 * 7 * 96,
  }[name]
  assert sum(x.size for x in jax.tree.leaves(state.params)) == expected
  step = jax.pmap(
    functools.partial(
      steps.train_step,
      model=model,
      tx=stage.tx,
      preprocess=stage.preprocess,
      loss_fn=stage.loss_fn,
      axis_name=parallel.AXIS,
    ),
    axis_name=parallel.AXIS,
    in_axes=(0, 0, None),
    devices=jax.devices()[:1],
    donate_argnums=(0,),
  )
  before = np.asarray(state.params["backbone"]["conv1"]["kernel"])
  one = {k: x[None] for k, x in batch.items()}
  state = jax.tree.map(lambda x: x[None], state)
  # The second, because the spatial warm-up begins at a learning rate of 0.
  seen = []
  for _ in range(2):
    state, metrics = step(state, one, jax.random.key(1))
    seen.append(float(metrics["loss"][0]) / 2)
  # An untrained head says nothing of 174 classes yet; dropping 9 of 10 units,
  # twice, makes what it says louder, by how much is up to the draw.
  assert 0.9 < seen[0] / np.log(174) < {"spatial": 1.1, "temporal": 4}[name]
  assert np.isfinite(seen).all()
  after = np.asarray(state.params["backbone"]["conv1"]["kernel"][0])
  assert np.isfinite(after).all() and (before != after).any()
