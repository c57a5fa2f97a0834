"""MatConvNet files, read by a process of their own.

scipy's reader of MATLAB files crashes on some damaged ones, and a crash must
not take the caller with it. This file is also the program of that process: it
imports nothing but NumPy and SciPy.
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

AVERAGE_IMAGE = "averageImage"


class MatError(ValueError):
  """A file holds no MatConvNet network."""


def read_matconvnet(path: Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a network by layer and kind, "conv1/filters" say.

  Raises:
    MatError: The file is damaged or holds something else.
  """
  done = subprocess.run(
    # -P: no module of the current folder is taken for one of these.
    [sys.executable, "-P", __file__, path],
    stdin=subprocess.DEVNULL,
    capture_output=True,
  )
  if done.returncode < 0:
    raise MatError("damaged: the reader of MATLAB files crashed on it")
  if done.returncode:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    raise MatError(lines[-1] if lines else "can't be read")
  with np.load(io.BytesIO(done.stdout), allow_pickle=False) as file:
    names = json.loads(str(file["names"]))
    return {name: file[f"arr_{i}"] for i, name in enumerate(names)}


def _read(path: str) -> dict[str, np.ndarray]:
  # From memory: scipy leaves the file open where it fails on it.
  content = scipy.io.loadmat(
    io.BytesIO(Path(path).read_bytes()),
    squeeze_me=True,
    struct_as_record=False,
  )
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


def _serve(path: str) -> None:
  """Writes the arrays of a file to standard output, as .npz; or ends with 1."""
  try:
    arrays = _read(path)
    arrays = {k: x for k, x in arrays.items() if x.dtype.kind in "biuf"}
    whole = io.BytesIO()
    np.savez(whole, *arrays.values(), names=json.dumps(list(arrays)))
  except Exception as error:
    sys.exit(str(error) or type(error).__name__)
  sys.stdout.buffer.write(whole.getbuffer())


if __name__ == "__main__":
  _serve(sys.argv[1])
