"""Files inside of zip archives, without unpacking them."""

import io
import mmap
import zipfile
from pathlib import Path

from twostream_jax.pretrained.sources import WeightsError, require_bounded


def map_file(path: Path) -> mmap.mmap:
  """Maps a file to memory, to be read only."""
  with path.open("rb") as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def require_small(archive: zipfile.ZipFile, path: Path) -> None:
  """Refuses an archive that unpacks to much more than its size.

  Raises:
    WeightsError: it does.
  """
  for info in archive.infolist():
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      # zipfile unpacks these without a limit, whatever size they claim.
      raise WeightsError(
        f"{path}: its entry {info.filename!r} is compressed in an unusual way"
      )
  unpacked = sum(info.file_size for info in archive.infolist())
  require_bounded(unpacked, path.stat().st_size, str(path))


def is_stored(info: zipfile.ZipInfo) -> bool:
  """Reports whether a file is in the archive byte by byte."""
  return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


def stored(mapped: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
  """Returns the bytes of a file that `is_stored`.

  Args:
    mapped: the archive.
    info: the file.

  Raises:
    WeightsError: the file is not where the archive's list says.
  """
  header = mapped[info.header_offset : info.header_offset + 30]
  if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
    raise WeightsError(f"its entry {info.filename!r} is not there")
  # Name and extra field have their own lengths here.
  lengths = [int.from_bytes(header[i : i + 2], "little") for i in (26, 28)]
  begin = info.header_offset + 30 + sum(lengths)
  end = begin + info.file_size
  if end > len(mapped):
    raise WeightsError(f"its entry {info.filename!r} is cut off")
  return memoryview(mapped)[begin:end]


class MappedFile(io.RawIOBase):
  """A file that reads from a buffer without a copy of it."""

  def __init__(self, content: memoryview):
    self._content = content
    self._position = 0

  def readable(self) -> bool:
    """See io.IOBase."""
    return True

  def seekable(self) -> bool:
    """See io.IOBase."""
    return True

  def tell(self) -> int:
    """See io.IOBase."""
    return self._position

  def seek(self, offset: int, origin: int = io.SEEK_SET) -> int:
    """See io.IOBase."""
    start = {
      io.SEEK_SET: 0,
      io.SEEK_CUR: self._position,
      io.SEEK_END: len(self._content),
    }[origin]
    self._position = max(0, start + offset)
    return self._position

  def readinto(self, buffer) -> int:
    """See io.RawIOBase."""
    part = self._content[self._position :][: len(buffer)]
    buffer[: len(part)] = part
    self._position += len(part)
    return len(part)
