"""Score fusion: several streams' scores to one, joined by video id."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from twostream_jax import metrics
from twostream_jax import scores as scores_lib
from twostream_jax.scores import Scores


def weighted(named: Mapping[str, Scores], weights: Sequence[float]) -> Scores:
  """Weighted mean of class probabilities.

  Simonyan & Zisserman 2014, §2 average softmax scores (equal weights); Wang et
  al. 2015 weigh temporal 2 to spatial 1.

  Args:
    named: scores by stage.
    weights: one for each, not negative, not all zero; only ratios matter.

  Returns:
    Scores whose logits are log-probabilities, in the order of the first.

  Raises:
    ValueError: the weights do not fit.
    ScoresError: the scores are not of the same videos.
  """
  weights = np.asarray(weights, float)
  if weights.shape != (len(named),):
    raise ValueError(f"{len(weights)} weights for the stages {list(named)}")
  if not np.isfinite(weights).all() or weights.min() < 0 or not weights.sum():
    raise ValueError(
      f"fusion weights must be at least 0 and not all 0: {weights.tolist()}"
    )
  joined = scores_lib.join(dict(named))
  share = weights / weights.sum()
  fused = sum(
    w * scores_lib.softmax(s.logits)
    for w, s in zip(share, joined.values(), strict=True)
  )
  first = next(iter(joined.values()))
  parts = ", ".join(
    f"{name} {w:g}" for name, w in zip(joined, weights, strict=True)
  )
  return Scores(
    ids=first.ids,
    labels=first.labels,
    # The floor keeps the logarithm finite where all streams give zero.
    logits=np.log(np.maximum(fused, 1e-30)).astype(np.float32),
    protocol=f"mean of class probabilities ({parts}); {first.protocol}",
  )


def average(named: Mapping[str, Scores]) -> Scores:
  """`weighted` with equal weights."""
  return weighted(named, [1.0] * len(named))


def fit_weights(
  named: Mapping[str, Scores], *, steps: int = 10
) -> tuple[float, ...]:
  """Weights with the best top-1 on these scores, by exhaustive search.

  The scores must not be those of the test split. Among equals the one nearest
  to equal weights wins, so that few videos do not decide by accident.

  Args:
    named: scores by stage, of a validation split.
    steps: the search grid: weights are multiples of 1 / steps that sum to 1.

  Returns:
    One weight a stage.
  """
  joined = scores_lib.join(dict(named))
  labels = next(iter(joined.values())).labels
  probabilities = [scores_lib.softmax(s.logits) for s in joined.values()]

  def quality(weights):
    fused = sum(w * p for w, p in zip(weights, probabilities, strict=True))
    unequal = sum((w - 1 / len(weights)) ** 2 for w in weights)
    return metrics.top_k_accuracy(fused, labels, 1), -unequal

  grid = [
    tuple(part / steps for part in parts)
    for parts in itertools.product(range(steps + 1), repeat=len(joined))
    if sum(parts) == steps
  ]
  return max(grid, key=quality)
