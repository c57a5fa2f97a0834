"""A clip with its flow beside it and what it is taken for below."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from twostream_jax.data import images
from twostream_jax.data.frame_times import mean_rate
from twostream_jax.flow import colorwheel
from twostream_jax.flow.spec import FlowSpec, dequantise
from twostream_jax.predict.following import Seen
from twostream_jax.predict.reading import Coded

_ROW = 24  # Pixels of the bar of a class.
# Speed drawn in full colour, as a share of the bound of stored motion.
_FULL_COLOUR = 0.25
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class OverlayError(OSError):
  """A video can't be written."""


def write(
  path: Path,
  windows: Iterable[Seen],
  class_names: Sequence[str],
  *,
  spec: FlowSpec,
  top: int,
) -> None:
  """Writes every frame once, with the scores of the window around it.

  Memory holds one window. The file appears when all of it is written.

  Args:
    path: .mp4 or another container that OpenCV can write.
    windows: what `following.follow` gives.
    class_names: n names.
    spec: of the flow.
    top: classes that are shown.

  Raises:
    OverlayError: OpenCV can't write such a file.
  """
  temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
  writer, drawn, seen = None, 0, None
  try:
    for following in windows:
      if seen is not None:
        # Up to halfway between the middles of the two windows.
        until = int((seen.centre + following.centre) / 2)
        drawn = _draw_until(writer, seen, drawn, until, class_names, spec, top)
      seen = following
      if writer is None:
        size = frame_size(seen.frames[0].size, top)
        fps = mean_rate([frame.time for frame in seen.frames])
        writer = _open(temporary, fps, size, path)
    if seen is not None:
      end = seen.first + len(seen.frames)
      _draw_until(writer, seen, drawn, end, class_names, spec, top)
  except BaseException:
    if writer is not None:
      writer.release()
    temporary.unlink(missing_ok=True)
    raise
  if writer is not None:
    writer.release()
    os.replace(temporary, path)


def _open(temporary: Path, fps, size, path: Path) -> cv2.VideoWriter:
  height, width = size
  code = cv2.VideoWriter.fourcc(*"mp4v")
  writer = cv2.VideoWriter(os.fspath(temporary), code, fps, (width, height))
  if not writer.isOpened():
    temporary.unlink(missing_ok=True)
    raise OverlayError(
      f"OpenCV can't write a video to {path}; name a file that ends in .mp4 in"
      " a folder that can be written"
    )
  return writer


def _draw_until(writer, seen: Seen, drawn, until, class_names, spec, top):
  for number in range(drawn, until):
    coded = seen.frames[number - seen.first]
    image = draw_frame(coded, seen.probabilities, class_names, spec, top)
    writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
  return max(drawn, until)


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
      class_names[c],
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
