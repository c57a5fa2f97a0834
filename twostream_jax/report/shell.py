"""What the pages share: the sheet they are set in and how they are written."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twostream_jax.files import replaced
from twostream_jax.files.words import lines
from twostream_jax.report.templates import render


def render_page(title: str, facts: str, sections: Mapping[str, str]) -> str:
  """One HTML page, with nothing to load from elsewhere.

  Args:
    title: headline.
    facts: HTML of `render`, which stands below it.
    sections: the rest, by heading, as HTML of `render`.
  """
  page = render(
    "page.html",
    title=title,
    facts=facts,
    sections=sections,
    style=_read("page.css"),
    script=_read("page.js"),
  )
  # Here, because names of classes and videos stand in every part: a page's
  # source is also looked at in terminals.
  return lines(page)


def _read(name: str) -> str:
  return Path(__file__).with_name(name).read_text(encoding="utf-8")


def write_page(path: str | os.PathLike, page: str) -> None:
  """Writes a page whole or not at all; makes its folder where missing."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with replaced(path) as temporary:
    temporary.write_text(page, encoding="utf-8")


def rejected_files(rejected: Sequence[Mapping[str, Any]]) -> str:
  """The files that could not be used: counts by reason, then every one.

  Args:
    rejected: "video_id", "split", "label" (a name, or a list of names) and
      "reason" of each.
  """
  return render(
    "rejected.html",
    files=rejected,
    counts=Counter((r["reason"], r["split"]) for r in rejected).most_common(),
    number=number(len(rejected), "file"),
  )


def number(count: int, one: str, many: str = "") -> str:
  """A count with its noun, such as "1 class" or "1,200 classes".

  Args:
    count: how many.
    one: the noun for one of them.
    many: the noun for any other number; with an s by default.
  """
  return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float, digits: int) -> str:
  """A time in minutes, or in hours with so many digits."""
  if seconds < 3600:
    return f"{seconds / 60:.1f} min"
  return f"{seconds / 3600:,.{digits}f} h"
