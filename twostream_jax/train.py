"""The one training loop: every stage of every recipe runs through it."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from twostream_jax import (
  checkpoints,
  evaluate,
  logging,
  metrics,
  parallel,
  steps,
)
from twostream_jax.data.dataset import VideoDataset, identity
from twostream_jax.stages import Stage


def is_due(step: int, every: int, total: int) -> bool:
  """Whether something done every so many steps is due after `step`.

  Steps are counted from 1; the last step is always due.
  """
  return step % every == 0 or step == total


class Validator:
  """Scores a split while training: one centre view a video."""

  def __init__(self, stage, split, predict, batch_size):
    """Binds what stays the same over training."""
    self._num_videos = stage.inputs.num_videos(split)
    self._predict = predict
    self._protocol = stage.inputs.protocol(quick=True)
    self._batches = stage.inputs.eval_batches(
      split, batch_size=batch_size, quick=True
    )

  def __call__(self, variables) -> dict[str, float]:
    """Loss in nats and metrics of replicated variables."""
    result = evaluate.evaluate(
      self._predict,
      variables,
      self._batches,
      num_videos=self._num_videos,
      protocol=self._protocol,
    )
    return metrics.validation_metrics(result.logits, result.labels)


def train_stage(
  stage: Stage,
  data: VideoDataset,
  config: ml_collections.ConfigDict,
  directory: Path,
  predict: Callable[..., Any],
) -> Any:
  """Trains a stage to its last step, from its newest checkpoint if any.

  Args:
    stage: what to train.
    data: the dataset.
    config: of the run; `train`, `eval` and `data` are read.
    directory: `workdir/<stage>`.
    predict: the stage's pmapped predict step, for validation.

  Returns:
    model variables of one replica.

  Raises:
    FloatingPointError: the loss is not finite; names stage and step.
    CheckpointError: the checkpoint is of another model.
  """
  with checkpoints.open_manager(
    directory / "checkpoints", keep=config.train.keep_checkpoints
  ) as manager:
    start = manager.latest_step() or 0
    if start >= stage.total_steps:
      template = jax.eval_shape(stage.init_state)
      return checkpoints.restore(manager, template, None).variables
    batches = iter(
      stage.inputs.train_batches(
        config.data.train_split, batch_size=stage.batch_size, seed=stage.seed
      )
    )
    if start:
      template = jax.eval_shape(stage.init_state)
      state = checkpoints.restore(manager, template, batches)
    else:
      state = stage.warm_start(stage.init_state())
    validate = None
    if config.data.validation_split:
      validate = Validator(
        stage,
        config.data.validation_split,
        predict,
        config.eval.batch_size,
      )
    logger = logging.MetricsLogger(directory, resume_step=start)
    save = functools.partial(checkpoints.save, manager, metadata=identity(data))
    try:
      state = _loop(
        stage, state, batches, start, config.train, validate, logger, save
      )
    finally:
      logger.close()
    manager.wait_until_finished()
    return parallel.unreplicate(state).variables


def _loop(stage, state, batches, start, cadence, validate, logger, save):
  """Steps `start + 1` to the last; returns the replicated state."""
  train_step = parallel.pmap_train_step(
    functools.partial(
      steps.train_step,
      model=stage.model,
      tx=stage.tx,
      preprocess=stage.preprocess,
      loss_fn=stage.loss_fn,
      stop_frozen=stage.stop_frozen,
    )
  )
  rng = jax.random.fold_in(jax.random.key(stage.seed), 1)
  state = parallel.replicate(state)
  total = stage.total_steps
  window = _Window(stage)
  bar = tqdm.tqdm(
    total=total, initial=start, desc=stage.name, unit="step", leave=False
  )
  with bar:
    for step in range(start + 1, total + 1):
      batch = window.wait_for(batches)
      state, sums = train_step(state, parallel.shard(batch), rng)
      window.add(step, sums)
      bar.update()
      if is_due(step, cadence.log_every, total):
        record = window.compute_and_reset()
        logger.write(step, "train", record)
        bar.set_postfix(
          loss=f"{record['loss']:.3f}", accuracy=f"{record['accuracy']:.3f}"
        )
      if validate and is_due(step, cadence.validate_every, total):
        logger.write(step, "validation", validate(state.variables))
      if is_due(step, cadence.checkpoint_every, total):
        save(step, parallel.unreplicate(state), batches)
  return state


class _Window:
  """Sums of the steps since the last record, and where the time went."""

  def __init__(self, stage: Stage):
    self._stage = stage
    self._reset()

  def _reset(self):
    self._sums = []
    self._step = 0
    self._waited = 0.0
    self._began = time.perf_counter()

  def wait_for(self, batches) -> dict[str, np.ndarray]:
    began = time.perf_counter()
    batch = dict(next(batches))
    batch.pop("video_id")
    self._waited += time.perf_counter() - began
    return batch

  def add(self, step: int, sums) -> None:
    # Waiting for the step before this one keeps one step queued, no more.
    if self._sums:
      jax.block_until_ready(self._sums[-1])
    self._sums.append(sums)
    self._step = step

  def compute_and_reset(self) -> dict[str, float]:
    sums = parallel.unreplicate(self._sums)
    loss, correct, count = (
      float(np.sum([s[key] for s in sums]))
      for key in ("loss", "correct", "count")
    )
    if not np.isfinite(loss):
      raise FloatingPointError(
        f"stage {self._stage.name!r}: the loss is not finite within the"
        f" {len(sums)} steps up to {self._step}; lower"
        f" config.{self._stage.name}.optim.learning_rate or set max_grad_norm"
      )
    elapsed = time.perf_counter() - self._began
    record = {
      "loss": loss / count,
      "accuracy": correct / count,
      "learning_rate": float(self._stage.schedule(self._step - 1)),
      "grad_norm": float(np.mean([s["grad_norm"] for s in sums])),
      "clips_per_second": count / elapsed,
      "data_wait": self._waited / elapsed,
    }
    self._reset()
    return record
