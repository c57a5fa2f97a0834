"""Proximal gradient descent for a smooth loss with an l1 penalty."""

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray


def soft_threshold(values: Array, threshold: float | Array) -> Array:
  """Proximal operator of `threshold` times the l1 norm, elementwise."""
  return np.sign(values) * np.maximum(np.abs(values) - threshold, 0.0)


def minimise(
  objective: Callable[[Array], float],
  gradient: Callable[[Array], Array],
  penalty: float | Array,
  start: Array,
  step: float,
  *,
  tolerance: float = 1e-6,
  max_steps: int = 20_000,
) -> tuple[Array, list[float]]:
  """Minimises smooth(w) + sum(penalty |w|), never going up.

  FISTA (Beck & Teboulle 2009) that drops its momentum where the objective
  would rise (O'Donoghue & Candès 2015); a plain step can't make it rise.

  Args:
    objective: smooth part and penalty together.
    gradient: of the smooth part.
    penalty: weight of the l1 norm, at least 0; may differ between elements.
    start: the first w.
    step: at most 1 / the gradient's Lipschitz constant.
    tolerance: the largest element of the gradient mapping to stop at.
    max_steps: a limit; RuntimeError where it does not suffice.

  Returns:
    The minimiser, and the objective at the start and after every step.
  """
  w, point, momentum, history = start, start, 1.0, [objective(start)]
  for _ in range(max_steps):
    new = soft_threshold(point - step * gradient(point), step * penalty)
    value = objective(new)
    if value > history[-1] and momentum == 1.0:
      return w, history  # Rounding is all that is left to gain.
    if value > history[-1]:
      point, momentum = w, 1.0
      continue
    history.append(value)
    if np.abs(point - new).max() <= step * tolerance:
      return new, history
    previous, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
    w, point = new, new + (previous - 1) / momentum * (new - w)
  raise RuntimeError(
    f"proximal gradient did not reach a tolerance of {tolerance:g} in"
    f" {max_steps} steps; regularise more"
  )
