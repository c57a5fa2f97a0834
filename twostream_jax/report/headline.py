"""The report's results: the table, what fusion gained, and how sure that is."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twostream_jax.report import gallery, plots
from twostream_jax.report.breakdown import Model
from twostream_jax.report.curves import is_number
from twostream_jax.report.wording import Wording, wording
from twostream_jax.scores import Scores

_MAX_SUBSETS = 15
_esc = html.escape


def best(named: Mapping[str, Mapping[str, float]]) -> str | None:
  """The name whose first metric is highest, the first of equals.

  Args:
    named: metrics by name of the model.

  Returns:
    None where no first metric is a number.
  """
  known = {
    name: value
    for name, values in named.items()
    if is_number(value := next(iter(values.values())))
  }
  return max(known, key=known.__getitem__, default=None)
