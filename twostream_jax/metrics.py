"""Classification metrics of whole splits, in NumPy."""

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
  """Counts [n, n]: row is the true class, column the predicted one."""
  counts = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
  return counts


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
  """Recall of each class, float64 [n]; NaN for a class without an example."""
  totals = confusion.sum(axis=1)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.diag(confusion) / totals


def classification_metrics(
  logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """The metrics of `results.json` for a single-label set, all in 0..1.

  Args:
    logits: [b, n].
    labels: int [b], 0-based.

  Returns:
    top1, top5 and mean_class_accuracy (the mean of per-class recall over the
    classes that have an example).

  Raises:
    ValueError: there is no example, a score is not finite, or a label is
      outside 0..n-1.
  """
  if not len(labels):
    raise ValueError("no examples to compute metrics of")
  if not np.isfinite(logits).all():
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    raise ValueError(
      f"{len(bad)} rows of scores are not finite, first {bad[0]}"
    )
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
