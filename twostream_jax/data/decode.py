"""Decoding of video files by FFmpeg (PyAV): upright, de-interlaced RGB frames.

A frame is what FFmpeg shows of it: pixel format, colour matrix and range as the
file states them, the display matrix (rotation and mirroring) applied, and
frames that are marked as interlaced passed through FFmpeg's bwdif, one frame
out for each frame in. A damaged packet is passed over.
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np

from twostream_jax.data.frames import VideoError

# What FFmpeg reads that is no video: text, as a film of a terminal, and lists
# of other files.
_NO_VIDEO = {"tty", "hls", "concat", "dash", "imf", "sdp"}
# No network, and a name with a % is a name, not a pattern.
_OPTIONS = {"protocol_whitelist": "file", "pattern_type": "none"}
# A header's rate is taken if the times of the frames say the same, but for a
# frame that is missing.
_SAME_RATE = 0.005


def silence() -> None:
  """Stops FFmpeg writing about broken files to stderr."""
  av.logging.set_level(None)


def read_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
  """Decodes a video file, one frame at a time.

  A file that breaks off gives the frames before the break.

  Yields:
    RGB uint8 [h, w, 3]; sizes differ where the resolution changes within the
    file.

  Raises:
    VideoError: At the first frame: the file is missing, is no video, or no
      frame decodes.
  """
  found = False
  with _open(path) as container, _explaining():
    stream = _best(container)
    # Videos are decoded in parallel already.
    stream.thread_count = 1
    # One for all frames: it keeps FFmpeg's tables.
    reformatter = av.video.reformatter.VideoReformatter()
    orientation = None
    for frame in _progressive(_decode(container, stream), stream):
      found = True
      if orientation is None:
        orientation = _orientation(frame)
      yield _upright(_to_rgb(frame, reformatter), *orientation)
  if not found:
    raise VideoError("no frame could be decoded")


def read_fps(path: str | os.PathLike) -> float | None:
  """Mean frame rate of a video file, frames per second.

  The header's, if it is that of the frames' own times; else that of the times
  (browsers record WebM with a header of 1000 frames per second, and telephones
  vary the rate).

  Returns:
    None where neither says anything.

  Raises:
    VideoError: The file is missing or is no video.
  """
  with _open(path) as container, _explaining():
    stream = _best(container)
    stated = stream.average_rate or stream.guessed_rate
    times = set()
    with contextlib.suppress(av.error.FFmpegError):
      for packet in container.demux(stream):
        if packet.pts is not None and packet.size:
          times.add(packet.pts)
    base = stream.time_base
  if len(times) < 2 or not base:
    return float(stated) if stated else None
  measured = Fraction(len(times) - 1) / ((max(times) - min(times)) * base)
  if stated and abs(stated / measured - 1) <= max(_SAME_RATE, 2 / len(times)):
    return float(stated)
  return float(measured)


def _open(path: str | os.PathLike) -> av.container.InputContainer:
  path = Path(path)
  if not path.is_file():
    raise VideoError("no such file")
  if not path.stat().st_size:
    raise VideoError("the file is empty")
  try:
    container = av.open(_source(path), options=_OPTIONS)
  except (av.error.FFmpegError, OSError, ValueError) as error:
    raise VideoError("can't be opened as a video") from error
  if container.format.name in _NO_VIDEO or not container.streams.video:
    container.close()
    raise VideoError("can't be opened as a video")
  return container


def _best(container) -> av.VideoStream:
  stream = container.streams.best("video")
  if stream is None:
    raise VideoError("can't be opened as a video")
  return stream


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
  """Errors of FFmpeg that are the file's: a pixel format without a conversion.

  A lack of memory is not.
  """
  try:
    yield
  except MemoryError:
    raise
  except av.error.FFmpegError as error:
    raise VideoError(f"can't be decoded: {error.strerror}") from error


def _source(path: Path):
  """What to open: the file's name, or the file where the name is not UTF-8."""
  name = os.fspath(path.absolute())
  try:
    name.encode()
  except UnicodeEncodeError:
    return open(path, "rb")
  return name


def _decode(container, stream) -> Iterator[av.VideoFrame]:
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets, None)
    except av.error.FFmpegError:
      packet = None  # The file breaks off.
    try:
      frames = stream.decode(packet) if packet is None else packet.decode()
    except av.error.FFmpegError:
      frames = []
    yield from frames
    if packet is None:
      return


def _progressive(frames, stream) -> Iterator[av.VideoFrame]:
  """De-interlaces from the first frame on that is marked as interlaced."""
  graph, shape = None, None
  for frame in frames:
    if graph is not None and shape != _shape(frame):
      yield from _pass_through(graph, None)
      graph = None
    if graph is None and frame.interlaced_frame:
      graph, shape = _deinterlacer(frame, stream), _shape(frame)
    if graph is None:
      yield frame
    else:
      yield from _pass_through(graph, frame)
  if graph is not None:
    yield from _pass_through(graph, None)


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
  return frame.width, frame.height, frame.format.name


def _deinterlacer(frame, stream) -> av.filter.Graph:
  graph = av.filter.Graph()
  source = graph.add_buffer(
    width=frame.width,
    height=frame.height,
    format=frame.format,
    time_base=frame.time_base or stream.time_base,
  )
  # Frames that are not marked pass as they are.
  bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
  sink = graph.add("buffersink")
  source.link_to(bwdif)
  bwdif.link_to(sink)
  graph.configure()
  return graph


def _pass_through(graph, frame) -> Iterator[av.VideoFrame]:
  """Puts a frame in (None: there are no more); yields what comes out."""
  graph.push(frame)
  while True:
    try:
      yield graph.pull()
    except (av.error.BlockingIOError, av.error.EOFError):
      return


def _to_rgb(frame, reformatter) -> np.ndarray:
  """RGB uint8 [h, w, 3], without copying it out of FFmpeg's memory."""
  # As the ffmpeg command does; only chroma of more than 8 bits is resized.
  rgb = reformatter.reformat(frame, format="rgb24", interpolation="BICUBIC")
  plane = rgb.planes[0]
  shape = (rgb.height, rgb.width, 3)
  return np.ndarray(shape, np.uint8, plane, strides=(plane.line_size, 3, 1))


def _orientation(frame) -> tuple[bool, bool, bool]:
  """From a frame's display matrix: transposed, then mirrored in x, in y."""
  side_data = frame.side_data.get("DISPLAYMATRIX")
  if side_data is None:
    return False, False, False
  # 3 x 3, row by row: x' = a x + c y, y' = b x + d y, in 16.16 fixed point.
  a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].tolist()
  if abs(b) > abs(a):
    return True, c < 0, b < 0
  return False, a < 0, d < 0


def _upright(image, transposed, mirrored_x, mirrored_y) -> np.ndarray:
  if transposed:
    image = image.swapaxes(0, 1)
  if mirrored_x:
    image = image[:, ::-1]
  if mirrored_y:
    image = image[::-1]
  return (
    np.ascontiguousarray(image)
    if transposed or mirrored_x or mirrored_y
    else image
  )
