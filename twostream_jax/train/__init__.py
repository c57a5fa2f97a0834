"""The one training loop: every stage of every recipe runs through it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from twostream_jax import (
  checkpoints,
  evaluate,
  interrupts,
  metric_logger,
  metrics,
  parallel,
  steps,
)
from twostream_jax.data.dataset import VideoDataset, identity
from twostream_jax.data.loader.sampling import Share
from twostream_jax.files import words
from twostream_jax.selection import Selection
from twostream_jax.stages import warm_start
from twostream_jax.stages.create import Stage
from twostream_jax.train import samples
from twostream_jax.train.window import Window


def is_due(step: int, every: int, total: int) -> bool:
  """Whether something done every so many steps is due after `step`.

  Steps are counted from 1; the last step is always due.
  """
  return step % every == 0 or step == total


@dataclasses.dataclass(frozen=True)
class Watch:
  """How a run is watched; nothing that it computes depends on it.

  Attributes:
    should_stop: whether the run was asked to end; asked again and again.
    profile_steps: steps of each stage that a profiler trace shows; 0 is none.
  """

  should_stop: Callable[[], bool] = interrupts.never
  profile_steps: int = 0


class Validator:
  """Scores a split while training: one centre view a video."""

  def __init__(self, stage, split, predict, views_per_pass):
    """Binds what stays the same over training."""
    self._predict = predict
    self._protocol = stage.inputs.protocol(quick=True)
    self._rows = stage.inputs.eval_rows(
      split, quick=True, **eval_part(views_per_pass)
    )

  def __call__(self, variables) -> dict[str, float]:
    """Loss in nats and metrics of replicated variables."""
    result = evaluate.evaluate(
      self._predict, variables, self._rows, protocol=self._protocol
    )
    return metrics.validation_metrics(result.logits, result.labels)


def share() -> Share:
  """The part of every batch that this process reads."""
  return Share(jax.process_index(), jax.process_count())


def eval_part(views_per_pass: int) -> dict[str, Any]:
  """What this process evaluates: see `eval_pipeline.eval_rows`."""
  return {
    "views_per_pass": views_per_pass,
    "replicas": parallel.num_replicas(),
    "share": share(),
  }


def train_stage(
  stage: Stage,
  data: VideoDataset,
  config: ml_collections.ConfigDict,
  directory: Path,
  predict: Callable[..., Any],
  watch: Watch = Watch(),  # noqa: B008, it is frozen
) -> None:
  """Trains a stage to its last step, from its newest checkpoint if any.

  Args:
    stage: what to train.
    data: the dataset.
    config: of the run; `train`, `selection`, `eval` and `data` are read.
    directory: `workdir/<stage>`.
    predict: the stage's pmapped predict step, for validation.
    watch: how the run is watched.

  Raises:
    FloatingPointError: the loss or a gradient is not finite; names stage, step
      and videos.
    CheckpointError: the checkpoint is of another model, or can't be written.
    Interrupted: the run was asked to end; the state is saved.
  """
  with checkpoints.open_manager(
    directory / "checkpoints", keep=config.train.keep_checkpoints
  ) as manager:
    found = checkpoints.restore_newest(manager, stage.state_shapes())
    start = found.step if found else 0
    selection = Selection(
      config.selection.metric,
      config.selection.patience,
      metric_logger.read_metrics(directory),
      last_step=start,
    )
    if start < stage.total_steps and not selection.is_over():
      trainer = _Trainer(
        stage, data, config, directory, predict, watch, manager, selection
      )
      trainer.run(found)
      checkpoints.finish(manager)


class _Trainer:
  """One training of one stage: the loop, and what happens beside it."""

  def __init__(
    self, stage, data, config, directory, predict, watch, manager, selection
  ):
    self._stage = stage
    self._config = config
    self._directory = directory
    self._predict = predict
    self._watch = watch
    self._manager = manager
    self._selection = selection
    self._rng = jax.random.fold_in(jax.random.key(stage.seed), 1)
    facts = {"config": config.to_dict()} | stage.facts()
    self._metadata = identity(data) | facts
    self._flow_bound = data.flow_spec.bound

  def run(self, found: checkpoints.Restored | None) -> steps.TrainState:
    """Trains from `found` to the end; returns the final state of a replica."""
    start = found.step if found else 0
    stage = self._stage
    if found:
      state = found.state
    else:
      state = stage.warm_start(stage.init_state())
    self._metadata |= _origins(stage, found)
    if parallel.is_primary():
      tqdm.tqdm.write(words.lines(stage.describe(state)))
    batches = stage.inputs.train_batches(
      self._config.data.train_split,
      batch_size=stage.batch_size,
      seed=stage.seed,
      start=start,
      share=share(),
      micro_batches=stage.micro_batches,
    )
    window = Window(
      stage,
      max_skipped=self._config.train.max_skipped_steps,
      sums=found.progress["window"] if found else [],
    )
    logger = (
      metric_logger.MetricsLogger(self._directory, resume_step=start)
      if parallel.is_primary()
      else metric_logger.NoLogger()
    )
    bar = tqdm.tqdm(
      total=stage.total_steps,
      initial=start,
      desc=stage.name,
      unit="step",
      leave=False,
      disable=not parallel.is_primary(),
    )
    try:
      with (
        bar,
        parallel.prefetch(batches, micro_batches=stage.micro_batches) as ready,
      ):
        state = self._loop(state, start, ready, window, logger, bar)
    finally:
      logger.close()
    return parallel.unreplicate(state)

  def _loop(
    self, state, start, ready: Iterator[Any], window, logger, bar
  ) -> steps.TrainState:
    """Steps `start + 1` to the last; returns the replicated state."""
    cadence, total = self._config.train, self._stage.total_steps
    train_step = self._pmap_step()
    validate = self._validator()
    profile = _Profile(self._directory, start, self._watch.profile_steps)
    state = parallel.replicate(state)
    for step in range(start + 1, total + 1):
      ids, batch = window.wait_for(ready)
      if step == 1:
        self._show_inputs(batch, logger)
      profile.before(step)
      state, sums = train_step(state, batch, self._rng)
      window.add(step, ids, sums)
      profile.after(step, sums)
      bar.update()
      if is_due(step, cadence.log_every, total):
        record, timing = window.compute_and_reset()
        if record:
          logger.write(step, "train", record)
          bar.set_postfix_str(_postfix(record, timing))
        logger.write_timing(step, timing)
      score = None
      if validate and is_due(step, cadence.validate_every, total):
        with window.pause():
          record = validate(state.variables)
        logger.write(step, "validation", record)
        score = self._selection.add(step, record)
      stopped = self._is_asked_to_stop(step)
      over = step == total or self._selection.is_over()
      # Whatever is the best so far is saved, whenever it is validated.
      scheduled = (
        over or score is not None or step % cadence.checkpoint_every == 0
      )
      if scheduled or stopped:
        with window.pause():
          self._save(step, state, window, score, scheduled)
      if over:
        break
      if stopped:
        checkpoints.finish(self._manager)
        raise interrupts.Interrupted(
          f"stage {self._stage.name!r} is saved after step {step} of {total}"
        )
    profile.end()
    return state

  def _pmap_step(self) -> Callable[..., Any]:
    stage = self._stage
    return parallel.pmap_train_step(
      functools.partial(
        steps.train_step,
        model=stage.model,
        tx=stage.tx,
        preprocess=stage.preprocess,
        loss_fn=stage.loss_fn,
        stop_frozen=stage.stop_frozen,
        micro_batches=stage.micro_batches,
        ema_decay=stage.ema_decay,
        num_classes=stage.num_classes,
      )
    )

  def _validator(self) -> Validator | None:
    split = self._config.data.validation_split
    if not split:
      return None
    views_per_pass = self._config.eval.views_per_pass
    return Validator(self._stage, split, self._predict, views_per_pass)

  def _show_inputs(self, batch, logger) -> None:
    images = samples.draw(
      jax.tree.map(np.asarray, batch), flow_bound=self._flow_bound
    )
    for name, image in images.items():
      logger.write_image(0, f"input/{name}", image)

  def _is_asked_to_stop(self, step: int) -> bool:
    asked = self._watch.should_stop()
    if jax.process_count() == 1:
      return asked
    # All have to end after the same step, and to ask costs a message.
    total = self._stage.total_steps
    if not is_due(step, self._config.train.log_every, total):
      return False
    return parallel.any_process(asked)

  def _save(self, step, state, window, score, scheduled) -> None:
    window.settle()
    checkpoints.save(
      self._manager,
      step,
      parallel.unreplicate(state),
      progress={
        "next_batch": step,
        "rng": jax.random.key_data(self._rng).tolist(),
        "window": window.sums,
      },
      metadata=self._metadata,
      score=score,
      scheduled=scheduled,
    )


def _origins(
  stage: Stage, found: checkpoints.Restored | None
) -> dict[str, Any]:
  """What a stage began with, for its checkpoints; see `warm_start.origins`.

  It is inherited from the checkpoint that is resumed: what lies there by now
  may be something else. Those of earlier versions do not say it.
  """
  if found is None:
    return {warm_start.ORIGINS: stage.origins()}
  return {k: v for k, v in found.metadata.items() if k == warm_start.ORIGINS}


def _postfix(record, timing) -> str:
  accuracy = record.get("accuracy", math.nan)
  return (
    f"loss={record['loss']:.3f}, accuracy={accuracy:.3f},"
    f" {timing['clips_per_second']:.1f} clips/s,"
    f" {timing['data_wait']:.0%} waiting for data"
  )


class _Profile:
  """A profiler trace of some steps, after those that compile."""

  _FIRST = 3

  def __init__(self, directory: Path, start: int, count: int):
    self._directory = directory / "profile"
    self._steps = range(start + self._FIRST, start + self._FIRST + count)
    self._on = False

  def before(self, step: int) -> None:
    """To be called before a step."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(str(self._directory))
      self._on = True

  def after(self, step: int, result: Any) -> None:
    """To be called after a step with anything that it computes."""
    if self._on and step == self._steps[-1]:
      jax.block_until_ready(result)
      self.end()

  def end(self) -> None:
    """Ends the trace, if it is on."""
    if self._on:
      jax.profiler.stop_trace()
      self._on = False
