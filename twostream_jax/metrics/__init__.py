"""Classification metrics of whole splits, in NumPy."""

import dataclasses

import numpy as np


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
  """Share of examples whose label is among the k largest logits.

  A tie is counted against the model: a class tied with the label ranks before
  it, so constant scores are not right by chance of their order.

  Args:
    logits: [b, n]; any scores that grow with belief.
    labels: int [b], 0-based.
    k: how many guesses; at least 1.

  Returns:
    0..1. With k >= n it is 1.
  """
  own = np.take_along_axis(logits, labels[:, None], axis=1)
  # "Not below" rather than "at least": NaN counts against the model as well.
  rank = (~(logits < own)).sum(axis=1) - 1
  return float((rank < min(k, logits.shape[1])).mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
  """Mean of -log softmax(logits)[label], in nats; logits [b, n]."""
  logits = logits.astype(np.float64)
  peak = logits.max(axis=1)
  log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
  own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  return float((log_sum - own).mean())


def confusion_matrix(
  logits: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts [n, n]: row is the true class, column the predicted one.

  Where the true class shares the highest score with others, the first of these
  is the predicted one, as `top_k_accuracy` has it.
  """
  counts = np.zeros((num_classes, num_classes), np.int64)
  is_best = logits == logits.max(axis=1, keepdims=True)
  others = is_best & (np.arange(logits.shape[1]) != labels[:, None])
  predicted = np.where(
    others.any(axis=1), others.argmax(axis=1), logits.argmax(axis=1)
  )
  np.add.at(counts, (labels, predicted), 1)
  return counts


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
  """Recall of each class, float64 [n]; NaN for a class without an example."""
  totals = confusion.sum(axis=1)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.diag(confusion) / totals


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision:
  """What `mean_average_precision` gives.

  Attributes:
    mean: the mean over the classes with a positive, 0..1.
    per_class: float64 [n], 0..1; NaN for a class without a positive.
    left_out: the classes without a positive, which the mean leaves out.
  """

  mean: float
  per_class: np.ndarray
  left_out: tuple[int, ...]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
  """Average precision of one class.

  The sum over thresholds of precision times the gain of recall, without
  interpolation. Examples of one score count together, so their order plays no
  part and constant scores get the share of positives.

  Args:
    scores: [b]; any that grow with belief, finite.
    positive: bool [b].

  Returns:
    0..1; NaN without a positive.
  """
  positive = positive.astype(bool)
  if not positive.any():
    return float("nan")
  order = np.argsort(-scores, kind="stable")
  ranked = scores[order]
  last_of_ties = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
  hits = np.cumsum(positive[order])[last_of_ties]
  gain = np.diff(hits, prepend=0) / hits[-1]
  return float((gain * hits / (last_of_ties + 1)).sum())


def mean_average_precision(
  logits: np.ndarray, labels: np.ndarray
) -> MeanAveragePrecision:
  """Average precision of each class, and its mean, for a multi-label set.

  Args:
    logits: [b, n]; any scores that grow with belief.
    labels: bool (or 0 and 1) [b, n].

  Raises:
    ValueError: a score is not finite, the shapes differ, or no class has a
      positive.
  """
  _check_finite(logits)
  if labels.shape != logits.shape:
    raise ValueError(
      f"multi-label labels of shape {labels.shape} do not fit scores of shape"
      f" {logits.shape}"
    )
  per_class = np.array(
    [average_precision(s, p) for s, p in zip(logits.T, labels.T, strict=True)]
  )
  left_out = np.isnan(per_class)
  if left_out.all():
    raise ValueError("no class has a positive video to rank")
  return MeanAveragePrecision(
    mean=float(per_class[~left_out].mean()),
    per_class=per_class,
    left_out=tuple(np.flatnonzero(left_out).tolist()),
  )


def precision_at_1(logits: np.ndarray, labels: np.ndarray) -> float:
  """Share of the videos with a label whose first class is one of theirs.

  Args:
    logits: [b, n]. A first place that classes share counts as wrong, unless
      the video shows all of them.
    labels: bool (or 0 and 1) [b, n]; videos without any class are left out.

  Returns:
    0..1; NaN if no video has a label.
  """
  labels = labels.astype(bool)
  labelled = labels.any(axis=1)
  if not labelled.any():
    return float("nan")
  first = logits == logits.max(axis=1, keepdims=True)
  right = ~(first & ~labels).any(axis=1) & first.any(axis=1)
  return float(right[labelled].mean())


def classification_metrics(
  logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """The metrics of `results.json`, all in 0..1.

  Args:
    logits: [b, n].
    labels: int [b], 0-based; or bool (or 0 and 1) [b, n] of a multi-label set.

  Returns:
    top1, top5 and mean_class_accuracy (the mean of per-class recall over the
    classes that have an example). Of a multi-label set instead map, the mean
    of average precision over the classes with a positive, and precision_at_1,
    over the videos with a label.

  Raises:
    ValueError: there is no example, a score is not finite, labels do not fit
      the scores, or a multi-label set has no positive at all.
  """
  if not len(labels):
    raise ValueError("no examples to compute metrics of")
  _check_finite(logits)
  if labels.ndim == 2:
    return {
      "map": mean_average_precision(logits, labels).mean,
      "precision_at_1": precision_at_1(logits, labels),
    }
  num_classes = logits.shape[1]
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f"labels run from {labels.min()} to {labels.max()}, but the scores have"
      f" {num_classes} classes (labels are 0-based)"
    )
  recall = per_class_accuracy(confusion_matrix(logits, labels, num_classes))
  return {
    "top1": top_k_accuracy(logits, labels, 1),
    "top5": top_k_accuracy(logits, labels, 5),
    "mean_class_accuracy": float(np.nanmean(recall)),
  }


def validation_metrics(
  logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """Loss and accuracy of a curve.

  Args:
    logits: [b, n].
    labels: int [b], or [b, n] of a multi-label set.

  Returns:
    "loss" in nats; "accuracy": top-1, or precision at 1 of a multi-label set,
    which also has "map".
  """
  if labels.ndim == 1:
    return {
      "loss": cross_entropy(logits, labels),
      "accuracy": top_k_accuracy(logits, labels, 1),
    }
  found = classification_metrics(logits, labels)
  return {
    "loss": binary_cross_entropy(logits, labels),
    "accuracy": found["precision_at_1"],
    "map": found["map"],
  }


def binary_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
  """Mean over examples of the sum over classes, in nats; all [b, n]."""
  logits = logits.astype(np.float64)
  losses = np.logaddexp(0.0, logits) - logits * labels
  return float(losses.sum(axis=1).mean())


def _check_finite(logits: np.ndarray) -> None:
  if not np.isfinite(logits).all():
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    raise ValueError(
      f"{len(bad)} rows of scores are not finite, first {bad[0]}"
    )
