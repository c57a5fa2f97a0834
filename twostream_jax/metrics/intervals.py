"""Confidence intervals of the metrics of a split, in NumPy."""

import statistics
from collections.abc import Callable

import numpy as np

from twostream_jax import metrics


def wilson(
  right: np.ndarray | float, count: np.ndarray | float, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """Confidence interval of a share (Wilson 1927): its ends, 0..1.

  Unlike the bootstrap and the normal approximation it has a width where all
  examples are right, or none.

  Args:
    right: Number of right examples, 0..count; or several, an array.
    count: Number of examples, or an effective number; of the same shape.
    level: of confidence, 0..1.
  """
  z = statistics.NormalDist().inv_cdf((1 + level) / 2)
  share, more = np.divide(right, count), z**2 / np.asarray(count)
  centre = share + more / 2
  half = np.sqrt(more * (share * (1 - share) + more / 4))
  # Rounding must not put the share itself outside.
  low = np.minimum((centre - half) / (1 + more), share)
  high = np.maximum((centre + half) / (1 + more), share)
  return np.maximum(low, 0.0), np.minimum(high, 1.0)


def metric_intervals(
  logits: np.ndarray,
  labels: np.ndarray,
  *,
  level: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """Confidence intervals of `metrics.classification_metrics`, over videos.

  They say how much a number depends on which videos were tested; nothing about
  another training. Shares of videos have Wilson's interval. So has the mean of
  the accuracies of C classes, as a share of C^2 / sum_c (1 / n_c) videos, of
  which class c has n_c: its variance is p (1 - p) / C^2 * sum_c (1 / n_c) where
  all classes are equally hard, and smaller where they are not, so that the
  interval is then wider than needed. map has the percentile bootstrap (Efron
  1979).

  Args:
    logits: [b, n].
    labels: int [b], or bool (or 0 and 1) [b, n] of a multi-label set.
    level: of confidence, 0..1.
    resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    (low, high) by metric. map is missing where all resamples have the same, as
    in a perfect ranking: no interval is better than one without any width. A
    top 5 of at most five classes is 1 for certain.

  Raises:
    ValueError: as `metrics.classification_metrics`.
  """
  found = metrics.classification_metrics(logits, labels)
  if labels.ndim == 2:
    drawn = _resampled_map(logits, labels, resamples, seed)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    labelled = int(labels.astype(bool).any(axis=1).sum())
    right = round(found["precision_at_1"] * labelled)
    bounds = {"map": (low, high)} if low < high else {}
    bounds["precision_at_1"] = wilson(right, labelled, level)
  else:
    b, n = logits.shape
    top1, top5 = (round(found[key] * b) for key in ("top1", "top5"))
    bounds = {
      "top1": wilson(top1, b, level),
      "top5": wilson(top5, b, level) if n > 5 else (1.0, 1.0),
      "mean_class_accuracy": _of_mean(
        metrics.confusion_matrix(logits, labels, n), level
      ),
    }
  return {name: (float(a), float(b)) for name, (a, b) in bounds.items()}


def _of_mean(confusion: np.ndarray, level: float) -> tuple[float, float]:
  """Interval of the mean of per-class accuracies; see `metric_intervals`."""
  counts = confusion.sum(axis=1)
  share = (np.diag(confusion)[counts > 0] / counts[counts > 0]).mean()
  # Examples of a share whose variance is that of the mean of equal classes.
  count = (counts > 0).sum() ** 2 / (1 / counts[counts > 0]).sum()
  low, high = wilson(share * count, count, level)
  return float(low), float(high)


def _resampled_map(
  logits: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
  """Map of as many videos drawn with replacement, again and again: [resamples].

  Draws without any positive are drawn again.
  """
  measure = _map_of_draws(logits, labels.astype(bool))
  rng = np.random.default_rng(seed)
  drawn = []
  while len(drawn) < resamples:
    rows = rng.integers(len(labels), size=len(labels))
    if labels[rows].any():
      times = np.bincount(rows, minlength=len(labels))
      drawn.append(measure(times.astype(np.float64)))
  return np.array(drawn)


def _map_of_draws(
  logits: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], float]:
  """Map as a function of how often each example was drawn, [b].

  What needs the scores is done once: a resample takes a few sums.
  """
  order = np.argsort(-logits.T, axis=1, kind="stable")
  ranked = np.take_along_axis(logits.T, order, axis=1)
  positive = np.take_along_axis(labels.T, order, axis=1)
  # Examples of one score count together: only the last of them is a threshold.
  last = np.append(np.diff(ranked) != 0, np.ones((len(order), 1), bool), axis=1)

  def measure(times: np.ndarray) -> float:
    here = times[order]
    hits, seen = np.cumsum(here * positive, axis=1), np.cumsum(here, axis=1)
    precisions = []
    for hit, all_seen, ends in zip(hits, seen, last, strict=True):
      if hit[-1]:
        hit, all_seen = hit[ends], np.maximum(all_seen[ends], 1.0)
        gain = np.diff(hit, prepend=0.0) / hit[-1]
        precisions.append((gain * hit / all_seen).sum())
    return float(np.mean(precisions))

  return measure
