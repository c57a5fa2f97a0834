"""Decoding of video files by FFmpeg (PyAV): upright, de-interlaced RGB frames.

A frame is what FFmpeg shows of it: pixel format, colour matrix and range as the
file states them, the display matrix (rotation and mirroring) applied, and
frames that are marked as interlaced passed through FFmpeg's bwdif, one frame
out for each frame in. A damaged packet is passed over.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.filter
import numpy as np

from twostream_jax.data.frames import VideoError

# What FFmpeg opens that is not a video: text, as a film of a terminal, and
# lists of other files.
_NOT_VIDEO = {"tty", "hls", "concat", "dash", "imf", "sdp"}
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
    VideoError: At the first frame: the file is missing, is not a video, or no
      frame decodes. At any frame: FFmpeg can't convert it.
  """
  found = False
  with _opened(path) as (container, stream):
    codec = stream.codec_context.name
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
    cause = ": FFmpeg decodes no animated WebP" if codec == "webp" else ""
    raise VideoError(f"no frame could be decoded{cause}")


def read_fps(path: str | os.PathLike) -> float | None:
  """Mean frame rate of a video file, frames per second.

  The header's, if it is that of the frames' own times; else that of the times
  (browsers record WebM with a header of 1000 frames per second, and telephones
  vary the rate).

  Returns:
    None where neither says anything.

  Raises:
    VideoError: The file is missing or is not a video.
  """
  with _opened(path) as (container, stream):
    stated = stream.average_rate or stream.guessed_rate
    times = {
      packet.pts
      for packet in _packets(container, stream)
      if packet.pts is not None
    }
    base = stream.time_base
  if len(times) < 2 or not base:
    return float(stated) if stated else None
  measured = Fraction(len(times) - 1) / ((max(times) - min(times)) * base)
  if stated and abs(stated / measured - 1) <= max(_SAME_RATE, 2 / len(times)):
    return float(stated)
  return float(measured)


@contextlib.contextmanager
def _opened(
  path: str | os.PathLike,
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
  """Opens a video file; yields the container and its main video stream.

  Raises:
    VideoError: As `read_frames`, and where FFmpeg fails inside the context. A
      lack of memory is the machine's fault and stays a MemoryError.
  """
  path = Path(path)
  if not path.is_file():
    raise VideoError("no such file")
  if not path.stat().st_size:
    raise VideoError("the file is empty")
  with contextlib.ExitStack() as stack:
    try:
      container = stack.enter_context(
        av.open(_source(path, stack), options=_OPTIONS)
      )
    except MemoryError:
      raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
      raise VideoError("can't be opened as a video") from error
    stream = container.streams.best("video")
    if stream is None or container.format.name in _NOT_VIDEO:
      raise VideoError("can't be opened as a video")
    try:
      yield container, stream
    except MemoryError:
      raise
    except av.error.FFmpegError as error:
      raise VideoError(f"can't be decoded: {error.strerror}") from error


def _source(path: Path, stack: contextlib.ExitStack) -> str | BinaryIO:
  """The file's name, or the open file where the name is not UTF-8."""
  name = os.fspath(path.absolute())
  try:
    name.encode()
  except UnicodeEncodeError:
    return stack.enter_context(open(path, "rb"))
  return name


def _packets(container, stream) -> Iterator[av.Packet]:
  """Packets of a stream, up to where the file breaks off."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets, None)
    except MemoryError:
      raise
    except av.error.FFmpegError:
      return
    if packet is None:
      return
    # An empty one would flush the decoder, which is over only at the end.
    if packet.size:
      yield packet


def _decode(container, stream) -> Iterator[av.VideoFrame]:
  """Frames of a stream; a packet that does not decode is passed over."""
  for packet in itertools.chain(_packets(container, stream), [None]):
    try:
      frames = stream.decode(packet)
    except MemoryError:
      raise
    except av.error.FFmpegError:
      continue
    yield from frames


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
  if transposed or mirrored_x or mirrored_y:
    image = np.ascontiguousarray(image)
  return image
