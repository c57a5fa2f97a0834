"""JSON of other people's files: bounded, and with errors in one sentence."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twostream_jax.words import printable

# Bytes that what is parsed may take, beyond a multiple of the file's.
_FREE = 2**27
_MOST_GROWN = 8
# Bytes of an empty container and of a number, with their places in another one.
_CONTAINER = 72
_VALUE = 40


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
  try:
    return parse(Path(path).read_bytes(), **options)
  except OSError as error:
    raise JsonError(f"{path} can't be read: {error.strerror}") from error
  except JsonError as error:
    raise JsonError(f"{path} can't be read: {error}") from error


def parse(
  data: bytes,
  *,
  pairs_hook: Callable[[Sequence[tuple[str, Any]]], Any] | None = None,
) -> Any:
  """Parses JSON.

  Args:
    data: In UTF-8, with or without a byte-order mark.
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
    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
  except UnicodeDecodeError as error:
    raise JsonError(f"not text in UTF-8 (at byte {error.start})") from error
  except RecursionError as error:
    raise JsonError("nested too deeply") from error
  except JsonError:
    raise
  except ValueError as error:
    raise JsonError(f"not JSON: {printable(str(error))}") from error
