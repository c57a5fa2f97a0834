"""Files of torch.save, without torch.

Both forms hold a pickle that names storages, and the storages as plain bytes:
a zip archive since torch 1.6, before that one stream of pickles and bytes.
The bytes are mapped, not read: what is beside the weights costs no memory.
"""

import functools
import io
import math
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from twostream_jax.files import pickles, zips
from twostream_jax.files.pickles import Call, Global, Persistent
from twostream_jax.pretrained import archives
from twostream_jax.pretrained.sources import (
  Content,
  WeightsError,
  flatten,
)

# The first thing that torch pickled before it wrote zip archives.
MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

_TYPES = {
  "DoubleStorage": np.dtype("f8"),
  "FloatStorage": np.dtype("f4"),
  "HalfStorage": np.dtype("f2"),
  "BFloat16Storage": np.dtype(jnp.bfloat16),
  "LongStorage": np.dtype("i8"),
  "IntStorage": np.dtype("i4"),
  "ShortStorage": np.dtype("i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
  "ComplexFloatStorage": np.dtype("c8"),
  "ComplexDoubleStorage": np.dtype("c16"),
  # Of quantised tensors and of tensors that name their type themselves.
  "QInt8Storage": np.dtype("i1"),
  "QUInt8Storage": np.dtype("u1"),
  "QInt32Storage": np.dtype("i4"),
  "UntypedStorage": np.dtype("u1"),
}
_NAMED_TYPES = {
  "uint16": np.dtype("u2"),
  "uint32": np.dtype("u4"),
  "uint64": np.dtype("u8"),
  "float8_e4m3fn": np.dtype(jnp.float8_e4m3fn),
  "float8_e5m2": np.dtype(jnp.float8_e5m2),
}

# From what a pickle has in the place of a storage to its values.
_Storages = Callable[[Any], np.ndarray]


def is_torch_archive(names: list[str]) -> bool:
  """Reports whether an archive with files of these names is one of torch."""
  return any(_is_pickle(name) for name in names)


def read_archive(path: Path) -> Content:
  """Reads a zip archive of torch.save or torch.jit.save.

  Raises:
    WeightsError: it was packed again, or is damaged.
  """
  with zips.opened(path) as archive:
    archives.require_small(archive, path)
    name = next(filter(_is_pickle, archive.namelist()))
    root = name.removesuffix("data.pkl")
    _require_stored(archive.getinfo(name))
    tree = pickles.load(io.BytesIO(archive.read(name)))
    order = "little"
    if f"{root}byteorder" in archive.namelist():
      order = archive.read(f"{root}byteorder").decode()
    mapped = archives.map_file(path)

    @functools.cache
    def storage(key: str) -> np.ndarray:
      return _stored(mapped, archive.getinfo(f"{root}data/{key}"))

    def storages(node: Persistent) -> np.ndarray:
      kind, key = _kind_and_key(node.name)
      return _typed(storage(key), _type_of(kind), order)

    as_array = functools.partial(_as_array, storages)
    return flatten(tree, as_array, path.stat().st_size)


def read_stream(path: Path) -> Content:
  """Reads what torch.save wrote before version 1.6.

  Raises:
    WeightsError: it is cut off.
  """
  with path.open("rb") as file:
    tree, storages = _parse_stream(file, archives.map_file(path))
  as_array = functools.partial(_as_array, storages)
  return flatten(tree, as_array, path.stat().st_size)


def read_pickle(path: Path) -> Content:
  """Reads a pickle of arrays of NumPy, or of tensors with their bytes.

  Raises:
    WeightsError: it is cut off.
  """
  with path.open("rb") as file:
    tree = pickles.load(file)
  as_array = functools.partial(_as_array, _Embedded())
  return flatten(tree, as_array, path.stat().st_size)


class _Embedded:
  """Gives the values of a storage that is a file of torch in a pickle.

  It parses each once: a pickle may name one in each of its tensors.
  """

  def __init__(self):
    # By id, and with the object, so that the id stays its own.
    self._parsed: dict[int, tuple[Any, np.ndarray]] = {}

  def __call__(self, node: Any) -> np.ndarray:
    if str(node) != "torch.storage._load_from_bytes":
      raise WeightsError("a tensor without its storage")
    (data,) = node.arguments
    if id(data) not in self._parsed:
      content = pickles.as_bytes(data)
      storage, storages = _parse_stream(io.BytesIO(content), content)
      self._parsed[id(data)] = data, storages(storage)
    return self._parsed[id(data)][1]


def _parse_stream(
  file: BinaryIO, content: bytes | bytearray | mmap.mmap
) -> tuple[Any, _Storages]:
  """Parses the tree of a stream, and what gives the values of its storages.

  Args:
    file: open at the start of the stream.
    content: of the file.
  """
  types: dict[str, np.dtype] = {}

  def persistent(name: Any) -> Any:
    kind, key = _kind_and_key(name)
    # The class of a module, with its source code.
    if name[0] == "module":
      return kind
    types[key] = _type_of(kind)
    return Persistent(name)

  # The magic number, the version of the format, and the machine.
  _, _, system = (pickles.load(file) for _ in range(3))
  order = "little" if system["little_endian"] else "big"
  tree = pickles.load(file, persistent)
  keys = pickles.load(file)
  position = file.tell()
  found: dict[str, np.ndarray] = {}
  for key in map(_checked_key, keys):
    count = int.from_bytes(content[position : position + 8], order, signed=True)
    begin = position + 8
    position = begin + count * types[key].itemsize
    if count < 0 or position > len(content):
      raise WeightsError(f"cut off: its storage {key!r:.80} is not whole")
    values = np.frombuffer(content, np.uint8, position - begin, begin)
    found[key] = _typed(values, types[key], order)

  def storages(node: Persistent) -> np.ndarray:
    _, key = _kind_and_key(node.name)
    view = node.name[5] if len(node.name) > 5 else None
    if view is None:
      return found[key]
    _, offset, size = view
    return found[key][offset : offset + size]

  return tree, storages


def _kind_and_key(name: Any) -> tuple[Any, str]:
  """Returns the class of a storage and its key, of the name of a storage."""
  kind, key = name[1:3]
  return kind, key if name[0] == "module" else _checked_key(key)


def _checked_key(key: Any) -> str:
  # To hash a tuple of tuples can take for ever.
  if not isinstance(key, str):
    raise WeightsError("a storage whose key is not text")
  return key


def _is_pickle(name: str) -> bool:
  return name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1


def _stored(mapped: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
  """Returns the bytes of a storage of an archive."""
  _require_stored(info)
  return np.frombuffer(archives.stored(mapped, info), np.uint8)


def _require_stored(info: zipfile.ZipInfo) -> None:
  if not archives.is_stored(info):
    raise WeightsError(
      "it was packed again with compression or a password, which torch does"
      " not do; unpack it and pack it without (zip -0)"
    )


def _type_of(kind: Any) -> np.dtype:
  """Returns the type of a storage's values, from its class."""
  if not isinstance(kind, Global) or kind.name not in _TYPES:
    raise WeightsError(f"a storage of the unknown type {kind!s:.80}")
  return _TYPES[kind.name]


def _typed(values: np.ndarray, dtype: np.dtype, order: str) -> np.ndarray:
  whole = len(values) - len(values) % dtype.itemsize
  if order == "big" and dtype.kind in "iufc":
    dtype = dtype.newbyteorder(">")
  return values[:whole].view(dtype)


def _as_array(storages: _Storages, node: Any) -> np.ndarray | list | None:
  """Makes the array of a node, where it is a tensor or an array of NumPy."""
  while isinstance(node, Call):
    name = str(node)
    if name in _WRAPPERS and node.arguments:
      node = node.arguments[0]
    elif name == "torch._tensor._rebuild_from_type_v2":
      node = Call(node.arguments[0], tuple(node.arguments[2]))
    elif name in _TENSORS:
      return _tensor(storages, *node.arguments)
    else:
      return pickles.as_array(node)
  return None


_WRAPPERS = (
  "torch._utils._rebuild_parameter",
  "torch._utils._rebuild_parameter_with_state",
)
_TENSORS = (
  "torch._utils._rebuild_tensor",
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_tensor_v3",
)


def _tensor(
  storages: _Storages,
  storage: Any,
  offset: int,
  size: tuple,
  stride: tuple,
  *rest: Any,
) -> np.ndarray:
  """Returns a view of a storage that lies in it and is not larger."""
  values = storages(storage)
  # Version 3 names the type, since its storages have none.
  if len(rest) > 2 and isinstance(rest[2], Global):
    kind = rest[2].name
    dtype = _NAMED_TYPES.get(kind)
    if dtype is None:
      raise WeightsError(f"a tensor of the unknown type {kind:.80}")
    values = _typed(values, dtype, "little")
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or any(
    not isinstance(n, int) or n < 0 for n in numbers
  ):
    raise WeightsError("a tensor of an impossible shape")
  if 0 in size:
    return np.zeros(size, values.dtype)
  last = offset + sum(
    (n - 1) * step for n, step in zip(size, stride, strict=True)
  )
  if last >= len(values) or math.prod(size) > len(values):
    raise WeightsError("a tensor that is larger than its storage")
  return np.lib.stride_tricks.as_strided(
    values[offset:],
    size,
    [step * values.itemsize for step in stride],
    writeable=False,
  )
