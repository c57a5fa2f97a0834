"""Files that are written whole, that processes share, and that are removed.

What is named by a file of someone else stays in the folder of that file, no
link is followed on writing, and a folder is removed only where all that it
holds was written by this package.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

from twostream_jax.files.words import printable

# Bytes, on most file systems.
_LONGEST_NAME = 255
# What `_beside` leaves of a name.
_CUT = _LONGEST_NAME - 55
# Names of `_beside`, which a kill can leave behind, and in them those of the
# files that they were to become.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}")


# Of a write, whose errors name no file.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class ForeignFileError(FileExistsError):
  """Something would be removed that this package did not write."""


def name_from_file(name: object) -> str:
  """Returns a name that a file gives to another one, as a part of its path.

  Whoever writes the file would otherwise choose what is read or written.

  Raises:
    ValueError: It is not the name of one file or folder.
  """
  if not _is_name(name):
    raise ValueError(f"{name!r:.200} is not the name of a file")
  return name


def inside(folder: Path, name: object) -> Path:
  """Returns the path of what a file in a folder names, in the same folder.

  Raises:
    ValueError: It leads elsewhere, by its name or as a link.
  """
  if not _is_name(name):
    raise ValueError(
      f"{name!r:.200} is not the name of a file beside the one that names it"
    )
  path = folder / name
  if path.resolve().parent != folder.resolve():
    raise ValueError(
      f"{name!r:.200} is a link out of the folder {folder}; put the file itself"
      " there"
    )
  return path


def _is_name(name: object) -> TypeGuard[str]:
  return (
    isinstance(name, str)
    and name not in ("", ".", "..")
    and not any(character in name for character in "/\\\0")
    # It is a part of messages, and of commands that people copy.
    and printable(name) == name
    and len(name.encode()) <= _LONGEST_NAME
  )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
  """Keeps other processes away while it is held; a kill releases it.

  Args:
    path: Lock file; it is removed at the end.

  Yields:
    Whether it is held; False where another process holds it.

  Raises:
    ForeignFileError: Another file, or a link, has that name.
  """
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  try:
    descriptor = os.open(path, flags, 0o666)
  except OSError as error:
    if error.errno in (errno.ELOOP, errno.EISDIR):
      raise _no_lock(path) from error
    raise
  with open(descriptor, "r+b", buffering=0) as file:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size:
      raise _no_lock(path)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # Its holder may have removed it since it was opened here.
      held = os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
      held = False
    try:
      yield held
    finally:
      if held:
        path.unlink()


def _no_lock(path: Path) -> ForeignFileError:
  return ForeignFileError(
    errno.EEXIST, "is needed as a lock and is another file; move it", str(path)
  )


@contextlib.contextmanager
def replaced(path: Path, suffix: str = "") -> Iterator[Path]:
  """Yields a temporary path beside `path`, which becomes it at the end.

  Where the block fails, nothing is left. The temporary file is there, empty;
  its name can't be guessed, so that no link waits under it. A link at `path` is
  replaced itself.

  Args:
    path: The file.
    suffix: End of the temporary name, for libraries that go by an extension.
      After a kill, the name is found by patterns such as `*.json`.

  Raises:
    OSError: The file can't be written; it names `path`, and its cause is the
      error as it was raised.
  """
  temporary = _beside(path)
  temporary = temporary.with_name(temporary.name + suffix)
  try:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    os.close(os.open(temporary, flags, 0o666))
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


@contextlib.contextmanager
def replaced_folder(path: Path, own: Sequence[str]) -> Iterator[Path]:
  """Yields an empty folder beside `path`, which becomes it at the end.

  Where the block fails, nothing is left. What a kill left is removed once the
  new folder has its name.

  Args:
    path: The folder; of a link, the folder that it leads to is replaced.
    own: Regular expressions of what may be in it; see `remove_folder`.

  Raises:
    ForeignFileError: The folder that is there, or a leftover, holds other
      files. It is found before the block.
    OSError: The folder can't be written; it names `path`, and its cause is the
      error as it was raised.
  """
  path = Path(os.path.realpath(path))
  with _naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists():
    require_own(path, own)
  leftovers = re.compile(rf"\.{re.escape(_shortened(path))}\.[0-9a-f]{{32}}")
  for entry in path.parent.iterdir():
    if leftovers.fullmatch(entry.name):
      require_own(entry, own)
  temporary, old = _beside(path), _beside(path)
  with _naming(path):
    # Fails where anything has the name, also a link.
    temporary.mkdir()
  try:
    with _naming(path, temporary):
      yield temporary
    with _naming(path):
      if path.exists():
        path.rename(old)
      try:
        temporary.rename(path)
      except OSError:
        if old.exists():
          old.rename(path)
        raise
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  for entry in list(path.parent.iterdir()):
    if leftovers.fullmatch(entry.name):
      remove_folder(entry, own)


@contextlib.contextmanager
def _naming(path: Path, inside: Path | None = None) -> Iterator[None]:
  """Names a folder in errors of writing it, not what it is made from.

  Args:
    path: The folder.
    inside: Folder that becomes it. Errors about files elsewhere stay as they
      are; those of full disks name no file. By default all name the folder.
  """
  try:
    yield
  except OSError as error:
    named = error.filename
    if inside is not None and not (
      error.errno in _UNWRITABLE
      if named is None
      else Path(os.fsdecode(named)).is_relative_to(inside)
    ):
      raise
    number, reason = error.errno or errno.EIO, error.strerror or str(error)
    raise OSError(number, reason, os.fspath(path)) from error


def _beside(path: Path) -> Path:
  """A name for what becomes `path`.

  It is not made of a process id: machines that share a folder have processes
  of equal ids (in containers of one image as a rule).
  """
  return path.with_name(f".{_shortened(path)}.{uuid.uuid4().hex}")


def _shortened(path: Path) -> str:
  """A name that leaves room for what `_beside` and `replaced` add."""
  return os.fsdecode(os.fsencode(path.name)[:_CUT])


def remove_folder(folder: Path, own: Sequence[str]) -> None:
  """Removes a folder of this package and all that is in it.

  Args:
    folder: The folder.
    own: Regular expressions of the paths of its files, relative to it.

  Raises:
    ForeignFileError: It holds another file; nothing is removed.
  """
  require_own(folder, own)
  shutil.rmtree(folder)


def require_own(folder: Path, own: Sequence[str]) -> None:
  """Refuses a folder that holds what this package did not write there.

  Args:
    folder: The folder. Folders in it without a file do not matter.
    own: See `remove_folder`. Temporary files of `replaced` belong to it.

  Raises:
    ForeignFileError: It does, or it is not a folder; the message has the path.
  """
  if folder.is_symlink() or not folder.is_dir():
    raise _foreign(folder, folder)
  known = re.compile("|".join(f"(?:{one})" for one in own))
  for parent, children, names in os.walk(folder, onerror=_raise):
    # A link to a folder is among the folders.
    links = [name for name in children if Path(parent, name).is_symlink()]
    for name in sorted([*names, *links]):
      path = Path(parent, name)
      temporary = _TEMPORARY.fullmatch(name)
      final = path.with_name(temporary[1]) if temporary else path
      ours = known.fullmatch(final.relative_to(folder).as_posix())
      # Of a longer name its first part tells nothing.
      is_cut = temporary and len(os.fsencode(temporary[1])) >= _CUT
      if not (ours or is_cut) or not stat.S_ISREG(path.lstat().st_mode):
        raise _foreign(folder, path)


def _foreign(folder: Path, path: Path) -> ForeignFileError:
  where = "" if path == folder else f", which {folder} holds"
  return ForeignFileError(
    f"{str(path)!r}{where}, was not written there by twostream_jax and would"
    " be removed: move it away, or name another folder"
  )


def _raise(error: OSError) -> None:
  raise error
