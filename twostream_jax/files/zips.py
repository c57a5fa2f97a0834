"""Zip archives of others, whose lists of files are no longer than needed."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator

# Bytes of the list of files of an archive: 1,000 arrays have 100,000, and this
# is that of 40,000 whose names have 60 characters. zipfile makes an object of
# half a kilobyte of each.
_LONGEST_LIST = 2**22


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
  """Opens an archive to read.

  Raises:
    zipfile.BadZipFile: It is damaged, or lists more files than an archive of
      arrays has.
    OSError: It can't be read.
  """
  with _Listed(path) as file:
    archive = zipfile.ZipFile(file)
    file.is_listed = True
    yield archive


class _Listed(io.BufferedReader):
  """A file whose list zipfile reads as a whole, before anything else."""

  def __init__(self, path: str | os.PathLike):
    super().__init__(io.FileIO(path))
    self.is_listed = False

  def read(self, size: int | None = -1, /) -> bytes:
    """Reads; see `io.BufferedReader`."""
    if not self.is_listed and size is not None and size > _LONGEST_LIST:
      raise zipfile.BadZipFile(
        f"a list of files of {size} bytes, more than an archive of arrays has"
      )
    return super().read(size)
