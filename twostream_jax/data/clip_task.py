"""What a build does to each clip, in processes of this or another machine."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from twostream_jax.data.check import Rejection, lost_rejection, start_worker
from twostream_jax.data.clips import Clip
from twostream_jax.data.dataset import Record
from twostream_jax.data.staging import Store
from twostream_jax.data.workers import Lost, map_in_processes
from twostream_jax.flow import prepare_process
from twostream_jax.flow.spec import FlowSpec

Process = Callable[[Clip, FlowSpec, int], Record | Rejection]


@dataclasses.dataclass(frozen=True)
class ClipTask:
  """Makes clips finished; can be sent to another process or machine.

  Attributes:
    process: a clip to its record; a function at the top level of a module.
    flow_spec: passed to it.
    rgb_quality: passed to it.
    store: where results are written.
    time_limit: seconds that a clip may take.
  """

  process: Process
  flow_spec: FlowSpec
  rgb_quality: int
  store: Store
  time_limit: float

  def __call__(self, item: tuple[int, Clip]) -> float:
    """Finishes a clip, given with its index; returns the seconds it took."""
    start = time.monotonic()
    index, clip = item
    result = self.process(clip, self.flow_spec, self.rgb_quality)
    self.store.write(index, clip, result)
    return time.monotonic() - start

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
) -> Iterator[tuple[int, float]]:
  """Finishes clips in processes of this machine.

  A clip that ends its process is tried once more, alone, when the others are
  done: memory may have been short. A clip that takes longer than it may, or
  ends its process again, is rejected.

  Yields:
    Index and seconds of each clip, in the order they are finished.
  """
  again = []
  for index, result in _map(task, clips, indices, num_workers):
    if result == Lost("crashed"):
      again.append(index)
    else:
      yield index, finish_lost(task, index, clips[index], result)
  for index, result in _map(task, clips, again, 1):
    yield index, finish_lost(task, index, clips[index], result)


def finish_lost(
  task: ClipTask, index: int, clip: Clip, result: float | Lost
) -> float:
  """Rejects a clip if it was lost; returns the seconds it took."""
  if not isinstance(result, Lost):
    return result
  rejection = lost_rejection(result, task.time_limit)
  task.store.write(index, clip, rejection)
  return task.time_limit


def _map(
  task: ClipTask,
  clips: Sequence[Clip],
  indices: Sequence[int],
  num_workers: int,
) -> Iterator[tuple[int, float | Lost]]:
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
