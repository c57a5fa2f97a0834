"""The report's break-down by class: figures, and what each stream adds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from twostream_jax import metrics
from twostream_jax.report import plots
from twostream_jax.report.templates import render
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
  ranked = np.argsort(-gain, kind="stable").tolist()  # NaN sorts last.
  clips = _clips_by_class(models[0].scores)
  empty = int((clips == 0).sum())
  ends = []
  if len(names) > _MAX_CLASSES:
    top = ranked[: len(names) - empty][:_CLASSES_PER_END]
    rest = ranked[_CLASSES_PER_END : len(names) - empty]
    ends = [("Top", top), ("Bottom", rest[-_CLASSES_PER_END:])]
  kind = "classes"
  if len(models) > _MAX_BESIDE:
    kind += " crowded"
  elif plots.are_long(names):
    kind += " wordy"
  return render(
    "classes.html",
    helps=_helps(models, num_streams, names),
    note=_class_note(models, num_streams, empty, len(names)),
    models=[(model.style, model.name) for model in models],
    rows=[
      {
        "name": name,
        "figures": [(m.style, _known(m.by_class[i])) for m in models],
        "clips": clips[i],
      }
      for i, name in enumerate(names)
    ],
    kind=kind,
    ranked=ranked,
    ends=ends,
  )


def _known(figure: float) -> float | None:
  return None if np.isnan(figure) else float(figure)


def _helps(
  models: Sequence[Model], num_streams: int, names: Sequence[str]
) -> list[dict[str, Any]]:
  """Where motion helps, where appearance helps, and where only both.

  Args:
    models: the streams, of which the first two are appearance and motion, then
      the fusion if there is one.
    num_streams: how many of them are streams.
    names: class names [n].

  Returns:
    One list of classes each; none where there is one stream.
  """
  if num_streams < 2:
    return []
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
  return [_helped(*each, names) for each in lists]


def _helped(
  title: str,
  better: Model,
  worse: Model | None,
  gain: np.ndarray,
  names: Sequence[str],
) -> dict[str, Any]:
  """The classes that gain most by a model, with how much in points."""
  ranked: list[int] = [
    i for i in np.argsort(-gain, kind="stable").tolist() if gain[i] > 0.0005
  ]
  over = f"over {worse.name}" if worse else "over the best stream of each class"
  return {
    "title": title,
    "note": f"Points of {better.name} {over}",
    "style": better.style,
    "gains": [(names[i], float(gain[i])) for i in ranked[:_MAX_HELPED]],
    "more": len(ranked) - _MAX_HELPED,
  }


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
