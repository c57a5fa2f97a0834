"""Turns every error of the work of other processes into one video's reason.

Nothing that needs JAX is imported here, because processes that decode import
this.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twostream_jax.data.check import Rejection
from twostream_jax.data.frames import VideoError
from twostream_jax.predict.reading import Source


def unexpected(error: Exception) -> str:
  """Returns the reason of an unforeseen error."""
  return f"unexpected {type(error).__name__}: {error}"


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
  """Streams a video; an error is a VideoError. Can be sent to a process."""

  work: Callable[[Source], Iterable[Any]]

  def __call__(self, source: Source) -> Iterator[Any]:
    """What the work gives.

    Raises:
      VideoError: The work fails.
    """
    try:
      yield from self.work(source)
    except VideoError:
      raise
    except Exception as error:
      raise VideoError(unexpected(error)) from error
