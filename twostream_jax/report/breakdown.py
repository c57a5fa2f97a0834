"""The report's break-down by class: figures, and what each stream adds."""

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
# Classes that a list of what a stream adds names.
_MAX_HELPED = 5


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
  return metrics.per_class_accuracy(confusion_of(scores))


def confusion_of(scores: Scores) -> np.ndarray:
  """Confusion matrix int [n n] of scores of one label a clip."""
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
  head = (
    f"{helps(models, num_streams, names)}<h3>Every class</h3>"
    f'<p class="note">{html.escape(note)}</p>{_legend(models)}'
  )
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


def helps(
  models: Sequence[Model], num_streams: int, names: Sequence[str]
) -> str:
  """Where motion helps, where appearance helps, and where only both, as HTML.

  Args:
    models: the streams, of which the first two are appearance and motion, then
      the fusion if there is one.
    num_streams: how many of them are streams.
    names: class names [n].

  Returns:
    "" where there is one stream.
  """
  if num_streams < 2:
    return ""
  first, second = models[:2]
  gain = second.by_class - first.by_class
  lists: list[tuple[str, Model, Model | None, np.ndarray]] = [
    ("Where motion helps", second, first, gain),
    ("Where appearance helps", first, second, -gain),
  ]
  if len(models) > num_streams:
    alone = np.array([m.by_class for m in models[:num_streams]])
    known = ~np.isnan(alone).all(axis=0)
    best = np.full(len(names), np.nan)
    best[known] = np.nanmax(alone[:, known], axis=0)
    more = models[-1].by_class - best
    lists.append(("Where fusion beats every stream", models[-1], None, more))
  return (
    f'<div class="helps">{"".join(_helped(*x, names) for x in lists)}</div>'
  )


def _helped(
  title: str,
  better: Model,
  worse: Model | None,
  gain: np.ndarray,
  names: Sequence[str],
) -> str:
  """The classes that gain most by a model, with how much in points."""
  ranked: list[int] = [
    i for i in np.argsort(-gain, kind="stable").tolist() if gain[i] > 0.0005
  ]
  over = f"over {worse.name}" if worse else "over the best stream of each class"
  note = f"Points of {better.name} {over}"
  if not ranked:
    body = '<p class="note">In no class.</p>'
  else:
    rest = len(ranked) - _MAX_HELPED
    more = f'<p class="note">and in {rest} more</p>' if rest > 0 else ""
    body = (
      "<ol>"
      + "".join(
        f'<li><span class="name">{html.escape(names[i])}</span>'
        f"{plots.bar(float(gain[i]), better.style)}"
        f'<span class="num">+{100 * gain[i]:.0f}</span></li>'
        for i in ranked[:_MAX_HELPED]
      )
      + f"</ol>{more}"
    )
  return (
    f'<div><h3>{title}</h3><p class="note">{html.escape(note)}</p>{body}</div>'
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
    f'<tr><th scope="row">{html.escape(names[int(i)])}</th><td class="plot">'
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
