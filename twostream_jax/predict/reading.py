"""What is to be scored, and its decoding, which other processes do."""

import dataclasses
import itertools
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from twostream_jax.data.build.check import (
  Rejection,
  start_worker,
  too_few_frames,
)
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.dataset import Record, encode_flow, encode_rgb
from twostream_jax.data.datasets.clips import Clip, counted, extensions
from twostream_jax.data.datasets.texts import expand_home, read_lines
from twostream_jax.data.video.frame_times import (
  Frame,
  at_constant_rate,
  mean_rate,
)
from twostream_jax.data.video.frames import (
  VideoError,
  enclosing,
  is_frame_folder,
  is_left_behind,
  without_video_extension,
)
from twostream_jax.data.video.reading import read_resized, resized
from twostream_jax.flow import compute_flows, prepare_process
from twostream_jax.flow.spec import EXTRACTED, FlowSpec
from twostream_jax.predict import live

# FFmpeg has other names for what it opens (concat:a|b); they are files here.
_URL = re.compile("[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Source:
  """A video to score.

  Attributes:
    kind: "file" (or a folder of frames), "camera" or "stream".
    path: of the file or folder; index of the camera; URL of the stream.
  """

  kind: str
  path: str


def start(flow_spec: FlowSpec) -> None:
  """Prepares a process for decoding and for flow.

  It is here, because a process that is started imports what it is given from.
  """
  start_worker()
  prepare_process(flow_spec)


def find_sources(arguments: Iterable[str]) -> list[Source]:
  """The videos that arguments name, in their order; folders are searched.

  A folder of numbered images is one video. Of another folder every video below
  is taken, by extension, and every folder of numbered images; a warning counts
  the other files. What is not there is kept, and so is a folder without a
  video: their errors appear when they are to be read.
  """
  found = []
  for argument in map(expand_home, arguments):
    if _URL.match(argument):
      found.append(Source("stream", argument))
    elif argument.isdecimal() and not os.path.exists(argument):
      found.append(Source("camera", argument))
    elif _is_searched(Path(argument)):
      below = _videos_below(Path(argument))
      found += [Source("file", str(path)) for path in below or [argument]]
    else:
      found.append(Source("file", argument))
  return found


def _videos_below(folder: Path) -> list[Path]:
  """Videos of a folder; a warning counts the other files, by extension."""
  videos, others = [], []
  for path in _below(folder):
    is_video = without_video_extension(path.name) != path.name
    (videos if is_video or path.is_dir() else others).append(path)
  if others:
    warnings.warn(
      f"{counted(others, 'file')} in {folder} not taken, without the extension"
      f" of a video: {extensions([path.name for path in others])}. A file that"
      " is named itself is tried",
      stacklevel=3,
    )
  return videos


def _below(
  folder: Path, around: frozenset[str] = frozenset()
) -> Iterator[Path]:
  """Files and folders of frames; for `around` see `enclosing`."""
  inside = enclosing(folder, around)
  if inside is None:
    return
  for path in sorted(folder.iterdir()):
    if is_left_behind(path.name):
      continue
    if _is_searched(path):
      yield from _below(path, inside)
    else:
      yield path


def _is_searched(path: Path) -> bool:
  """Whether a path is a folder of videos, not a video or what can't be read."""
  try:
    return path.is_dir() and not is_frame_folder(path)
  except PermissionError:
    return False  # The reason is told when it is to be read.


def read_list(path: str | os.PathLike) -> list[str]:
  """The paths in a file, one a line; empty lines are left out.

  Raises:
    ValueError: The file is not UTF-8; the message names it.
  """
  return [line for _, line in read_lines(path)]


@dataclasses.dataclass(frozen=True)
class Reader:
  """Decodes a whole video to a record; can be sent to another process.

  Attributes:
    flow_spec: of the run; its short side holds for the frames too.
    rgb_quality: JPEG quality of the frames, 0..100.
    seconds: of a camera or stream that are taken.
  """

  flow_spec: FlowSpec
  rgb_quality: int
  seconds: float = 10.0

  def __call__(self, source: Source) -> Record | Rejection:
    """The record, as a build of a dataset makes it, or why there is none."""
    if source.kind == "file":
      path = Path(source.path)
      clip = Clip(source.path, path, split="", label="", group="")
      return process_clip(clip, self.flow_spec, self.rgb_quality)
    streamer = Streamer(self.flow_spec, self.rgb_quality, self.seconds)
    try:
      return record_of(list(streamer(source)), self.flow_spec)
    except VideoError as error:
      return Rejection(error.reason)


@dataclasses.dataclass(frozen=True)
class Timed:
  """Does some work and says how long it took; for another process."""

  work: Callable[[Source], Any]

  def __call__(self, source: Source) -> tuple[Any, float]:
    """What the work gives, and seconds."""
    began = time.perf_counter()
    return self.work(source), time.perf_counter() - began


@dataclasses.dataclass(frozen=True)
class Coded:
  """A frame as it is stored.

  Attributes:
    rgb: JPEG.
    flow: JPEGs of the fields between the frame a step before and this one, one
      for each direction; () where there is no such frame.
    size: (height, width).
    time: Seconds since the video's first frame.
    duration: Seconds until the next frame.
    pixel_aspect: See `frame_times.Frame`.
    damaged: See `frame_times.Frame`.
  """

  rgb: bytes
  flow: tuple[bytes, ...]
  size: tuple[int, int]
  time: float
  duration: float
  pixel_aspect: float = 1.0
  damaged: int = 0


@dataclasses.dataclass(frozen=True)
class Streamer:
  """Decodes a video of any length in one pass; see `Reader` for attributes."""

  flow_spec: FlowSpec
  rgb_quality: int
  seconds: float = 10.0

  def __call__(self, source: Source) -> Iterator[Coded]:
    """Yields each frame as soon as its flow is computed.

    Memory holds some frames, however long the video is.

    Raises:
      VideoError: the video can't be read, or flow can't be computed from it.
    """
    spec = self.flow_spec
    if spec.algorithm == EXTRACTED:
      raise VideoError(
        "the run reads flow that another program extracted; that can't be"
        " followed over a long video"
      )
    waiting: list[Coded] = []

    def grays() -> Iterator[np.ndarray]:
      for frame in frames_of(source, spec, self.seconds):
        jpeg = encode_rgb(frame.rgb, self.rgb_quality)
        waiting.append(Coded(jpeg, (), frame.rgb.shape[:2], *frame[1:]))
        yield cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)

    first = True
    for fields in compute_flows(spec, grays()):
      if first:  # The frames before the first field's second one.
        yield from waiting[: spec.step]
        del waiting[: spec.step]
        first = False
      flow = tuple(encode_flow(field, spec) for field in fields)
      yield dataclasses.replace(waiting.pop(0), flow=flow)
    yield from waiting


@dataclasses.dataclass(frozen=True)
class Chunks:
  """What a `Streamer` gives, some frames at a time; for another process."""

  stream: Streamer
  size: int = 16

  def __call__(self, source: Source) -> Iterator[Any]:
    """Yields lists of `Coded`."""
    frames = self.stream(source)
    while chunk := list(itertools.islice(frames, self.size)):
      yield chunk


def record_of(
  frames: Sequence[Coded], spec: FlowSpec, path: str = ""
) -> Record:
  """The record of consecutive frames, as of a video that has no others.

  Its frame rate is that of the frames' times.

  Raises:
    VideoError: they are too few to have a field.
  """
  if len(frames) <= spec.step:
    raise VideoError(too_few_frames(len(frames), spec.step + 1).reason)
  fields = [frame.flow for frame in frames[spec.step :]]
  both = spec.direction == "bidirectional"
  height, width = frames[0].size
  times = [frame.time - frames[0].time for frame in frames]
  return Record(
    video_id=path,
    label="",
    group="",
    fps=spec.fps or mean_rate(times),
    times=[round(time * 1e6) for time in times],
    pixel_aspect=frames[0].pixel_aspect,
    num_damaged=sum(frame.damaged for frame in frames),
    num_frames=len(frames),
    height=height,
    width=width,
    rgb=[frame.rgb for frame in frames],
    flow=[field[0] for field in fields],
    flow_backward=[field[1] for field in fields] if both else [],
  )


def frames_of(
  source: Source, spec: FlowSpec, seconds: float
) -> Iterator[Frame]:
  """Decodes and resizes a video as a build does.

  Args:
    source: What to read.
    spec: Its short side and frame rate are used.
    seconds: Of a camera or stream that are read.
  """
  if source.kind == "file":
    if not os.path.exists(source.path):
      raise VideoError("file not found")
    yield from read_resized(source.path, spec.short_side, spec.fps)
    return
  if source.kind == "camera":
    frames = live.read_camera(int(source.path), seconds)
  else:
    frames = live.read_stream(source.path, seconds)
  if spec.fps is not None:
    frames = at_constant_rate(frames, spec.fps)
  yield from live.read_ahead(resized(frames, spec.short_side))
