"""What the pages share: the sheet they are set in and how they are written."""

import html
import os
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twostream_jax.files import replaced
from twostream_jax.files.words import lines

_esc = html.escape


def render_page(title: str, facts: str, sections: Mapping[str, str]) -> str:
  """One HTML page, with nothing to load from elsewhere.

  Args:
    title: headline, as text.
    facts: what stands below it, as HTML.
    sections: the rest, as HTML by heading; a heading is plain words.
  """
  page = string.Template(_read("template.html")).substitute(
    style=_read("page.css"),
    script=_read("page.js"),
    title=_esc(title),
    facts=facts,
    links="".join(
      f'<a href="#{_anchor(name)}">{name}</a>' for name in sections
    ),
    sections="".join(
      f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>'
      for name, body in sections.items()
    ),
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


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
  """Names and their values, as an HTML list; both are escaped here."""
  rows = "".join(
    f"<div><dt>{_esc(str(key))}</dt><dd>{_esc(str(value))}</dd></div>"
    for key, value in pairs
  )
  return f"<dl>{rows}</dl>"


def rejected_files(rejected: Sequence[Mapping[str, Any]]) -> str:
  """The files that could not be used: counts by reason, then every one.

  Args:
    rejected: "video_id", "split", "label" (a name, or a list of names) and
      "reason" of each.
  """
  if not rejected:
    return "<p>Every file of the data set could be used.</p>"
  counts = Counter((r["reason"], r["split"]) for r in rejected).most_common()
  summary = "".join(
    f'<tr><th scope="row">{_esc(str(reason))}</th><td class="text">'
    f"{_esc(str(split))}</td><td>{number}</td></tr>"
    for (reason, split), number in counts
  )
  files = "".join(
    f'<tr><th scope="row">{_esc(str(r["video_id"]))}</th>'
    + "".join(
      f'<td class="text">{_esc(text)}</td>'
      for text in (str(r["split"]), _label(r["label"]), str(r["reason"]))
    )
    + "</tr>"
    for r in rejected
  )
  number = "1 file" if len(rejected) == 1 else f"{len(rejected):,} files"
  return (
    f"<p>Could not be used, and in none of the counts: {number}.</p>"
    '<div class="scroll"><table><thead><tr><th scope="col">Reason'
    '</th><th scope="col" class="text">Split</th><th scope="col">Files</th>'
    f"</tr></thead><tbody>{summary}</tbody></table></div>"
    f"<details><summary>All {len(rejected):,} files</summary>"
    '<div class="scroll tall" tabindex="0"><table><thead><tr>'
    '<th scope="col">Video</th>'
    '<th scope="col" class="text">Split</th><th scope="col" class="text">Class'
    '</th><th scope="col" class="text">Reason</th></tr></thead>'
    f"<tbody>{files}</tbody></table></div></details>"
  )


def _label(label: str | Sequence[str]) -> str:
  return label if isinstance(label, str) else ", ".join(label)


def _anchor(name: str) -> str:
  return name.lower().replace(" ", "-")
