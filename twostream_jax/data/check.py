"""Which clips can't be used, and a check of it before hours of a build."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
from tqdm import tqdm

from twostream_jax.data.clips import Clip, clip_exists
from twostream_jax.data.video import (
  VideoError,
  read_resized,
  silence_decoders,
  target_size,
)
from twostream_jax.data.workers import Lost, map_in_processes
from twostream_jax.flow.spec import FlowSpec

FILE_NOT_FOUND = "file not found"
CRASHED = "the decoder crashed"
# Seconds. As long as a clip of 1 GiB may take with slow flow on one core.
TIME_LIMIT = 1800.0


@dataclasses.dataclass(frozen=True)
class Rejection:
  """Why a clip can't be used."""

  reason: str


def too_few_frames(number: int, needed: int) -> Rejection:
  """Returns why a clip of `number` frames can't be used."""
  frames = "1 frame" if number == 1 else f"{number} frames"
  return Rejection(f"{frames} decoded, at least {needed} needed")


def rejection_entry(clip: Clip, rejection: Rejection) -> dict[str, Any]:
  """Returns a rejected clip as the metadata lists it."""
  several = isinstance(clip.label, tuple)
  return {
    "video_id": clip.video_id,
    "split": clip.split,
    "label": list(clip.label) if several else clip.label,
    "reason": rejection.reason,
  }


def rejected_unread(clip: Clip) -> Rejection | None:
  """Returns why a clip can't be used, as far as that takes no decoding."""
  if clip.rejection:
    return Rejection(clip.rejection)
  return None if clip_exists(clip) else Rejection(FILE_NOT_FOUND)


def lost_rejection(lost: Lost, time_limit: float) -> Rejection:
  """Returns why a clip can't be used that was lost in a worker process."""
  if lost.reason == "crashed":
    return Rejection(CRASHED)
  return Rejection(f"not done in {time_limit:g} s, the time limit of a clip")


def start_worker() -> None:
  """Prepares a process for decoding: silent, and with one thread."""
  silence_decoders()
  cv2.setNumThreads(1)


def check_clip(clip: Clip, flow_spec: FlowSpec) -> Rejection | None:
  """Decodes and resizes all frames of a clip, as a build does.

  Returns:
    Why a build would reject it, or None. Flow and the limit on the size of a
    record play no part.
  """
  if unusable := rejected_unread(clip):
    return unusable
  try:
    frames = read_resized(clip.path, flow_spec.short_side, flow_spec.fps)
    n = sum(1 for _ in frames)
  except VideoError as error:
    return Rejection(error.reason)
  except Exception as error:
    return Rejection(f"unexpected {type(error).__name__}: {error}")
  needed = flow_spec.step + 1
  return too_few_frames(n, needed) if n < needed else None


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
