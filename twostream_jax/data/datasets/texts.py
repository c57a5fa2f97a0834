"""Text files that people write: lists, CSV files, official annotations.

They are in UTF-8, with or without a byte-order mark, with any line ends. What
else they can be is refused by name: every function raises AnnotationError.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from twostream_jax.data.datasets.clips import AnnotationError
from twostream_jax.files.words import csv_text

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_text(path: str | os.PathLike) -> str:
  """Reads a file in UTF-8, without its byte-order mark."""
  try:
    data = Path(path).read_bytes()
  except OSError as error:
    raise AnnotationError(f"can't read {path}: {error.strerror}") from error
  marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  # Text of ASCII letters in UTF-16 is valid UTF-8, with zeros in it.
  if marked or b"\0" in data:
    raise AnnotationError(
      f"{path} is UTF-16 text, or no text at all: save it as UTF-8"
      ' (spreadsheets call it "CSV UTF-8")'
    )
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise AnnotationError(
      f"{path} is not UTF-8 text (at byte {error.start}, line {line}): save it"
      " as UTF-8"
    ) from error


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
  """Yields the lines that are not blank, stripped, with numbers from 1."""
  for number, line in enumerate(re.split("\r\n|\r|\n", read_text(path)), 1):
    if line.strip():
      yield number, line.strip()


def expand_home(path: str, folder: str | os.PathLike = "") -> str:
  """Returns a listed path, '~' replaced unless something below has that name.

  Args:
    path: as it is listed.
    folder: that it is relative to.
  """
  literal = not path.startswith("~") or os.path.exists(Path(folder, path))
  return path if literal else os.path.expanduser(path)


def read_rows(
  path: str | os.PathLike, columns: Sequence[str], advice: str = ""
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields the rows of a CSV file that are not blank, with their line numbers.

  Args:
    path: the file. Its first row names the columns.
    columns: names that this row must have; others are read all the same.
    advice: what to do about a file without them.

  Yields:
    Line and cells by column, stripped; cells that a row lacks are empty.
  """
  text = read_text(path)
  # Strict: a quotation mark that is not closed would swallow the rows after it.
  reader = csv.DictReader(
    io.StringIO(text, newline=""), restval="", strict=True
  )
  try:
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    _check_header(path, header, columns, advice)
    for row in reader:
      surplus = row.pop(None, [])
      if any(cell.strip() for cell in surplus):
        raise AnnotationError(
          f"{path}, line {reader.line_num}: {len(header) + len(surplus)}"
          f" cells, but the first row names {len(header)} columns. A label"
          ' with a comma needs quotes: video.avi,"push, pull"'
        )
      cells = {name: csv_text(cell.strip()) for name, cell in row.items()}
      if any(cells.values()):
        yield reader.line_num, cells
  except csv.Error as error:
    raise AnnotationError(
      f"{path}, line {reader.line_num}: {error}. A cell that begins with a"
      ' quotation mark must end with one, and those inside it are doubled ("")'
    ) from error


def _check_header(
  path: str | os.PathLike,
  header: Sequence[str],
  columns: Sequence[str],
  advice: str,
) -> None:
  missing = [name for name in columns if name not in header]
  if not missing:
    return
  first = ",".join(header)
  for separator, name in _SEPARATORS.items():
    if set(columns) <= {cell.strip() for cell in first.split(separator)}:
      raise AnnotationError(
        f"{path}: {name} between the columns; save it with commas between them"
        f" ({','.join(columns)})"
      )
  raise AnnotationError(
    f"{path}: no column {' and no column '.join(missing)}; its first row is"
    f" {first!r:.300}. {advice}".rstrip()
  )
