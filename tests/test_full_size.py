"""Every recipe's networks at full size take a real step and score a clip.

Minutes on a CPU, so left out by default:

  python -m pytest -m full_size
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.recipes import NUM_CLASSES, RECIPES, dataset_of, get_config
from tests.test_recipes import small_data, write_blank_features
from twostream_jax import parallel, steps
from twostream_jax.stages import create

CASES = [(name, stage) for name in RECIPES for stage in get_config(name).stages]


@pytest.mark.slow
@pytest.mark.full_size
@pytest.mark.parametrize("name, stage_name", CASES)
def test_a_stage_takes_a_real_step_and_scores(name, stage_name, tiny, tmp_path):
  config = get_config(name)
  classes = tuple(f"class {i}" for i in range(NUM_CLASSES[dataset_of(name)]))
  data = dataclasses.replace(small_data(name, tiny), class_names=classes)
  config.data.second_dir = ""
  for tower in ("spatial", "temporal"):
    config[tower].init.weights = ""
  if config[stage_name].kind == "features":
    shapes = dataclasses.replace(data, sources=tiny.sources)
    write_blank_features(config, stage_name, shapes, tmp_path)
  stage = create.create_stage(config, stage_name, data, tmp_path)
  batch = make_batch(stage, config, data)
  state = steps.create_train_state(
    jax.random.key(0, impl="rbg"),
    stage.model,
    stage.tx,
    stage.preprocess,
    stage.inputs.example(),
  )
  before = classifiers(state.params)
  step = jax.pmap(
    functools.partial(
      steps.train_step,
      model=stage.model,
      tx=stage.tx,
      preprocess=stage.preprocess,
      loss_fn=stage.loss_fn,
      stop_frozen=stage.stop_frozen,
      axis_name=parallel.AXIS,
    ),
    axis_name=parallel.AXIS,
    in_axes=(0, 0, None),
    devices=jax.devices()[:1],
    donate_argnums=(0,),
  )
  state = jax.tree.map(lambda x: x[None], state)
  sharded = {key: value[None] for key, value in batch.items()}
  # The second, for a warm-up begins at a learning rate of 0.
  for _ in range(2):
    state, metrics = step(state, sharded, jax.random.key(1))
  assert np.isfinite(metrics["loss"]).all()
  assert metrics["grad_norm"][0] > 0
  after = classifiers(jax.tree.map(lambda x: x[0], state.params))
  assert before
  for path, kernel in before.items():
    assert np.isfinite(after[path]).all()
    assert not np.array_equal(after[path], kernel), path
  check_scores(stage, state, batch, len(classes))


def classifiers(params):
  """The kernels of the last layers, which every recipe trains."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in leaves
  }
  return {path: x for path, x in named.items() if "logits/kernel" in path}


def make_batch(stage, config, data):
  """Two training clips, as the stage samples them."""
  batches = stage.inputs.train_batches(
    config.data.train_split,
    batch_size=min(2, stage.inputs.num_videos(config.data.train_split)),
    seed=0,
  )
  batch = dict(next(iter(batches)))
  batch.pop("video_id")
  if data.multi_label and batch["label"].ndim == 1:
    batch["label"] = np.zeros(
      (len(batch["label"]), len(data.class_names)), np.float32
    )
  return batch


def check_scores(stage, state, batch, num_classes):
  """A view of each clip gives a finite logit a class."""
  inputs = {
    k: v[:, None] for k, v in batch.items() if k not in ("label", "mask")
  }
  predict = jax.jit(
    functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=2,
      num_classes=num_classes,
    )
  )
  variables = jax.tree.map(lambda x: x[0], state.variables)
  logits = predict(variables, inputs)
  assert logits.shape == (len(batch["mask"]), num_classes)
  assert np.isfinite(logits).all()
