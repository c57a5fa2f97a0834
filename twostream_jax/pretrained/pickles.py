"""Arrays from pickle files, without running what is in them.

Unpickling calls whatever a file names. Here only the rebuilding of NumPy
arrays of numbers, and Python's own containers, are let through.
"""

import pickle
from typing import Any, BinaryIO

import numpy as np

_KINDS = "biufO"


def load(file: BinaryIO) -> Any:
  """Reads one pickle of containers, numbers, strings and NumPy arrays.

  Byte strings of Python 2 are read as Latin-1, which its arrays need.

  Args:
    file: open for reading, at the start of the pickle.

  Raises:
    pickle.UnpicklingError: the pickle names anything else, or is damaged.
    EOFError: it is cut off.
  """
  return _Unpickler(file, encoding="latin1").load()


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    # NumPy 2 renamed the module; both names are in files.
    module = module.replace("numpy._core", "numpy.core")
    if (module, name) not in _ADMITTED:
      raise pickle.UnpicklingError(
        f"it refers to {module}.{name}, which is no array of numbers and might"
        " run code; it was not opened"
      )
    return _ADMITTED[module, name]


class _Marker:
  """Stands for a type that a pickle may name but not call."""


_NDARRAY = _Marker()


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> np.ndarray:
  if subtype is not _NDARRAY:
    raise pickle.UnpicklingError("it holds an array of an unknown type")
  # Its real shape, type and values follow, as a state.
  return np.empty(0, np.int8)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
  return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


def _dtype(code: Any, *_: Any) -> np.dtype:
  # Records are left out: their state could lie about where objects are.
  dtype = np.dtype(code) if isinstance(code, str) else None
  if dtype is None or dtype.kind not in _KINDS:
    raise pickle.UnpicklingError(f"it holds values of the type {code!r}")
  return dtype


def _encode(text: Any, encoding: Any) -> bytes:
  # How Python 3 writes bytes in the protocols of Python 2.
  if not isinstance(text, str) or encoding != "latin1":
    raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
  return text.encode("latin1")


_ADMITTED = {
  ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
  ("numpy.core.numeric", "_frombuffer"): _frombuffer,
  ("numpy", "ndarray"): _NDARRAY,
  ("numpy", "dtype"): _dtype,
  ("_codecs", "encode"): _encode,
}
