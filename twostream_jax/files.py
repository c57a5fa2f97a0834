"""Files that are written whole, and those that several processes share."""

import contextlib
import errno
import fcntl
import os
import uuid
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


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
  """Yields a temporary path beside `path`, which becomes it at the end.

  Where the block fails, nothing is left. The temporary name is unique, not made
  of a process id: machines that share a folder have processes of equal ids (in
  containers of one image as a rule).

  Raises:
    OSError: The file can't be written; it names `path`.
  """
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    yield temporary
    with open(temporary, "rb") as file:
      # Before the rename, or a power cut could leave a name without its bytes.
      os.fsync(file.fileno())
    temporary.rename(path)
  except OSError as error:
    # NumPy tells no number, only that not all was written.
    number, reason = error.errno or errno.EIO, error.strerror or str(error)
    raise OSError(number, reason, os.fspath(path)) from error
  finally:
    # On a disk that can't be written the error above is the one to tell.
    with contextlib.suppress(OSError):
      temporary.unlink()
