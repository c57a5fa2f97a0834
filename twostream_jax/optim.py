"""Learning-rate schedules and the optimiser."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

SCHEDULES = ("constant", "cosine", "step")


def create_schedule(
  name: str,
  *,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int = 0,
  boundaries: Sequence[int] = (),
  decay_factor: float = 0.1,
) -> optax.Schedule:
  """Learning rate as a function of the step.

  Args:
    name: "constant"; "cosine" down to zero; or "step": multiplied by
      `decay_factor` at each of `boundaries`.
    learning_rate: the peak.
    total_steps: length of training, warm-up included.
    warmup_steps: steps of linear growth from zero.
    boundaries: steps at which "step" decays, counted from the start.
    decay_factor: what "step" multiplies by.

  Raises:
    ValueError: the name is not known, or the steps do not fit together.
  """
  if name not in SCHEDULES:
    raise ValueError(f"schedule {name!r} is not in {SCHEDULES}")
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f"warmup_steps={warmup_steps} must be in 0..total_steps={total_steps}"
    )
  if name == "step" and any(
    not warmup_steps < boundary < total_steps for boundary in boundaries
  ):
    raise ValueError(
      f"boundaries {tuple(boundaries)} must lie between the warm-up"
      f" ({warmup_steps}) and the end ({total_steps})"
    )
  after = total_steps - warmup_steps
  if name == "constant":
    main = optax.constant_schedule(learning_rate)
  elif name == "cosine":
    main = optax.cosine_decay_schedule(learning_rate, after)
  else:
    main = optax.piecewise_constant_schedule(
      learning_rate, {b - warmup_steps: decay_factor for b in boundaries}
    )
  if not warmup_steps:
    return main
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, main], [warmup_steps])


def is_kernel(params: Any) -> Any:
  """True for the leaves that weight decay acts on: not biases, not norms."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def create_optimizer(
  schedule: optax.Schedule,
  *,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  max_grad_norm: float,
) -> optax.GradientTransformation:
  """SGD with momentum and L2 regularisation.

  Args:
    schedule: learning rate by step.
    momentum: 0..1.
    nesterov: whether the momentum is Nesterov's.
    weight_decay: L2 coefficient, added to the gradient of kernels only.
    max_grad_norm: the global norm to which gradients are clipped; 0 is never.
  """
  parts = []
  if max_grad_norm:
    parts.append(optax.clip_by_global_norm(max_grad_norm))
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay, mask=is_kernel))
  parts.append(optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
  return optax.chain(*parts)
