"""Decoding of video files by FFmpeg (PyAV): upright, de-interlaced RGB frames.

A frame is what FFmpeg shows of it: pixel format, colour matrix and range as the
file states them, the display matrix (rotation and mirroring) applied, and
frames that are marked as interlaced passed through FFmpeg's bwdif, one frame
out for each frame in. Every frame is kept, with its time in the file. A damaged
packet is passed over and counted.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.container
import av.error
import av.format
import av.logging
import av.stream
from av.video.reformatter import VideoReformatter

from twostream_jax.data.video import pictures
from twostream_jax.data.video.frame_times import DEFAULT_FPS, Frame
from twostream_jax.data.video.frames import VideoError
from twostream_jax.flow.spec import LARGEST_FPS

# Demuxers that open the one file they are given. Left out is what is not a
# video (text, as a film of a terminal) and what opens other files or sockets
# that the file names: playlists, lists, scripts, descriptions of sessions.
_CONTAINERS = (
  *("mov", "matroska", "avi", "flv", "live_flv", "asf", "asf_o", "ogg", "nut"),
  *("mpeg", "mpegts", "mpegvideo", "m4v", "h261", "h263", "h264", "hevc"),
  *("vvc", "av1", "obu", "ivf", "vc1", "vc1test", "cavsvideo", "avs2", "avs3"),
  *("dirac", "evc", "dnxhd", "apv", "rm", "ivr", "mxf", "mxg", "gxf", "lxf"),
  *("dv", "wtv", "ty", "dhav", "nsv", "nuv", "pva", "swf", "flic", "roq"),
  *("smk", "bink", "yuv4mpegpipe", "mjpeg", "mjpeg_2000", "mpjpeg"),
  *("gif", "gif_pipe", "apng", "webp", "webp_pipe", "jpegxl_anim"),
  # An image is a video of one frame.
  *("image2", "jpeg_pipe", "png_pipe", "bmp_pipe", "tiff_pipe", "jpegxl_pipe"),
  *("j2k_pipe", "ppm_pipe", "pgm_pipe", "pbm_pipe", "pam_pipe", "qoi_pipe"),
)
_LIVE = ("hls", "dash", "rtsp", "sdp", "rtp", "sap")
_NETWORK = (
  *("http", "https", "httpproxy", "tcp", "tls", "udp", "rtp", "rtsp", "rtsps"),
  *("rtmp", "rtmps", "rtmpt", "rtmpts", "rtmpe", "rtmpte", "mmsh", "mmst"),
  *("srt", "srtp", "rist", "crypto"),
)
# Of av.open, for a file; it opens nothing else. FFmpeg looks at the format
# before the demuxer does anything. A name with a % is a name, not a pattern.
LOCAL = {
  "protocol_whitelist": "file",
  "format_whitelist": ",".join(_CONTAINERS),
  "pattern_type": "none",
}
# A playlist of the network may name other parts of the network, but no file.
_REMOTE = {
  "protocol_whitelist": ",".join(_NETWORK),
  "format_whitelist": ",".join((*_CONTAINERS, *_LIVE)),
}
# What FFmpeg gives for these goes wrong where frames are reordered.
_NO_PRESENTATION_TIMES = {"avi"}
# A camera's images in a row, whose times FFmpeg makes up.
_UNTIMED = {"mpjpeg"}
# MPEG streams may start their timestamps again; FFmpeg's command takes a jump
# of so many microseconds for that (ffmpeg, -dts_delta_threshold).
_JUMP = 10_000_000


def silence() -> None:
  """Stops FFmpeg writing about broken files to stderr."""
  av.logging.set_level(None)


def read_frames(path: str | os.PathLike) -> Iterator[Frame]:
  """Decodes a video file, one frame at a time.

  A file that breaks off gives the frames before the break.

  Yields:
    Frames with the file's times. Sizes differ where the resolution changes
    within the file. A frame without a time, or with one that is not after its
    predecessor's, follows it by the mean interval of the file.

  Raises:
    VideoError: At the first frame: the file is missing, is not a video, or no
      frame decodes. At any frame: FFmpeg can't convert it.
  """
  with _opened(path) as (container, stream):
    # Videos are decoded in parallel already.
    stream.thread_count = 1
    yield from frames_of(container, stream)


def read_url(url: str, patience: float) -> Iterator[Frame]:
  """Decodes what FFmpeg opens by a URL, live or not; see `read_frames`.

  Args:
    url: Of a protocol of the network, or file://.
    patience: Seconds until the other side has to answer.

  Raises:
    VideoError: At the first frame: it can't be opened, or no frame decodes.
  """
  scheme = url.partition("://")[0].lower()
  if scheme not in ("file", *_NETWORK):
    raise VideoError(
      "the URL is of no protocol of the network, and not file://"
    )
  options = LOCAL if scheme == "file" else _REMOTE
  with contextlib.ExitStack() as stack:
    try:
      container = stack.enter_context(
        av.open(url, timeout=(patience, patience), options=dict(options))
      )
    except MemoryError:
      raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
      raise VideoError(
        f"the stream can't be opened: {getattr(error, 'strerror', error)}"
      ) from error
    stream = _video_stream(container, "the stream has no video")
    clock = time.monotonic if container.format.name in _UNTIMED else None
    with _told():
      yield from frames_of(container, stream, clock)


def stated_rate(path: str | os.PathLike) -> float | None:
  """Frame rate in the header of a video file, or None.

  Raises:
    VideoError: The file is missing or is not a video.
  """
  with _opened(path) as (_, stream):
    rate = stream.average_rate or stream.guessed_rate
  return float(rate) if rate else None


def frames_of(
  container: av.container.InputContainer,
  stream: av.VideoStream,
  clock: Callable[[], float] | None = None,
) -> Iterator[Frame]:
  """Decodes a stream of an open container; see `read_frames`.

  Args:
    container: What the stream belongs to.
    stream: To decode.
    clock: Gives the times of frames, in seconds, as they arrive, where the
      container has none; None: it has.
  """
  # One for all frames: it keeps FFmpeg's tables.
  reformatter = VideoReformatter()
  turn, aspect = None, 1.0
  damage = _Damage()
  decoded = _decode(container, stream, damage)
  for frame, begin, end in _timed(
    pictures.progressive(decoded, stream), container, stream, clock
  ):
    if turn is None:
      turn = pictures.orientation(frame)
      aspect = pictures.pixel_aspect(stream, turn)
    yield Frame(
      pictures.upright(pictures.to_rgb(frame, reformatter), turn),
      time=begin / 1e6,
      duration=(end - begin) / 1e6,
      pixel_aspect=aspect,
      damaged=damage.take(),
    )
  if turn is None:
    webp = stream.codec_context.name == "webp"
    cause = ": this FFmpeg decodes no animated WebP" if webp else ""
    raise VideoError(f"no frame could be decoded{cause}")


class _Damage:
  """Counts frames that are damaged or did not decode, each once."""

  def __init__(self):
    self._count = 0
    self._bad_packets = set()

  def see_packet(self, packet: av.Packet) -> None:
    """Takes note of a packet before it is decoded."""
    if packet.is_corrupt:
      self._bad_packets.add(packet.pts)

  def lose_packet(self, packet: av.Packet | None) -> None:
    """Takes note of a packet that did not decode."""
    if packet is not None:
      self._bad_packets.discard(packet.pts)
    self._count += 1

  def lose_rest(self) -> None:
    """Takes note of the end: damaged packets gave no frame."""
    self._count += len(self._bad_packets)
    self._bad_packets.clear()

  def see_frame(self, frame: av.VideoFrame) -> None:
    """Takes note of a frame."""
    if frame.is_corrupt or frame.pts in self._bad_packets:
      self._bad_packets.discard(frame.pts)
      self._count += 1

  def take(self) -> int:
    """Returns the count and begins again."""
    count, self._count = self._count, 0
    return count


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
        av.open(_source(path, stack), "r", options=dict(LOCAL))
      )
    except MemoryError:
      raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
      raise VideoError("can't be opened as a video") from error
    stream = _video_stream(container, "can't be opened as a video")
    with _told():
      yield container, stream


def _video_stream(
  container: av.container.InputContainer, without: str
) -> av.VideoStream:
  """Returns the main video stream of a file or of what a URL gives.

  Args:
    container: Open.
    without: Reason for a container without video.

  Raises:
    VideoError: There is none that can be decoded.
  """
  stream = container.streams.best("video")
  if not isinstance(stream, av.VideoStream):
    raise VideoError(without)
  if stream.codec_context is None:
    raise VideoError("FFmpeg has no decoder for it")
  if stream.disposition & av.stream.Disposition.attached_pic:
    raise VideoError("sound with a cover picture is not a video")
  return stream


@contextlib.contextmanager
def _told() -> Iterator[None]:
  """Tells errors of FFmpeg as the file's, but for a lack of memory."""
  try:
    yield
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
    except (av.error.FFmpegError, IndexError):
      # At the end PyAV looks for streams that FFmpeg found while it read, such
      # as sound that begins late, in a list that it made before.
      return
    if packet is None:
      return
    # An empty one would flush the decoder, which is over only at the end.
    if packet.size:
      yield packet


def _decode(container, stream, damage: _Damage) -> Iterator[av.VideoFrame]:
  """Frames of a stream; a packet that does not decode is passed over."""
  for packet in itertools.chain(_packets(container, stream), [None]):
    if packet is not None:
      damage.see_packet(packet)
    try:
      frames = stream.decode(packet)
    except MemoryError:
      raise
    except av.error.FFmpegError:
      damage.lose_packet(packet)
      continue
    for frame in frames:
      damage.see_frame(frame)
      yield frame
  damage.lose_rest()


def _timed(
  frames, container, stream, clock
) -> Iterator[tuple[av.VideoFrame, int, int]]:
  """Frames with begin and end, in microseconds since the first one.

  A frame is given when the next one, or the end, is there: damage up to then
  belongs to it.
  """
  rate = stream.average_rate or stream.guessed_rate or DEFAULT_FPS
  interval = round(1e6 / (rate if rate <= LARGEST_FPS else DEFAULT_FPS))
  format_flags = av.format.Flags(container.format.flags)
  may_jump = av.format.Flags.ts_discont in format_flags
  reordered = container.format.name not in _NO_PRESENTATION_TIMES
  held, offset, now = None, 0, 0
  for frame in frames:
    if clock:
      stamp = round(clock() * 1e6)
    else:
      stamp = _stamp(frame, stream, reordered=reordered)
    if held is None:
      offset = stamp or 0
    else:
      begin = now + interval if stamp is None else stamp - offset
      if may_jump and abs(begin - now) > _JUMP:
        offset += begin - now - interval
        begin = now + interval
      # Whatever the file says, a frame follows the one before it.
      begin = begin if begin > now else now + interval
      yield held, now, begin
      now = begin
    held = frame
  if held is not None:
    yield held, now, now + (_last_duration(held, stream) or interval)


def _stamp(frame, stream, *, reordered: bool) -> int | None:
  """Presentation time of a frame in microseconds; None: it has none.

  `reordered`: whether the container states it; else times of decoding, which
  rise by a frame each, are all there is.
  """
  if reordered and frame.pts is not None:
    return _microseconds(frame.pts, frame.time_base or stream.time_base)
  # A filter converts the one to its own time base, and not the other.
  if frame.dts is None:
    return None
  return _microseconds(frame.dts, stream.time_base)


def _last_duration(frame, stream) -> int:
  """Duration of a frame in microseconds; 0: not known."""
  base = frame.time_base or stream.time_base
  return max(0, _microseconds(frame.duration or 0, base))


def _microseconds(ticks: int, base: Fraction) -> int:
  # Integers, because arithmetic of fractions takes ten times as long.
  return round(ticks * 1_000_000 * base.numerator / base.denominator)
