"""Clips finished by Apache Beam, on as many machines as its runner has.

The machines need the folders of videos and of the dataset under the same paths:
a file system that all of them see. What a build does to a clip, and where its
result goes, is the same as without Beam, and so is the dataset.

Apache Beam is an extra: pip install 'twostream-jax[beam]'.
"""

import collections
import contextlib
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from twostream_jax.data.build_errors import BuildError
from twostream_jax.data.check import Rejection
from twostream_jax.data.clip_task import (
  ClipTask,
  after_second_try,
  is_tried_again,
)
from twostream_jax.data.clips import Clip
from twostream_jax.data.staging import Staging
from twostream_jax.data.workers import Lost, map_in_processes


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
    with beam.Pipeline(options=pipeline_options) as pipeline:
      _ = (
        pipeline
        | beam.Create([(index, clips[index]) for index in indices])
        # Otherwise a runner may give all of them to one worker.
        | beam.Reshuffle()
        | "finish clips" >> beam.ParDo(_Finish(task))
        | beam.WithKeys(staging.shard_of)
        | beam.GroupByKey()
        | "pack shards" >> beam.MapTuple(_Pack(staging))
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


class _Finish(beam.DoFn):
  """Finishes each clip in a process that crashes and hangs do not outlast."""

  def __init__(self, task: ClipTask):
    self._task = task

  def setup(self) -> None:
    self._waiting = collections.deque()
    self._results = map_in_processes(
      self._task,
      self._items(),
      1,
      self._task.start(),
      time_limit=self._task.time_limit,
    )

  def _items(self) -> Iterator[tuple[int, Clip]]:
    while True:
      yield self._waiting.popleft()

  def process(self, item: tuple[int, Clip]) -> Iterator[int]:
    index, clip = item
    # A runner may give a clip again.
    if not self._task.store.is_finished(index):
      with _plain_errors():
        result = self._run(item)
        if is_tried_again(result):
          result = after_second_try(self._task, clip, self._run(item))
        self._task.conclude(index, clip, result)
    yield index

  def _run(self, item: tuple[int, Clip]) -> float | Rejection | Lost:
    self._waiting.append(item)
    _, result = next(self._results)
    return result

  def teardown(self) -> None:
    self._results.close()


class _Pack:
  """Packs a shard when all of its clips were tried."""

  def __init__(self, staging: Staging):
    self._staging = staging

  def __call__(self, shard: int, tried: Iterable[int]) -> None:
    with _plain_errors():
      self._staging.pack_if_finished(shard)
