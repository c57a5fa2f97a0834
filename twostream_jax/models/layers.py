"""Layers that the backbones share and that flax does not have."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from twostream_jax.models import kernels

MIN_SIZE = 64

# The first fine-tuning steps should not be spent on undoing the random
# scores of a new classifier.
LOGITS_INIT = nn.initializers.normal(stddev=0.01)


class Dropout(nn.Module):
  """Inverted dropout that does not depend on how a batch is split.

  The mask of an example is a function of the 'dropout' key and the example's
  index in the global batch only. A training run on one device, on eight, or in
  micro-batches therefore drops the same units, provided that every part is
  given the same key (and that the key is of JAX's default kind, threefry: with
  `rbg` keys a vmapped draw may depend on the batch).

  Whoever applies a model to a part of a batch says which part it is, in the
  collection "batch": {"index": int [b]}. Without it the part is the first.
  Where x has t rows an example (its segments, one after the other), each row
  has a mask of its own.

  Fields:
    rate: probability that a unit is dropped, in [0, 1). 0 is the identity and
      needs no key.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, deterministic: bool) -> Array:
    """Drops units of x [b * t ...] and scales the others by 1 / (1 - rate).

    Raises:
      ValueError: rate is not in [0, 1).
    """
    if not 0.0 <= self.rate < 1.0:
      raise ValueError(f"dropout rate must be in [0, 1), got {self.rate}")
    if deterministic or self.rate == 0.0:
      return x
    keep = 1.0 - self.rate
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
      self.make_rng("dropout"), self._global_index(x.shape[0])
    )
    draw = functools.partial(jax.random.bernoulli, p=keep, shape=x.shape[1:])
    return jnp.where(jax.vmap(draw)(keys), x / keep, 0).astype(x.dtype)

  def _global_index(self, rows: int) -> Array:
    # At the root, because a part of a batch is the same for every layer.
    assert self.scope is not None
    index = self.scope.root.get_variable("batch", "index")
    if index is None:
      return jnp.arange(rows)
    segments = rows // index.shape[0]
    return (index[:, None] * segments + jnp.arange(segments)[None]).reshape(-1)


def local_response_normalisation(
  x: Array,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 1e-4,
  beta: float = 0.75,
) -> Array:
  """Normalises each value by the energy of its neighbours in channel.

  y_i = x_i / (k + alpha * sum_j x_j^2) ** beta, where j runs over the `size`
  channels centred on i that exist (Krizhevsky et al. 2012, section 3.3). The
  sum is not divided by `size`, as in the paper. Caffe and PyTorch divide it:
  their alpha is `size` times the alpha here.

  Args:
    x: [... c], any float type. The sum is accumulated in float32.
    size: number of channels in the sum, odd.
    k: Constant of the equation; this and the next two default to the paper's.
    alpha: Factor of the sum.
    beta: Exponent.

  Returns:
    An array like x.

  Raises:
    ValueError: size is not a positive odd number.
  """
  if size < 1 or size % 2 == 0:
    raise ValueError(f"size must be a positive odd number, got {size}")
  channels = x.shape[-1]
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  padding = [(0, 0)] * (x.ndim - 1) + [(size // 2, size // 2)]
  squares = jnp.pad(jnp.square(wide), padding)
  # A few shifted slices fuse into one elementwise kernel; a window reduction
  # over the minor axis does not.
  energy = sum(squares[..., i : i + channels] for i in range(size))
  # exp and log vectorise on the CPU; pow does not.
  scale = jnp.exp(-beta * jnp.log(k + alpha * energy))
  return (wide * scale).astype(x.dtype)


def max_pool_ceil(
  x: Array,
  window: int = 3,
  stride: int = 2,
  pool: Callable[..., Array] = kernels.max_pool,
) -> Array:
  """Max pooling that rounds the output size up, as Caffe and MatConvNet do.

  Every input pixel between two windows counts: where the last window reaches
  over the border, the input is padded with -inf at its end (never at its
  start). A last window that would start outside the input is dropped, so no
  output is -inf.

  Args:
    x: [b h w c] float.
    window: height and width of the window in pixels, at least 1.
    stride: step between windows in pixels, at least 1.
    pool: Max pooling, called as `kernels.max_pool`.

  Returns:
    [b h' w' c] with h' = ceil((h - window) / stride) + 1 (one less where the
    last window is dropped, and 1 where the window is larger than the input).

  Raises:
    ValueError: window or stride is smaller than 1.
  """
  if window < 1 or stride < 1:
    raise ValueError(
      f"window and stride must be at least 1, got {window} and {stride}"
    )
  rows, columns = (
    (0, _ceil_padding(size, window, stride)) for size in x.shape[1:3]
  )
  return pool(x, window, stride, (rows, columns))


def _ceil_padding(size: int, window: int, stride: int) -> int:
  steps = max(0, -(-(size - window) // stride))
  if steps * stride >= size:
    steps -= 1
  return max(0, steps * stride + window - size)


def batch_norms(
  norm: Callable[..., nn.Module],
  *,
  train: bool,
  partial: bool,
  dtype: DTypeLike,
  axis_name: str | None,
  sync: bool,
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
  """Returns constructors of a network's first batch norm and of all others.

  Args:
    norm: Batch norm layer, with the fields of `kernels.BatchNorm`.
    train: as `batch_norm`.
    partial: partial batch norm (Wang et al. 2016, arXiv 1608.00859, section
      3.2): in training too, all but the first use their running statistics and
      leave them as they are. For small sets and imported weights.
    dtype: as `batch_norm`.
    axis_name: as `batch_norm`.
    sync: as `batch_norm`.
  """
  first, others = (
    batch_norm(norm, train=on, dtype=dtype, axis_name=axis_name, sync=sync)
    for on in (train, train and not partial)
  )
  return first, others


def batch_norm(
  norm: Callable[..., nn.Module] = kernels.BatchNorm,
  *,
  train: bool,
  dtype: DTypeLike,
  axis_name: str | None,
  sync: bool,
) -> Callable[..., nn.Module]:
  """Returns a constructor of batch norm layers with this project's constants.

  Epsilon 1e-5 and a running average that keeps 0.9 of its old value (what
  PyTorch calls momentum 0.1). The running variance follows the biased variance
  of a batch's n values per channel, by which the batch is normalised; PyTorch's
  follows the unbiased one, n / (n - 1) times as large.

  Args:
    norm: Batch norm layer, with the fields of `kernels.BatchNorm`.
    train: normalise with the batch's statistics and update the running ones.
    dtype: compute dtype; parameters and statistics are always float32.
    axis_name: the pmap axis.
    sync: take the batch's statistics over all replicas of axis_name instead
      of over the replica's own examples.

  Raises:
    ValueError: sync in training without an axis_name.
  """
  if train and sync and axis_name is None:
    raise ValueError(
      "sync_batch_norm=True needs axis_name, the name of the pmap axis; "
      "set it, or set sync_batch_norm=False"
    )
  return functools.partial(
    norm,
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    axis_name=axis_name if sync else None,
  )


def hidden_layers(
  x: Array,
  hidden: Sequence[tuple[str, int]],
  *,
  width: float,
  dropout: Dropout,
  last_rate: float | None,
  dtype: DTypeLike,
  train: bool,
) -> tuple[Array, dict[str, Array]]:
  """The hidden layers of CNN-M and VGG, each with ReLU and dropout.

  To be called in a compact method; its layers are submodules of that module.

  Args:
    x: [b c] float.
    hidden: name and units, at width 1, of each layer.
    width: factor on the units.
    dropout: applied after each layer.
    last_rate: of the dropout after the last layer; None: as after the others.
    dtype: compute dtype.
    train: whether dropout is on.

  Returns:
    The last layer [b units] after dropout, and each layer by name [b units],
    after ReLU and before dropout.
  """
  features = {}
  after_last = dropout
  if last_rate is not None:
    after_last = Dropout(last_rate)
  for name, units in hidden:
    x = nn.Dense(
      scale_width(units, width),
      dtype=dtype,
      kernel_init=nn.initializers.he_normal(),
      name=name,
    )(x)
    features[name] = nn.relu(x)
    drop = after_last if name == hidden[-1][0] else dropout
    x = drop(features[name], deterministic=not train)
  return x, features


def classifier(x: Array, num_classes: int) -> Array:
  """The last layer of every model, named 'logits'.

  It computes in float32, whatever the dtype of the other layers: logits of
  bfloat16 have 8 bits, so that two classes often tie at the top. To be called
  in a compact method; the layer is a submodule of that module.

  Args:
    x: [b c] float.
    num_classes: n.

  Returns:
    Logits [b n] float32.
  """
  return nn.Dense(
    num_classes, dtype=jnp.float32, kernel_init=LOGITS_INIT, name="logits"
  )(x)


def scale_width(count: int, width: float) -> int:
  """Number of channels or units of a layer that has `count` at width 1.

  Raises:
    ValueError: width is not positive.
  """
  if width <= 0.0:
    raise ValueError(f"width must be positive, got {width}")
  return max(8, round(count * width))


def check_input(x: Array) -> None:
  """Refuses what a backbone cannot classify.

  Raises:
    ValueError: x is not a float array [b h w c], or h or w is below MIN_SIZE.
  """
  if x.ndim != 4:
    raise ValueError(f"expected images [b h w c], got shape {x.shape}")
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"expected normalised float images, got {x.dtype}; preprocess them first"
    )
  height, width = x.shape[1:3]
  if min(height, width) < MIN_SIZE:
    raise ValueError(
      f"images are {height} x {width} pixels (height x width); "
      f"the minimum is {MIN_SIZE} x {MIN_SIZE}"
    )
