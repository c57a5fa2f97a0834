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

  FISTA (Beck & Teboulle 2009) that drops its momentum wherever the objective
  would rise (O'Donoghue & Candès 2015); the plain step from there can't.

  Args:
    objective: smooth part and penalty together.
    gradient: of the smooth part.
    penalty: weight of the l1 norm, at least 0; may differ between elements.
    start: the first w.
    step: at most 1 / L, where L is the gradient's Lipschitz constant.
    tolerance: stops where no element of the gradient mapping (the gradient,
      where there is no penalty) is larger.
    max_steps: a limit.

  Returns:
    The minimiser, and the objective at the start and after every step.

  Raises:
    RuntimeError: the tolerance was not reached in `max_steps`.
  """
  w = point = start
  momentum = 1.0
  history = [objective(w)]
  for _ in range(max_steps):
    new = soft_threshold(point - step * gradient(point), step * penalty)
    value = objective(new)
    if value > history[-1]:
      if momentum == 1.0:
        return w, history  # Rounding is all that is left to gain.
      point, momentum = w, 1.0
      continue
    history.append(value)
    if np.abs(point - new).max() <= step * tolerance:
      return new, history
    following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
    point = new + (momentum - 1) / following * (new - w)
    w, momentum = new, following
  raise RuntimeError(
    f"proximal gradient did not reach a tolerance of {tolerance:g} in"
    f" {max_steps} steps; regularise more"
  )
