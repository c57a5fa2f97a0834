"""Video files to RGB frames.

Containers lie: their frame counts and frame rates are often wrong or absent,
and a file that opens may hold no frame that decodes. Only decoded frames count.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

# For files whose header states no frame rate. It is only reported, never used
# to pick frames, so its value does not change what is learned.
DEFAULT_FPS = 25.0
_LARGEST_FPS = 1000.0
_LARGEST_SIDE = 4096
# Side of the blocks that JPEG codes on their own.
_BLOCK = 8
# FFmpeg draws .txt and .nfo files as films of a text terminal.
_TEXT = cv2.VideoWriter.fourcc(*"ansi")


class VideoError(Exception):
  """A video file can't be used.

  Attributes:
    reason: why, in a few words, without the file's name.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


def silence_decoders() -> None:
  """Stops FFmpeg and OpenCV writing about broken files to stderr.

  For worker processes. It has to run before the process opens its first video.
  """
  os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # AV_LOG_QUIET
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_fps(path: str | os.PathLike) -> float:
  """Returns the frame rate that the header states, in frames per second.

  `DEFAULT_FPS` where the header states none, or nothing that can be true (not a
  number, not positive, above 1000).

  Raises:
    VideoError: the file can't be opened as a video.
  """
  capture = _open(path)
  try:
    fps = capture.get(cv2.CAP_PROP_FPS)
  finally:
    capture.release()
  return fps if 0 < fps <= _LARGEST_FPS else DEFAULT_FPS


def read_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
  """Decodes a video, one frame at a time.

  Frames come upright: a rotation in the header is applied. A file that breaks
  off gives the frames before the break. The header's count plays no part.

  Yields:
    RGB uint8 [h, w, 3].

  Raises:
    VideoError: at the first frame: the file is missing, is no video, or no
      frame decodes.
  """
  capture = _open(path)
  try:
    found, frame = capture.read()
    if not found:
      raise VideoError("no frame could be decoded")
    while found:
      yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
      found, frame = capture.read()
  finally:
    capture.release()


def read_resized(
  path: str | os.PathLike, short_side: int
) -> Iterator[np.ndarray]:
  """Decodes a video and resizes its frames: see `target_size`.

  All frames get the size that the first one asks for, also where the
  resolution changes within the file.

  Yields:
    RGB uint8 [h, w, 3].

  Raises:
    VideoError: no frame decodes, or the resized long side exceeds 4096 pixels.
    ValueError: `short_side` is not a positive multiple of 8.
  """
  size = None
  for frame in read_frames(path):
    if size is None:
      size = target_size(*frame.shape[:2], short_side)
      if max(size) > _LARGEST_SIDE:
        raise VideoError(
          f"frames of {frame.shape[1]}x{frame.shape[0]} pixels would become"
          f" {size[1]}x{size[0]}, above {_LARGEST_SIDE} a side"
        )
    yield resize(frame, *size)


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
  """Returns the (height, width) to resize a frame to.

  The short side becomes `short_side`, the long side follows in proportion and
  is rounded to a multiple of 8. JPEG codes blocks of 8 x 8 pixels, so that with
  both sides a multiple of 8 no block holds pixels of both the x and the y
  component of a field stored as one image.

  Raises:
    ValueError: `short_side` is not a positive multiple of 8.
  """
  if short_side < _BLOCK or short_side % _BLOCK:
    raise ValueError(
      f"short_side must be a positive multiple of {_BLOCK}: {short_side}"
    )
  ratio = max(height, width) / min(height, width)
  long_side = _BLOCK * round(short_side * ratio / _BLOCK)
  if height <= width:
    return short_side, long_side
  return long_side, short_side


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes an image [h, w] or [h, w, c]; shrinking averages over areas."""
  if image.shape[:2] == (height, width):
    return image
  shrinks = height * width < image.shape[0] * image.shape[1]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(image, (width, height), interpolation=method)


def _open(path: str | os.PathLike) -> cv2.VideoCapture:
  path = Path(path)
  if not path.is_file():
    raise VideoError("no such file")
  if not path.stat().st_size:
    raise VideoError("the file is empty")
  # FFmpeg by name: left to itself OpenCV reads clip_01.jpg as the first image
  # of a sequence. One thread: clips are decoded in parallel already.
  capture = cv2.VideoCapture(
    os.fspath(path.absolute()),
    cv2.CAP_FFMPEG,
    [cv2.CAP_PROP_N_THREADS, 1],
  )
  if not capture.isOpened() or capture.get(cv2.CAP_PROP_FOURCC) == _TEXT:
    capture.release()
    raise VideoError("can't be opened as a video")
  capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
  return capture
