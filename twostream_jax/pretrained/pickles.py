"""Arrays from pickle files, without running what is in them.

Unpickling calls whatever a file names. Here only Python's own containers and
arrays of numbers are let through, and the arrays are put together here: what a
file says of their types and memory is never handed to NumPy unchecked.
"""

import pickle
from typing import Any, BinaryIO

import numpy as np

_KINDS = "biuf"


def load(file: BinaryIO) -> Any:
  """Reads one pickle of containers, numbers, strings and NumPy arrays.

  Byte strings of Python 2 are read as Latin-1, as its arrays need. Arrays of
  objects become lists.

  Args:
    file: open for reading, at the start of the pickle.

  Raises:
    pickle.UnpicklingError: the pickle names anything else, or is damaged.
    EOFError: it is cut off.
  """
  return _resolve(_Unpickler(file, encoding="latin1").load())


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


def _resolve(value: Any) -> Any:
  """Replaces stand-ins by arrays, at any depth."""
  if isinstance(value, _Array):
    return _resolve(value.content)
  if isinstance(value, dict):
    return {key: _resolve(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_resolve(item) for item in value]
  return value


class _Type:
  """Stands for numpy.dtype."""

  def __init__(self, code: Any, *_: Any):
    self.dtype = np.dtype(code) if isinstance(code, str) else None
    # Records are left out: nothing here needs them.
    if self.dtype is None or self.dtype.kind not in _KINDS + "O":
      raise pickle.UnpicklingError(f"it holds values of the type {code!r}")

  def __setstate__(self, state: tuple) -> None:
    # Version, byte order, and what only records and subarrays have.
    self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
  """Stands for numpy.ndarray; content is an array, or a list of objects."""

  content: Any = None

  def __setstate__(self, state: tuple) -> None:
    _, shape, kind, is_fortran, values = state
    if kind.dtype.kind == "O":
      self.content = list(values)
    else:
      # A string of Python 2.
      data = values.encode("latin1") if isinstance(values, str) else values
      self.content = _from_bytes(data, kind, shape, "F" if is_fortran else "C")


def _from_bytes(data: Any, kind: _Type, shape: Any, order: str) -> np.ndarray:
  return np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _reconstruct(subtype: Any, *_: Any) -> _Array:
  # Shape, type and values follow, as a state.
  if subtype is not _Array:
    raise pickle.UnpicklingError("it holds an array of an unknown type")
  return _Array()


def _encode(text: Any, encoding: Any) -> bytes:
  # How Python 3 writes bytes in the protocols of Python 2.
  if not isinstance(text, str) or encoding != "latin1":
    raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
  return text.encode("latin1")


_ADMITTED = {
  ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
  ("numpy.core.numeric", "_frombuffer"): _from_bytes,
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Type,
  ("_codecs", "encode"): _encode,
}
