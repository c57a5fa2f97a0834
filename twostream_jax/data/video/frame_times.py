"""Decoded frames with their times, their mean rate, and a constant rate."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from twostream_jax.data.video.frames import VideoError
from twostream_jax.flow.spec import LARGEST_FPS

# For folders of frames, which have no times, and for files without any.
DEFAULT_FPS = 25.0
# A header's rate is taken if the times of the frames say the same, but for a
# frame that is missing.
_SAME_RATE = 0.005
# Seconds. Matroska and Flash round times to milliseconds.
ROUNDING = 0.001
# Beyond it a video of some frames would be repeated for hours.
_LARGEST_GAP = 3600.0


class Frame(NamedTuple):
  """A decoded frame.

  Attributes:
    rgb: uint8 [h, w, 3], upright, in the pixels of the file.
    time: Seconds since the first frame, to the microsecond; rising.
    duration: Seconds until the next frame.
    pixel_aspect: Width of a pixel over its height; 1 for square pixels.
    damaged: Frames from the one before up to this one that the decoder reports
      as damaged or that it could not decode.
  """

  rgb: np.ndarray
  time: float
  duration: float
  pixel_aspect: float = 1.0
  damaged: int = 0


def mean_rate(times: Sequence[float], stated: float | None = None) -> float:
  """Mean frame rate of a video, frames per second.

  Args:
    times: Of the frames, in seconds, rising.
    stated: Rate in the file's header, if any. It is taken where the times say
      the same (browsers record WebM with a header of 1000 frames per second,
      and telephones vary the rate).

  Returns:
    25 where neither says anything that can be true.
  """
  rate = stated
  if len(times) > 1:
    measured = (len(times) - 1) / (times[-1] - times[0])
    tolerance = max(_SAME_RATE, 2 / len(times))
    if not stated or abs(stated / measured - 1) > tolerance:
      rate = measured
  return rate if rate and 0 < rate <= LARGEST_FPS else DEFAULT_FPS


def at_constant_rate(frames: Iterator[Frame], fps: float) -> Iterator[Frame]:
  """Resamples a video: frame k is what is shown at k / fps seconds.

  Frames are left out or shown again, never blended.

  Args:
    frames: In order.
    fps: Frames per second, above 0.

  Raises:
    VideoError: A frame is shown for more than an hour, or there is only one.
  """
  output, number, damaged = None, 0, 0
  for count, shown in enumerate(frames, 1):
    damaged += shown.damaged
    if shown.duration > _LARGEST_GAP:
      raise VideoError(
        f"frame {count} is shown for {shown.duration:.0f} s, more than an hour:"
        f" it is not repeated {fps:g} times a second"
      )
    end = shown.time + shown.duration
    # No more than a part of a frame, at whatever rate.
    end -= min(ROUNDING, 0.25 * shown.duration, 0.25 / fps)
    while number == 0 or number / fps < end:
      if output is not None:
        yield output
      output = shown._replace(
        time=round(number / fps, 6), duration=1 / fps, damaged=damaged
      )
      number, damaged = number + 1, 0
  if output is not None and count == 1:
    raise VideoError("1 frame decoded, which has no motion at any rate")
  if output is not None:
    yield output._replace(damaged=output.damaged + damaged)
