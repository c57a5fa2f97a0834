"""Score fusion: several streams' scores to one, joined by video id.

`average`, `average_logits` and `weighted` need no fitting. A rule of `FITS`
is fitted once, on scores of a split that is not the test split, and then
applied to those of any other:

  fitted = fuse.FITS["adaptive"](validation_scores, split="validation")
  fused = fuse.apply(fitted, test_scores)

Fitting sees nothing but the scores it is given, and applying never reads a
label.

Names are imported when they are first asked for, so that the command answers
wrong flags at once.
"""

import importlib
from typing import Any

_PLACES = {
  "FITS": "catalogue",
  "LinearFusion": "linear",
  "Subset": "subsets",
  "WeightedFusion": "weighting",
  "apply": "catalogue",
  "average": "weighting",
  "average_logits": "weighting",
  "fit_adaptive": "adaptive",
  "fit_logistic": "adaptive",
  "fit_svm": "linear",
  "fit_weighted": "weighting",
  "fit_weights": "weighting",
  "subset_table": "subsets",
  "weighted": "weighting",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
  """Imports a name of the package (PEP 562)."""
  if name not in _PLACES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_PLACES[name]}")
  return getattr(module, name)
