"""MatConvNet files, read by a process of their own.

scipy's reader of MATLAB files crashes on some damaged ones, and a crash must
not take the caller with it. `apart` runs this file in that process: it imports
nothing but NumPy and SciPy.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.io

AVERAGE_IMAGE = "averageImage"
# Bytes of arrays that a file may hold, beyond a multiple of its size.
_FREE = 2**26
_MOST_COMPRESSED = 4
# Characters of the names of all layers.
_MOST_TEXT = 2**24


class MatError(ValueError):
  """A file holds no MatConvNet network."""


def read_matconvnet(path: Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a network by layer and kind, "conv1/filters" say.

  Raises:
    MatError: The file is damaged or holds something else.
  """
  # Not above: the other process does not have the package.
  from twostream_jax.pretrained import apart

  size = path.stat().st_size
  try:
    with path.open("rb") as file:
      answer = apart.call(__file__, file, size)
  except apart.ApartError as error:
    raise MatError(str(error)) from error
  with np.load(io.BytesIO(answer), allow_pickle=False) as file:
    names = json.loads(str(file["names"]))
    return {name: file[f"arr_{i}"] for i, name in enumerate(names)}


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
  content = scipy.io.loadmat(file, squeeze_me=True, struct_as_record=False)
  if "layers" not in content:
    raise MatError("a MATLAB file without MatConvNet's `layers`")
  arrays = {}
  for layer in np.atleast_1d(content["layers"]):
    for kind, array in _layer_weights(layer):
      arrays[f"{layer.name}/{kind}"] = np.asarray(array)
  meta = getattr(content.get("meta"), "normalization", None)
  meta = content.get("normalization", meta)
  if hasattr(meta, AVERAGE_IMAGE):
    arrays[AVERAGE_IMAGE] = np.asarray(getattr(meta, AVERAGE_IMAGE))
  return arrays


def _layer_weights(layer: Any) -> Iterable[tuple[str, np.ndarray]]:
  kinds = ("filters", "biases")
  # Until version 1.0-beta10 each had its own field.
  if hasattr(layer, "filters"):
    return [(kind, getattr(layer, kind)) for kind in kinds]
  return zip(kinds, getattr(layer, "weights", ()), strict=False)


def serve(content: BinaryIO, size: int, answer: BinaryIO) -> None:
  """Writes the arrays of a file as .npz; see `apart.call`."""
  arrays = _read(content)
  arrays = {k: x for k, x in arrays.items() if x.dtype.kind in "biuf"}
  if sum(x.nbytes for x in arrays.values()) > _FREE + _MOST_COMPRESSED * size:
    raise MatError("it would unpack to far more than its size")
  if sum(map(len, arrays)) > _MOST_TEXT:
    raise MatError(f"its layers' names have more than {_MOST_TEXT} characters")
  whole = io.BytesIO()
  np.savez(whole, *arrays.values(), names=json.dumps(list(arrays)))
  answer.write(whole.getbuffer())
