"""FFmpeg's frames as upright, progressive RGB images."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import av
import av.error
import av.filter
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from twostream_jax.data.video.frames import VideoError

# FFmpeg 8 has 32 types of side data of frames.
_SIDE_DATA_TYPES = 64
# Constant luminance, which FFmpeg's scaler refuses, is shown by its command as
# without (AVCOL_SPC_BT2020_CL, AVCOL_SPC_BT2020_NCL).
_MATRICES = {10: 9}
# Those that the scaler refuses and that are nothing like another: YCgCo, YDzDx,
# derived ones, ICtCp, IPT, YCgCo-R.
_NO_MATRICES = {8, *range(11, 18)}
# FFmpeg 8's scaler does not swap their bytes on its short way to rgb24.
_UNSWAPPED = {
  f"{name}be": f"{name}le" for name in ("rgb565", "rgb555", "bgr565", "bgr555")
}
# Their passes over an image are marked as interlaced, but are not fields.
_NO_FIELDS = {"png", "apng"}
# Beyond these a file's pixel aspect is an error of who wrote it.
_NARROWEST, _WIDEST = 0.1, 10.0


class Orientation(NamedTuple):
  """How a picture becomes upright: transposed, then mirrored."""

  transposed: bool = False
  mirrored_x: bool = False
  mirrored_y: bool = False


def progressive(
  frames: Iterable[av.VideoFrame], stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
  """De-interlaces from the first frame on that is marked as interlaced."""
  graph, shape = None, None
  has_fields = stream.codec_context.name not in _NO_FIELDS
  for frame in frames:
    if graph is not None and shape != _shape(frame):
      yield from _pass_through(graph, None)
      graph = None
    if graph is None and has_fields and frame.interlaced_frame:
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
  graph.link_nodes(
    source,
    # Frames that are not marked pass as they are.
    graph.add("bwdif", "mode=send_frame:deint=interlaced"),
    graph.add("buffersink"),
  ).configure()
  return graph


def _pass_through(graph, frame) -> Iterator[av.VideoFrame]:
  """Puts a frame in (None: there are no more); yields what comes out."""
  graph.push(frame)
  while True:
    try:
      yield graph.pull()
    except (av.error.BlockingIOError, av.error.EOFError):
      return


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
  """Converts to RGB uint8 [h, w, 3], which stays in FFmpeg's memory."""
  # As the ffmpeg command does; only chroma of more than 8 bits is resized.
  if frame.format.name in _UNSWAPPED:
    frame = reformatter.reformat(frame, format=_UNSWAPPED[frame.format.name])
  matrix = _MATRICES.get(frame.colorspace)
  if frame.colorspace in _NO_MATRICES:
    raise VideoError(
      f"FFmpeg can't convert its colours (matrix {frame.colorspace} of ITU-T"
      " H.273)"
    )
  rgb = reformatter.reformat(
    frame,
    format="rgb24",
    interpolation="BICUBIC",
    threads=1,
    src_colorspace=matrix,
    dst_colorspace=matrix,
  )
  plane = rgb.planes[0]
  shape = (rgb.height, rgb.width, 3)
  # NumPy's types leave out that PyAV's planes are buffers.
  buffer: Any = plane
  return np.ndarray(shape, np.uint8, buffer, strides=(plane.line_size, 3, 1))


def orientation(frame: av.VideoFrame) -> Orientation:
  """Reads a frame's display matrix."""
  try:
    side_data = frame.side_data
  except ValueError:
    # PyAV fails where there is also some that it has no name for, like EXIF.
    side_data = _with_named_side_data(frame).side_data
  matrix = side_data.get("DISPLAYMATRIX")
  if matrix is None:
    return Orientation()
  # 3 x 3, row by row: x' = a x + c y, y' = b x + d y, in 16.16 fixed point.
  a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
  if abs(b) > abs(a):
    return Orientation(True, c < 0, b < 0)
  return Orientation(False, a < 0, d < 0)


def _with_named_side_data(frame: av.VideoFrame) -> av.VideoFrame:
  """The frame without side data for which PyAV has no name."""
  graph = av.filter.Graph()
  source = graph.add_buffer(
    width=frame.width,
    height=frame.height,
    format=frame.format,
    time_base=frame.time_base,
  )
  named = {kind.value for kind in SideDataType}
  graph.link_nodes(
    source,
    *(
      graph.add("sidedata", f"mode=delete:type={kind}")
      for kind in range(_SIDE_DATA_TYPES)
      if kind not in named
    ),
    graph.add("buffersink"),
  ).configure()
  graph.push(frame)
  named_only = graph.pull()
  assert isinstance(named_only, av.VideoFrame)
  return named_only


def pixel_aspect(stream: av.VideoStream, turn: Orientation) -> float:
  """Width of an upright pixel over its height; 1 where the file has none."""
  aspect = float(stream.sample_aspect_ratio or 1)
  if not _NARROWEST <= aspect <= _WIDEST:
    return 1.0
  return 1 / aspect if turn.transposed else aspect


def upright(image: np.ndarray, turn: Orientation) -> np.ndarray:
  """Turns and mirrors an image [h, w, 3]."""
  if turn.transposed:
    image = image.swapaxes(0, 1)
  if turn.mirrored_x:
    image = image[:, ::-1]
  if turn.mirrored_y:
    image = image[::-1]
  if any(turn):
    image = np.ascontiguousarray(image)
  return image
