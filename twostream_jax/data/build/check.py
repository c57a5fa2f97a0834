"""Which clips can't be used, and a check of it before hours of a build."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

from twostream_jax.data.build.workers import Lost, map_in_processes
from twostream_jax.data.datasets.clips import TIME_LIMIT, Clip, clip_exists
from twostream_jax.data.video.faults import (
  FILE_NOT_FOUND,
  machine_fault,
  read_fault,
)
from twostream_jax.data.video.frames import VideoError
from twostream_jax.data.video.reading import (
  read_resized,
  silence_decoders,
  target_size,
)
from twostream_jax.flow.spec import FlowSpec

_Result = TypeVar("_Result")
CRASHED = "the decoder crashed"


@dataclasses.dataclass(frozen=True)
class Rejection:
  """Why a clip can't be used.

  Attributes:
    reason: in a few words.
    transient: whether the machine is to blame, not the file: a later try may
      succeed.
  """

  reason: str
  transient: bool = False


def too_few_frames(number: int, needed: int) -> Rejection:
  """Returns why a clip of `number` frames can't be used."""
  frames = "1 frame" if number == 1 else f"{number} frames"
  return Rejection(f"{frames} decoded, at least {needed} needed")


def rejection_entry(clip: Clip, reason: str) -> dict[str, Any]:
  """Returns a rejected clip as the metadata lists it."""
  several = isinstance(clip.label, tuple)
  return {
    "video_id": clip.video_id,
    "split": clip.split,
    "label": list(clip.label) if several else clip.label,
    "reason": reason,
  }


def lost_rejection(lost: Lost, time_limit: float) -> Rejection:
  """Returns why a clip can't be used that was lost in a worker process."""
  if lost.reason == "crashed":
    return Rejection(CRASHED)
  if lost.reason == "killed":
    return Rejection(
      "its process was killed, probably for lack of memory", transient=True
    )
  if lost.reason == "stalled":
    return Rejection(
      f"not done in {time_limit:g} s, spent waiting and not computing",
      transient=True,
    )
  return Rejection(f"not done in {time_limit:g} s, the time limit of a clip")


def done_or_rejected(
  clip: Clip, work: Callable[[], _Result]
) -> _Result | Rejection:
  """Does some work on a clip's file; returns its result, or why there is none.

  An unexpected error is a reason like any other: one odd file must not end a
  build of hours, and every reason is listed at its end. What the machine is to
  blame for is told apart, also where the decoder took an error in reading for
  the end of the file.
  """
  if clip.rejection:
    return Rejection(clip.rejection)
  try:
    if not clip_exists(clip):
      return Rejection(FILE_NOT_FOUND, transient=True)
    result = work()
  except Exception as error:
    if fault := machine_fault(error):
      return Rejection(fault, transient=True)
    result = _rejection_of(error)
  fault = read_fault(clip.path)
  return Rejection(fault, transient=True) if fault else result


def start_worker() -> None:
  """Prepares a process for decoding: silent, and with one thread."""
  silence_decoders()
  cv2.setNumThreads(1)


def _rejection_of(error: Exception) -> Rejection:
  if isinstance(error, VideoError):
    return Rejection(error.reason)
  if isinstance(error, MemoryError):  # The machine has it: see machine_fault.
    return Rejection("damaged: it asks for more memory than FFmpeg allows")
  return Rejection(f"unexpected {type(error).__name__}: {error}")


def check_clip(clip: Clip, flow_spec: FlowSpec) -> Rejection | None:
  """Decodes and resizes all frames of a clip, as a build does.

  Returns:
    Why a build would reject it, or None. Flow and the limit on the size of a
    record play no part.
  """

  def count() -> Rejection | None:
    frames = read_resized(clip.path, flow_spec.short_side, flow_spec.fps)
    n = sum(1 for _ in frames)
    needed = flow_spec.step + 1
    return too_few_frames(n, needed) if n < needed else None

  return done_or_rejected(clip, count)


def check_clips_decode(
  clips: Sequence[Clip],
  *,
  flow_spec: FlowSpec,
  num_workers: int | None = None,
  time_limit: float = TIME_LIMIT,
  progress: bool = True,
  process: Callable[[Clip, FlowSpec], Rejection | None] = check_clip,
) -> list[Rejection | None]:
  """Decodes every clip, in processes. Writes nothing.

  Args:
    clips: at least one.
    flow_spec: of the build: its short side, frame rate and step are used.
    num_workers: processes; None: one for each CPU.
    time_limit: seconds that a clip may take before it is rejected.
    progress: whether to draw a progress bar on stderr.
    process: what is done to a clip, at the top level of a module.

  Returns:
    For each clip None, or why it can't be used.

  Raises:
    ValueError: an argument is out of range.
    RuntimeError: worker processes can't start.
  """
  target_size(8, 8, flow_spec.short_side)
  if num_workers is not None and num_workers < 1:
    raise ValueError(f"at least one worker is needed: {num_workers}")
  workers = min(num_workers or os.cpu_count() or 1, len(clips))
  work = _Work(process, flow_spec)
  found = {}
  with contextlib.closing(
    map_in_processes(
      work, enumerate(clips), workers, start_worker, time_limit=time_limit
    )
  ) as results:
    bar = tqdm(results, "check", len(clips), unit="clip", disable=not progress)
    for (index, _), result in bar:
      found[index] = (
        lost_rejection(result, time_limit)
        if isinstance(result, Lost)
        else result
      )
  return [found[index] for index in range(len(clips))]


@dataclasses.dataclass(frozen=True)
class _Work:
  """What is sent to a worker with each clip."""

  process: Callable[[Clip, FlowSpec], Rejection | None]
  flow_spec: FlowSpec

  def __call__(self, item: tuple[int, Clip]) -> Rejection | None:
    _, clip = item
    return self.process(clip, self.flow_spec)
