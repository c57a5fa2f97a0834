"""Files that several processes share."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
  """Keeps other processes away while it is held; a kill releases it.

  Args:
    path: Lock file; it is removed at the end.

  Yields:
    Whether it is held; False where another process holds it.
  """
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # Its holder may have removed it since it was opened here.
      held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
      held = False
    try:
      yield held
    finally:
      if held:
        path.unlink()
