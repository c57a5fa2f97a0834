"""Plain arrays of .npz and .npy files, without pickle.

Nothing in a file is run, and no memory is taken that its bytes do not account
for: the sizes that its headers claim are checked first.
"""

import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from twostream_jax.files import limits, zips
from twostream_jax.files.words import printable

# zipfile unpacks these without a limit, whatever size they claim.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KINDS = "biufUS"


class ArraysError(ValueError):
  """A file can't be read as plain arrays; the message has no path."""


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the arrays of an .npz file, by name.

  Args:
    path: an archive that np.savez or np.savez_compressed wrote.

  Raises:
    ArraysError: it is missing, damaged or no such archive, an array is not of
      numbers or texts, or it would take far more memory than the file.
  """
  try:
    with zips.opened(path) as archive:
      members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
      if any(m.compress_type not in _COMPRESSIONS for m in members):
        raise ArraysError("an archive that NumPy did not compress")
      _check_size(sum(m.file_size for m in members), os.stat(path).st_size)
      arrays = {}
      for member in members:
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as file:
          assert isinstance(file, zipfile.ZipExtFile)
          arrays[name] = _read(file, member.file_size, f"the array {name!r}")
  except (ArraysError, MemoryError):
    raise
  except OSError as error:
    raise ArraysError(printable(error.strerror or str(error))) from error
  # zipfile and its decompressors raise many kinds for what is not whole.
  except Exception as error:
    raise ArraysError(f"a damaged or no .npz file ({_said(error)})") from error
  if not arrays:
    raise ArraysError("an archive without arrays")
  return arrays


def read_npy(path: str | os.PathLike) -> np.ndarray:
  """Reads the array of an .npy file; errors as of `read_npz`."""
  try:
    with Path(path).open("rb") as file:
      return _read(file, os.stat(path).st_size, "the array")
  except ArraysError:
    raise
  except OSError as error:
    raise ArraysError(printable(error.strerror or str(error))) from error
  except ValueError as error:
    raise ArraysError(f"a damaged .npy file ({_said(error)})") from error


def _said(error: Exception) -> str:
  return printable(str(error)) or type(error).__name__


def _read(file: io.BufferedIOBase, size: int, what: str) -> np.ndarray:
  """Reads an array from its header on.

  Args:
    file: at the start of the array.
    size: bytes from there to its end.
    what: the array, for messages.
  """
  shape, is_fortran, dtype = _read_header(file, what)
  if dtype.hasobject:
    raise ArraysError(
      f"{what} holds Python objects, which might run code and are not read;"
      " where it was written, save texts as `array.astype(str)` and scores as"
      " one row of numbers for each video, as by `numpy.stack`"
    )
  if dtype.kind not in _KINDS:
    raise ArraysError(f"{what} holds neither numbers nor texts, but {dtype}")
  count = math.prod(shape)
  # Texts without a character take memory nonetheless.
  if min(shape, default=0) < 0 or count * max(1, dtype.itemsize) > size:
    raise ArraysError(
      f"{what} is cut off: {size} bytes for {str(shape):.80} {dtype}"
    )
  array = np.empty(count, dtype)
  if array.nbytes and file.readinto(array.view(np.uint8).data) < array.nbytes:
    raise ArraysError(f"{what} is cut off")
  return array.reshape(shape, order="F" if is_fortran else "C")


def _read_header(
  file: io.BufferedIOBase, what: str
) -> tuple[tuple[int, ...], bool, np.dtype]:
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  try:
    # A later version is for names of record fields only.
    return readers[np.lib.format.read_magic(file)](file)
  # Not NumPy's words: they advise to load the file unsafely.
  except Exception as error:
    raise ArraysError(f"{what} has a damaged header") from error


def _check_size(arrays: int, file: int) -> None:
  # Arrays compress, but those of a real file not to a hundredth.
  if arrays > limits.most_memory(file):
    raise ArraysError(
      f"its {file} bytes would become {arrays / 2**30:.1f} GiB of arrays: no"
      " file of scores compresses like that"
    )
