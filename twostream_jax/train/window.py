"""The steps since the last record: their sums, and where the time went."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from twostream_jax import parallel
from twostream_jax.files import words
from twostream_jax.stages.create import Stage


class Window:
  """Collects what a record of training metrics is made of.

  Attributes:
    sums: [loss, correct, count, gradient norm, rated] of each step since the
      last record, without steps that were skipped.
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
      max_skipped: Steps of the whole training that may be skipped, their loss
        or gradient not being finite. This alone decides when a run gives up.
      sums: of steps before.
    """
    self._stage = stage
    self._max_skipped = max_skipped
    # Checkpoints of earlier versions rated all examples.
    self.sums = [[*step, step[2]][:5] for step in sums]
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
      keys = ("loss", "correct", "count", "grad_norm", "rated")
      self.sums.append([found[key] for key in keys])
      return
    what = (
      f"stage {self._stage.name!r}, step {step}: the loss or a gradient is not"
      f" finite (loss {found['loss']:g}, gradient norm"
      f" {found['grad_norm']:g}) on the batch of {', '.join(ids.tolist())}"
    )
    if found["skipped"] > self._max_skipped:
      raise FloatingPointError(
        f"{what}\n{_number(found['skipped'])} of this stage had no update, and"
        f" config.train.max_skipped_steps={self._max_skipped} allows no more."
        f" Lower config.{self._stage.name}.optim.learning_rate, set"
        " max_grad_norm, look at these videos, or allow more"
      )
    tqdm.tqdm.write(
      f"Skipped: {words.lines(what)}; {_number(found['skipped'])} of at most"
      f" {self._max_skipped}"
    )

  def compute_and_reset(
    self,
  ) -> tuple[dict[str, float] | None, dict[str, float]]:
    """The record and the timing of the steps since the last one.

    Returns:
      The record, None if all steps were skipped, and the timing.

    Raises:
      FloatingPointError: as `settle`.
    """
    assert self._pending is not None
    step = self._pending[0]
    self.settle()
    record = self._record(step) if self.sums else None
    elapsed = time.perf_counter() - self._began
    timing = {
      "step_seconds": elapsed / self._steps,
      "clips_per_second": self._clips / elapsed,
      "data_wait": self._waited / elapsed,
    }
    self.sums = []
    self._begin()
    return record, timing

  def _record(self, step: int) -> dict[str, float]:
    loss, correct, count, grad_norm, rated = np.sum(self.sums, axis=0).tolist()
    return {
      "loss": loss / count,
      # None where no clip has a class to be right about.
      **({"accuracy": correct / rated} if rated else {}),
      # The optimiser takes it at the same place: see `steps.TrainState.step`.
      "learning_rate": float(np.asarray(self._stage.schedule(step - 1))),
      "grad_norm": grad_norm / len(self.sums),
    }


def _number(skipped: int) -> str:
  return f"{skipped} step{'s' * (skipped != 1)}"
