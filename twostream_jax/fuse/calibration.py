"""Calibration: a scale that makes probabilities of fused scores hold true.

A regularised rule ranks well with scores that are far too close together, and
margins of an SVM are not log-probabilities at all. Their softmax, or sigmoids,
become probabilities by one scale (temperature scaling, Guo et al. 2017, arXiv
1706.04599) and, of a multi-label set, one offset (Platt 1999) for all classes:
no ranking of classes or of videos within a class changes.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

# Smallest scale, of scores of unit variance: a scale of 0 would tie them all.
_SMALLEST = 1e-3


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Calibrated logits are scale * scores + offset.

  Attributes:
    scale: above 0.
    offset: of all classes; 0 where a video has one label, which it would not
      change.
    losses: log loss of each video in nats, float64 [b]; see `fit`.
  """

  scale: float
  offset: float
  losses: np.ndarray


def fit(
  scores: np.ndarray, targets: np.ndarray, multi_label: bool
) -> Calibration:
  """Fits a calibration by the log loss of held-out scores.

  The targets are not quite 1 and 0, see `softened`: where all are right, a
  finite scale is best.

  Args:
    scores: float [b, n], of videos that they were not fitted on.
    targets: [b, n], 1 or 0; b is at least 1.
    multi_label: whether probabilities are sigmoids, not a softmax.

  Returns:
    That of the least mean log loss of a video.
  """
  unit = scores.std() or 1.0
  scores, targets = scores / unit, softened(scores, targets, multi_label)

  def losses(parameters):
    logits = parameters[0] * scores + parameters[1]
    if multi_label:
      log_sum = np.logaddexp(0.0, logits).sum(axis=1)
    else:
      log_sum = scipy.special.logsumexp(logits, axis=1)
    return log_sum - (targets * logits).sum(axis=1)

  def mean_loss(parameters):
    logits = parameters[0] * scores + parameters[1]
    if multi_label:
      predicted = scipy.special.expit(logits)
    else:
      predicted = scipy.special.softmax(logits, axis=1)
    away = (predicted - targets) / len(scores)
    gradient = np.array([(away * scores).sum(), away.sum()])
    return losses(parameters).mean(), gradient

  free = (None, None) if multi_label else (0.0, 0.0)
  found = scipy.optimize.minimize(
    mean_loss,
    np.array([1.0, 0.0]),
    jac=True,
    method="L-BFGS-B",
    bounds=[(_SMALLEST, None), free],
  )
  scale, offset = found.x.tolist()
  return Calibration(scale / float(unit), offset, losses(found.x))


def softened(
  scores: np.ndarray, targets: np.ndarray, multi_label: bool
) -> np.ndarray:
  """Targets by Laplace's rule of succession, float64 [b, n].

  Of b videos that all are right another one is with the probability
  (b + 1) / (b + 2) (Platt 1999). The rest goes to the highest of the other
  scores, which is what a mistake would be: spread over all classes it would
  limit the scale by classes without evidence. Of a multi-label set the
  rule is that of the positives, and apart from them of the negatives.
  """
  b = len(targets)
  if multi_label:
    positives = targets.sum()
    high = (positives + 1) / (positives + 2)
    low = 1 / (targets.size - positives + 2)
    return np.where(targets > 0, high, low)
  others = np.where(targets > 0, -np.inf, scores)
  mistake = np.eye(targets.shape[1])[others.argmax(axis=1)]
  return (targets * (b + 1) + mistake) / (b + 2)
