"""Fusion linear in the streams' stacked scores, and the linear SVM."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twostream_jax import scores as scores_lib
from twostream_jax.fuse import fitting
from twostream_jax.fuse.weighting import in_order
from twostream_jax.scores import Scores, ScoresError

# scikit-learn's C, from the most to the least regularised.
SVM_COSTS = (0.01, 0.1, 1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class LinearFusion:
  """Fused logits as a linear function of stacked class probabilities.

  Attributes:
    rule: Description of what was fitted and with which parameters.
    streams: the names of the m streams, in the order of the blocks of rows.
    multi_label: whether probabilities are sigmoids, not softmaxes.
    l2_normalised: whether each stream's probabilities are scaled to unit
      Euclidean length first.
    weights: float64 [m n, n]; column c gives the score of class c.
    bias: float64 [n].
    scale: factor on scores that makes them logits, see `calibration`.
    offset: of the logits, added to scores times scale.
    fitted_on: Description of the split, its size and the scores' protocols.
  """

  rule: str
  streams: tuple[str, ...]
  multi_label: bool
  l2_normalised: bool
  weights: np.ndarray
  bias: np.ndarray
  scale: float
  offset: float
  fitted_on: str


def stack(probabilities: np.ndarray, l2_normalised: bool) -> np.ndarray:
  """Features [b, m n] of probabilities [m, b, n], stream after stream."""
  if l2_normalised:
    norm = np.linalg.norm(probabilities, axis=2, keepdims=True)
    probabilities = probabilities / norm
  return np.concatenate(list(probabilities), axis=1)


def apply_linear(fitted: LinearFusion, streams: Mapping[str, Scores]) -> Scores:
  """Fused scores; see `twostream_jax.fuse.apply`."""
  joined = scores_lib.join(in_order(fitted.streams, streams))
  first = next(iter(joined.values()))
  num_classes = len(fitted.bias)
  if first.logits.shape[1] != num_classes:
    raise ScoresError(
      f"the fusion was fitted on {num_classes} classes, but the scores have"
      f" {first.logits.shape[1]}"
    )
  if first.multi_label != fitted.multi_label:
    raise ScoresError(
      "of the scores fitted on and those given, only one is multi-label"
    )
  probabilities = np.stack(
    [scores_lib.probabilities(s) for s in joined.values()]
  )
  features = stack(probabilities, fitted.l2_normalised)
  found = features @ fitted.weights + fitted.bias
  return dataclasses.replace(
    first,
    logits=(fitted.scale * found + fitted.offset).astype(np.float32),
    protocol=(
      f"{fitted.rule}, fitted on {fitted.fitted_on};"
      f" {scores_lib.protocols(joined)}"
    ),
    **scores_lib.digests(joined),
  )


def fit_svm(
  named: Mapping[str, Scores],
  *,
  split: str,
  costs: Sequence[float] = SVM_COSTS,
) -> LinearFusion:
  """One-vs-rest linear SVMs on stacked L2-normalised class probabilities.

  Simonyan & Zisserman 2014, §5 ("multi-class linear SVM on stacked
  L2-normalised softmax scores"; which multi-class form and cost they leave
  open). Squared hinge loss, as scikit-learn's LinearSVC. Margins times a scale
  are the fused logits, see `calibration`. A class absent from the fitting
  scores has the margin -1 everywhere, which is the solution of its problem.
  Sigmoids of a multi-label set are stacked as they are: scaled to one length
  they would no longer say how many classes a video shows.

  Args:
    named: scores by stage, of a split that is not the test split.
    split: its name.
    costs: scikit-learn's C, from the most to the least regularised; of several
      the best by cross-validation.

  Raises:
    ScoresError: the scores do not fit together or are too few.
  """
  data = fitting.fitting_set(named, split)
  l2_normalised = not data.multi_label
  features = stack(data.probabilities, l2_normalised)

  def predict(cost, seen, held_out):
    weights, bias = one_vs_rest(features[seen], data.targets[seen], cost)
    return features[held_out] @ weights + bias

  chosen = fitting.choose(costs, predict, data)
  cost = chosen.candidate
  weights, bias = one_vs_rest(features, data.targets, cost)
  return LinearFusion(
    rule=f"linear SVM (C {cost:g} {chosen.words})",
    streams=data.streams,
    multi_label=data.multi_label,
    l2_normalised=l2_normalised,
    weights=weights,
    bias=bias,
    scale=chosen.calibration.scale,
    offset=chosen.calibration.offset,
    fitted_on=data.fitted_on,
  )


def one_vs_rest(
  features: np.ndarray, targets: np.ndarray, cost: float
) -> tuple[np.ndarray, np.ndarray]:
  """A linear SVM for each class against the rest.

  Args:
    features: [b, f].
    targets: [b, n], 1 or 0.
    cost: scikit-learn's C.

  Returns:
    Weights float64 [f, n] and bias [n].
  """
  from sklearn.svm import LinearSVC  # A second, which only fitting needs.

  # In the primal the solver draws no random numbers.
  # scikit-learn has no types; what is inferred of its defaults is too narrow.
  model: Any = LinearSVC(C=cost, dual=False)  # pyright: ignore[reportArgumentType]
  weights = np.zeros((features.shape[1], targets.shape[1]))
  bias = np.zeros(targets.shape[1])
  for c, target in enumerate(targets.T):
    if target.min() == target.max():
      bias[c] = 1.0 if target[0] else -1.0
      continue
    model.fit(features, target)
    weights[:, c] = model.coef_[0]
    bias[c] = model.intercept_[0]
  return weights, bias
