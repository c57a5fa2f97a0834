"""Results that mmaction2 dumped (.pkl), without mmaction2, torch or pickle.

mmaction2 1.x writes a list with a dict for each video, whose tensors torch
pickles as bytes: a stream of five pickles and the numbers, one a storage
(`torch.save` of before 1.6). Its versions before 1.0 write a list of arrays.
"""

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax.files import pickles
from twostream_jax.files.pickles import Call, Global, Persistent
from twostream_jax.scores import ScoresError

# By version of mmaction2.
_SCORES = ("pred_score", "pred_scores")
_LABELS = ("gt_label", "gt_labels")
_IDS = ("video_id", "filename", "frame_dir")
_TYPES = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}

_Rows = list[np.ndarray]


def read_dump(
  path: Path,
) -> tuple[list[str] | None, np.ndarray | None, np.ndarray]:
  """Reads ids, labels and scores of a dump, in its order.

  Returns:
    Ids of b videos, None where some have none; labels int [b] or [b n], None
    where it has none; scores [b n].

  Raises:
    ScoresError: it is damaged, or holds something else.
  """
  try:
    with path.open("rb") as file:
      content = pickles.load(file)
      size = os.fstat(file.fileno()).st_size
    return _read(content, size)
  except (pickle.UnpicklingError, EOFError) as error:
    raise ScoresError(f"it can't be read: {error}") from error


def _read(
  content: Any, size: int
) -> tuple[list[str] | None, np.ndarray | None, np.ndarray]:
  if not isinstance(content, list | tuple) or not content:
    raise ScoresError(
      "it holds no list of results, as `tools/test.py --dump` of mmaction2"
      " writes them"
    )
  tensors = _Tensors(size)
  if not isinstance(content[0], dict):
    rows = [tensors.read(x, f"result {i}") for i, x in enumerate(content)]
    return None, None, _matrix(rows)
  scores = _column(tensors, content, _SCORES)
  labels = _column(tensors, content, _LABELS)
  values = _matrix(scores)
  if all(label.size == 1 for label in labels):
    labels = np.array([label.item() for label in labels])
  elif all(label.size == values.shape[1] for label in labels):
    labels = _matrix(labels)
  else:
    raise ScoresError(
      f"{_LABELS[0]!r} must be one class, or 0 or 1 for each of"
      f" {values.shape[1]}"
    )
  return _ids(content), labels, values


def _column(
  tensors: "_Tensors", results: Sequence[Any], names: Sequence[str]
) -> _Rows:
  """Reads one entry of every result, by the first of its names there."""
  rows = []
  for i, result in enumerate(results):
    found = result if isinstance(result, dict) else {}
    name = next((name for name in names if name in found), None)
    if name is None:
      raise ScoresError(f"result {i} has no {names[0]!r}")
    value = found[name]
    if isinstance(value, Mapping):  # LabelData of 1.0.0rc.
      value = value.get("item")
    rows.append(tensors.read(value, f"{name!r} of result {i}"))
  return rows


def _ids(results: Sequence[Mapping[str, Any]]) -> list[str] | None:
  for name in _IDS:
    found = [result.get(name) for result in results]
    ids = [x for x in found if isinstance(x, str) and x]
    if len(ids) == len(found):
      return ids
  return None


def _matrix(rows: _Rows) -> np.ndarray:
  """Stacks rows, float64 [b n]."""
  n = rows[0].size
  for i, row in enumerate(rows):
    if row.ndim != 1 or row.size != n:
      raise ScoresError(
        f"result {i} has scores of shape {row.shape}, the first one of"
        f" {rows[0].shape}; it needs one row of scores for each video"
      )
  return np.array(rows, np.float64)


class _Tensors:
  """Reads arrays and tensors of a file of `size` bytes.

  A pickle may name one list or storage a million times, so no more numbers are
  read than the file has bytes, and as many of storages.
  """

  def __init__(self, size: int):
    self._left = 2 * size
    # By id, and with the object, so that the id stays its own.
    self._storages: dict[int, tuple[Any, np.ndarray]] = {}

  def _spend(self, count: int) -> None:
    self._left -= count
    if self._left < 0:
      raise ScoresError("it holds more numbers than bytes")

  def read(self, value: Any, what: str) -> np.ndarray:
    """Reads the numbers of an array, a tensor, a list or a number.

    Raises:
      ScoresError: it is something else; `what` names it.
    """
    try:
      array = self._array(value)
    except ScoresError:
      raise
    except (
      AttributeError,
      LookupError,
      OverflowError,
      TypeError,
      ValueError,
      pickle.UnpicklingError,
    ) as error:
      raise ScoresError(f"{what} is damaged") from error
    if array is None or array.dtype.kind not in "biuf":
      found = str(value) if isinstance(value, Call) else type(value).__name__
      raise ScoresError(f"{what} holds {found:.80} in place of numbers")
    self._spend(array.size)
    return array

  def _array(self, value: Any) -> np.ndarray | None:
    if isinstance(value, Call):
      name = str(value)
      if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, size, stride, *_ = value.arguments
        return self._tensor(storage, offset, size, stride)
      if name == "numpy.core.multiarray.scalar":
        kind, data = value.arguments
        function = Global("numpy.core.numeric", "_frombuffer")
        value = Call(function, (data, kind, (), "C"))
      array = pickles.as_array(value)
      # Not a list, which is an array of objects.
      return array if isinstance(array, np.ndarray) else None
    if isinstance(value, list | tuple):
      is_row = all(isinstance(x, int | float) for x in value)
      return np.array(value) if is_row else None
    if isinstance(value, int | float):
      return np.array(value)
    return value if isinstance(value, np.ndarray) else None

  def _tensor(
    self, storage: Call, offset: int, size: tuple, stride: tuple
  ) -> np.ndarray:
    """Reads a tensor of at most one dimension, as scores and labels are."""
    if str(storage) != "torch.storage._load_from_bytes" or len(size) > 1:
      raise ValueError("no row of numbers")
    (data,) = storage.arguments
    if id(data) not in self._storages:
      values = _read_storage(pickles.as_bytes(data))
      self._spend(values.size)
      self._storages[id(data)] = data, values
    values = self._storages[id(data)][1]
    count, step = (*size, 1)[0], (*stride, 1)[0]
    if not 0 <= count <= len(values) or offset < 0 or step < 0:
      raise ValueError("a tensor that is larger than its storage")
    if step == 0:
      return np.broadcast_to(values[offset], size)
    found = values[offset::step][:count]
    if len(found) < count:
      raise ValueError("a tensor that is larger than its storage")
    return found.reshape(size)


def _read_storage(data: bytes | bytearray) -> np.ndarray:
  """Reads the numbers of a stream of torch.save with one storage."""
  file = io.BytesIO(data)
  # A magic number, the version of the format, and the machine; the storage,
  # named from outside; and the keys of all storages.
  _, _, machine, storage, keys = (pickles.load(file) for _ in range(5))
  if not isinstance(storage, Persistent) or len(keys) != 1:
    raise ValueError("no storage")
  dtype = np.dtype(_TYPES[storage.name[1].name])
  if not machine["little_endian"]:
    dtype = dtype.newbyteorder(">")
  file.seek(8, io.SEEK_CUR)  # The number of values.
  rest = data[file.tell() :]
  return np.frombuffer(rest[: len(rest) - len(rest) % dtype.itemsize], dtype)
