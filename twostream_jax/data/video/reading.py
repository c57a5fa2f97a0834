"""Videos, as files or as folders of extracted frames, to RGB frames and flow.

Containers lie: their frame counts and frame rates are often wrong or absent,
and a file that opens may hold no frame that decodes. Only decoded frames count.
How a file is decoded: `decode`. What a folder of frames is: `frames`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from twostream_jax.data.video import decode, images
from twostream_jax.data.video.frame_times import (
  DEFAULT_FPS,
  Frame,
  at_constant_rate,
  mean_rate,
)
from twostream_jax.data.video.frames import VideoError, flow_files, frame_files
from twostream_jax.flow.spec import FlowSpec, dequantise

_LARGEST_SIDE = 4096
# Side of the blocks that JPEG codes on their own.
_BLOCK = 8


def silence_decoders() -> None:
  """Stops FFmpeg and OpenCV writing about broken files to stderr."""
  decode.silence()
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def frame_rate(path: str | os.PathLike, times: Sequence[float]) -> float:
  """Returns the mean frame rate of a video, in frames per second.

  Args:
    path: File, or folder of frames, whose rate is 25 by definition.
    times: Of its frames, in seconds; see `frame_times.mean_rate`.

  Raises:
    VideoError: the file can't be opened as a video.
  """
  if Path(path).is_dir():
    return DEFAULT_FPS
  return mean_rate(times, decode.stated_rate(path))


def read_frames(path: str | os.PathLike) -> Iterator[Frame]:
  """Decodes a video, a file or a folder of frames, one frame at a time.

  A file that breaks off gives the frames before the break. The header's count
  plays no part.

  Yields:
    Frames; those of a folder may differ in size, and are 1/25 s apart.

  Raises:
    VideoError: at the first frame: the file is missing, is not a video, or no
      frame decodes; `frame_files` fails. Later: an image of a folder can't be
      decoded.
  """
  if not Path(path).is_dir():
    yield from decode.read_frames(path)
    return
  for number, file in enumerate(frame_files(path)):
    image = _read_image(file, cv2.IMREAD_COLOR)
    yield Frame(
      cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
      time=number / DEFAULT_FPS,
      duration=1 / DEFAULT_FPS,
    )


def read_resized(
  path: str | os.PathLike, short_side: int, fps: float | None = None
) -> Iterator[Frame]:
  """Decodes a video and resizes its frames: see `resized`.

  Args:
    path: File or folder of frames.
    short_side: In pixels, a multiple of 8.
    fps: Constant rate to resample a file to, frames per second; None: all
      frames, at the times that they have.

  Raises:
    VideoError: as `read_frames` and `resized`; a folder of frames, which has no
      times, is to be resampled.
    ValueError: `short_side` is not a positive multiple of 8.
  """
  frames = read_frames(path)
  if fps is not None:
    if Path(path).is_dir():
      raise VideoError(
        f"a folder of frames has no times: it can't be resampled to {fps:g}"
        " frames per second"
      )
    frames = at_constant_rate(frames, fps)
  yield from resized(frames, short_side)


def resized(frames: Iterable[Frame], short_side: int) -> Iterator[Frame]:
  """Resizes the frames of a video to square pixels: see `target_size`.

  All frames get the size that the first one asks for, also where the
  resolution changes within the file.

  Yields:
    Frames whose `pixel_aspect` still is that of the file.

  Raises:
    VideoError: the resized long side exceeds 4096 pixels.
    ValueError: `short_side` is not a positive multiple of 8.
  """
  size = None
  for frame in frames:
    if size is None:
      height, width = frame.rgb.shape[:2]
      size = target_size(height, width * frame.pixel_aspect, short_side)
      if max(size) > _LARGEST_SIDE:
        raise VideoError(
          f"frames of {width}x{height} pixels would become"
          f" {size[1]}x{size[0]}, above {_LARGEST_SIDE} a side"
        )
    small = frame._replace(rgb=resize(frame.rgb, *size))
    # Its memory goes to the next frame, which is then decoded a third faster.
    del frame
    yield small


def read_extracted_flow(
  path: str | os.PathLike,
  spec: FlowSpec,
  num_frames: int,
  size: tuple[int, int],
) -> Iterator[np.ndarray]:
  """Reads forward flow that another program stored beside a clip's frames.

  The names are those of `frames.flow_files`, in the folder of the frames; flow
  in other folders is not looked for. Codes are taken as round(255 (f + B) / 2B)
  with the bound B of `spec`, as denseflow and dense_flow (of TSN, Wang et al.
  2016) write them. A field of another size is resized, and its components
  multiplied by the ratios of the widths and of the heights.

  The number of fields tells which program wrote them. t - step for t frames:
  field i leads from frame i to frame i + step (denseflow). t: field i leads
  from frame i - 1 to frame i (dense_flow, which stores no first frame; its step
  is that between the frames it stores). The first one leads from a frame that
  is not there and is left out.

  Args:
    path: folder of frames.
    spec: its bound, in pixels of the stored images, and step are used.
    num_frames: t, of the folder.
    size: (height, width) of the fields to return.

  Yields:
    num_frames - step fields [height, width, 2], float32: x (to the right) and y
    (down), in pixels of `size`.

  Raises:
    VideoError: at the first field: the clip is a file, `flow_files` fails, or
      the number of fields is another. Later: an image can't be decoded, or the
      components of a field differ in size.
  """
  if not Path(path).is_dir():
    raise VideoError("extracted flow needs a folder of frames, not a file")
  xs, ys = flow_files(path, spec.step)
  first = _first_field(len(xs), num_frames, spec.step)
  for x_file, y_file in zip(xs[first:], ys[first:], strict=True):
    field = dequantise(_read_codes(x_file, y_file), spec.bound)
    height, width = field.shape[:2]
    ratios = np.array([size[1] / width, size[0] / height], np.float32)
    yield resize(field, *size) * ratios


def _first_field(num_fields: int, num_frames: int, step: int) -> int:
  """Index of the first field to use, in the layout that the numbers show."""
  if num_fields == num_frames - step:
    return 0
  if num_fields == num_frames and step == 1:
    return 1
  also = f" or {num_frames}" if step == 1 else ""
  raise VideoError(
    f"{num_fields} fields of extracted flow for {num_frames} frames, not"
    f" {num_frames - step}{also} (step {step})"
  )


def target_size(
  height: float, width: float, short_side: int
) -> tuple[int, int]:
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


def _read_codes(x_file: Path, y_file: Path) -> np.ndarray:
  """Both components of a field as uint8 [h, w, 2]."""
  x = _read_image(x_file, cv2.IMREAD_GRAYSCALE)
  y = _read_image(y_file, cv2.IMREAD_GRAYSCALE)
  if x.shape != y.shape:
    raise VideoError(f"{x_file.name} and {y_file.name} differ in size")
  return np.stack([x, y], axis=-1)


def _read_image(path: Path, flags: int) -> np.ndarray:
  data = path.read_bytes()
  # Of a JPEG file without an end OpenCV makes up the rest.
  whole = not data.startswith(b"\xff\xd8") or b"\xff\xd9" in data
  image, reason = None, ""
  try:
    images.check(data)
    if whole:
      image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except ValueError as error:
    reason = f": {error}"
  # Of an image that OpenCV has taken for good so far.
  except cv2.error:
    pass
  if image is None:
    raise VideoError(f"{path.name} can't be decoded{reason}")
  return image
