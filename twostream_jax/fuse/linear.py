"""Fusion by a linear classifier on the streams' stacked scores."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from twostream_jax import scores as scores_lib
from twostream_jax.fuse import fitting
from twostream_jax.fuse.average import in_order
from twostream_jax.scores import Scores, ScoresError

# scikit-learn's C, from the most to the least regularised.
SVM_COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)
LOGISTIC_COSTS = (0.1, 1.0, 10.0, 100.0, 1000.0)

# Log-odds of a class that the fitting scores never show: certainly absent,
# yet finite.
NEVER = -1e3


@dataclasses.dataclass(frozen=True)
class LinearFusion:
  """Fused logits as a linear function of stacked class probabilities.

  Attributes:
    rule: in words, what was fitted and with which parameters.
    streams: the names of the m streams, in the order of the blocks of rows.
    multi_label: whether probabilities are sigmoids, not softmaxes.
    l2_normalised: whether each stream's probabilities are scaled to unit
      Euclidean length first.
    weights: float64 [m n, n]; column c gives the logit of class c.
    bias: float64 [n].
    fitted_on: in words, the split, its size and the scores' protocol.
  """

  rule: str
  streams: tuple[str, ...]
  multi_label: bool
  l2_normalised: bool
  weights: np.ndarray
  bias: np.ndarray
  fitted_on: str


def stack(probabilities: np.ndarray, l2_normalised: bool) -> np.ndarray:
  """Features [b, m n] of probabilities [m, b, n], stream after stream."""
  if l2_normalised:
    norm = np.linalg.norm(probabilities, axis=2, keepdims=True)
    # Sigmoids can all be 0.
    probabilities = probabilities / np.maximum(norm, 1e-12)
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
  return dataclasses.replace(
    first,
    logits=(features @ fitted.weights + fitted.bias).astype(np.float32),
    protocol=f"{fitted.rule}, fitted on {fitted.fitted_on}; {first.protocol}",
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
  open). Squared hinge loss, as scikit-learn's LinearSVC. The fused logits are
  margins: they rank, but are not calibrated. A class absent from the fitting
  scores has the margin -1 everywhere, which is the solution of its problem.

  Args:
    named: scores by stage, of a split that is not the test split.
    split: its name.
    costs: scikit-learn's C, from the most to the least regularised; of several
      the best by cross-validation.

  Raises:
    ScoresError: the scores do not fit together or are too few.
  """
  return _fit("linear SVM", _svm, named, split, costs, l2_normalised=True)


def fit_logistic(
  named: Mapping[str, Scores],
  *,
  split: str,
  costs: Sequence[float] = LOGISTIC_COSTS,
) -> LinearFusion:
  """Logistic regression on stacked class probabilities.

  Multinomial; of a multi-label set one binary regression a class. A class
  absent from the fitting scores gets the logit `NEVER`.

  Args:
    named: scores by stage, of a split that is not the test split.
    split: its name.
    costs: scikit-learn's C, from the most to the least regularised; of several
      the best by cross-validation.

  Raises:
    ScoresError: the scores do not fit together or are too few.
  """
  return _fit(
    "logistic regression", _logistic, named, split, costs, l2_normalised=False
  )


Solve = Callable[
  [np.ndarray, np.ndarray, bool, float], tuple[np.ndarray, np.ndarray]
]


def _fit(
  rule: str,
  solve: Solve,
  named: Mapping[str, Scores],
  split: str,
  costs: Sequence[float],
  *,
  l2_normalised: bool,
) -> LinearFusion:
  data = fitting.fitting_set(named, split)
  features = stack(data.probabilities, l2_normalised)

  def predict(cost, seen, held_out):
    weights, bias = solve(
      features[seen], data.targets[seen], data.multi_label, cost
    )
    return features[held_out] @ weights + bias

  cost, chosen = fitting.choose(costs, predict, data)
  weights, bias = solve(features, data.targets, data.multi_label, cost)
  return LinearFusion(
    rule=f"{rule} (C {cost:g} {chosen})",
    streams=data.streams,
    multi_label=data.multi_label,
    l2_normalised=l2_normalised,
    weights=weights,
    bias=bias,
    fitted_on=data.fitted_on,
  )


def _svm(features, targets, multi_label, cost):
  """One-vs-rest SVMs: weights [f, n] and bias [n]."""
  del multi_label  # One against the rest either way.
  # In the primal the solver draws no random numbers.
  return _each_class(LinearSVC(C=cost, dual=False), features, targets, 1.0)


def _logistic(features, targets, multi_label, cost):
  """Logistic regression: weights [f, n] and bias [n]."""
  model = LogisticRegression(C=cost, max_iter=10_000, tol=1e-6)
  if multi_label:
    return _each_class(model, features, targets, -NEVER)
  present = np.flatnonzero(targets.any(axis=0))
  weights = np.zeros((features.shape[1], targets.shape[1]))
  bias = np.full(targets.shape[1], NEVER)
  if len(present) == 1:
    bias[present] = 0.0
    return weights, bias
  model.fit(features, targets.argmax(axis=1))
  if len(present) == 2:
    # scikit-learn keeps the log-odds of the second class only.
    half = model.coef_[0] / 2, model.intercept_[0] / 2
    weights[:, present] = np.stack([-half[0], half[0]], axis=1)
    bias[present] = -half[1], half[1]
  else:
    weights[:, present] = model.coef_.T
    bias[present] = model.intercept_
  return weights, bias


def _each_class(model, features, targets, constant):
  """A binary `model` for each class; `constant`, signed, where one side lacks.

  Returns:
    Weights [f, n] and bias [n].
  """
  weights = np.zeros((features.shape[1], targets.shape[1]))
  bias = np.zeros(targets.shape[1])
  for c, target in enumerate(targets.T):
    if target.min() == target.max():
      bias[c] = constant if target[0] else -constant
      continue
    model.fit(features, target)
    weights[:, c] = model.coef_[0]
    bias[c] = model.intercept_[0]
  return weights, bias
