"""HDF5 files, and the archives of Keras 3 that have one inside.

Keras 3 files the arrays of a layer under its kind and a counter, such as
layers/conv2d_3/vars/0. The names that the layers' authors gave them are
attributes of these groups or, in older files, in the archive's config.json.
"""

import collections
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from twostream_jax import json_files
from twostream_jax.pretrained import archives
from twostream_jax.pretrained.sources import (
  Content,
  WeightsError,
  require_bounded,
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
    WeightsError: its weights are no HDF5 file, or unpack to too much.
  """
  with zipfile.ZipFile(path) as archive:
    archives.require_small(archive, path)
    info = archive.getinfo(_WEIGHTS)
    if archives.is_stored(info):
      # The time of seeking in an archive grows with the distance.
      content = archives.stored(archives.map_file(path), info)
      file = io.BufferedReader(archives.MappedFile(content))
    else:
      file = io.BytesIO(archive.read(info))
    if file.read(4) != b"\x89HDF":
      raise WeightsError(f"{path}: its {_WEIGHTS} is not an HDF5 file")
    arrays, names = _read(file, info.file_size, f"{path}: {_WEIGHTS}")
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
  with path.open("rb") as file:
    arrays, names = _read(file, path.stat().st_size, str(path))
  return Content(_renamed(arrays, names))


def _read(
  content: BinaryIO, size: int, name: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns arrays by path, and given names of layers by their groups."""
  datasets, names = {}, {}

  def add(key: str, item: h5py.Group | h5py.Dataset) -> None:
    # Written with the separators of Windows by some versions.
    key = key.replace("\\", "/")
    key = re.sub(r"(^|/)_layer_checkpoint_dependencies/", r"\1layers/", key)
    if isinstance(item, h5py.Group):
      given = item.attrs.get("name")
      if key.endswith("/vars") and isinstance(given, str):
        names[key.removesuffix("/vars")] = given
    elif item.dtype.kind in "iuf":
      datasets[key] = item

  with h5py.File(content, "r") as file:
    # Whoever wrote the file would choose what of this machine is read.
    link = file.visititems_links(
      lambda key, link: None if isinstance(link, h5py.HardLink) else key
    )
    if link is not None:
      raise WeightsError(
        f"{name}: {link!r:.200} is a link; copy its array here"
      )
    file.visititems(add)
    for key, item in datasets.items():
      if item.is_virtual or item.external:
        raise WeightsError(f"{name}: {key!r} lies in another file")
    require_bounded(sum(map(_unpacked, datasets.values())), size, name)
    return {key: np.asarray(item) for key, item in datasets.items()}, names


def _unpacked(item: h5py.Dataset) -> int:
  """Bytes that reading takes: a whole chunk, also where the array is less."""
  chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
  return max(item.nbytes, chunk)


def _renamed(
  arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """Puts the names of layers, where somebody chose them, in the keys."""
  renamed = {}
  for key, array in arrays.items():
    parts = key.split("/")
    for i, group in enumerate(parts):
      name = names.get("/".join(key.split("/")[: i + 1]), group)
      if not re.fullmatch(rf"{re.escape(_kind(group))}(_\d+)?", name):
        parts[i] = name
    renamed["/".join(parts)] = array
  return renamed if len(renamed) == len(arrays) else dict(arrays)


def _names(
  arrays: Mapping[str, np.ndarray], config: Any, path: str
) -> Iterator[tuple[str, str]]:
  """Pairs paths of groups with names of layers, by kind and order.

  Some versions count a kind's layers by twos, so that only the order is sure.
  """
  layers = config["config"].get("layers", ())
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
