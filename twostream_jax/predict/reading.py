"""What is to be scored, and its decoding, which other processes do."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from twostream_jax.data.check import Rejection, start_worker, too_few_frames
from twostream_jax.data.clips import Clip
from twostream_jax.data.dataset import Record, encode_flow, encode_rgb
from twostream_jax.data.encode import process_clip
from twostream_jax.data.frames import (
  VideoError,
  enclosing,
  is_frame_folder,
  without_video_extension,
)
from twostream_jax.data.video import (
  DEFAULT_FPS,
  read_fps,
  read_resized,
  resize,
  target_size,
)
from twostream_jax.flow import compute_flows, prepare_process
from twostream_jax.flow.spec import EXTRACTED, FlowSpec

# Milliseconds until a camera or stream has to answer.
_PATIENCE = 10_000


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
  is taken, by name, and every folder of numbered images. What is not there is
  kept, to be told when it is to be read; likewise a folder without a video.
  """
  found = []
  for argument in arguments:
    if "://" in argument:
      found.append(Source("stream", argument))
    elif argument.isdecimal() and not os.path.exists(argument):
      found.append(Source("camera", argument))
    elif os.path.isdir(argument) and not is_frame_folder(argument):
      below = list(_videos_below(Path(argument)))
      found += [Source("file", str(path)) for path in below or [argument]]
    else:
      found.append(Source("file", argument))
  return found


def _videos_below(
  folder: Path, around: frozenset[str] = frozenset()
) -> Iterator[Path]:
  """Videos of a folder; for `around` see `enclosing`."""
  inside = enclosing(folder, around)
  if inside is None:
    return
  for path in sorted(folder.iterdir()):
    if path.name.startswith("."):
      continue
    if path.is_dir():
      if is_frame_folder(path):
        yield path
      else:
        yield from _videos_below(path, inside)
    elif without_video_extension(path.name) != path.name:
      yield path


def read_list(path: str | os.PathLike) -> list[str]:
  """The paths in a file, one a line; empty lines are left out.

  Raises:
    ValueError: The file is not UTF-8; the message names it.
  """
  try:
    # With or without the mark that Windows programs begin a file with.
    text = Path(path).read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8 text (at byte {error.start}): save it as UTF-8"
    ) from error
  return [line.strip() for line in text.splitlines() if line.strip()]


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
      return record_of(list(streamer(source)), self.flow_spec, DEFAULT_FPS)
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
    time: seconds since the first frame of the video; strictly increasing.
  """

  rgb: bytes
  flow: tuple[bytes, ...]
  size: tuple[int, int]
  time: float


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
    fps = frame_rate(source)

    def grays() -> Iterator[np.ndarray]:
      frames = frames_of(source, spec.short_side, self.seconds)
      for number, frame in enumerate(frames):
        jpeg = encode_rgb(frame, self.rgb_quality)
        waiting.append(Coded(jpeg, (), frame.shape[:2], number / fps))
        yield cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)

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
    """Yields the frame rate, then lists of `Coded`."""
    yield frame_rate(source)
    frames = self.stream(source)
    while chunk := list(itertools.islice(frames, self.size)):
      yield chunk


def record_of(
  frames: Sequence[Coded], spec: FlowSpec, fps: float, path: str = ""
) -> Record:
  """The record of consecutive frames, as of a video that has no others.

  Raises:
    VideoError: they are too few to have a field.
  """
  if len(frames) <= spec.step:
    raise VideoError(too_few_frames(len(frames), spec.step + 1).reason)
  fields = [frame.flow for frame in frames[spec.step :]]
  both = spec.direction == "bidirectional"
  height, width = frames[0].size
  return Record(
    video_id=path,
    label="",
    group="",
    fps=fps,
    num_frames=len(frames),
    height=height,
    width=width,
    rgb=[frame.rgb for frame in frames],
    flow=[field[0] for field in fields],
    flow_backward=[field[1] for field in fields] if both else [],
  )


def frame_rate(source: Source) -> float:
  """Frames a second, as a file states; of a camera or stream the usual."""
  return read_fps(source.path) if source.kind == "file" else DEFAULT_FPS


def frames_of(
  source: Source, short_side: int, seconds: float
) -> Iterator[np.ndarray]:
  """Decodes a video; its frames, resized: RGB uint8 [h, w, 3]."""
  if source.kind == "file":
    if not os.path.exists(source.path):
      raise VideoError("file not found")
    yield from read_resized(source.path, short_side)
    return
  size = None
  for frame in _live_frames(source, seconds):
    size = size or target_size(*frame.shape[:2], short_side)
    yield cv2.cvtColor(resize(frame, *size), cv2.COLOR_BGR2RGB)


def _live_frames(source: Source, seconds: float) -> Iterator[np.ndarray]:
  """Frames of a camera or stream for some seconds by the clock: BGR."""
  if source.kind == "camera":
    capture = cv2.VideoCapture(int(source.path))
  else:
    patience = [
      cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
      _PATIENCE,
      cv2.CAP_PROP_READ_TIMEOUT_MSEC,
      _PATIENCE,
    ]
    capture = cv2.VideoCapture(source.path, cv2.CAP_FFMPEG, patience)
  try:
    if not capture.isOpened():
      raise VideoError(f"the {source.kind} can't be opened")
    end, found = time.monotonic() + seconds, False
    while time.monotonic() < end:
      more, frame = capture.read()
      if not more:
        break
      found = True
      yield frame
    if not found:
      raise VideoError("no frame could be decoded")
  finally:
    capture.release()
