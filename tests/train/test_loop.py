"""The training loop on one weight: stops, skips and choices by the number.

Each update moves the weight by the learning rate, so that the weight tells how
many updates were made; the validation loss is a table by that number.
"""

import functools
import json
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from configs import default
from twostream_jax import (
  checkpoints,
  interrupts,
  metric_logger,
  optim,
  parallel,
  train,
)
from twostream_jax.stages import create

TOTAL = 12
# Validation losses after so many steps. The best one, of step 8, is between
# two checkpoints that are due anyway, and so are those of 2 and 6.
LOSSES = {2: 5.0, 4: 7.0, 6: 4.0, 8: 1.0, 10: 3.0, 12: 2.0}


class OneWeight(nn.Module):
  """Logits [b 2] of x [b 1]: the weight times x, and zero."""

  @nn.compact
  def __call__(self, x, *, train):
    logit = x * self.param("weight", nn.initializers.zeros, (1, 1))
    return jnp.concatenate([logit, jnp.zeros_like(logit)], axis=1), {}


class Inputs:
  """Batches of ones; NaN in the steps that are named."""

  def __init__(self, bad):
    self._bad = bad

  def example(self):
    return {"x": np.ones((1, 1), np.float32)}

  def train_batches(self, split, *, batch_size, start, **_):
    for step in range(start + 1, TOTAL + 1):
      value = np.nan if step in self._bad else 1.0
      yield {
        "x": np.full((batch_size, 1), value, np.float32),
        "label": np.zeros(batch_size, np.int32),
        "mask": np.ones(batch_size, bool),
        "index": np.arange(batch_size, dtype=np.int32),
        "video_id": np.array([f"{step}-{i}" for i in range(batch_size)]),
      }


def make_stage(schedule, bad=()):
  tx = optim.create_optimizer(
    schedule,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    max_grad_norm=0.0,
  )
  return create.Stage(
    name="spatial",
    seed=0,
    batch_size=8,
    total_steps=TOTAL,
    num_classes=2,
    num_outputs=2,
    input_numbers={},
    model=OneWeight(),
    tx=tx,
    schedule=schedule,
    loss_fn=lambda logits, label: -logits[:, 0],
    preprocess=lambda batch: batch["x"],
    stop_frozen=lambda params: params,
    inputs=Inputs(bad),
    warm_start=lambda state: state,
    origins=dict,
    second_dataset=None,
    micro_batches=1,
    ema_decay=0.0,
    precision="float32",
  )


STAGE = make_stage(optax.constant_schedule(1.0))
compiled = functools.cache(
  lambda stage: make_step(types.SimpleNamespace(_stage=stage))
)
make_step = train._Trainer._pmap_step


class Run:
  """Trains a stage, again and again in one folder."""

  def __init__(self, folder, monkeypatch, stage=STAGE, **settings):
    self.folder = folder
    self.config = default.get_config()
    self.config.train.log_every = 1
    self.config.train.validate_every = 2
    self.config.train.checkpoint_every = 5
    self.config.selection.metric = "loss"
    self.config.update_from_flattened_dict(settings)
    self.stage = stage
    monkeypatch.setattr(train, "identity", lambda data: {})
    validate = self.validate if self.config.selection.metric else None
    monkeypatch.setattr(train._Trainer, "_validator", lambda _: validate)
    monkeypatch.setattr(
      train._Trainer, "_pmap_step", lambda trainer: compiled(trainer._stage)
    )

  def validate(self, variables):
    updates = round(float(parallel.unreplicate(weight(variables))[0, 0]))
    return {"loss": LOSSES[updates], "accuracy": 0.5}

  def train(self, stop_at=()):
    """The weight that is selected; None where it was asked to stop."""
    asked = iter(range(self.start() + 1, TOTAL + 1))
    data = types.SimpleNamespace(flow_spec=types.SimpleNamespace(bound=1.0))
    watch = train.Watch(lambda: next(asked) in stop_at)
    try:
      train.train_stage(self.stage, data, self.config, self.folder, None, watch)
    except interrupts.Interrupted:
      return None
    with checkpoints.open_reader(self.folder / "checkpoints") as reader:
      return float(weight(checkpoints.restore_variables(reader))[0, 0])

  def start(self):
    return max(self.kept(), default=0)

  def kept(self):
    with checkpoints.open_reader(self.folder / "checkpoints") as reader:
      return sorted(reader.all_steps())

  def records(self):
    return (self.folder / metric_logger.FILENAME).read_text()

  def learning_rates(self):
    return {
      record["step"]: record["learning_rate"]
      for record in map(json.loads, self.records().splitlines())
      if record["split"] == "train"
    }


def weight(variables):
  return variables["params"]["weight"]


def cosine(step):
  return 0.5 * (1.0 + jnp.cos(jnp.pi * step / TOTAL))


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_best_of_all_validations_is_kept_wherever_a_run_is_interrupted(
  tmp_path, monkeypatch, keep
):
  settings = {"train.keep_checkpoints": keep}
  whole = Run(tmp_path / "whole", monkeypatch, **settings)
  assert whole.train() == 8.0
  assert whole.kept() == ([8, 12] if keep == 1 else [8, 10, 12])
  # At a validation that is not the best, beside one, before the end; always.
  for stops in ((4,), (7, 9, 11)) if keep == 2 else (range(1, TOTAL),):
    other = Run(tmp_path / f"{stops}", monkeypatch, **settings)
    for stop in stops:
      assert other.train({stop}) is None and other.start() == stop
    assert other.train() == 8.0
    assert other.kept() == whole.kept(), stops
    assert other.records() == whole.records()
    # Finished: nothing is done again.
    assert other.train({*range(TOTAL)}) == 8.0


@pytest.mark.slow
def test_patience_counts_the_same_validations_after_interruptions(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(LOSSES, 8, 6.0)
  monkeypatch.setitem(LOSSES, 10, 6.0)
  settings = {"selection.patience": 2}
  whole = Run(tmp_path / "whole", monkeypatch, **settings)
  assert whole.train() == 6.0 and whole.start() == 10
  other = Run(tmp_path / "other", monkeypatch, **settings)
  for stop in (4, 7, 8, 9):
    assert other.train({stop}) is None
  assert other.train({10}) == 6.0
  assert (other.kept(), other.records()) == (whole.kept(), whole.records())


def test_a_skipped_step_moves_every_clock_but_not_the_weight(
  tmp_path, monkeypatch
):
  """What is logged is what was used, also after a window of skipped steps."""
  bad = {3, 4, 9}
  settings = {
    "train.max_skipped_steps": 3,
    "selection.metric": "",
  }
  run = Run(tmp_path / "run", monkeypatch, make_stage(cosine, bad), **settings)
  # Also from between two skipped steps.
  assert run.train({3}) is None and run.train({5}) is None
  expected = {step: float(cosine(step - 1)) for step in range(1, TOTAL + 1)}
  got = run.train()
  used = [rate for step, rate in expected.items() if step not in bad]
  assert got == pytest.approx(sum(used), rel=1e-5)
  logged = run.learning_rates()
  assert logged.keys() == expected.keys() - bad
  for step, rate in logged.items():
    assert rate == pytest.approx(expected[step], rel=1e-5)


def test_a_run_gives_up_by_the_number_of_skipped_steps_alone(
  tmp_path, monkeypatch
):
  settings = {
    "train.max_skipped_steps": 2,
    "train.log_every": 2,
    "train.checkpoint_every": 4,
    "selection.metric": "",
  }
  stage = make_stage(optax.constant_schedule(1.0), {3, 4, 7})
  run = Run(tmp_path / "run", monkeypatch, stage, **settings)
  match = r"step 7: .*7-0(?s:.*)3 steps of .*max_skipped_steps=2 allows no more"
  for _ in range(2):  # From the start, and from step 4.
    with pytest.raises(FloatingPointError, match=match):
      run.train()
    assert run.kept() == [4]
  run.config.train.max_skipped_steps = 3
  assert run.train() == TOTAL - 3
  # Steps 3 and 4 had nothing to record.
  assert list(run.learning_rates()) == [2, 6, 8, 10, 12]
