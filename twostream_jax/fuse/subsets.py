"""Which streams are worth fusing: every subset of them, averaged."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

from twostream_jax import metrics
from twostream_jax.fuse.weighting import average
from twostream_jax.scores import Scores

# All subsets of 8 streams.
MOST_SUBSETS = 255


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some streams and what their average reaches.

  Attributes:
    streams: their names.
    metrics: `metrics.classification_metrics` of `average`, all in 0..1.
  """

  streams: tuple[str, ...]
  metrics: dict[str, float]


def subset_table(named: Mapping[str, Scores]) -> list[Subset]:
  """Every non-empty subset of streams, best first.

  By top-1 (multi-label: mean average precision); of equals the smaller subset
  first. It describes; the first row of a test split's table is chosen on that
  split, and so no fair result for it. There are 2^m - 1 rows for m streams up
  to MOST_SUBSETS; of more streams those of the smallest sizes whose number
  stays within it, and all streams together.

  Raises:
    ScoresError: the scores are not of the same videos.
    ValueError: there are no metrics of the scores.
  """
  rows = []
  for size in _sizes(len(named)):
    for streams in itertools.combinations(named, size):
      fused = average({name: named[name] for name in streams})
      values = metrics.classification_metrics(fused.logits, fused.labels)
      rows.append(Subset(streams, values))
  multi_label = any(scores.multi_label for scores in named.values())
  first = "map" if multi_label else "top1"
  return sorted(rows, key=lambda row: -row.metrics[first])


def _sizes(m: int) -> list[int]:
  """Sizes of the subsets of m streams that the table has."""
  sizes, count = [], 0
  for size in range(1, m):
    count += math.comb(m, size)
    if count >= MOST_SUBSETS:
      break
    sizes.append(size)
  return [*sizes, m]
