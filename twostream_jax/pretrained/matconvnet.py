"""MatConvNet files, read by a process of their own.

scipy's reader of MATLAB files crashes on some damaged ones, and a crash must
not take the caller with it. This file is also the program of that process: it
imports nothing but NumPy and SciPy.
"""

import contextlib
import io
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

AVERAGE_IMAGE = "averageImage"
# Bytes of arrays that a file may hold, beyond a multiple of its size, and what
# the reader may take beside them.
_FREE = 2**26
_MOST_COMPRESSED = 4
_READER = 2**28
# Seconds of processor time, and bytes that a second reads at the least.
_SECONDS = 20
_BYTES_PER_SECOND = 10**7


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
  if done.returncode == -signal.SIGXCPU:
    raise MatError("damaged: its reader took too long")
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


def _limit(size: int) -> None:
  """Ends this process where a file of `size` bytes takes far more than that."""
  arrays = _FREE + _MOST_COMPRESSED * size
  seconds = _SECONDS + size // _BYTES_PER_SECOND
  resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
  # What is mapped now, of libraries: macOS does not tell.
  with contextlib.suppress(OSError, ValueError):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # The file, its arrays and what is written of them.
    most = pages * resource.getpagesize() + _READER + size + 2 * arrays
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(path: str) -> None:
  """Writes the arrays of a file to standard output, as .npz; or ends with 1."""
  size = Path(path).stat().st_size
  _limit(size)
  try:
    arrays = _read(path)
    arrays = {k: x for k, x in arrays.items() if x.dtype.kind in "biuf"}
    if sum(x.nbytes for x in arrays.values()) > _FREE + _MOST_COMPRESSED * size:
      raise MatError("it would unpack to far more than its size")
    whole = io.BytesIO()
    np.savez(whole, *arrays.values(), names=json.dumps(list(arrays)))
  except MemoryError:
    sys.exit("damaged: it takes far more memory than its size")
  except Exception as error:
    sys.exit(" ".join(str(error).split()) or type(error).__name__)
  sys.stdout.buffer.write(whole.getbuffer())


if __name__ == "__main__":
  _serve(sys.argv[1])
