"""The pure steps of training and prediction, for one replica.

`train_step` names the axis over which replicas are mapped; nothing here knows
how many there are.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

Batch = Mapping[str, jax.Array]


@struct.dataclass
class TrainState:
  """What training changes; everything a checkpoint needs of the model.

  Attributes:
    step: int32, batches seen. The one clock of training: the learning rate, the
      dropout keys and the place in the data follow it, skipped steps included.
    skipped: int32, steps without an update: see `train_step`.
    params: float32, whatever the compute dtype.
    batch_stats: running statistics of batch norms.
    ema_params: exponential moving average of `params`; {} without one.
    ema_batch_stats: the same average of `batch_stats`. Running statistics
      belong to the parameters that they were taken with.
    opt_state: state of the optimiser.
  """

  step: jax.Array
  skipped: jax.Array
  params: Any
  batch_stats: Any
  ema_params: Any
  ema_batch_stats: Any
  opt_state: Any

  @property
  def variables(self) -> dict[str, Any]:
    """Variables to predict with: the averaged ones, if they are kept."""
    if self.ema_params:
      return {"params": self.ema_params, "batch_stats": self.ema_batch_stats}
    return {"params": self.params, "batch_stats": self.batch_stats}


def rate(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which answers are right, and which can be, 1.0 or 0.0: two arrays [b].

  The accuracy is the sum of the first by that of the second, as in
  `metrics.top_k_accuracy` and `metrics.precision_at_1`: an example without a
  class has no right answer and is left out, a tie at the top is not right.

  Args:
    logits: [b n], of the classes that a stage scores.
    labels: int [b], of which those from n belong to a second dataset's head and
      are left out; or float [b n] where a clip has any number of classes: any
      of them is right.
  """
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, logits.shape[-1])  # Others are all 0.
  # "Not below", so that NaN is not a right answer either.
  first = ~(logits < logits.max(axis=-1, keepdims=True))
  is_wrong = (first & (labels == 0)).any(axis=-1)
  can_be = (labels > 0).any(axis=-1)
  return (can_be & ~is_wrong).astype(jnp.float32), can_be.astype(jnp.float32)


def create_train_state(
  rng: jax.Array,
  model: nn.Module,
  tx: optax.GradientTransformation,
  preprocess: Callable[[Batch], dict[str, jax.Array]],
  batch: Mapping[str, jax.Array | np.ndarray],
  keep_ema: bool = False,
) -> TrainState:
  """Initialises parameters for the shapes of one batch.

  Args:
    rng: key of the initial parameters.
    model: maps preprocessed inputs to logits and features.
    tx: optimiser.
    preprocess: batches to the network's inputs, such as
      `preprocess.Preprocess`.
    batch: a training batch; only its shapes matter.
    keep_ema: whether to keep an average of parameters and batch statistics.
  """
  inputs: dict[str, Any] = {name: array[:1] for name, array in batch.items()}

  @jax.jit
  def init():
    variables = model.init({"params": rng}, preprocess(inputs), train=False)
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      skipped=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      ema_params=jax.tree.map(jnp.copy, params) if keep_ema else {},
      ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if keep_ema else {},
      opt_state=tx.init(params),
    )

  return init()


def train_step(
  state: TrainState,
  batch: Batch,
  rng: jax.Array,
  *,
  model: nn.Module,
  tx: optax.GradientTransformation,
  preprocess: Callable[[Batch], dict[str, jax.Array]],
  loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
  axis_name: str,
  stop_frozen: Callable[[Any], Any] = lambda params: params,
  micro_batches: int = 1,
  ema_decay: float = 0.0,
  num_classes: int | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update from this replica's part of the global batch.

  Where the loss or a gradient is not finite, the update is left out: only
  `step` and `skipped` of the state change.

  Args:
    state: the same on every replica.
    batch: what `preprocess` takes, uint8 [b t ...], or features, with "label",
      "mask" bool [b] and "index" int32 [b]: each example's place in the global
      batch, which its dropout depends on. With micro-batches [k b ...].
    rng: key of the whole run, the same on every replica and in every step.
    model: maps inputs to logits [b n] and features.
    tx: optimiser; one that takes extra arguments gets `step`, the steps before
      this one.
    preprocess: see `preprocess.Preprocess`.
    loss_fn: logits [b n] and labels to a loss per example [b].
    axis_name: the axis over replicas.
    stop_frozen: parameters to the same, with gradients only of those that are
      trained.
    micro_batches: k, parts of the batch that pass through the network one
      after the other, for less memory; their gradients are added up. Batch
      norm sees each part for itself.
    ema_decay: decay of the average of parameters and batch statistics, in
      [0, 1); 0 where the state keeps none. Early on it is
      (1 + step) / (10 + step) if that is less.
    num_classes: Classes that the stage scores, the model's first ones; None:
      all. See `rate`.

  Returns:
    The new state and sums over the global batch: loss, correct and rated (see
    `rate`), count; the global gradient norm before clipping; whether all was
    "finite"; and steps "skipped" so far.
  """
  rng = jax.random.fold_in(rng, state.step)
  count = jax.lax.psum(batch["mask"].astype(jnp.float32).sum(), axis_name)

  def mean_loss(params, batch_stats, part):
    (logits, _), changed = model.apply(
      {
        "params": stop_frozen(params),
        "batch_stats": batch_stats,
        "batch": {"index": part["index"]},
      },
      preprocess(part),
      train=True,
      rngs={"dropout": rng},
      mutable=["batch_stats"],
    )
    mask = part["mask"].astype(jnp.float32)
    # Divided by the global count, so that gradients of all parts add up.
    loss = (loss_fn(logits, part["label"]) * mask).sum() / count
    rated = [
      (x * mask).sum() for x in rate(logits[:, :num_classes], part["label"])
    ]
    return loss, (rated, changed.get("batch_stats", {}))

  def of_part(batch_stats, part):
    (loss, (rated, batch_stats)), grads = jax.value_and_grad(
      mean_loss, has_aux=True
    )(state.params, batch_stats, part)
    return batch_stats, (grads, loss, *rated)

  if micro_batches == 1:
    batch_stats, local = of_part(state.batch_stats, batch)
  else:
    batch_stats, local = _sum_over_parts(
      of_part, state.batch_stats, batch, state.params
    )
  if jax.lax.axis_size(axis_name) > 1:
    # On one device XLA would copy what it has nothing to add to.
    local = jax.lax.psum(local, axis_name)
  grads, loss, correct, rated = local
  batch_stats = jax.lax.pmean(batch_stats, axis_name)
  updates, opt_state = optax.with_extra_args_support(tx).update(
    grads, state.opt_state, state.params, step=state.step
  )
  params = optax.apply_updates(state.params, updates)
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  average = functools.partial(_average, step=state.step, decay=ema_decay)
  updated = dataclasses.replace(
    state,
    params=params,
    batch_stats=batch_stats,
    ema_params=average(state.ema_params, params),
    ema_batch_stats=average(state.ema_batch_stats, batch_stats),
    opt_state=opt_state,
  )
  new_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, state
  ).replace(step=state.step + 1, skipped=state.skipped + ~finite)
  return new_state, {
    "loss": loss * count,
    "correct": correct,
    "rated": rated,
    "count": count,
    "grad_norm": grad_norm,
    "finite": finite,
    "skipped": new_state.skipped,
  }


def _sum_over_parts(of_part, batch_stats, batch, params):
  """Runs (batch_stats, part) over the leading axis; adds up its results."""

  def add(carry, part):
    batch_stats, total = carry
    batch_stats, more = of_part(batch_stats, part)
    return (batch_stats, jax.tree.map(jnp.add, total, more)), None

  sums = (jnp.zeros(()),) * 3
  nothing = (jax.tree.map(jnp.zeros_like, params), *sums)
  carry, _ = jax.lax.scan(add, (batch_stats, nothing), batch)
  return carry


def _average(averaged, newest, *, step, decay):
  if not decay:
    return averaged
  step = step.astype(jnp.float32)
  share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(
    lambda old, new: old + share * (new - old), averaged, newest
  )


def predict_step(
  variables: Mapping[str, Any],
  batch: Batch,
  *,
  model: nn.Module,
  preprocess: Callable[[Batch], dict[str, jax.Array]],
  views_per_pass: int,
  num_classes: int,
) -> jax.Array:
  """Video-level logits: the mean over the views of each video.

  Args:
    variables: params and batch_stats.
    batch: [b v ...]: views of videos, uint8 [b v t ...] as `preprocess` takes
      them, or features.
    model: maps inputs to logits and features.
    preprocess: see `preprocess.Preprocess`.
    views_per_pass: views that pass through the network together, which bounds
      the memory whatever the protocol.
    num_classes: n, the classes that are scored: the model's first ones.

  Returns:
    float32 [b n].
  """
  logits = _map_views(
    lambda inputs: model.apply(variables, inputs, train=False)[0],
    batch,
    preprocess,
    views_per_pass,
  )
  return logits.mean(axis=1)[:, :num_classes]


def feature_step(
  variables: Mapping[str, Any],
  batch: Batch,
  *,
  model: nn.Module,
  preprocess: Callable[[Batch], dict[str, jax.Array]],
  views_per_pass: int,
  feature: str,
) -> jax.Array:
  """A named feature of each view of each video.

  Args:
    variables: params and batch_stats.
    batch: [b v ...], see `predict_step`; v frames of one window each.
    model: maps inputs to logits and features, [b 1 d] each.
    preprocess: see `preprocess.Preprocess`.
    views_per_pass: see `predict_step`.
    feature: its name.

  Returns:
    float32 [b v d].

  Raises:
    ValueError: the model has no such feature, or it is not a vector.
  """

  def of_inputs(inputs):
    features: Any  # Flax declares what changed collections would be.
    _, features = model.apply(variables, inputs, train=False)
    vectors = [name for name, value in features.items() if value.ndim == 3]
    if feature not in vectors:
      raise ValueError(
        f"no feature vector {feature!r}; the network has {sorted(vectors)}"
      )
    return features[feature][:, 0].astype(jnp.float32)

  return _map_views(of_inputs, batch, preprocess, views_per_pass)


def _map_views(function, batch, preprocess, views_per_pass) -> jax.Array:
  """Applies a function of inputs [k ...] to all views: [b v ...]."""
  b, v = next(iter(batch.values())).shape[:2]
  flat = {k: x.reshape((b * v,) + x.shape[2:]) for k, x in batch.items()}

  def of_view(view):
    one = {k: x[None] for k, x in view.items()}
    return function(preprocess(one))[0]

  mapped = jax.lax.map(of_view, flat, batch_size=min(views_per_pass, b * v))
  return mapped.reshape((b, v) + mapped.shape[1:])
