"""Video files that browsers play: H.264 or VP9, each frame at its time."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.codec.codec
import av.container
import av.error
import numpy as np
from av.video.reformatter import (
  ColorPrimaries,
  ColorRange,
  Colorspace,
  ColorTrc,
  VideoReformatter,
)

from twostream_jax.data.video import decode
from twostream_jax.data.video.frames import VideoError

# Seconds that a file's duration may differ from what was written: Matroska
# rounds to a millisecond.
_TOLERANCE = 0.005


class Shown(NamedTuple):
  """A frame of a video.

  Attributes:
    start: Seconds since the first frame.
    end: Seconds since the first frame; the next frame's start.
    rgb: uint8 [h w 3].
  """

  start: float
  end: float
  rgb: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Encoding:
  """How frames are encoded.

  Attributes:
    codec: Name of the encoder.
    options: Of the encoder.
  """

  codec: str
  options: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Format:
  """A container and what it holds.

  Attributes:
    container: Name of FFmpeg's muxer.
    encoding: Of the frames.
    ticks: Units of a timestamp, per second.
    options: Of the muxer.
  """

  container: str
  encoding: _Encoding
  ticks: int
  options: Mapping[str, str]


# Without B-frames the decoding order is that of display: durations follow from
# the timestamps alone, and no player has to apply an edit list.
_H264 = _Encoding("libx264", {"preset": "fast", "crf": "18", "bf": "0"})
_VP9 = _Encoding(
  "libvpx-vp9",
  {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4"},
)
# The index goes first, so that a browser plays before it has the whole file.
_INDEX_FIRST = {"movflags": "+faststart"}
_FORMATS = {
  ".mp4": _Format("mp4", _H264, 90_000, _INDEX_FIRST),
  ".m4v": _Format("mp4", _H264, 90_000, _INDEX_FIRST),
  ".mov": _Format("mov", _H264, 90_000, _INDEX_FIRST),
  ".mkv": _Format("matroska", _H264, 1000, {}),
  ".webm": _Format("webm", _VP9, 1000, {}),
}


def check_format(path: Path) -> None:
  """Refuses a video that can't be encoded.

  Raises:
    ValueError: There is no format for its extension, or PyAV was built without
      the encoder.
  """
  form = _FORMATS.get(path.suffix.lower())
  if form is None:
    raise ValueError(
      f"{path} must end in one of {', '.join(_FORMATS)}: H.264, and VP9 in"
      " .webm"
    )
  try:
    av.Codec(form.encoding.codec, "w")
  except av.codec.codec.UnknownCodecError as error:
    raise ValueError(
      f"{path}: this PyAV lacks the encoder {form.encoding.codec}; the wheels"
      " of PyPI (pip install av) have it"
    ) from error


def write(path: Path, frames: Iterable[Shown]) -> None:
  """Encodes frames as 4:2:0 video in BT.709 colours, and reads the file back.

  Frames of an odd height or width get another row or column, which repeats the
  last one: 4:2:0 has one chroma sample for two rows and two columns.

  Args:
    path: The extension decides: H.264 in .mp4, .m4v, .mov and .mkv, VP9 in
      .webm.
    frames: In order, of one size; each until the next one.

  Raises:
    ValueError: As `check_format`.
    VideoError: There are no frames.
    OSError: The file can't be written, or does not hold what was written.
  """
  check_format(path)
  form = _FORMATS[path.suffix.lower()]
  count = end = 0
  try:
    with _output(path, form) as output:
      encoder = None
      for image, start, end in _ticks(frames, form.ticks):
        if encoder is None:
          encoder = _Encoder(output, form, image.shape[:2], end - start)
        encoder.add(image, start, end - start)
        count += 1
      if encoder is None:
        raise VideoError("no frame could be decoded")
      encoder.finish()
    _check(path, count, end / form.ticks)
  except av.error.FFmpegError as error:
    raise OSError(error.errno, error.strerror) from error


class _Damaged(OSError):
  """A file does not hold what was written."""


@contextlib.contextmanager
def _output(
  path: Path, form: _Format
) -> Iterator[av.container.OutputContainer]:
  """Opens a container; closes it without another error after one."""
  output = av.open(
    os.fspath(path.absolute()),
    "w",
    format=form.container,
    container_options=dict(form.options),
  )
  try:
    yield output
  except BaseException:
    with contextlib.suppress(av.error.FFmpegError):
      output.close()
    raise
  # Raises where the last bytes, or the index, can't be written.
  output.close()


class _Encoder:
  """Sends frames of one size to a container."""

  def __init__(self, output, form: _Format, size: tuple[int, int], step: int):
    height, width = size
    self._output = output
    self._time_base = Fraction(1, form.ticks)
    self._durations = {}
    self._reformatter = VideoReformatter()
    self._stream = output.add_stream(
      form.encoding.codec,
      # Only stated in the header: each frame has its own time.
      rate=Fraction(form.ticks, step).limit_denominator(100_000),
      width=width + width % 2,
      height=height + height % 2,
      pix_fmt="yuv420p",
      options=dict(form.encoding.options),
    )
    context = self._stream.codec_context
    context.time_base = self._time_base
    # Players guess the matrix by the size where a file does not state it.
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.color_range = ColorRange.MPEG

  def add(self, image: np.ndarray, start: int, duration: int) -> None:
    height, width = image.shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    frame = self._reformatter.reformat(
      av.VideoFrame.from_ndarray(np.pad(image, pad, mode="edge"), "rgb24"),
      format="yuv420p",
      dst_colorspace=Colorspace.ITU709,
      dst_color_range=ColorRange.MPEG,
    )
    frame.pts, frame.time_base = start, self._time_base
    self._durations[start] = duration
    self._mux(self._stream.encode(frame))

  def finish(self) -> None:
    self._mux(self._stream.encode(None))

  def _mux(self, packets) -> None:
    for packet in packets:
      packet.duration = self._durations.pop(packet.pts)
      self._output.mux(packet)


def _ticks(
  frames: Iterable[Shown], ticks: int
) -> Iterator[tuple[np.ndarray, int, int]]:
  """Yields images with their start and end in ticks; none is empty."""
  start = 0
  for shown in frames:
    end = max(round(shown.end * ticks), start + 1)
    yield shown.rgb, start, end
    start = end


def _check(path: Path, count: int, seconds: float) -> None:
  """Reads a file back; raises _Damaged if something is missing."""
  name = os.fspath(path.absolute())
  with av.open(name, options=dict(decode.LOCAL)) as found:
    packets = sum(p.size > 0 for p in found.demux(video=0))
    duration = (found.duration or 0) / av.time_base
  if packets != count or abs(duration - seconds) > _TOLERANCE:
    raise _Damaged(
      f"it holds {packets} frames and {duration:.3f} s of {count} frames and"
      f" {seconds:.3f} s"
    )
