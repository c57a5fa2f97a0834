"""JSON of other people's files: bounded, and with errors in one sentence."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twostream_jax.files.words import printable

# Bytes that what is parsed may take, beyond a multiple of the file's.
_FREE = 2**27
_MOST_GROWN = 8
# Bytes of an empty container and of a number, with their places in another one.
_CONTAINER = 72
_VALUE = 40
# Containers in others; functions that call themselves read them.
_DEEPEST = 100
_OF_VALUES = (ValueError, TypeError, OverflowError)
# Of what an error says, which may repeat a value of the file.
_LONGEST = 300


class JsonError(ValueError):
  """A text is not JSON, or none that a file of data has use for."""


def read(path: str | os.PathLike, **options: Any) -> Any:
  """Reads a JSON file in UTF-8.

  Args:
    path: Its path.
    **options: See `parse`.

  Raises:
    JsonError: It can't be read; the message names the file.
  """
  data = read_bytes(path)
  with told(path):
    return parse(data, **options)


def read_bytes(path: str | os.PathLike) -> bytes:
  """Reads a file of JSON; JsonError: it can't be read."""
  try:
    with open(path, "rb", opener=_opener) as file:
      return file.read()
  except OSError as error:
    said, named = error.strerror, printable(str(path))
    raise JsonError(f"{named} can't be read: {said}") from error


def _opener(path: str, flags: int) -> int:
  # A pipe in the place of a file would be waited for.
  descriptor = os.open(path, flags | os.O_NONBLOCK)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a file")
  return descriptor


def read_object(path: str | os.PathLike, **options: Any) -> dict[str, Any]:
  """Reads a JSON file that holds an object; see `read`."""
  content = read(path, **options)
  if not isinstance(content, dict):
    raise JsonError(f"{printable(str(path))} can't be read: it holds no names")
  return content


@contextlib.contextmanager
def told(path: str | os.PathLike) -> Iterator[None]:
  """Turns errors of a block, which uses what a file holds, into a JsonError.

  Values of another type than the block takes them for, and missing ones, end
  in errors of Python that do not say whose fault it is.
  """
  try:
    yield
  except (*_OF_VALUES, LookupError, AttributeError) as error:
    said = printable(str(error))[:_LONGEST] or type(error).__name__
    if isinstance(error, KeyError):
      said = f"it lacks {said}"
    raise JsonError(f"{printable(str(path))} can't be read: {said}") from error


def parse(
  data: bytes,
  *,
  finite: bool = False,
  pairs_hook: Callable[[Sequence[tuple[str, Any]]], Any] | None = None,
) -> Any:
  """Parses JSON.

  Args:
    data: In UTF-8, with or without a byte-order mark.
    finite: Whether NaN and infinities are refused.
    pairs_hook: Makes an object of its names and values; None: a dict.

  Raises:
    JsonError: It is not JSON, nested too deeply, or would take many times its
      size of memory; the message names no file.
  """
  containers = data.count(b"[") + data.count(b"{")
  estimate = _CONTAINER * containers + _VALUE * data.count(b",")
  if estimate > _FREE + _MOST_GROWN * len(data):
    raise JsonError(
      f"its {len(data)} bytes hold {containers} lists and objects, more than a"
      " file of data has use for"
    )
  try:
    content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
    if containers > _DEEPEST:
      _check_depth(content)
    if finite:
      json.dumps(content, allow_nan=False)
    return content
  except UnicodeDecodeError as error:
    raise JsonError(f"not text in UTF-8 (at byte {error.start})") from error
  except RecursionError as error:
    raise JsonError("nested too deeply") from error
  except JsonError:
    raise
  except ValueError as error:
    raise JsonError(f"not JSON: {printable(str(error))}") from error


def _check_depth(content: Any) -> None:
  """Raises RecursionError where functions that call themselves might."""
  level = [content]
  for _ in range(_DEEPEST):
    level = [
      item
      for node in level
      if isinstance(node, dict | list | tuple)
      for item in (node.values() if isinstance(node, dict) else node)
    ]
    if not level:
      return
  raise RecursionError
