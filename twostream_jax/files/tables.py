"""Tables as text: columns for a terminal, and Markdown."""

from collections.abc import Iterable, Sequence

from twostream_jax.files.words import printable


def columns(rows: Iterable[Sequence[str]], words: int | None = None) -> str:
  """Rows as lines whose cells are below each other, two spaces apart.

  Args:
    rows: cells of each row, as many in all; they are printable.
    words: number of columns at the left that hold words and begin below each
      other; numbers, right of them, end below each other. By default all
      columns hold words.
  """
  rows = list(rows)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  words = len(widths) if words is None else words
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i < words else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def markdown_head(names: Sequence[object]) -> str:
  """The two lines above the rows of a table in Markdown."""
  return markdown_row(names) + "\n" + "|---" * len(names) + "|"


def markdown_row(cells: Iterable[object]) -> str:
  """A row of a table in Markdown, of any values; a bar in one is escaped."""
  texts = (printable(str(cell)).replace("|", "\\|") for cell in cells)
  return f"| {' | '.join(texts)} |"


def markdown(names: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
  """A whole table in Markdown; see `markdown_row`."""
  return "\n".join([markdown_head(names), *map(markdown_row, rows)])
