"""Arrays of a checkpoint of Orbax, read without Orbax.

Orbax reads all arrays of a checkpoint at once, whatever size its files claim.
Here only those that are asked for are read, one after the other, once they are
known to be no larger than their files can hold.
"""

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tensorstore

from twostream_jax.files import json_files, limits

# What Orbax calls its list of arrays.
LIST_FILE = "_METADATA"
# Parts that are stored on their own: Orbax has one for each device that holds
# a part of an array.
_MOST_CHUNKS = 4096
_COMPRESSORS = ("zstd", "gzip", "zlib")


def read(folder: Path, names: Collection[str]) -> dict[str, Any]:
  """Reads trees of arrays by the names of their roots.

  Args:
    folder: Item of a checkpoint, as `StandardCheckpointHandler` saves it.
    names: Names of the trees, such as "params".

  Returns:
    Dicts of dicts of NumPy arrays; a tree that is not there is left out.

  Raises:
    ValueError: A file is missing or damaged, or arrays are larger than the
      files can hold.
  """
  paths = [path for path in _paths(folder) if path[0] in names]
  size = sum(file.stat().st_size for file in folder.rglob("*"))
  opened = [_open(folder, path) if path[1:] else None for path in paths]
  left = limits.most_unpacked(size)
  for path, array in zip(paths, opened, strict=True):
    if array is not None:
      left -= _require_sane(array, ".".join(path))
      if left < 0:
        raise ValueError(
          f"its {size} bytes would unpack to more than"
          f" {limits.most_unpacked(size)}"
        )
  trees: dict[str, Any] = {}
  for path, array in zip(paths, opened, strict=True):
    node = trees
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = {} if array is None else array.read().result()
  return trees


def _paths(folder: Path) -> list[tuple[str, ...]]:
  """Paths of arrays and of empty trees, of which those of roots matter."""
  path = folder / LIST_FILE
  content = json_files.read_object(path)
  with json_files.told(path):
    if content.get("use_zarr3") or not content["use_ocdbt"]:
      raise ValueError("its arrays are of another format than a run saves")
    found = []
    for entry in content["tree_metadata"].values():
      names = tuple(str(part["key"]) for part in entry["key_metadata"])
      is_array = not entry["value_metadata"]["skip_deserialize"]
      if names and (is_array or len(names) == 1):
        found.append(names)
    return found


def _open(folder: Path, path: tuple[str, ...]) -> tensorstore.TensorStore:
  base = f"file://{folder.absolute()}{os.sep}"
  spec = {
    "driver": "zarr",
    # Not zeros in the place of what is lost.
    "fill_missing_data_reads": False,
    "kvstore": {"driver": "ocdbt", "base": base, "path": f"{'.'.join(path)}/"},
  }
  return tensorstore.open(spec, open=True, read=True).result()


def _require_sane(array: tensorstore.TensorStore, name: str) -> int:
  """Bytes of an array of numbers whose parts are no larger than itself."""
  dtype = array.dtype.numpy_dtype
  is_number = dtype.kind in "biuf" or array.dtype == tensorstore.bfloat16
  compressor = array.spec().to_json()["metadata"]["compressor"]
  known = compressor is None or compressor["id"] in _COMPRESSORS
  if not is_number or not known:
    raise ValueError(f"{name!r:.200} is not an array that a run saves")
  size = math.prod(array.shape) * dtype.itemsize
  chunk = [n for n in array.chunk_layout.read_chunk.shape or () if n]
  count = math.prod(-(-n // m) for n, m in zip(array.shape, chunk, strict=True))
  # Of none, a chunk is of one.
  if math.prod(chunk) * dtype.itemsize > max(size, dtype.itemsize):
    raise ValueError(f"{name!r:.200} is stored in parts larger than itself")
  if count > _MOST_CHUNKS:
    raise ValueError(f"{name!r:.200} is stored in {count} parts")
  return size
