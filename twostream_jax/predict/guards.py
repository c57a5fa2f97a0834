"""Turns every error of the work of other processes into one video's reason.

Nothing that needs JAX is imported here, because processes that decode import
this.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twostream_jax.data.build.check import Rejection
from twostream_jax.data.video.faults import machine_fault, read_fault
from twostream_jax.data.video.frames import VideoError
from twostream_jax.predict.reading import Source


def unexpected(error: Exception) -> str:
  """Returns the reason of an unforeseen error, the machine's or another."""
  return machine_fault(error) or f"unexpected {type(error).__name__}: {error}"


@dataclasses.dataclass(frozen=True)
class Guarded:
  """Reads a video; an error is a rejection. Can be sent to a process."""

  work: Callable[[Source], Any]

  def __call__(self, source: Source) -> Any:
    """What the work gives, or a `Rejection`."""
    try:
      return self.work(source)
    except Exception as error:
      return Rejection(unexpected(error))


@dataclasses.dataclass(frozen=True)
class GuardedStream:
  """Streams a video; an error is a VideoError. Can be sent to a process.

  A file that the machine can't read to its end is one as well, which FFmpeg
  takes for the end of the video.
  """

  work: Callable[[Source], Iterable[Any]]

  def __call__(self, source: Source) -> Iterator[Any]:
    """What the work gives.

    Raises:
      VideoError: The work fails.
    """
    try:
      yield from self.work(source)
    except Exception as error:
      reason = read_fault_of(source)
      if reason is None and isinstance(error, VideoError):
        raise
      raise VideoError(reason or unexpected(error)) from error
    if reason := read_fault_of(source):
      raise VideoError(reason)


def read_fault_of(source: Source) -> str | None:
  """Why the machine can't read a video's file; None: it can, or is none."""
  if source.kind != "file" or not os.path.exists(source.path):
    return None
  return read_fault(source.path)
