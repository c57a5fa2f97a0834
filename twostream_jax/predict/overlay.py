"""A clip with its flow beside it and what it is taken for below."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from twostream_jax.data.video import images
from twostream_jax.flow import colorwheel
from twostream_jax.flow.spec import FlowSpec, dequantise
from twostream_jax.predict import outputs, video_file
from twostream_jax.predict.following import Seen
from twostream_jax.predict.reading import Coded

_ROW = 24  # Pixels of the bar of a class.
# Speed drawn in full colour, as a share of the bound of stored motion.
_FULL_COLOUR = 0.25
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write(
  path: Path,
  windows: Iterable[Seen],
  class_names: Sequence[str],
  *,
  spec: FlowSpec,
  top: int,
) -> None:
  """Writes every frame once, with the scores of the window around it.

  Memory holds one window. The file appears when all of it is written. Where its
  height or width would be odd, it has another row or column.

  Args:
    path: of the video; its extension decides how it is encoded, see
      `video_file.write`.
    windows: what `following.follow` gives.
    class_names: n names.
    spec: of the flow.
    top: classes that are shown.

  Raises:
    ValueError: it can't be encoded, see `video_file.check_format`.
    VideoError: there are no frames.
    WriteError: the file can't be written.
  """
  drawn = (
    video_file.Shown(
      coded.time,
      coded.time + coded.duration,
      draw_frame(coded, probabilities, class_names, spec, top),
    )
    for coded, probabilities in _nearest(windows)
  )
  with outputs.written(path) as temporary:
    video_file.write(temporary, drawn)


def _nearest(windows: Iterable[Seen]) -> Iterator[tuple[Coded, np.ndarray]]:
  """Each frame once, with the probabilities of the window nearest to it."""
  given, seen = 0, None
  for following in windows:
    if seen is not None:
      until = int(seen.boundary_with(following))
      yield from _frames(seen, given, until)
      given = max(given, until)
    seen = following
  if seen is not None:
    yield from _frames(seen, given, seen.first + len(seen.frames))


def _frames(
  seen: Seen, first: int, end: int
) -> Iterator[tuple[Coded, np.ndarray]]:
  """Frames of a window by their numbers in the video."""
  for number in range(first, end):
    yield seen.frames[number - seen.first], seen.probabilities


def frame_size(size: tuple[int, int], top: int) -> tuple[int, int]:
  """(height, width) of what is drawn of frames of a size."""
  return size[0] + top * _ROW, 2 * size[1]


def draw_frame(
  coded: Coded,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  spec: FlowSpec,
  top: int,
) -> np.ndarray:
  """A frame, the motion that led to it, and bars of its best classes.

  Returns:
    RGB uint8, of the size that `frame_size` gives.
  """
  height, width = coded.size
  image = np.full((*frame_size(coded.size, top), 3), 255, np.uint8)
  image[:height, :width] = images.decode_rgb(coded.rgb)
  if coded.flow:
    flow = dequantise(images.decode_flow_codes(coded.flow[0]), spec.bound)
    speed = _FULL_COLOUR * spec.bound
    image[:height, width:] = colorwheel.flow_to_rgb(flow, speed)
  best = np.argsort(-probabilities, kind="stable")[:top]
  for row, c in enumerate(best):
    _draw_bar(
      image[height + row * _ROW : height + (row + 1) * _ROW],
      class_names[int(c)],
      float(probabilities[c]),
    )
  return image


def _draw_bar(strip: np.ndarray, name: str, probability: float) -> None:
  """Draws a bar as long as a probability in 0..1, and its name over it."""
  strip[2:-2, : round(probability * strip.shape[1])] = (120, 180, 240)
  text = name.encode("ascii", "replace").decode()
  cv2.putText(
    strip,
    f"{text} {probability:.2f}",
    (4, _ROW - 7),
    _FONT,
    0.45,
    (0, 0, 0),
    1,
    cv2.LINE_AA,
  )
