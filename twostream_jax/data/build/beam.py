"""Clips finished by Apache Beam, on as many machines as its runner has.

The machines need the folders of videos and of the dataset under the same paths:
a file system that all of them see. What a build does to a clip, and where its
result goes, is the same as without Beam, and so is the dataset.

Only Create, Reshuffle and ParDo are used, because runners differ in the rest,
and an element carries all that is needed for it and no more, because a runner
may send the functions with every one of millions of tasks.

Apache Beam is an extra: pip install 'twostream-jax[beam]'.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

# An extra, which the environment that checks types may lack.
import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
  PipelineOptions,
)

from twostream_jax.data.build.build_errors import BuildError
from twostream_jax.data.build.check import Rejection
from twostream_jax.data.build.clip_task import (
  ClipTask,
  after_second_try,
  is_tried_again,
)
from twostream_jax.data.build.plan import software
from twostream_jax.data.build.staging import Staging
from twostream_jax.data.build.workers import (
  Lost,
  map_in_processes,
  without_current_folder,
)
from twostream_jax.data.datasets.clips import Clip, clip_exists


class MachineError(OSError):
  """A machine of the runner can't do its part; the clips are not to blame."""


def finish_with_beam(
  options: Sequence[str],
  task: ClipTask,
  staging: Staging,
  clips: Sequence[Clip],
  indices: Sequence[int],
) -> None:
  """Finishes clips and packs the shards they belong to.

  Args:
    options: of the runner, as on its command line: "--runner=DirectRunner" ...
    task: makes a clip finished.
    staging: the folder of the build.
    clips: of the dataset.
    indices: the clips to finish.

  Raises:
    BuildError: the pipeline failed. What is finished stays so.
  """
  # The caller's main module stays out of it: workers import what they need.
  pipeline_options = PipelineOptions(list(options), save_main_session=False)
  try:
    # Some runners start processes of Python on this machine.
    with without_current_folder():
      with beam.Pipeline(options=pipeline_options) as pipeline:
        _ = (
          pipeline
          | beam.Create([_item(index, clips[index]) for index in indices])
          # Otherwise a runner may give all of them to one worker.
          | beam.Reshuffle()
          | "finish clips" >> beam.ParDo(_Finish(task, software()))
        )
      # A pipeline of its own: a clip that a runner gives again after its shard
      # was packed would be begun again.
      with beam.Pipeline(options=pipeline_options) as pipeline:
        _ = (
          pipeline
          | beam.Create(list(staging.unpacked().items()))
          | beam.Reshuffle()
          | "pack shards" >> beam.MapTuple(_Pack(task))
        )
  except Exception as error:
    # Runners raise errors of their own; the last line has the words.
    lines = str(error).strip().splitlines() or [repr(error)]
    raise BuildError(
      f"the Beam pipeline stopped ({lines[-1][:500]}): mend the cause and run"
      " the same command again, which resumes the build"
    ) from error


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
  """Keeps the words of an error: Beam makes errors again, from one string."""
  try:
    yield
  except OSError as error:
    raise RuntimeError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Item:
  """A clip on its way to another machine.

  Attributes:
    index: of the clip.
    clip: with an absolute path, because a worker has a current folder of its
      own.
    exists: whether the machine that runs the build sees it.
  """

  index: int
  clip: Clip
  exists: bool


def _item(index: int, clip: Clip) -> _Item:
  there = dataclasses.replace(clip, path=clip.path.absolute())
  return _Item(index, there, clip_exists(clip))


class _Finish(beam.DoFn):
  """Finishes each clip in a process that crashes and hangs do not outlast."""

  def __init__(self, task: ClipTask, versions: dict[str, str]):
    self._task = task
    self._versions = versions

  def setup(self) -> None:
    self._waiting = collections.deque()
    self._results = map_in_processes(
      self._task,
      self._items(),
      1,
      self._task.start(),
      time_limit=self._task.time_limit,
    )
    # Last, because teardown is called after an error too.
    check_machine(self._task.store.folder, self._versions)

  def _items(self) -> Iterator[tuple[int, Clip]]:
    while True:
      yield self._waiting.popleft()

  def process(self, item: _Item) -> None:
    # A runner may give a clip again.
    if self._task.store.is_finished(item.index):
      return
    with _plain_errors():
      if item.exists and not clip_exists(item.clip):
        # Not rejected, or a folder that one machine lacks would empty the set.
        raise MachineError(
          f"{item.clip.path} is not on the worker {socket.gethostname()}, but"
          " on the machine that runs the build; mount the folder of --videos"
          " there, under the same path, and give the same command again"
        )
      result = self._run(item)
      if is_tried_again(result):
        result = after_second_try(self._task, item.clip, self._run(item))
      self._task.conclude(item.index, item.clip, result)

  def _run(self, item: _Item) -> float | Rejection | Lost:
    self._waiting.append((item.index, item.clip))
    _, result = next(self._results)
    return result

  def teardown(self) -> None:
    self._results.close()


class _Pack:
  """Packs a shard when all of its clips are finished."""

  def __init__(self, task: ClipTask):
    self._store = task.store

  def __call__(self, shard: int, indices: Sequence[int]) -> None:
    with _plain_errors():
      self._store.pack_if_finished(shard, indices)


def check_machine(out: Path, versions: dict[str, str]) -> None:
  """Raises MachineError where a worker's machine can't finish clips.

  Args:
    out: folder of the unfinished build.
    versions: of the software on the machine that runs the build.
  """
  name = socket.gethostname()
  if not out.is_dir():
    raise MachineError(
      f"{out} is not on the worker {name}; mount the folder of --out there,"
      " under the same path, and give the same command again"
    )
  here = software()
  if here != versions:
    differ = [
      f"{here[k]}, not {v}" for k, v in versions.items() if here[k] != v
    ]
    raise MachineError(
      f"the worker {name} has {'; '.join(differ)}: its clips would differ from"
      " those of other machines; install the same versions there"
    )
  if multiprocessing.current_process().daemon:
    raise MachineError(
      f"the worker {name} is a daemonic process, which can't start the process"
      " that decodes; start Dask's workers with --no-nanny"
    )
