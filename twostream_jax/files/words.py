"""Texts of files and folders, shown to people and to spreadsheets.

Names of classes, videos and files come from strangers. A terminal obeys the
codes in them, a line break forges a line of a log, a mark of direction turns
what follows around, and a spreadsheet runs a cell that looks like a formula.
"""

import re
import unicodedata
import warnings

# Zero-width joiner and non-joiner: Persian and emoji need them.
_HARMLESS = "\u200c\u200d"
# How a cell begins that spreadsheets run, after any apostrophes
# (owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def printable(text: str) -> str:
  r"""Escapes invisible characters, such as "\x1b" and line breaks."""
  return "".join(map(_visible, text))


def lines(text: str) -> str:
  """Escapes as `printable` does, but for line breaks, of whole messages."""
  return "\n".join(map(printable, text.split("\n")))


def warn_as(program: str) -> None:
  """Makes warnings of this process lines of a command."""

  def one_line(message, *_, **__) -> str:
    return f"{program}: {lines(str(message))}\n"

  warnings.formatwarning = one_line


def _visible(character: str) -> str:
  if character.isprintable() or character in _HARMLESS:
    return character
  # Spaces of other widths are as visible as a space.
  if unicodedata.category(character) == "Zs":
    return character
  return character.encode("unicode_escape").decode()


def csv_cell(text: str) -> str:
  """Writes a text as a cell that no spreadsheet runs; `csv_text` reads it.

  An apostrophe is put before what would be a formula. Numbers are written as
  they are: a cell of a number does nothing.
  """
  return f"'{text}" if _FORMULA.match(text) else text


def csv_text(cell: str) -> str:
  """Returns the text of a cell that `csv_cell` or anybody else wrote."""
  is_escaped = cell.startswith("'") and _FORMULA.match(cell)
  return cell[1:] if is_escaped else cell
