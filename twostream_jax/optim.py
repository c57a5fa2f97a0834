"""Learning-rate schedules and optimisers."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("sgd", "adam")

# Pairs of a regular expression and a factor: see `scale_by_path`.
Multipliers = Sequence[tuple[str, float]]


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


def create_optimizer(
  schedule: optax.Schedule,
  *,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  max_grad_norm: float,
  name: str = "sgd",
  multipliers: Multipliers = (),
  penalised: str = "",
  l1: float = 0.0,
  l21: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum, or Adam, with regularisation.

  The penalties l1 and l21 are those of the objective, whatever the momentum
  and the clipping: the proximal step is as long as the gradient's. Momentum m
  makes that 1 / (1 - m) times the learning rate, clipping shortens it by the
  factor of the gradients.

  The result is an `optax.GradientTransformationExtraArgs`. Its `update` takes
  `step`, the steps before this one. It keeps no count of its own, so that the
  learning rate in use is that of the step whatever became of earlier updates.

  Args:
    schedule: learning rate by step.
    momentum: 0..1 (excluded); of Adam, the decay of the mean gradient (b1).
    nesterov: whether the momentum is Nesterov's.
    weight_decay: L2 coefficient, added to the gradient of kernels only; not
      to that of penalised or frozen ones. It is added after clipping, as in
      Caffe and PyTorch, and so not clipped itself.
    max_grad_norm: the global norm to which gradients are clipped; 0 is never.
      Frozen parameters do not count in it.
    name: "sgd" or "adam".
    multipliers: see `scale_by_path`.
    penalised: regular expression of the paths of the kernels under l1 and
      l21, such as "fusion/kernel"; "" is none.
    l1: weight of the sum of the absolute values, at least 0; see `proximal`.
    l21: weight of the sum of the columns' l2 norms, at least 0.

  Raises:
    ValueError: the name is not known or the settings do not fit together; at
      `init`, where a regular expression matches no parameter.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f"optimizer {name!r} is not in {OPTIMIZERS}")
  _check_penalty(name, penalised, l1, l21)

  def is_penalised(path):
    return bool(penalised) and bool(re.match(penalised, path))

  def is_decayed(path, leaf):
    # Kernels; not biases, not the scales of norms.
    return leaf.ndim > 1 and not is_penalised(path)

  parts = []
  if max_grad_norm:
    parts.append(optax.clip_by_global_norm(max_grad_norm))
  if weight_decay:
    mask = functools.partial(_map_with_path, is_decayed)
    parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
  if name == "sgd":
    parts.append(optax.trace(decay=momentum, nesterov=nesterov))
  else:
    parts.append(optax.scale_by_adam(b1=momentum, nesterov=nesterov))
  parts.append(_descend(schedule))
  tx = optax.chain(*parts)
  if multipliers:
    tx = scale_by_path(tx, multipliers)
  if penalised:
    tx = proximal(
      tx,
      lambda step: schedule(step) / (1.0 - momentum),
      l1=l1,
      l21=l21,
      select=is_penalised,
      multipliers=multipliers,
      max_grad_norm=max_grad_norm,
    )
  return tx


def _descend(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by minus the learning rate of `step`."""

  def update(updates, state, params=None, *, step, **extra_args):
    del params, extra_args
    learning_rate: Any = schedule(step)  # Declared as any kind of number.
    rate = -learning_rate
    scaled = jax.tree.map(lambda x: jnp.asarray(rate, x.dtype) * x, updates)
    return scaled, state

  # The constructor is declared as that of the base class, without arguments.
  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state,
    update,  # pyright: ignore[reportArgumentType]
  )


def scale_by_path(
  tx: optax.GradientTransformation, multipliers: Multipliers
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the learning rate of some parameters, or freezes them.

  The path of a parameter is its keys joined by "/", as in
  "backbone/layer1_0/conv1/kernel". A regular expression must match at the
  start of the path ("backbone/" is everything in the backbone); the first one
  that matches decides, and without a match the factor is 1.

  Args:
    tx: optimiser; its last word on an update is multiplied, weight decay and
      momentum included.
    multipliers: pairs of a regular expression and a factor, at least 0. With
      a factor of 0 a parameter is frozen: `tx` does not see it, so it has no
      momentum, and its update is exactly zero. (Batch statistics are not
      parameters: in training they follow the batches all the same.)

  Raises:
    ValueError: a factor is negative; at `init`, where a regular expression
      matches no parameter.
  """
  for pattern, factor in multipliers:
    if factor < 0.0:
      raise ValueError(f"multiplier {factor} of {pattern!r} is negative")

  def scale(updates, params=None):
    del params
    return _map_with_path(
      lambda path, leaf: leaf * _factor(path, multipliers), updates
    )

  def groups(params):
    return _map_with_path(
      lambda path, _: "trained" if _factor(path, multipliers) else "frozen",
      params,
    )

  partitioned = optax.partition(
    {
      "trained": optax.chain(tx, optax.stateless(scale)),
      "frozen": optax.set_to_zero(),
    },
    groups,
  )

  def init(params):
    for pattern, _ in multipliers:
      _require_match(lambda path, p=pattern: re.match(p, path), pattern, params)
    return partitioned.init(params)

  return optax.GradientTransformationExtraArgs(init, partitioned.update)


def stop_frozen(params: Any, multipliers: Multipliers) -> Any:
  """Cuts frozen parameters out of differentiation.

  `scale_by_path` freezes them whatever their gradient is; without it, the
  backward pass through the layers before the first trained one is never run.

  Args:
    params: tree of arrays.
    multipliers: see `scale_by_path`.
  """
  return _map_with_path(
    lambda path, leaf: (
      leaf if _factor(path, multipliers) else jax.lax.stop_gradient(leaf)
    ),
    params,
  )


def proximal(
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  l1: float,
  l21: float,
  select: Callable[[str], bool],
  multipliers: Multipliers = (),
  max_grad_norm: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Proximal gradient descent: exact zeros by l1 and l2,1 norms.

  Minimises  loss(W) + l1 * sum |W| + l21 * sum_j ||W_:j||_2  over the selected
  kernels (Wu et al. 2015, arXiv 1504.01561, the step for W^E). After the
  update of `tx`, each becomes the penalty's proximal point:

    V = W + update
    U_ij = sign(V_ij) * max(|V_ij| - eta * l1, 0)
    W_:j = U_:j * max(1 - eta * l21 / ||U_:j||_2, 0)

  A column j holds all weights into one unit (flax kernels are [in, out]): l1
  drops single weights, l21 whole units.

  eta must be the step length of `tx`: update = -eta * gradient. Where `tx` has
  momentum m, its effective step is eta / (1 - m); a schedule without that
  factor minimises the objective with penalties 1 - m times as large. Where
  `tx` clips gradients g to the norm M, its step is min(1, M / ||g||) times as
  long, and so is eta here: a step of full length would minimise the objective
  with penalties ||g|| / M times as large.

  Args:
    tx: optimiser of the loss.
    schedule: eta by `step`, which `update` takes, before clipping.
    l1: Weight of the l1 penalty, at least 0.
    l21: Weight of the l2,1 penalty, at least 0.
    select: whether a parameter is penalised, by its path (see
      `scale_by_path`).
    multipliers: those that `tx` applies; they multiply eta as well.
    max_grad_norm: M, the global norm of the gradients of trained parameters to
      which `tx` clips; 0 is never.

  Raises:
    ValueError: a weight is negative; at `init`, where nothing is selected; at
      `update`, without params.
  """
  if l1 < 0.0 or l21 < 0.0:
    raise ValueError(f"l1={l1} and l21={l21} must be at least 0")

  inner = optax.with_extra_args_support(tx)

  def init(params):
    _require_match(select, "select", params)
    return inner.init(params)

  def update(updates, state, params=None, *, step, **extra_args):
    if params is None:
      raise ValueError("proximal needs the parameters: update(..., params)")
    eta = schedule(step)
    if max_grad_norm:
      eta = eta * _clip_factor(updates, max_grad_norm, multipliers)
    updates, state = inner.update(
      updates, state, params, step=step, **extra_args
    )

    def shrink(path, change, weights):
      if not select(path):
        return change
      own = eta * _factor(path, multipliers)
      point = proximal_point(weights + change, l1=own * l1, l21=own * l21)
      return point - weights

    return _map_with_path(shrink, updates, params), state

  # The constructor is declared as that of the base class, without arguments.
  return optax.GradientTransformationExtraArgs(
    init,
    update,  # pyright: ignore[reportArgumentType]
  )


def _clip_factor(
  grads: Any, max_norm: float, multipliers: Multipliers
) -> jax.Array:
  """Factor of the gradients when those of trained parameters are clipped."""
  trained = _map_with_path(
    lambda path, leaf: leaf if _factor(path, multipliers) else None, grads
  )
  return jnp.minimum(1.0, max_norm / optax.tree.norm(trained))


def proximal_point(
  v: jax.Array, *, l1: jax.typing.ArrayLike, l21: jax.typing.ArrayLike
) -> jax.Array:
  """Minimiser w of 1/2 ||w - v||^2 + l1 sum |w| + l21 sum_j ||w_:j||_2.

  Args:
    v: [... c]; a column j is all of v[..., j].
    l1: Weight of the l1 penalty, at least 0.
    l21: Weight of the l2,1 penalty, at least 0.

  Returns:
    [... c].
  """
  soft = jnp.sign(v) * jnp.maximum(jnp.abs(v) - l1, 0.0)
  axes = tuple(range(v.ndim - 1))
  norm = jnp.sqrt(jnp.square(soft).sum(axis=axes, keepdims=True))
  safe = jnp.where(norm > 0.0, norm, 1.0)
  return soft * jnp.maximum(1.0 - l21 / safe, 0.0)


def _check_penalty(name: str, penalised: str, l1: float, l21: float) -> None:
  if bool(penalised) != bool(l1 or l21):
    raise ValueError(
      f"penalised={penalised!r} and l1={l1}, l21={l21}: set the kernels and at"
      " least one weight, or neither"
    )
  if penalised and name != "sgd":
    raise ValueError(
      f"l1 and l21 need the optimizer 'sgd', not {name!r}, whose step length"
      " differs from weight to weight"
    )


def _factor(path: str, multipliers: Multipliers) -> float:
  for pattern, factor in multipliers:
    if re.match(pattern, path):
      return factor
  return 1.0


def _map_with_path(function: Callable[..., Any], *trees: Any) -> Any:
  def with_name(path, *leaves):
    return function(_name(path), *leaves)

  return jax.tree_util.tree_map_with_path(with_name, *trees)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _require_match(
  matches: Callable[[str], Any], what: str, params: Any
) -> None:
  names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
  if not any(matches(name) for name in names):
    raise ValueError(f"{what!r} matches no parameter of {', '.join(names)}")
