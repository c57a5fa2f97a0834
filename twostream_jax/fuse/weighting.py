"""Fusion by averages: of probabilities, of logits, with weights."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from twostream_jax import scores as scores_lib
from twostream_jax.fuse import calibration, fitting
from twostream_jax.scores import Scores, ScoresError

# Keeps a logarithm finite where all streams give zero.
FLOOR = 1e-30
# Of fitted weights: the most streams whose weights are all tried (1001
# combinations), and the most rounds over the weights of more.
EXHAUSTIVE = 5
ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class WeightedFusion:
  """Weights for the mean of class probabilities, and their origin.

  Attributes:
    streams: the names of the m streams.
    weights: one for each, at least 0, sum 1.
    scale: factor on the logits of the mean, see `calibration`.
    offset: added to them then.
    fitted_on: Description of the split, its size and the scores' protocols.
  """

  streams: tuple[str, ...]
  weights: tuple[float, ...]
  scale: float
  offset: float
  fitted_on: str


def weighted(named: Mapping[str, Scores], weights: Sequence[float]) -> Scores:
  """Weighted mean of class probabilities.

  Simonyan & Zisserman 2014, §2 average softmax scores (equal weights); Wang et
  al. 2015 weigh temporal 2 to spatial 1.

  Args:
    named: scores by stage.
    weights: one for each, not negative, not all zero; only ratios matter.

  Returns:
    Scores whose logits are log-probabilities (multi-label: log-odds), in the
    order of the first.

  Raises:
    ValueError: the weights do not fit.
    ScoresError: the scores are not of the same videos.
  """
  given = np.asarray(weights, float)
  if given.shape != (len(named),):
    raise ValueError(f"{len(given)} weights for the stages {list(named)}")
  if not np.isfinite(given).all() or given.min() < 0 or not given.max():
    raise ValueError(
      f"fusion weights must be at least 0 and not all 0: {given.tolist()}"
    )
  joined = scores_lib.join(dict(named))
  share = given / given.max()  # Their sum may be beyond all numbers.
  share /= share.sum()
  first = next(iter(joined.values()))
  fused = _mean([scores_lib.probabilities(s) for s in joined.values()], share)
  logits = np.log(np.maximum(fused, FLOOR))
  if first.multi_label:
    # Not 1 - fused, which rounds to 0 where all streams are sure.
    absent = [scores_lib.sigmoid(-s.logits) for s in joined.values()]
    logits -= np.log(np.maximum(_mean(absent, share), FLOOR))
  parts = ", ".join(
    f"{name} {w:g}" for name, w in zip(joined, given, strict=True)
  )
  return dataclasses.replace(
    first,
    logits=logits.astype(np.float32),
    protocol=(
      f"mean of class probabilities ({parts}); {scores_lib.protocols(joined)}"
    ),
    **scores_lib.digests(joined),
  )


def _mean(
  values: Sequence[np.ndarray], share: Sequence[float] | np.ndarray
) -> np.ndarray:
  return np.asarray(sum(w * v for w, v in zip(share, values, strict=True)))


def average(named: Mapping[str, Scores]) -> Scores:
  """`weighted` with equal weights."""
  return weighted(named, [1.0] * len(named))


def average_logits(named: Mapping[str, Scores]) -> Scores:
  """Mean of logits: of probabilities the geometric mean, up to a factor.

  A stream that is sure that a class is absent can veto it, which it can't in
  `average`.

  Args:
    named: scores by stage.

  Returns:
    Scores in the order of the first.

  Raises:
    ScoresError: the scores are not of the same videos.
  """
  joined = scores_lib.join(dict(named))
  first = next(iter(joined.values()))
  logits = np.mean([s.logits for s in joined.values()], axis=0, dtype=float)
  return dataclasses.replace(
    first,
    logits=logits.astype(np.float32),
    protocol=(
      f"mean of logits ({', '.join(joined)}); {scores_lib.protocols(joined)}"
    ),
    **scores_lib.digests(joined),
  )


def fit_weights(
  named: Mapping[str, Scores], *, steps: int = 10
) -> tuple[float, ...]:
  """Weights with the best top-1 on these scores.

  For a multi-label set it is the best mean average precision. The scores must
  not be those of the test split. Among equals the one nearest to equal weights
  wins, so that few videos do not decide by accident.

  Up to EXHAUSTIVE streams every combination of weights is tried. Their number
  grows as a power of that of the streams, so for more it is coordinate ascent
  from equal weights: one weight after the other takes its best value, until
  none changes. It may end in a local optimum, but never below equal weights.

  Args:
    named: scores by stage, of a validation split.
    steps: how finely to search: weights are multiples of 1 / steps that sum to
      1; in coordinate ascent, multiples of 2 / steps of an equal share, up to
      twice that share, scaled to sum to 1.

  Returns:
    One weight a stage.
  """
  joined = scores_lib.join(dict(named))
  labels = next(iter(joined.values())).labels
  probabilities = [scores_lib.probabilities(s) for s in joined.values()]
  if len(joined) > EXHAUSTIVE:
    return _ascend(probabilities, labels, steps)

  def quality(weights):
    fused = _mean(probabilities, weights)
    return fitting.quality(fused, labels), -_inequality(weights)

  grid = [
    tuple(part / steps for part in parts)
    for parts in _compositions(steps, len(joined))
  ]
  return max(grid, key=quality)


def _compositions(total: int, m: int) -> Iterator[tuple[int, ...]]:
  """The ways to write `total` as a sum of m parts from 0, in order."""
  if m == 1:
    yield (total,)
    return
  for first in range(total + 1):
    for rest in _compositions(total - first, m - 1):
      yield (first, *rest)


def _inequality(weights: Sequence[float]) -> float:
  """The squared distance of weights of sum 1 from equal weights."""
  return sum((w - 1 / len(weights)) ** 2 for w in weights)


def _ascend(
  probabilities: Sequence[np.ndarray], labels: np.ndarray, steps: int
) -> tuple[float, ...]:
  """Weights by coordinate ascent; see `fit_weights`."""
  m = len(probabilities)

  def measure(fused, parts):
    share = [part / sum(parts) for part in parts]
    # The scale of the scores plays no part in their quality.
    return fitting.quality(fused, labels), -_inequality(share)

  parts = [max(steps // 2, 1)] * m
  best = measure(_mean(probabilities, parts), parts)
  for _ in range(ROUNDS):
    before = list(parts)
    for i in range(m):
      others = _mean(probabilities, [*parts[:i], 0, *parts[i + 1 :]])
      for part in range(steps + 1):
        tried = [*parts[:i], part, *parts[i + 1 :]]
        if part == parts[i] or not any(tried):
          continue
        found = measure(others + part * probabilities[i], tried)
        if found > best:
          best, parts = found, tried
    if parts == before:
      break
  return tuple(part / sum(parts) for part in parts)


def fit_weighted(named: Mapping[str, Scores], *, split: str) -> WeightedFusion:
  """`fit_weights`, calibrated, with a note of what they were fitted on.

  A mean of probabilities is less sure than its streams, and streams are too
  sure of what they have not seen. The calibration is fitted on the scores that
  the weights are: a few weights on a coarse grid do not adapt to single videos.

  Args:
    named: scores by stage, of a split that is not the test split.
    split: its name.

  Raises:
    ScoresError: see `fitting.fitting_set`.
  """
  data = fitting.fitting_set(named, split)
  weights = fit_weights(named)
  fused = weighted(named, weights)
  order = np.argsort(np.array(fused.ids), kind="stable")
  logits = fused.logits[order].astype(np.float64)
  found = calibration.fit(logits, data.targets, data.multi_label)
  return WeightedFusion(
    data.streams, weights, found.scale, found.offset, data.fitted_on
  )


def apply_weighted(
  fitted: WeightedFusion, streams: Mapping[str, Scores]
) -> Scores:
  """`weighted` with fitted weights; see `twostream_jax.fuse.apply`."""
  fused = weighted(in_order(fitted.streams, streams), fitted.weights)
  logits = fitted.scale * fused.logits.astype(np.float64) + fitted.offset
  return dataclasses.replace(
    fused,
    logits=logits.astype(np.float32),
    protocol=f"{fused.protocol}; weights fitted on {fitted.fitted_on}",
  )


def in_order(
  names: Sequence[str], streams: Mapping[str, Scores]
) -> dict[str, Scores]:
  """The streams in the order of fitting.

  Raises:
    ScoresError: they are not the streams of fitting.
  """
  if set(names) != set(streams):
    raise ScoresError(
      f"the fusion was fitted on the streams {sorted(names)}, but is given"
      f" {sorted(streams)}"
    )
  return {name: streams[name] for name in names}
