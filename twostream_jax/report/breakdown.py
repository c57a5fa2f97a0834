"""The report's break-down by class: figures, confusions, worst pairs."""

import dataclasses
import html
from collections.abc import Sequence

import numpy as np

from twostream_jax import metrics
from twostream_jax.report import plots
from twostream_jax.report.wording import wording
from twostream_jax.scores import Scores

# More classes than this are cut to those at both ends of the order.
_MAX_CLASSES, _CLASSES_PER_END = 40, 15
_MAX_PAIRS = 10


# With more models than this a row is too wide for a phone.
_MAX_BESIDE = 4


@dataclasses.dataclass(frozen=True)
class Model:
  """A stream or the best fusion rule.

  Attributes:
    name: of the stage or the rule.
    style: class of the style sheet.
    scores: of every test clip.
    by_class: float64 [n], 0..1: recall, or average precision in a multi-label
      set; NaN without a clip of the class.
  """

  name: str
  style: str
  scores: Scores
  by_class: np.ndarray


def figures_by_class(scores: Scores) -> np.ndarray:
  """`Model.by_class` of scores."""
  if scores.multi_label:
    return metrics.mean_average_precision(
      scores.logits, scores.labels
    ).per_class
  return metrics.per_class_accuracy(_confusion(scores))


def _confusion(scores: Scores) -> np.ndarray:
  return metrics.confusion_matrix(
    scores.logits, scores.labels, scores.logits.shape[1]
  )


def _clips_by_class(scores: Scores) -> np.ndarray:
  if scores.multi_label:
    return scores.labels.astype(bool).sum(axis=0)
  return np.bincount(scores.labels, minlength=scores.logits.shape[1])


def classes(
  models: Sequence[Model], num_streams: int, names: Sequence[str]
) -> str:
  """The figures of every class by every model, side by side, as HTML.

  The order tells what motion adds: by the figure of the second stream minus
  that of the first, or by the figure where there is one stream. Classes without
  a clip come last. Of more than 40 classes both ends are shown, the rest on
  request.

  Args:
    models: the streams, then the fusion.
    num_streams: how many of them are streams.
    names: class names [n].
  """
  gain = models[0].by_class
  if num_streams > 1:
    gain = models[1].by_class - models[0].by_class
  ranked = np.argsort(-gain, kind="stable")  # NaN sorts last.
  empty = int((_clips_by_class(models[0].scores) == 0).sum())
  note = _class_note(models, num_streams, empty, len(names))
  head = f'<p class="note">{html.escape(note)}</p>{_legend(models)}'
  if len(names) <= _MAX_CLASSES:
    return head + _class_table(models, names, ranked)
  known = ranked[: len(names) - empty]
  top, rest = np.split(known, [_CLASSES_PER_END])
  bottom = rest[-_CLASSES_PER_END:]
  parts = "".join(
    f"<h3>{title} {len(rows)}</h3>{_class_table(models, names, rows)}"
    for title, rows in (("Top", top), ("Bottom", bottom))
    if len(rows)
  )
  return (
    f"{head}{parts}<details><summary>All {len(names)} classes</summary>"
    '<p class="find" hidden><label>Find a class <input type="search"></label>'
    f"</p>{_class_table(models, names, ranked)}</details>"
  )


def _class_note(
  models: Sequence[Model], num_streams: int, empty: int, num_classes: int
) -> str:
  multi_label = models[0].scores.multi_label
  figure = wording(multi_label).by_class
  order = figure
  if num_streams > 1:
    order = f"what {models[1].name} gains over {models[0].name}"
  note = f"{figure.capitalize()} of each class, ordered by {order}."
  if multi_label:
    note += " A clip counts in each of its classes."
  if empty:
    note += f" {empty} of {num_classes} classes have no test clip (–)."
  return note


def _legend(models: Sequence[Model]) -> str:
  keys = "".join(
    f"<span>{plots.marker(m.style)} {html.escape(m.name)}</span>"
    for m in models
  )
  return f'<p class="legend">{keys}</p>'


def _class_table(
  models: Sequence[Model], names: Sequence[str], rows: np.ndarray
) -> str:
  heads = "".join(
    f'<th scope="col">{plots.marker(m.style)}<span class="model">'
    f"{html.escape(m.name).replace('_', '_<wbr>')}</span></th>"
    for m in models
  )
  figures = np.array([model.by_class for model in models])
  totals = _clips_by_class(models[0].scores)
  body = "".join(
    f'<tr><th scope="row">{html.escape(names[i])}</th><td class="plot">'
    f"{plots.dots([(m.style, figures[j, i]) for j, m in enumerate(models)])}"
    f"</td>{''.join(_share(figure) for figure in figures[:, i])}"
    f'<td class="clips">{totals[i]}</td></tr>'
    for i in rows
  )
  kind = "classes"
  if len(models) > _MAX_BESIDE:
    kind += " crowded"
  elif plots.are_long(names):
    kind += " wordy"
  return (
    f'<table class="{kind} sortable" style="--models: {len(models)}"><thead>'
    '<tr><th scope="col">Class</th>'
    '<th scope="col" class="plot"><span class="scale"><span>0%</span><span>'
    f'50%</span><span>100%</span></span></th>{heads}<th scope="col"'
    f' class="clips">Clips</th></tr></thead><tbody>{body}</tbody></table>'
  )


def _share(figure: float) -> str:
  return "<td>–</td>" if np.isnan(figure) else f"<td>{figure:.0%}</td>"


def confusions(models: Sequence[Model], names: Sequence[str]) -> str:
  """A heat map for each model and the worst pairs of the last, as HTML.

  Args:
    models: of a set with one label a clip.
    names: class names [n].
  """
  counts = [_confusion(model.scores) for model in models]
  figures = "".join(
    f"<figure><figcaption>{plots.marker(m.style)} <strong>"
    f"{html.escape(m.name)}</strong></figcaption>"
    f"{plots.heat_map(confusion, names, _describe(m.name, confusion, names))}"
    "</figure>"
    for m, confusion in zip(models, counts, strict=True)
  )
  return (
    f'<div class="heats">{figures}{_key(len(names))}</div>'
    f"<h3>Most confused pairs of {html.escape(models[-1].name)}</h3>"
    f"{_pairs(counts[-1], names)}"
  )


def _key(num_classes: int) -> str:
  """How to read a heat map."""
  cell = "cell fixed" if num_classes > plots.MAX_NAMED else "cell"
  swatches = "".join(
    f'<span><svg class="heat" width="20" height="14" aria-hidden="true"><rect'
    f' class="frame" width="20" height="14"/><rect class="{cell}" width="20"'
    f' height="14" fill-opacity="{float(plots.opacity(share)):.3f}"/></svg>'
    f" {share:.0%}</span>"
    for share in (0, 0.01, 0.1, 0.3, 1)
  )
  numbers = ""
  if num_classes <= plots.MAX_COUNTED:
    numbers = " Numbers are clips."
  elif num_classes > plots.MAX_NAMED:
    numbers = " Classes are numbered in the order of the data set, from 0."
  return (
    '<div class="reading"><strong>Reading the maps</strong> A row is a true'
    " class, a column what the model said; the diagonal is right. The shade is"
    f" the share of the true class's clips.{numbers}"
    f'<p class="legend">{swatches}</p></div>'
  )


def worst_pairs(confusion: np.ndarray) -> list[tuple[int, int]]:
  """The (true, predicted) pairs with the most mistakes, at most 10."""
  mistakes = confusion - np.diag(np.diag(confusion))
  order = np.argsort(-mistakes, axis=None, kind="stable")[:_MAX_PAIRS]
  pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
  return [(int(t), int(p)) for t, p in pairs if mistakes[t, p]]


def _describe(model: str, confusion: np.ndarray, names: Sequence[str]) -> str:
  total, hits = confusion.sum(), np.trace(confusion)
  text = f"Confusion matrix of {model}: {hits} of {total} clips on the diagonal"
  pairs = worst_pairs(confusion)
  if pairs:
    true, guess = pairs[0]
    text += (
      f"; most often {names[true]} was taken for {names[guess]},"
      f" {confusion[true, guess]} times"
    )
  return text


def _pairs(confusion: np.ndarray, names: Sequence[str]) -> str:
  pairs = worst_pairs(confusion)
  if not pairs:
    return "<p>There are none: every test clip is right.</p>"
  totals = confusion.sum(axis=1)
  rows = "".join(
    f'<tr><th scope="row">{html.escape(names[t])}</th><td class="text">'
    f'{html.escape(names[p])}</td><td class="count">{confusion[t, p]} of'
    f" {totals[t]}</td>"
    f"<td>{confusion[t, p] / totals[t]:.0%}</td></tr>"
    for t, p in pairs
  )
  return (
    '<div class="scroll"><table><thead><tr><th scope="col">True class</th>'
    '<th scope="col" class="text">Taken for</th><th scope="col">Clips</th>'
    f'<th scope="col">Share</th></tr></thead><tbody>{rows}</tbody></table>'
    "</div>"
  )
