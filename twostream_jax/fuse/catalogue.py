"""The rules of fusion by name, and what applies them."""

from collections.abc import Mapping

from twostream_jax.fuse.adaptive import fit_adaptive, fit_logistic
from twostream_jax.fuse.linear import LinearFusion, apply_linear, fit_svm
from twostream_jax.fuse.weighting import (
  WeightedFusion,
  apply_weighted,
  fit_weighted,
)
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
