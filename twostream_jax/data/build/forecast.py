"""How long a build will take and how large it gets, judged by some clips."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from twostream_jax.data.build.plan import Outcome, Source

# Clips that a forecast is made from, for each worker.
_SAMPLE = 4


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What is left of a build, judged by a sample of its clips.

  Attributes:
    sample: number of clips in the sample.
    clips: number of clips that are left.
    seconds: that they will take.
    size: of the whole dataset, in bytes.
    disk_free: bytes.
  """

  sample: int
  clips: int
  seconds: float
  size: int
  disk_free: int


def sample_of(todo: Sequence[int], workers: int) -> list[int]:
  """Evenly spaced clips; none where a forecast would come too late."""
  size = _SAMPLE * workers
  if len(todo) < 4 * size:
    return []
  return [todo[(2 * i + 1) * len(todo) // (2 * size)] for i in range(size)]


def forecast(
  sources: Sequence[Source],
  seconds: Mapping[int, float],
  outcomes: Mapping[int, Outcome],
  todo: Sequence[int],
  workers: int,
  folder: Path,
) -> Forecast:
  """Forecasts the rest of a build.

  Args:
    sources: of all clips.
    seconds: that clips of this run took, by index.
    outcomes: of these clips at least.
    todo: the clips of this run.
    workers: processes that they are shared by.
    folder: of the build.
  """
  # Files differ in length: judge by their bytes, where clips are files.
  sizes = [
    source[0] if source and isinstance(source[0], int) else 0
    for source in sources
  ]
  weights = sizes if min(sizes) else [1] * len(sources)
  sampled = sum(weights[i] for i in seconds)
  rest = [i for i in todo if i not in seconds]
  per_weight = sum(outcomes[i].size for i in seconds) / sampled
  return Forecast(
    sample=len(seconds),
    clips=len(rest),
    seconds=sum(weights[i] for i in rest)
    * (sum(seconds.values()) / sampled)
    / workers,
    size=int(per_weight * sum(weights)),
    disk_free=shutil.disk_usage(folder).free,
  )
