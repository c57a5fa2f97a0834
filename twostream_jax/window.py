"""The steps since the last record: their sums, and where the time went."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from twostream_jax import parallel, words
from twostream_jax.stages import Stage


class Window:
  """Collects what a record of training metrics is made of.

  Attributes:
    sums: [loss, correct, count, gradient norm] of each step since the last
      record, without steps that were skipped.
  """

  def __init__(
    self,
    stage: Stage,
    *,
    max_skipped: int,
    sums: Sequence[Sequence[float]] = (),
  ):
    """Begins empty, or with the sums that a checkpoint holds.

    Args:
      stage: what is trained.
      max_skipped: steps of the whole training whose loss or gradient may be
        not finite.
      sums: of steps before.
    """
    self._stage = stage
    self._max_skipped = max_skipped
    self.sums = [list(step) for step in sums]
    self._pending = None
    self._begin()

  def _begin(self) -> None:
    self._clips = 0.0
    self._steps = 0
    self._waited = 0.0
    self._began = time.perf_counter()

  def wait_for(self, ready: Iterator[Any]) -> Any:
    """The next batch; the time until it is there counts as waiting."""
    began = time.perf_counter()
    batch = next(ready)
    self._waited += time.perf_counter() - began
    return batch

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """What is done inside does not count as time of training."""
    self.settle()
    began = time.perf_counter()
    yield
    self._began += time.perf_counter() - began

  def add(self, step: int, ids: np.ndarray, sums: Any) -> None:
    """Takes the sums of a step, which may still be computed."""
    # Waiting for the step before this one keeps one step queued, no more.
    self.settle()
    self._pending = (step, ids, sums)

  def settle(self) -> None:
    """Waits for the last step.

    Raises:
      FloatingPointError: it was not finite, and one too many.
    """
    if self._pending is None:
      return
    step, ids, sums = self._pending
    self._pending = None
    found = {k: v.item() for k, v in parallel.unreplicate(sums).items()}
    self._clips += found["count"]
    self._steps += 1
    if found["finite"]:
      keys = ("loss", "correct", "count", "grad_norm")
      self.sums.append([found[key] for key in keys])
      return
    what = (
      f"stage {self._stage.name!r}, step {step}: the loss or a gradient is not"
      f" finite (loss {found['loss']:g}, gradient norm"
      f" {found['grad_norm']:g}) on the batch of {', '.join(ids.tolist())}"
    )
    if found["skipped"] > self._max_skipped:
      raise FloatingPointError(
        f"{what}\nLower config.{self._stage.name}.optim.learning_rate, set"
        " max_grad_norm, look at these videos, or let config.train."
        f"max_skipped_steps={self._max_skipped} skip more such steps"
      )
    tqdm.tqdm.write(f"Skipped: {words.lines(what)}")

  def compute_and_reset(self) -> tuple[dict[str, float], dict[str, float]]:
    """The record and the timing of the steps since the last one.

    Raises:
      FloatingPointError: as `settle`, or all steps were skipped.
    """
    step = self._pending[0]
    self.settle()
    if not self.sums:
      raise FloatingPointError(
        f"stage {self._stage.name!r}: no step was finite since the last record,"
        f" up to step {step}"
      )
    loss, correct, count, grad_norm = np.sum(self.sums, axis=0).tolist()
    record = {
      "loss": loss / count,
      "accuracy": correct / count,
      "learning_rate": float(self._stage.schedule(step - 1)),
      "grad_norm": grad_norm / len(self.sums),
    }
    elapsed = time.perf_counter() - self._began
    timing = {
      "step_seconds": elapsed / self._steps,
      "clips_per_second": self._clips / elapsed,
      "data_wait": self._waited / elapsed,
    }
    self.sums = []
    self._begin()
    return record, timing
