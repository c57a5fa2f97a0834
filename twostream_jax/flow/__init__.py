"""Optical flow between two frames, by name.

To add an algorithm: write a function (previous, following, *, parameters with
defaults) -> float32 [h, w, 2] and add it to `FLOWS`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from twostream_jax.flow.opencv import dis, farneback
from twostream_jax.flow.spec import FlowSpec, FlowSpecError

FLOWS: dict[str, Callable[..., np.ndarray]] = {
  "dis": dis,
  "farneback": farneback,
}


def default_parameters(algorithm: str) -> dict[str, Any]:
  """Returns every parameter of an algorithm with its default.

  Raises:
    FlowSpecError: there is no such algorithm.
  """
  parameters = inspect.signature(_find(algorithm)).parameters.values()
  return {
    parameter.name: parameter.default
    for parameter in parameters
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }


def compute_flow(
  spec: FlowSpec, previous: np.ndarray, following: np.ndarray
) -> np.ndarray:
  """Computes one field with the algorithm and the parameters of `spec`.

  Args:
    spec: names the algorithm; step, bound and quality play no part here.
    previous: gray uint8 [h, w].
    following: gray uint8 [h, w], `spec.step` frames later.

  Returns:
    float32 [h, w, 2]: pixels, x (right) then y (down).

  Raises:
    FlowSpecError: no such algorithm, or it lacks one of the parameters.
  """
  algorithm = _find(spec.algorithm)
  known = default_parameters(spec.algorithm)
  unknown = sorted(set(spec.parameters) - set(known))
  if unknown:
    raise FlowSpecError(
      f"{spec.algorithm} has no parameter {', '.join(unknown)};"
      f" it has: {', '.join(known)}"
    )
  return algorithm(previous, following, **spec.parameters)


def _find(algorithm: str) -> Callable[..., np.ndarray]:
  if algorithm not in FLOWS:
    raise FlowSpecError(
      f"no optical flow algorithm {algorithm!r}; known: {', '.join(FLOWS)}"
    )
  return FLOWS[algorithm]
