"""A folder that one command writes into at a time."""

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path

from twostream_jax import files, parallel

LOCK_FILE = ".lock"
# Of file systems without locks, as some of clusters are mounted.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class InUseError(ValueError):
  """Another command writes into a folder."""


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
  """Keeps other commands away that would write into a folder as well.

  Two trainings in one folder would lose each other's records. Who only reads
  asks for no lock: predictions, exports, evaluations beside a training. The
  first process of a run holds it for all of them. A kill releases it.

  Args:
    folder: Made if missing.

  Raises:
    InUseError: Another command holds it; raised in all processes of the run.
    ForeignFileError: Another file has the name of the lock.
  """
  with contextlib.ExitStack() as stack:
    held = not parallel.is_primary() or stack.enter_context(_locked(folder))
    if parallel.any_process(not held):
      raise InUseError(
        f"another command is writing into {folder} ({folder / LOCK_FILE}); wait"
        " for it, or name another --workdir"
      )
    yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      held = stack.enter_context(files.locked(folder / LOCK_FILE))
    except OSError as error:
      if error.errno not in _WITHOUT_LOCKS:
        raise
      warnings.warn(
        f"{folder} can't be locked ({error.strerror}): see to it that no other"
        " command writes into it",
        stacklevel=2,
      )
      held = True
    yield held
