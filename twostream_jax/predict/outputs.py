"""Files that a command writes: checked before any work, whole or not at all."""

import contextlib
import errno
import os
import stat
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from twostream_jax import files
from twostream_jax.predict.reading import Source

# These fail for every file that is written, not for one name or one content.
_OF_THE_MACHINE = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EIO,
  errno.EROFS,
  errno.ENOENT,  # The folder was removed.
  errno.ENOMEM,
  errno.EMFILE,
  errno.ENFILE,
  errno.EPIPE,
}


class WriteError(OSError):
  """A file can't be written.

  Attributes:
    errno: As of the error that it was, or None.
    reason: The message: the file and why.
    of_the_machine: Whether every other file would fail as well: the disk is
      full, for example.
  """

  def __init__(self, path: str | os.PathLike, error: OSError):
    self.reason = f"can't write {path}: {error.strerror or error}"
    super().__init__(self.reason)
    self.errno = error.errno
    self.of_the_machine = error.errno in _OF_THE_MACHINE


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
  """Yields a temporary path, which becomes `path` when the block is over.

  Where the block fails or is interrupted, nothing is left; see
  `files.replaced`. The temporary path has the extension of `path`.

  Raises:
    WriteError: An OSError in the block, or when the file gets its name.
  """
  try:
    with files.replaced(path, path.suffix) as temporary:
      yield temporary
  except OSError as error:
    # As it was raised: not every one has a number.
    cause = error.__cause__
    told = cause if isinstance(cause, OSError) else error
    raise WriteError(path, told) from error


def check_file(
  flag: str, path: Path, sources: Sequence[Source], inputs: Sequence[Path] = ()
) -> None:
  """Refuses a file that can't be written or that would overwrite an input.

  Args:
    flag: Name of the flag that names the file.
    path: The file.
    sources: Videos that are read.
    inputs: Other files that are read.

  Raises:
    ValueError: The message names the flag.
  """
  folder = path.absolute().parent
  if not folder.is_dir():
    raise ValueError(f"--{flag}={path}: there is no folder {folder}")
  try:
    # A device such as /dev/null would be replaced by a file.
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise ValueError(f"--{flag}={path} is a folder or a device: name a file")
  except FileNotFoundError:
    pass
  except OSError as error:  # The name is too long, for example.
    raise ValueError(f"--{flag}={path}: {error.strerror}") from error
  for source in sources:
    if _same(path, local_path(source.path)):
      raise ValueError(
        f"--{flag}={path} is the video itself: name another file"
      )
    _check_not_inside(flag, folder, source, path)
  for other in inputs:
    if _same(path, other):
      raise ValueError(f"--{flag}={path} is read as well: name another file")
  _check_folder(flag, path, folder)


def check_folder(flag: str, path: Path, sources: Sequence[Source]) -> None:
  """Refuses a folder that can't be made or written into.

  Raises:
    ValueError: The message names the flag.
  """
  for source in sources:
    _check_not_inside(flag, path, source, path)
  there = path.absolute()
  while not there.exists():
    if there.is_symlink():
      raise ValueError(f"--{flag}={path}: {there} is a link to nothing")
    there = there.parent
  if not there.is_dir():
    raise ValueError(f"--{flag}={path}: {there} is a file, not a folder")
  _check_folder(flag, path, there)


def _check_not_inside(
  flag: str, folder: Path, source: Source, path: Path
) -> None:
  """Refuses to write between the images of a folder of frames."""
  if os.path.isdir(source.path) and _same(folder, Path(source.path)):
    raise ValueError(
      f"--{flag}={path} lies among the frames of {source.path}: name another"
      " folder"
    )


def _check_folder(flag: str, path: Path, folder: Path) -> None:
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise ValueError(
      f"--{flag}={path}: can't write in {folder}: {error.strerror}"
    ) from error


def local_path(path: str) -> Path:
  """The file that the path of a source names, where it is one."""
  if path.startswith("file://"):
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(path).path))
  return Path(path)


def _same(path: Path, other: Path) -> bool:
  """Whether both lead to one file, also by links."""
  try:
    return os.path.samefile(path, other)
  except (OSError, ValueError):
    return False
