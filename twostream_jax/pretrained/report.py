"""What became of every array of a weight file and of a network."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from twostream_jax.files import tables, words

USED = "used"
FRESH = "fresh"
LEFT_OUT = "left out"
MISSING = "missing"
EXTRA = "extra"
WRONG = "wrong"
PROBLEMS = (MISSING, EXTRA, WRONG)
# Characters of a key or a reason that are shown.
_LONGEST = 160
_SHOWN_KEYS = 5


@dataclasses.dataclass(frozen=True)
class Row:
  """What became of one array.

  Attributes:
    status: "used"; "fresh" (the network keeps its own); "left out" (no
      network needs it); or a problem: "missing", "extra", or "wrong" in shape
      or values.
    key: in the file; "" where the file has no such array.
    path: in the variables; "" where the network has no such array.
    shape: of the network's array, or else of the file's.
    note: why, where that is not plain.
  """

  status: str
  key: str
  path: str
  shape: tuple[int, ...]
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of every array of a file and of a network.

  Attributes:
    source: the file.
    layout: its layout.
    backbone: the network.
    rows: first those of the network, then those of the file alone.
  """

  source: Path
  layout: str
  backbone: str
  rows: tuple[Row, ...]

  def of(self, *statuses: str) -> list[Row]:
    """The rows of some statuses."""
    return [row for row in self.rows if row.status in statuses]

  def summary(self) -> str:
    """One line, such as "26 used, 6 fresh"."""
    statuses = (USED, FRESH, LEFT_OUT, *PROBLEMS)
    counts = [(len(self.of(status)), status) for status in statuses]
    return ", ".join(f"{n} {status}" for n, status in counts if n)

  def table(self, *statuses: str) -> str:
    """One line an array, of some statuses; by default of all."""
    rows = self.of(*statuses) if statuses else self.rows
    cells = [
      (
        row.status,
        printable(row.key) or "-",
        row.path or "-",
        describe_shape(row.shape),
        row.note,
      )
      for row in rows
    ]
    return tables.columns(cells)


def describe_shape(shape: tuple[int, ...]) -> str:
  """A shape for a reader, such as "3 x 3 x 64"."""
  return " x ".join(map(str, shape)) or "scalar"


def printable(text: str, longest: int = _LONGEST) -> str:
  """Shortens and escapes a text of a file: a terminal would obey its codes."""
  shown = text if len(text) <= longest else f"{text[:longest]}..."
  return words.printable(shown)


def first_keys(keys: Iterable[str]) -> str:
  """The first few of a file's keys, for a message."""
  keys = list(keys)
  shown = ", ".join(map(printable, keys[:_SHOWN_KEYS]))
  return shown + (" ..." if len(keys) > _SHOWN_KEYS else "")
