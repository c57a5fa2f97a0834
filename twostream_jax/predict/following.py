"""A window that slides over a video of any length, in one pass."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from twostream_jax import scores
from twostream_jax.predict.predictor import Predictor
from twostream_jax.predict.reading import Coded, record_of


class Seen(NamedTuple):
  """A window as it was scored.

  Attributes:
    first: number of its first frame, from 0.
    frames: that it shows, coded.
    probabilities: float64 [n].
  """

  first: int
  frames: list[Coded]
  probabilities: np.ndarray

  @property
  def centre(self) -> float:
    """Its middle, in frames."""
    return self.first + len(self.frames) / 2


@dataclasses.dataclass(frozen=True)
class Window:
  """How a window slides.

  Attributes:
    length: frames that it shows.
    stride: frames from one to the next, at most the length.
  """

  length: int
  stride: int

  def __post_init__(self):
    if not 1 <= self.stride <= self.length:
      raise ValueError(
        f"a window of {self.length} frames can't move by {self.stride}:"
        " --stride must be above 0 and no longer than --window"
      )

  @classmethod
  def of_seconds(cls, length: float, stride: float, fps: float) -> "Window":
    """Of lengths in seconds, in whole frames, at least one."""
    return cls(max(1, round(length * fps)), max(1, round(stride * fps)))


def slide(
  frames: Iterable[Coded], window: Window
) -> Iterator[tuple[int, list[Coded]]]:
  """Windows of a video: number of the first frame, and the frames.

  A last one ends with the video where the others leave a rest. A video that is
  shorter than a window is one window. Memory holds one window.
  """
  ring = collections.deque(maxlen=window.length)
  count = end = 0
  for frame in frames:
    ring.append(frame)
    count += 1
    first = count - window.length
    if first >= 0 and first % window.stride == 0:
      end = count
      yield first, list(ring)
  if count > end:
    yield max(0, count - window.length), list(ring)


def follow(
  predictor: Predictor,
  frames: Iterable[Coded],
  window: Window,
  *,
  by: str,
  fps: float,
) -> Iterator[Seen]:
  """Scores every window of a video.

  A window is seen as a video of its own, by the views of the run's protocol.

  Args:
    predictor: of the run.
    frames: of the video, in order.
    window: how it slides.
    by: the stage or fusion rule whose probabilities are wanted.
    fps: frames a second.

  Raises:
    VideoError: the video is too short.
    PredictionError: a window can't be scored.
  """
  for first, shown in slide(frames, window):
    record = record_of(shown, predictor.run.flow_spec, fps)
    streams = predictor.score("window", record)
    if by in predictor.run.rules:
      fused = predictor.run.rules[by](streams)
    else:
      fused = streams[by]
    yield Seen(first, shown, scores.probabilities(fused)[0])
