"""Score fusion: several streams' scores to one, joined by video id.

`average`, `average_logits` and `weighted` need no fitting. A rule of `FITS`
is fitted once, on scores of a split that is not the test split, and then
applied to those of any other:

  fitted = fuse.FITS["adaptive"](validation_scores, split="validation")
  fused = fuse.apply(fitted, test_scores)

Fitting sees nothing but the scores it is given, and applying never reads a
label.
"""

from collections.abc import Mapping

from twostream_jax.fuse.adaptive import fit_adaptive, fit_logistic
from twostream_jax.fuse.average import (
  WeightedFusion,
  apply_weighted,
  average,
  average_logits,
  fit_weighted,
  fit_weights,
  weighted,
)
from twostream_jax.fuse.linear import LinearFusion, apply_linear, fit_svm
from twostream_jax.fuse.subsets import Subset, subset_table
from twostream_jax.scores import Scores

# Rules with parameters, by the name that configs and score files use. Each is
# called as fit(streams, split=name of the split that the scores are of).
FITS = {
  "fitted_weights": fit_weighted,
  "svm": fit_svm,
  "logistic": fit_logistic,
  "adaptive": fit_adaptive,
}


def apply(
  fitted: WeightedFusion | LinearFusion, streams: Mapping[str, Scores]
) -> Scores:
  """Fused scores by a rule that a function of `FITS` fitted.

  Args:
    fitted: what it returned.
    streams: scores by name, of the streams it was fitted on, in any order.

  Returns:
    Scores in the order of the videos of the first stream at fitting.

  Raises:
    ScoresError: the streams, their classes or their kind of labels are not
      those of fitting, or their videos differ.
  """
  if isinstance(fitted, WeightedFusion):
    return apply_weighted(fitted, streams)
  return apply_linear(fitted, streams)


__all__ = [
  "FITS",
  "LinearFusion",
  "Subset",
  "WeightedFusion",
  "apply",
  "average",
  "average_logits",
  "fit_adaptive",
  "fit_logistic",
  "fit_svm",
  "fit_weighted",
  "fit_weights",
  "subset_table",
  "weighted",
]
