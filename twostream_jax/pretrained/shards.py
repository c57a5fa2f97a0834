"""Weights that lie in several files, with an index that lists them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax import files
from twostream_jax.files import json_files
from twostream_jax.pretrained.report import printable
from twostream_jax.pretrained.sources import Content, WeightsError

# Bytes; that of a network of a thousand arrays has a hundred thousand.
_LONGEST_INDEX = 16 * 2**20


def find_index(folder: Path) -> Path:
  """Finds the one index of the weight files of a folder.

  Raises:
    WeightsError: there is none, or several.
  """
  found = sorted(folder.glob("*.index.json"))
  if len(found) != 1:
    listed = ", ".join(printable(path.name) for path in found) or "none"
    raise WeightsError(
      f"{folder}: a folder with {len(found)} indices of weight files"
      f" (*.index.json: {listed}); name the file of weights or one index"
    )
  return found[0]


def read_index(path: Path, read: Callable[[Path], Content]) -> Content:
  """Reads all files of an index.

  Args:
    path: a JSON file whose `weight_map` names the file of each array, as
      that of .safetensors and .bin files does. The files lie beside it.
    read: the reader of one of them.

  Raises:
    WeightsError: it is not such an index; a file is missing, lies elsewhere or
      lacks an array.
  """
  with path.open("rb") as file:
    index = json_files.parse(file.read(_LONGEST_INDEX))
  weight_map = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(weight_map, dict):
    raise WeightsError(f"{path}: a JSON file without a weight_map")
  keys_of: dict[str, list[str]] = {}
  for key, name in weight_map.items():
    keys_of.setdefault(_checked(path, name), []).append(key)
  arrays: dict[str, np.ndarray] = {}
  refused: dict[str, str] = {}
  for name, keys in keys_of.items():
    content = read(path.parent / name)
    for key in keys:
      if key not in content.arrays and key not in content.refused:
        raise WeightsError(
          f"{path}: {printable(key)} is not in {printable(name)}, where the"
          " index has it"
        )
    # Only what the index has there: a shard may hold older copies of others.
    arrays |= {k: content.arrays[k] for k in keys if k in content.arrays}
    refused |= {k: content.refused[k] for k in keys if k in content.refused}
  return Content(arrays, refused=refused)


def _checked(path: Path, name: Any) -> str:
  """Returns the name of a file that lies beside the index."""
  try:
    file = files.inside(path.parent, name)
  except ValueError as error:
    raise WeightsError(f"{path}: {error}") from error
  if not file.exists():
    raise WeightsError(f"{path}: its file {printable(name)} is not beside it")
  return name
