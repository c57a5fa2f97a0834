"""Validation of the columns of a score file, and their conversion to logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from twostream_jax.scores import Scores, ScoresError

# Probabilities of others are often rounded to 0 or 1.
_SMALLEST = 1e-12
# By which a probability may miss 0..1: that of float32 sums.
_ROUNDING = 1e-5
# By which probabilities of a video may miss the sum of 1.
_TOLERANCE = 1e-3


def create_scores(
  ids: Sequence[Any],
  labels: Any,
  values: Any,
  *,
  kind: str = "",
  class_names: Sequence[str] = (),
  protocol: str = "not stated",
) -> Scores:
  """Creates scores from columns that another program wrote.

  Args:
    ids: of b videos; texts, bytes in UTF-8 or whole numbers.
    labels: whole numbers [b], as integers or floats; or 0 and 1 [b, n] of a
      multi-label set.
    values: numbers [b, n].
    kind: "logits", "probabilities", or "" where the file does not say: values
      within 0..1 are probabilities then, others are logits.
    class_names: of the n columns; () where not known.
    protocol: description of the views that were scored.

  Raises:
    ScoresError: the columns can't be scores.
  """
  ids = tuple(_text(video_id) for video_id in ids)
  labels, values = np.asarray(labels), np.asarray(values)
  fits = labels.shape in ((len(ids),), values.shape) and values.ndim == 2
  if not fits or len(values) != len(ids):
    raise ScoresError(
      f"{len(ids)} ids, labels of shape {labels.shape} and scores of shape"
      f" {values.shape} do not belong together"
    )
  if not values.size:
    raise ScoresError(
      f"there is nothing to fuse: {len(ids)} videos, {values.shape[1]} classes"
    )
  if values.dtype.kind not in "iuf":
    raise ScoresError(
      f"scores must be numbers, found {str(values.flat[0])[:40]!r}"
    )
  multi_label = labels.ndim == 2
  if len(set(class_names)) != len(class_names):
    raise ScoresError("a class name occurs twice")
  labels = _whole(labels, ids)
  if not kind:
    kind = "probabilities" if _are_probabilities(values) else "logits"
    if kind == "logits" and _add_up_to_100(values):
      raise ScoresError(
        "scores that add up to 100 are percentages: divide them by 100"
      )
  if kind == "probabilities":
    values = _logits(values.astype(np.float64), multi_label, ids)
  with np.errstate(over="ignore"):  # Infinity, which is refused.
    logits = values.astype(np.float32)
  found = Scores(ids, labels, logits, protocol, tuple(class_names))
  kept = labels.astype(bool if multi_label else np.int32)
  return Scores(ids, kept, found.logits, protocol, found.class_names)


def _are_probabilities(values: np.ndarray) -> bool:
  """Whether values are in 0..1, but for rounding."""
  return bool(((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all())


def _add_up_to_100(values: np.ndarray) -> bool:
  sums = values.sum(axis=1, dtype=np.float64)
  return bool((values >= 0).all() and np.allclose(sums, 100, atol=0.5))


def _text(video_id: Any) -> str:
  if isinstance(video_id, bytes):
    try:
      return video_id.decode()
    except UnicodeDecodeError as error:
      raise ScoresError(f"the id {video_id!r} is not UTF-8") from error
  if isinstance(video_id, bool) or not isinstance(video_id, int | str):
    raise ScoresError(
      f"ids must be texts or whole numbers, found {str(video_id)[:40]!r}"
    )
  return str(video_id)


def _whole(labels: np.ndarray, ids: Sequence[str]) -> np.ndarray:
  """Refuses labels that are not whole numbers."""
  if labels.dtype.kind not in "biuf":
    raise ScoresError(
      "labels must be class indices from 0, found"
      f" {str(labels.flat[0])[:40]!r} for {ids[0]!r}"
    )
  # NaN is not a whole number either.
  with np.errstate(invalid="ignore"):
    whole = labels % 1 == 0 if labels.dtype.kind == "f" else labels == labels
  broken = ~whole
  if broken.any():
    row = int(np.argwhere(broken)[0][0])
    raise ScoresError(
      f"labels must be whole numbers, found {labels[broken][0]} for"
      f" {ids[row]!r}"
    )
  return labels


def _logits(
  probabilities: np.ndarray, multi_label: bool, ids: Sequence[str]
) -> np.ndarray:
  """Converts probabilities to logits, float64 [b, n]."""
  outside = ~((probabilities >= -_ROUNDING) & (probabilities <= 1 + _ROUNDING))
  if outside.any():
    row = int(np.argwhere(outside)[0][0])
    raise ScoresError(
      f"probabilities must be in 0..1, found {probabilities[outside][0]} for"
      f" {ids[row]!r}; scores of another kind are logits"
    )
  probabilities = np.clip(probabilities, 0, 1)
  if multi_label:
    return scipy.special.logit(np.clip(probabilities, _SMALLEST, 1 - _SMALLEST))
  off = np.abs(probabilities.sum(axis=1) - 1)
  if off.max() > _TOLERANCE:
    raise ScoresError(
      f"probabilities of {ids[off.argmax()]!r} add up to 1 but for"
      f" {off.max():.3g}: divide them by their sum, or give logits"
    )
  return np.log(np.maximum(probabilities, _SMALLEST))
