"""Adaptive multi-class fusion (Wu et al. 2015) and logistic regression."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

from twostream_jax.fuse import fitting, proximal
from twostream_jax.fuse.linear import LinearFusion, stack
from twostream_jax.scores import Scores

# (lambda1, lambda2), from the most to the least regularised.
LAMBDAS = tuple(
  itertools.product((1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5), (1e-3, 1e-4, 0.0))
)
LOGISTIC_LAMBDAS = (0.1, 0.01, 1e-3, 1e-4, 1e-5)


@dataclasses.dataclass(frozen=True)
class Problem:
  """The objective of one fit.

  mean_b loss(b) + lambda1 ||W - V||_F^2 + lambda2 ||W||_1, where the loss of a
  video is the cross-entropy of softmax(W^T s), or of a multi-label set the
  binary cross-entropies of sigmoid(W^T s), summed over classes.

  Attributes:
    features: s, float64 [b, f].
    targets: float64 [b, n], 1 or 0.
    prior: V, float64 [f, n].
    lambda1: at least 0.
    lambda2: at least 0, float64 [f, 1]: it may differ between rows.
    multi_label: which loss.
  """

  features: np.ndarray
  targets: np.ndarray
  prior: np.ndarray
  lambda1: float
  lambda2: np.ndarray
  multi_label: bool

  def objective(self, weights: np.ndarray) -> float:
    """Mean negative log-likelihood in nats, plus both penalties."""
    logits = self.features @ weights
    if self.multi_label:
      log_sum = np.logaddexp(0.0, logits).sum()
    else:
      largest, exponents = _exponents(logits)
      log_sum = (largest + np.log(exponents.sum(axis=1, keepdims=True))).sum()
    loss = (log_sum - (self.targets * logits).sum()) / len(logits)
    away = self.lambda1 * ((weights - self.prior) ** 2).sum()
    return float(loss + away + (self.lambda2 * np.abs(weights)).sum())

  def gradient(self, weights: np.ndarray) -> np.ndarray:
    """Of all but the l1 term."""
    logits = self.features @ weights
    if self.multi_label:
      predicted = scipy.special.expit(logits)
    else:
      _, exponents = _exponents(logits)
      predicted = exponents / exponents.sum(axis=1, keepdims=True)
    loss = self.features.T @ (predicted - self.targets) / len(logits)
    return loss + 2 * self.lambda1 * (weights - self.prior)

  def step(self) -> float:
    """1 / a Lipschitz constant of the gradient."""
    # Böhning 1992: the Hessian of log-sum-exp is at most I / 2.
    curvature = 0.25 if self.multi_label else 0.5
    largest = np.linalg.eigvalsh(self.features.T @ self.features)[-1]
    return 1 / (curvature * largest / len(self.features) + 2 * self.lambda1)

  def minimise(self) -> np.ndarray:
    """W, float64 [f, n]."""
    weights, _ = proximal.minimise(
      self.objective, self.gradient, self.lambda2, self.prior, self.step()
    )
    return weights


def _exponents(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The largest of each row, [b, 1], and exp(logits - largest), [b, n].

  Those of SciPy's logsumexp and softmax, whose checks take several times as
  long as the numbers of one step.
  """
  largest = logits.max(axis=1, keepdims=True)
  return largest, np.exp(logits - largest)


def fit_adaptive(
  named: Mapping[str, Scores],
  *,
  split: str,
  lambdas: Sequence[tuple[float, float]] = LAMBDAS,
) -> LinearFusion:
  """Weights for every pair of a stream's class and a fused class.

  Wu et al. 2015 (arXiv 1509.06086): W [m n, n] on stacked class
  probabilities s, drawn to the class relations V that the streams' confusions
  show (see `class_relations`), sparse by its l1 norm; by proximal gradient
  descent. Known from second hand, so the orientation of V and the data that W
  and V are fitted on are this project's choice. The loss here is a mean over
  videos, so that lambdas do not depend on their number: the paper's are b
  times ours. Fit on scores of held-out videos: on those of training videos
  the streams confuse nothing.

  A class absent from the fitting scores starts from each stream's own score
  for it, from where data can only lower it. A multi-label set, which the paper
  treats as single-label, gets a bias as well, drawn to the log-odds of the
  class and free of the l1 norm: sigmoids have no softmax to cancel an offset.

  Args:
    named: scores by stage, of a split that is not the test split.
    split: its name.
    lambdas: pairs (lambda1, lambda2), from the most to the least regularised;
      of several the best by cross-validation.

  Raises:
    ValueError: a lambda is negative or not finite.
    ScoresError: the scores do not fit together or are too few.
    RuntimeError: a fit did not converge.
  """
  return _fit("adaptive multi-class fusion", named, split, lambdas, True)


def fit_logistic(
  named: Mapping[str, Scores],
  *,
  split: str,
  lambdas: Sequence[float] = LOGISTIC_LAMBDAS,
) -> LinearFusion:
  """Logistic regression on stacked class probabilities.

  The problem of `fit_adaptive` without class relations and l1 norm: V = 0 and
  lambda2 = 0. Softmax probabilities sum to 1, so an intercept would add
  nothing. scikit-learn's C is 1 / (2 b lambda).

  Args:
    named: scores by stage, of a split that is not the test split.
    split: its name.
    lambdas: weights of the squared norm, from the most to the least
      regularised; of several the best by cross-validation.

  Raises:
    ValueError: a lambda is negative or not finite.
    ScoresError: the scores do not fit together or are too few.
    RuntimeError: a fit did not converge.
  """
  pairs = [(value, 0.0) for value in lambdas]
  return _fit("logistic regression", named, split, pairs, False)


def _fit(
  rule: str,
  named: Mapping[str, Scores],
  split: str,
  pairs: Sequence[tuple[float, float]],
  relations: bool,
) -> LinearFusion:
  if not np.isfinite(pairs).all() or np.min(pairs) < 0:
    raise ValueError(f"lambdas must be finite and at least 0: {list(pairs)}")
  data = fitting.fitting_set(named, split)

  def predict(pair, seen, held_out):
    problem = create_problem(data, seen, pair, relations)
    features = create_features(data.probabilities[:, held_out], data)
    return features @ problem.minimise()

  chosen = fitting.choose(pairs, predict, data)
  pair = chosen.candidate
  everything = np.ones(len(data.targets), bool)
  weights = create_problem(data, everything, pair, relations).minimise()
  rows = len(data.streams) * data.targets.shape[1]
  return LinearFusion(
    rule=f"{rule} (lambda1 {pair[0]:g}, lambda2 {pair[1]:g} {chosen.words})",
    streams=data.streams,
    multi_label=data.multi_label,
    l2_normalised=False,
    weights=weights[:rows],
    bias=weights[rows] if data.multi_label else np.zeros(weights.shape[1]),
    scale=chosen.calibration.scale,
    offset=chosen.calibration.offset,
    fitted_on=data.fitted_on,
  )


def create_features(
  probabilities: np.ndarray, data: fitting.FittingSet
) -> np.ndarray:
  """Stacked probabilities, of a multi-label set with a last column of ones."""
  features = stack(probabilities, l2_normalised=False)
  if data.multi_label:
    return np.append(features, np.ones((len(features), 1)), axis=1)
  return features


def create_problem(
  data: fitting.FittingSet,
  seen: np.ndarray,
  lambdas: tuple[float, float],
  relations: bool,
) -> Problem:
  """The objective on the videos of the mask `seen`, bool [b].

  Without `relations` the prior is 0 but for a bias.
  """
  probabilities, targets = data.probabilities[:, seen], data.targets[seen]
  prior = np.concatenate([class_relations(p, targets) for p in probabilities])
  if not relations:
    prior = np.zeros_like(prior)
  lambda2 = np.full((len(prior), 1), lambdas[1])
  if data.multi_label:
    positives = targets.sum(axis=0)
    # Half a video more on either side keeps the log-odds finite.
    odds = (positives + 0.5) / (len(targets) - positives + 0.5)
    prior = np.append(prior, np.log(odds)[None], axis=0)
    lambda2 = np.append(lambda2, [[0.0]], axis=0)
  return Problem(
    features=create_features(probabilities, data),
    targets=targets,
    prior=prior,
    lambda1=lambdas[0],
    lambda2=lambda2,
    multi_label=data.multi_label,
  )


def class_relations(
  probabilities: np.ndarray, targets: np.ndarray
) -> np.ndarray:
  """One stream's block of V: its row-normalised confusions, transposed.

  Args:
    probabilities: [b, n].
    targets: [b, n], 1 or 0; a video with several classes counts for each.

  Returns:
    float64 [n, n]: column c holds the shares of what the stream predicts
    (its most probable class) for videos of class c, which are the weights
    that its scores start with in the fused score of c. A class without a
    video has a 1 on the diagonal, as if it was never confused.
  """
  n = targets.shape[1]
  confusion = targets.T @ np.eye(n)[probabilities.argmax(axis=1)]
  counts = targets.sum(axis=0)
  share = confusion / np.maximum(counts, 1)[:, None]
  return np.where(counts[:, None] > 0, share, np.eye(n)).T
