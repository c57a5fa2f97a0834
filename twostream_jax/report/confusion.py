"""The report's confusions: sortable heat maps, and the worst pairs."""

import json
from collections.abc import Sequence

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from twostream_jax.report import heatmap
from twostream_jax.report.breakdown import Model, confusion_of
from twostream_jax.report.templates import render

_MAX_PAIRS = 10
_MAX_NARROW = 8


def confusions(
  models: Sequence[Model], num_streams: int, names: Sequence[str]
) -> str:
  """A heat map for each model and the worst pairs of the last, as HTML.

  Args:
    models: of a set with one label a clip; the streams, then the fusion.
    num_streams: how many of them are streams.
    names: class names [n].
  """
  counts = [confusion_of(model.scores) for model in models]
  last, totals = counts[-1], counts[-1].sum(axis=1)
  orders = class_orders(models, num_streams, names, last)
  numbers = ""
  if len(names) <= heatmap.MAX_COUNTED:
    numbers = " Numbers are clips."
  elif len(names) > heatmap.MAX_NAMED:
    numbers = " Classes are numbered from 0, in the order chosen above."
  return render(
    "confusions.html",
    maps=[
      (
        m.style,
        m.name,
        heatmap.heat_map(count, names, _describe(m.name, count, names)),
      )
      for m, count in zip(models, counts, strict=True)
    ],
    # Three of few classes go beside each other, two of more.
    least="17rem" if len(names) <= _MAX_NARROW else "25rem",
    orders=list(orders),
    # For the page's script.
    facts=json.dumps({"orders": list(orders.values()), "names": list(names)}),
    fixed=" fixed" if len(names) > heatmap.MAX_NAMED else "",
    numbers=numbers,
    shades=[(share, heatmap.opacity(share)) for share in (0.01, 0.1, 0.3, 1)],
    pairs=[
      {
        "true": names[t],
        "guess": names[p],
        "count": last[t, p],
        "total": totals[t],
      }
      for t, p in worst_pairs(last)
    ],
  )


def class_orders(
  models: Sequence[Model],
  num_streams: int,
  names: Sequence[str],
  confusion: np.ndarray,
) -> dict[str, list[int]]:
  """Orders of the classes to look at a confusion matrix in.

  Args:
    models: the streams, then the fusion.
    num_streams: how many of them are streams.
    names: class names [n].
    confusion: int [n n], of the last model.

  Returns:
    Class indices [n] by what orders them, in words. The first is the one that
    the page begins with, that of the data set.
  """
  by_name = sorted(range(len(names)), key=lambda i: names[i])
  orders = {"name": list(range(len(names)))}
  if by_name != orders["name"]:
    orders = {"order of the data set": orders["name"], "name": by_name}
  last = models[-1]
  orders[f"accuracy of {last.name}"] = _descending(last.by_class)
  if num_streams > 1:
    gain = models[1].by_class - models[0].by_class
    orders[f"gain of {models[1].name} over {models[0].name}"] = _descending(
      gain
    )
  orders["confused classes together"] = cluster(confusion)
  return orders


def _descending(figures: np.ndarray) -> list[int]:
  return np.argsort(-figures, kind="stable").tolist()  # NaN sorts last.


def cluster(confusion: np.ndarray) -> list[int]:
  """An order in which classes that are taken for each other are neighbours.

  Average linkage of how often two classes are confused, either way, as shares
  of their clips; the leaves in the order that keeps neighbours closest
  (Bar-Joseph et al. 2001).

  Args:
    confusion: int [n n], true class by predicted class, n >= 2.

  Returns:
    Class indices [n].
  """
  shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  far = 1 - (shares + shares.T) / 2
  np.fill_diagonal(far, 0)
  tree = hierarchy.linkage(
    distance.squareform(far, checks=False), "average", optimal_ordering=True
  )
  return hierarchy.leaves_list(tree).tolist()


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
