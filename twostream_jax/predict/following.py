"""A window that slides over a video of any length, in one pass."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from twostream_jax import scores
from twostream_jax.data.video.frame_times import ROUNDING
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

  def boundary_with(self, following: "Seen") -> float:
    """Middle of the frames that it shares with the next window.

    Returns:
      Number of a frame; 7.5 is the middle of frame 7. Where they share none,
      that of the next window's first frame.
    """
    return (following.first + self.first + len(self.frames)) / 2

  @property
  def end(self) -> float:
    """When its last frame ends, in seconds."""
    return self.frames[-1].time + self.frames[-1].duration

  def time_of(self, number: float) -> float:
    """When a frame of it begins, in seconds; 7.5 is the middle of frame 7."""
    frame = self.frames[int(number) - self.first]
    return frame.time + (number - int(number)) * frame.duration


@dataclasses.dataclass(frozen=True)
class Window:
  """How a window slides.

  Attributes:
    length: Seconds that it shows.
    stride: Seconds from one to the next, at most the length.
  """

  length: float
  stride: float

  def __post_init__(self):
    if not ROUNDING <= self.stride <= self.length < math.inf:
      raise ValueError(
        f"a window of {self.length:g} s can't move by {self.stride:g} s:"
        " --stride must be at least 0.001 and no longer than --window"
      )


def slide(
  frames: Iterable[Coded], window: Window, least: int
) -> Iterator[tuple[int, list[Coded]]]:
  """Windows of a video: number of the first frame, and the frames.

  Window k shows the frames from k strides on, and at least `least` of them:
  where the video has fewer in that time, earlier ones too. One without a new
  frame, or before there are so many, is left out, so that every frame is shown
  in a window. A last one ends with the video where the others leave a rest. A
  video that is shorter than a window is one window. Memory holds one window.

  Args:
    frames: In order, with their times.
    window: How it slides.
    least: Frames that a window needs.
  """
  ring = collections.deque()
  start, count, covered = 0.0, 0, 0

  def shown_from(begin: float) -> tuple[int, list[Coded]]:
    inside = sum(frame.time >= begin - ROUNDING for frame in ring)
    some = list(ring)[-max(inside, least, count - covered) :]
    return count - len(some), some

  for frame in frames:
    while frame.time >= start + window.length - ROUNDING:
      if count > covered and count >= least:
        yield shown_from(start)
        covered = count
        start += window.stride
      else:  # Over a gap, or too little at the beginning.
        gap = frame.time - window.length - start + ROUNDING
        start += window.stride * (int(gap / window.stride) + 1)
    # Where the last window would begin if the video ended here.
    keep = min(start, frame.time + frame.duration - window.length)
    while (
      len(ring) > max(least - 1, count - covered)
      and ring[0].time < keep - ROUNDING
    ):
      ring.popleft()
    ring.append(frame)
    count += 1
  if count > covered:
    end = ring[-1].time + ring[-1].duration
    yield shown_from(min(start, end - window.length))


def follow(
  predictor: Predictor,
  frames: Iterable[Coded],
  window: Window,
  *,
  by: str,
) -> Iterator[Seen]:
  """Scores every window of a video.

  A window is seen as a video of its own, by the views of the run's protocol.

  Args:
    predictor: of the run.
    frames: of the video, in order.
    window: how it slides.
    by: the stage or fusion rule whose probabilities are wanted.

  Raises:
    VideoError: the video is too short.
    PredictionError: a window can't be scored.
  """
  spec = predictor.run.flow_spec
  for first, shown in slide(frames, window, least=spec.step + 1):
    record = record_of(shown, spec)
    streams = predictor.score("window", record)
    if by in predictor.run.rules:
      fused = predictor.run.rules[by](streams)
    else:
      fused = streams[by]
    yield Seen(first, shown, scores.probabilities(fused)[0])
