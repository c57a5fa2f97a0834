"""JSON of other people's files: bounded, and with errors in one sentence."""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twostream_jax.files import limits
from twostream_jax.files.words import printable

# Bytes of a file of settings or facts. The metadata of a dataset of 650,000
# videos of which 400,000 were rejected has as many, and so have the results of
# ten stages of 700 classes.
_LONGEST = 2**26
# Bytes of memory for a byte of lists and lines of records: they are many small
# objects of the same names, which Python keeps once. The official list of
# Kinetics-700 takes nine.
GROWN = 12
# Bytes of an empty container; of a text without its characters; of a name, with
# its places in the object and in the parser; and of a number with its place.
_CONTAINER = 72
_TEXT = 56
_NAME = 134
_VALUE = 48
# Containers in others; functions that call themselves read them.
_DEEPEST = 100
# Bytes of characters that take no more than two in memory.
_NARROW = bytes(range(0xF0))
_OF_VALUES = (ValueError, TypeError, OverflowError)
# Of what an error says, which may repeat a value of the file.
_MOST_SAID = 300


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


def read_bytes(path: str | os.PathLike, most: int = _LONGEST) -> bytes:
  """Reads a file of JSON.

  Args:
    path: Its path.
    most: Bytes that it may have.

  Raises:
    JsonError: It can't be read, or has more; the message names the file.
  """
  try:
    with open(path, "rb", opener=_opener) as file:
      size = os.fstat(file.fileno()).st_size
      if size > most:
        raise OSError(errno.EFBIG, f"{size} bytes are more than {most}")
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
    said = printable(str(error))[:_MOST_SAID] or type(error).__name__
    if isinstance(error, KeyError):
      said = f"it lacks {said}"
    raise JsonError(f"{printable(str(path))} can't be read: {said}") from error


def parse(
  data: bytes,
  *,
  finite: bool = False,
  grown: int | None = None,
  pairs_hook: Callable[[Sequence[tuple[str, Any]]], Any] | None = None,
) -> Any:
  """Parses JSON.

  Args:
    data: In UTF-8, with or without a byte-order mark.
    finite: Whether NaN and infinities are refused.
    grown: See `require_bounded`.
    pairs_hook: Makes an object of its names and values; None: a dict.

  Raises:
    JsonError: It is not JSON, nested too deeply, or would take many times its
      size of memory; the message names no file.
  """
  require_bounded(data, grown)
  containers = data.count(b"[") + data.count(b"{")
  try:
    content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
    if containers > _DEEPEST:
      _check_depth(content)
    if finite:
      _check_finite(content)
    return content
  except UnicodeDecodeError as error:
    raise JsonError(f"not text in UTF-8 (at byte {error.start})") from error
  except RecursionError as error:
    raise JsonError("nested too deeply") from error
  except JsonError:
    raise
  except ValueError as error:
    raise JsonError(f"not JSON: {printable(str(error))}") from error


def require_bounded(data: bytes, grown: int | None = None) -> None:
  """Refuses JSON that takes far more memory than its size, once it is parsed.

  Scores of 250,000 videos and 700 classes are read if their numbers have ten
  characters or more; of 8,000 videos, any.

  Args:
    data: One text or lines of them.
    grown: Bytes of memory for each byte beyond those that any file may take;
      by default those of any file.

  Raises:
    JsonError: It does; the message names no file.
  """
  counts = {
    _CONTAINER: data.count(b"[") + data.count(b"{"),
    _TEXT: data.count(b'"') // 2,
    _NAME: data.count(b":"),
    _VALUE: data.count(b","),
  }
  # Python widens all characters of a text for one that needs more bytes: of
  # four here twice, of the whole and of the texts in it.
  wider = 0 if data.isascii() else 9 if data.translate(None, _NARROW) else 1
  estimate = sum(size * count for size, count in counts.items())
  estimate += wider * len(data)
  allowed = limits.most_memory(len(data))
  if grown is not None:
    allowed += grown * len(data)
  if estimate > allowed:
    raise JsonError(
      f"its {len(data)} bytes hold {sum(counts.values())} lists, names and"
      " values, more than a file of data has use for"
    )


def _check_finite(content: Any) -> None:
  """Raises ValueError for a NaN or an infinity, also of a number like 1e999."""
  left = [content]
  while left:
    node = left.pop()
    if isinstance(node, dict):
      left += node.values()
    elif isinstance(node, list):
      left += node
    elif isinstance(node, float) and not math.isfinite(node):
      raise ValueError(f"{node} is not a number of JSON")


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
