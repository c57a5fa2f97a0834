"""What a build does to each clip, in processes of this or another machine."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from twostream_jax.data.build.check import (
  Rejection,
  lost_rejection,
  start_worker,
)
from twostream_jax.data.build.store import Store
from twostream_jax.data.build.workers import Lost, map_in_processes
from twostream_jax.data.dataset import Record
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.data.video.faults import OUT_OF_MEMORY, read_fault
from twostream_jax.flow import prepare_process
from twostream_jax.flow.spec import FlowSpec

Process = Callable[[Clip, FlowSpec, int], Record | Rejection]
# Second tries in a row that fail because of the machine, before the others are
# left to the next run: its network folder or memory is not back.
_FAILURES = 10


@dataclasses.dataclass(frozen=True)
class ClipTask:
  """Makes clips finished; can be sent to another process or machine.

  Attributes:
    process: a clip to its record; a function at the top level of a module.
    flow_spec: passed to it.
    rgb_quality: passed to it.
    store: where results are written.
    time_limit: seconds that a clip may take.
    allow_failed: whether clips that fail because of the machine are rejected
      in the end. Otherwise they stay unfinished.
  """

  process: Process
  flow_spec: FlowSpec
  rgb_quality: int
  store: Store
  time_limit: float
  allow_failed: bool = False

  def __call__(self, item: tuple[int, Clip]) -> float | Rejection:
    """Finishes a clip, given with its index.

    Returns:
      Seconds it took; a rejection, which is not written, where the machine is
      to blame.

    Raises:
      OSError: its result can't be written.
    """
    start = time.monotonic()
    index, clip = item
    result = self.process(clip, self.flow_spec, self.rgb_quality)
    if isinstance(result, Rejection) and result.transient:
      return result
    try:
      self.store.write(index, clip, result)
    except MemoryError:
      return Rejection(OUT_OF_MEMORY, transient=True)
    return time.monotonic() - start

  def conclude(
    self, index: int, clip: Clip, result: float | Rejection | Lost
  ) -> float | None:
    """Writes down how the last try of a clip ended.

    Returns:
      Seconds it took; None where it stays unfinished.
    """
    if isinstance(result, Lost):
      result = lost_rejection(result, self.time_limit)
    if not isinstance(result, Rejection):
      return result
    if result.transient and not self.allow_failed:
      self.store.write_fault(index, result.reason)
      return None
    self.store.write(index, clip, result)
    return self.time_limit

  def start(self) -> Callable[[], None]:
    """What prepares a process for the task."""
    cache = self.store.folder / "compiled"
    return functools.partial(_start_worker, self.flow_spec, cache)


def _start_worker(flow_spec: FlowSpec, cache: Path) -> None:
  start_worker()
  prepare_process(flow_spec, cache)


def finish_here(
  task: ClipTask,
  clips: Sequence[Clip],
  indices: Sequence[int],
  num_workers: int,
) -> Iterator[tuple[int, float | None]]:
  """Finishes clips in processes of this machine.

  A clip that ends its process or fails because of the machine is tried once
  more, alone, when the others are done: memory was perhaps short, a network
  folder away. A clip that ends its process again is rejected, and so is one
  that takes longer than it may. One that fails again because of the machine
  stays unfinished, for the next run.

  Yields:
    Index of each clip, in the order they are done, and the seconds it took;
    None where it stays unfinished.

  Raises:
    OSError: a result can't be written.
  """
  again = {}
  for index, result in _map(task, clips, indices, num_workers):
    if is_tried_again(result):
      again[index] = result
    else:
      yield index, task.conclude(index, clips[index], result)
  # First those that may be the file's fault: each has its second try.
  order = sorted(again, key=lambda index: again[index] != Lost("crashed"))
  failures = 0
  for index, result in _map(task, clips, order, 1):
    del again[index]
    result = after_second_try(task, clips[index], result)
    yield index, task.conclude(index, clips[index], result)
    passes = is_tried_again(result) and result != Lost("crashed")
    failures = failures + 1 if passes else 0
    if failures == _FAILURES:
      break
  for index, result in again.items():
    yield index, task.conclude(index, clips[index], result)


def is_tried_again(result: float | Rejection | Lost) -> bool:
  """Whether a clip with this result deserves a second try."""
  if isinstance(result, Lost):
    return result.reason != "timed out"
  return isinstance(result, Rejection)


def after_second_try(
  task: ClipTask, clip: Clip, result: float | Rejection | Lost
) -> float | Rejection | Lost:
  """Tells a decoder that hangs from a file that can't be read.

  Both wait without computing, and the file is to blame for one of them.
  """
  if result != Lost("stalled"):
    return result
  with contextlib.closing(
    map_in_processes(
      read_fault, [clip.path], 1, start_worker, time_limit=task.time_limit
    )
  ) as results:
    _, fault = next(results)
  return Lost("timed out") if fault is None else result


def _map(
  task: ClipTask,
  clips: Sequence[Clip],
  indices: Sequence[int],
  num_workers: int,
) -> Iterator[tuple[int, float | Rejection | Lost]]:
  items = [(index, clips[index]) for index in indices]
  if not items:
    return
  with contextlib.closing(
    map_in_processes(
      task, items, num_workers, task.start(), time_limit=task.time_limit
    )
  ) as results:
    for (index, _), result in results:
      yield index, result
