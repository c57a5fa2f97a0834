"""Weight files of other projects, as flat dicts of named arrays.

No reader runs code that a file brings, or fills the memory with more than the
file holds.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors

from twostream_jax.files import arrays as arrays_lib
from twostream_jax.files import pickles, words, zips
from twostream_jax.pretrained import (
  archives,
  keras_files,
  matconvnet,
  shards,
  torch_files,
)
from twostream_jax.pretrained.report import first_keys, printable
from twostream_jax.pretrained.sources import (
  Content,
  Source,
  WeightsError,
  flatten,
)

# Bytes of the header of a .safetensors file: 100,000 arrays whose keys have 60
# characters have one of 14 million.
_LONGEST_HEADER = 16 * 2**20
_Reader = Callable[[Path], Content]


def read_source(path: str | os.PathLike) -> Source:
  """Reads a weight file; its content, not its name, tells the format.

  .safetensors; .pth of torch, of any version; .h5 and .keras of Keras; .npy
  and pickles of (nested) dicts of arrays; .npz; .mat of MatConvNet, up to
  version 7; the index of such files, or a folder that holds one index.

  Raises:
    WeightsError: the file is missing, of no known format, damaged, or holds
      no arrays.
  """
  path = Path(path)
  if path.is_dir():
    path = shards.find_index(path)
  name, content = _read(path)
  if not content.arrays:
    raise WeightsError(
      f"{path}: {name} with no array in it{_refusals(content)}"
    )
  return Source(content.arrays, content.metadata, content.refused, path=path)


def _refusals(content: Content) -> str:
  if not content.refused:
    return ""
  key, name = next(iter(content.refused.items()))
  where = f" at {printable(key)}" if key else ""
  return (
    f"; it refers to {printable(name)}{where}, which might run code, so it was"
    " not called"
  )


def _read(path: Path, is_shard: bool = False) -> tuple[str, Content]:
  """Returns the name of a file's format, and its content."""
  try:
    with path.open("rb") as file:
      head = file.read(128)
  except OSError as error:
    raise WeightsError(f"{path}: {error.strerror or error}") from error
  name, reader = _format(path, head, is_shard)
  try:
    return name, reader(path)
  except WeightsError as error:
    said = words.printable(str(error))
    if str(path) not in str(error):
      said = f"{path}: {said}"
    raise WeightsError(said) from error
  # Each library has its own, and a damaged file may raise any.
  except Exception as error:
    reason = printable(str(error).strip() or type(error).__name__)
    raise WeightsError(f"{path}: can't be read as {name}: {reason}") from error


def _format(path: Path, head: bytes, is_shard: bool) -> tuple[str, _Reader]:
  # First, since it begins with a number, which may look like another format:
  # the length of the header, which is never so long.
  if head[8:9] == b"{" and head[6:8] == b"\0\0":
    return "a .safetensors file", _read_safetensors
  if head.startswith(b"\x93NUMPY"):
    return "a .npy file", _read_npy
  if head.startswith(b"\x89HDF"):
    return "an HDF5 file", keras_files.read_hdf5
  if head.startswith(b"MATLAB 5.0"):
    return "a MATLAB file", _read_matconvnet
  if head.startswith(b"MATLAB 7.3"):
    raise WeightsError(
      f"{path}: a MATLAB file of version 7.3; save it with -v7 in MATLAB"
    )
  if head.startswith(b"PK"):
    return _zip_format(path)
  if head.startswith(b"\x80"):
    if torch_files.MAGIC in head:
      return "a torch file", torch_files.read_stream
    return "a pickle", torch_files.read_pickle
  if head.lstrip().startswith(b"{") and not is_shard:
    return "an index of weight files", _read_index
  for start, what in _NO_WEIGHTS.items():
    if head.lstrip().lower().startswith(start):
      raise WeightsError(f"{path}: {what}")
  raise WeightsError(
    f"{path}: not a weight file of a known format (.safetensors, .pth, .h5,"
    " .keras, .npy, .npz, .mat, a pickle of arrays, or an index of such files)"
  )


# What is found in the place of weights.
_NO_WEIGHTS = {
  b"version https://git-lfs": (
    "only the pointer of Git LFS to a weight file; fetch the file by `git lfs"
    " pull`"
  ),
  b"<!doctype html": "a web page, not a weight file; download it again",
  b"<html": "a web page, not a weight file; download it again",
}


def _zip_format(path: Path) -> tuple[str, _Reader]:
  try:
    with zips.opened(path) as archive:
      names = archive.namelist()
  # A damaged list of names may raise any.
  except Exception as error:
    raise WeightsError(
      f"{path}: a damaged or incomplete .pth, .keras or .npz file:"
      f" {printable(str(error))}"
    ) from error
  if names and all(name.endswith(".npy") for name in names):
    return "a .npz file", _read_npz
  if keras_files.is_keras_archive(names):
    return "a .keras file", keras_files.read_archive
  if torch_files.is_torch_archive(names):
    return "a torch file", torch_files.read_archive
  raise WeightsError(
    f"{path}: a zip archive, but not one of torch (data.pkl), Keras"
    f" (model.weights.h5) or NumPy (*.npy): {first_keys(names) or 'empty'}"
  )


def _read_index(path: Path) -> Content:
  return shards.read_index(path, lambda shard: _read(shard, is_shard=True)[1])


def _read_safetensors(path: Path) -> Content:
  with path.open("rb") as file:
    header = int.from_bytes(file.read(8), "little")
  if header > _LONGEST_HEADER:
    raise WeightsError(
      f"{path}: {header} bytes of names and shapes; this is not a file of"
      " weights"
    )
  with safetensors.safe_open(path, framework="numpy") as file:
    arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return Content(arrays, dict(file.metadata() or {}))


def _read_npy(path: Path) -> Content:
  with path.open("rb") as file:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
      _, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
      _, _, dtype = np.lib.format.read_array_header_2_0(file)
    if not dtype.hasobject:
      raise WeightsError(
        f"{path}: holds one array of numbers, not a dict of named arrays"
      )
    # An array without dimensions, around the one dict.
    found = pickles.as_array(pickles.load(file))
  if not isinstance(found, list) or len(found) != 1:
    raise WeightsError(f"{path}: holds no single dict of named arrays")
  return flatten(found[0], pickles.as_array, path.stat().st_size)


def _read_npz(path: Path) -> Content:
  with zips.opened(path) as archive:
    archives.require_small(archive, path)
  arrays = arrays_lib.read_npz(path)
  return Content({k: x for k, x in arrays.items() if x.dtype.kind in "biuf"})


def _read_matconvnet(path: Path) -> Content:
  try:
    return Content(matconvnet.read_matconvnet(path))
  except matconvnet.MatError as error:
    raise WeightsError(f"{path}: {error}") from error
