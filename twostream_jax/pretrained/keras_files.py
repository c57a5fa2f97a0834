"""HDF5 files, and the archives of Keras 3 that have one inside.

Keras 3 files the arrays of a layer under its kind and a counter, such as
layers/conv2d_3/vars/0. The names that the layers' authors gave them are
attributes of these groups or, in older files, in the archive's config.json.
"""

import collections
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twostream_jax.files import json_files, limits, zips
from twostream_jax.pretrained import apart, archives, hdf5
from twostream_jax.pretrained.sources import (
  Content,
  WeightsError,
  require_short,
)

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"
# Bytes; that of a network of a thousand layers has two million.
_LONGEST_CONFIG = 16 * 2**20


def is_keras_archive(names: list[str]) -> bool:
  """Reports whether an archive with files of these names is a .keras file."""
  return _WEIGHTS in names


def read_archive(path: Path) -> Content:
  """Reads a .keras file.

  Raises:
    WeightsError: its weights are not an HDF5 file, or unpack to too much.
  """
  with zips.opened(path) as archive:
    archives.require_small(archive, path)
    info = archive.getinfo(_WEIGHTS)
    if archives.is_stored(info):
      # The time of seeking in an archive grows with the distance.
      raw = archives.stored(archives.map_file(path), info)
      file = io.BufferedReader(archives.MappedFile(raw))
    else:
      raw = archive.read(info)
      file = io.BytesIO(raw)
    if file.read(4) != b"\x89HDF":
      raise WeightsError(f"{path}: its {_WEIGHTS} is not an HDF5 file")
    arrays, names = _read(file, raw, info.file_size, f"{path}: {_WEIGHTS}")
    if not names and _CONFIG in archive.namelist():
      with archive.open(_CONFIG) as config:
        layers = json_files.parse(config.read(_LONGEST_CONFIG))
      names = dict(_names(arrays, layers, ""))
  return Content(_renamed(arrays, names))


def read_hdf5(path: Path) -> Content:
  """Reads an .h5 file of any version of Keras.

  Raises:
    WeightsError: its arrays are in other files, or it has links to what may
      be, or they unpack to too much.
  """
  with path.open("rb") as file, path.open("rb") as raw:
    arrays, names = _read(file, raw, path.stat().st_size, str(path))
  return Content(_renamed(arrays, names))


def _read(
  content: BinaryIO, raw: BinaryIO | memoryview | bytes, size: int, name: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns arrays by path, and given names of layers by their groups.

  Args:
    content: the HDF5 file.
    raw: the same for another process, which reads it first: on some damaged
      files the library crashes or hangs.
    size: bytes of the file.
    name: of the file, for messages.
  """
  try:
    apart.call(hdf5.__file__, raw, size)
    return hdf5.read(content, limits.most_unpacked(size))
  except (ValueError, OSError, RuntimeError, KeyError) as error:
    raise WeightsError(f"{name}: {error}") from error


def _renamed(
  arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """Puts the names of layers, where somebody chose them, in the keys."""
  chosen = {
    group: name
    for group, name in names.items()
    if _kind(name) != (kind := _kind(group.rpartition("/")[2])) and name != kind
  }
  renamed, characters = {}, 0
  for key, array in arrays.items():
    path, parts = "", []
    for group in key.split("/"):
      path += f"/{group}" if parts else group
      parts.append(chosen.get(path, group))
    # One name is a part of each key below its group.
    characters += sum(map(len, parts))
    require_short(characters)
    renamed["/".join(parts)] = array
  return renamed if len(renamed) == len(arrays) else dict(arrays)


def _names(
  arrays: Mapping[str, np.ndarray], config: Any, path: str
) -> Iterator[tuple[str, str]]:
  """Pairs paths of groups with names of layers, by kind and order.

  Some versions count a kind's layers by twos, so that only the order is sure.
  """
  layers = config["config"].get("layers")
  if not layers:
    return
  by_kind = collections.defaultdict(list)
  for layer in layers:
    by_kind[_snake_case(layer["class_name"])].append(layer)
  start = f"{path}layers/"
  groups = {
    key.removeprefix(start).split("/")[0]
    for key in arrays
    if key.startswith(start)
  }
  groups = sorted(groups, key=lambda group: (len(group), group))
  for kind, members in by_kind.items():
    found = [group for group in groups if _kind(group) == kind]
    if len(found) == len(members):
      for group, layer in zip(found, members, strict=True):
        yield f"{start}{group}", layer["config"]["name"]
        yield from _names(arrays, layer, f"{start}{group}/")


def _kind(group: str) -> str:
  return re.sub(r"_\d+$", "", group)


def _snake_case(name: str) -> str:
  """Spells the name of a class as Keras does: MaxPooling2D, max_pooling2d."""
  name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
  return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
