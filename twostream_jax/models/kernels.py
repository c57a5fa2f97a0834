"""Operations in the form that XLA computes fastest on CPUs and GPUs.

On a CPU XLA is slow at three things: the gradient of batch norm, the gradient
of a maximum over windows, and convolutions of 1 x 1 or into maps of a few
pixels. Each is here once more, as products of matrices or as slices. On NVIDIA
GPUs the gradient of a maximum would be a scatter with atomic additions, which
is slow and, where windows overlap, rounds differently in each run.
Elsewhere nothing changes: the platform is known when a program is lowered, and
other platforms get the plain operation. benchmarks/RESULTS.md has the gains.

Networks take `Conv`, `BatchNorm` and `max_pool` as fields, so they can be built
from flax's own layers too, with the same parameters. All of this was measured
with jaxlib 0.10. A part can go once a network built without it trains as fast,
and, for pooling on a GPU, to the same bits twice.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

Padding = tuple[tuple[int, int], tuple[int, int]]

# Pixels of a map up to which patches times kernel beat XLA's convolution: up to
# 60 times at 2 x 2, not at all from 7 x 7.
_SMALL_MAP = 16
# Rows that one product adds up: more lose precision, fewer lose time.
_BLOCK = 512


def convolve(
  lhs: Array,
  rhs: Array,
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options,
) -> Array:
  """`lax.conv_general_dilated` as flax's Conv calls it.

  Args:
    lhs: [b h w c].
    rhs: [kh kw c d].
    window_strides: of height and width.
    padding: (before, after) of height and width.
    **options: the others; dimension_numbers are NHWC, nothing is dilated.

  Returns:
    [b h' w' d].
  """
  plain = functools.partial(
    lax.conv_general_dilated,
    window_strides=window_strides,
    padding=padding,
    **options,
  )
  sizes = tuple(
    (size + sum(pad) - window) // stride + 1
    for size, window, stride, pad in zip(
      lhs.shape[1:3], rhs.shape[:2], window_strides, padding, strict=True
    )
  )
  is_small = math.prod(sizes) <= _SMALL_MAP or rhs.shape[:2] == (1, 1)
  if not is_small or rhs.shape[2] != lhs.shape[3]:
    return plain(lhs, rhs)

  def product(lhs, rhs):
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    last = [s * (n - 1) + 1 for s, n in zip(window_strides, sizes, strict=True)]
    rows, columns = window_strides
    patches = [
      padded[:, i : i + last[0] : rows, j : j + last[1] : columns]
      for i in range(rhs.shape[0])
      for j in range(rhs.shape[1])
    ]
    return jnp.einsum(
      "bhwc,cd->bhwd",
      jnp.concatenate(patches, axis=-1),
      rhs.reshape(-1, rhs.shape[-1]),
    )

  return _on_cpu(product, plain)(lhs, rhs)


# flax's convolution, computed by `convolve`.
Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)


def _on_cpu(
  on_cpu: Callable[..., Array], elsewhere: Callable[..., Array]
) -> Callable[..., Array]:
  """One of two equal functions, by platform, and the gradient of the same."""

  @jax.custom_vjp
  def either(*args):
    return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)

  def backward(args, gradient):
    def of(function):
      return lambda *args: jax.vjp(function, *args)[1](gradient)

    return lax.platform_dependent(*args, cpu=of(on_cpu), default=of(elsewhere))

  either.defvjp(lambda *args: (either(*args), args), backward)
  return either


def max_pool(x: Array, window: int, stride: int, padding: Padding) -> Array:
  """Maximum over square windows.

  Args:
    x: [b h w c] float.
    window: height and width of a window in pixels.
    stride: step between windows in pixels.
    padding: pixels (before, after) of height and width; -inf.

  Returns:
    [b h' w' c]. The gradient of a window goes to the first of its maxima; of
    one with a NaN it goes where that of `flax.linen.max_pool` does.
  """
  return _max_pool(x, window, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, padding):
  return nn.max_pool(x, (window, window), (stride, stride), padding)


def _max_pool_forward(x, window, stride, padding):
  return _max_pool(x, window, stride, padding), x


def _max_pool_backward(window, stride, padding, x, gradient):
  def plain(x, gradient):
    pool = functools.partial(
      nn.max_pool,
      window_shape=(window, window),
      strides=(stride, stride),
      padding=padding,
    )
    return jax.vjp(pool, x)[1](gradient)[0]

  by_phase = functools.partial(
    _unpool, window=window, stride=stride, padding=padding
  )
  to_x = lax.platform_dependent(
    x, gradient, cpu=by_phase, cuda=by_phase, default=plain
  )
  return (to_x,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _unpool(x, gradient, *, window, stride, padding):
  """The gradient of max_pool without scattering: every pixel gathers.

  Pixels of one phase (row and column modulo the stride) lie in the same places
  of their windows, so a whole phase is a few sums of shifted maps.
  """
  low = -jnp.inf
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=low)
  height, width = x.shape[1:3]
  first = _first_maximum(x, gradient.shape, window, stride)
  reach = -(-window // stride)  # Windows over a pixel, in each direction.
  rows, columns = -(-height // stride), -(-width // stride)
  margins = (
    (0, 0),
    (reach - 1, max(0, rows - gradient.shape[1])),
    (reach - 1, max(0, columns - gradient.shape[2])),
    (0, 0),
  )
  # The barrier keeps both from being computed again for each phase.
  first, gradient = lax.optimization_barrier(
    (
      jnp.pad(first, margins, constant_values=-1),
      jnp.pad(gradient, margins),
    )
  )

  def of_phase(row, column):
    total = jnp.zeros((), gradient.dtype)
    for up in range(reach):
      for left in range(reach):
        i, j = row + up * stride, column + left * stride
        if i < window and j < window:
          top, start = reach - 1 - up, reach - 1 - left
          shifted = (
            slice(None),
            slice(top, top + rows),
            slice(start, start + columns),
          )
          is_first = first[shifted] == i * window + j
          total = total + jnp.where(is_first, gradient[shifted], 0)
    shape = (len(gradient), rows, columns, gradient.shape[3])
    return jnp.broadcast_to(total, shape)

  phases = range(stride)
  whole = jnp.stack(
    [jnp.stack([of_phase(i, j) for j in phases], axis=3) for i in phases],
    axis=2,
  ).reshape(len(gradient), rows * stride, columns * stride, gradient.shape[3])
  (top, bottom), (left, right) = padding
  return whole[:, top : height - bottom, left : width - right]


def _first_maximum(x, shape, window, stride):
  """Where in its window each maximum of x is first, row by row: int32 `shape`.

  After a NaN any pixel is taken, as XLA's SelectAndScatter does.

  The maxima are sought again, not looked up among the outputs of the pooling:
  XLA may compute x a second time, with another rounding, and then no pixel is
  equal to its window's maximum.
  """
  rows = stride * (shape[1] - 1) + 1
  columns = stride * (shape[2] - 1) + 1
  x = _rounded(x)
  highest, first = jnp.full(shape, -jnp.inf, x.dtype), jnp.zeros(shape, "int32")
  for place in range(window * window):
    i, j = divmod(place, window)
    pixel = x[:, i : i + rows : stride, j : j + columns : stride]
    is_lower = highest >= pixel
    first = jnp.where(is_lower, first, place)
    highest = jnp.where(is_lower, highest, pixel)
  return first


def _rounded(x):
  """x, certain to be of its dtype's precision.

  XLA may leave out roundings to a narrow type between operations that it
  fuses, and then another of several equal maxima may seem to be the highest.
  """
  if x.dtype == jnp.float32:
    return x
  facts = jnp.finfo(x.dtype)
  return lax.reduce_precision(x, facts.nexp, facts.nmant)


def sum_of_rows(x: Array) -> Array:
  """Sums x [... c] over all axes but the last: [c].

  On CPUs by products with ones, of blocks and then of their sums: one product
  would add all rows one after the other, and lose a digit with each tenfold
  number of them (of 3 million rows all but one and a half).
  """
  rows = x.reshape(-1, x.shape[-1])
  return lax.platform_dependent(
    rows, cpu=_sum_in_blocks, default=lambda rows: rows.sum(axis=0)
  )


def _sum_in_blocks(rows: Array) -> Array:
  """Sums rows [n c] over blocks of at most _BLOCK rows, and these again."""
  while len(rows) > _BLOCK:
    size = max(d for d in range(1, _BLOCK + 1) if len(rows) % d == 0)
    if size < _BLOCK // 16:  # A number of rows without a fitting divisor.
      size = _BLOCK
      rows = jnp.pad(rows, ((0, -len(rows) % size), (0, 0)))
    blocks = rows.reshape(-1, size, rows.shape[1])
    ones = jnp.ones((len(blocks), 1, size), rows.dtype)
    rows = lax.dot_general(ones, blocks, (((2,), (1,)), ((0,), (0,))))[:, 0]
  return jnp.einsum("n,nc->c", jnp.ones_like(rows[:, 0]), rows)


class BatchNorm(nn.Module):
  """Batch norm (Ioffe & Szegedy 2015, arXiv 1502.03167).

  As flax's, with the same parameters 'scale' and 'bias' and the same
  'batch_stats' 'mean' and 'var' (of n values, not n - 1), all [c] float32.

  Fields:
    use_running_average: normalise with the running statistics and keep them.
    momentum: what the running statistics keep of their old value.
    epsilon: added to the variance.
    dtype: of the output.
    axis_name: the mapped axis over which statistics are taken, or None.
    scale_init: of 'scale'.
  """

  use_running_average: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  axis_name: str | None = None
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises x [... c] for each channel; computes in float32 at least."""
    shape = x.shape[-1:]
    scale = self.param("scale", self.scale_init, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    running = [
      self.variable("batch_stats", name, initial, shape, jnp.float32)
      for name, initial in (("mean", jnp.zeros), ("var", jnp.ones))
    ]
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = (1,) * (x.ndim - 1) + shape
    if self.use_running_average:
      mean, variance = (statistic.value for statistic in running)
      factor = lax.rsqrt(variance + self.epsilon) * scale
      y = (x - mean.reshape(wide)) * factor.reshape(wide) + bias.reshape(wide)
      return y.astype(self.dtype)
    axis_name = None if self.is_initializing() else self.axis_name
    # `functools.partial` hides the type of a function with its own gradient.
    normalised: Any = _normalise(x, scale, bias, self.epsilon, axis_name)
    y, *statistics = normalised
    if not self.is_initializing():
      for old, new in zip(running, statistics, strict=True):
        keep = self.momentum
        old.value = keep * old.value + (1 - keep) * new.astype(jnp.float32)
    return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x, scale, bias, epsilon, axis_name):
  """Batch norm of x [... c]; also the batch's mean and variance [c]."""
  return _normalise_forward(x, scale, bias, epsilon, axis_name)[0]


def _normalise_forward(x, scale, bias, epsilon, axis_name):
  mean, square = _means((x, jnp.square(x)), axis_name)
  # Rounding may put the mean of squares below the square of the mean.
  variance = jnp.maximum(0.0, square - jnp.square(mean))
  factor = lax.rsqrt(variance + epsilon)
  wide = (1,) * (x.ndim - 1) + mean.shape
  y = (x - mean.reshape(wide)) * (factor * scale).reshape(wide)
  y = y + bias.reshape(wide)
  return (y, mean, variance), (x, mean, factor, scale)


def _normalise_backward(epsilon, axis_name, residuals, gradients):
  # The loss does not depend on the running statistics: zero gradients.
  del epsilon
  x, mean, factor, scale = residuals
  gradient = gradients[0]
  wide = (1,) * (x.ndim - 1) + mean.shape
  normal = (x - mean.reshape(wide)) * factor.reshape(wide)
  to_bias, to_scale = (
    sum_of_rows(gradient),
    sum_of_rows(gradient * normal),
  )
  count = x.size // x.shape[-1]
  shared = to_bias / count, to_scale / count
  if axis_name is not None:
    shared = lax.pmean(shared, axis_name)
  along_ones, along_normal = (part.reshape(wide) for part in shared)
  to_x = (factor * scale).reshape(wide) * (
    gradient - along_ones - normal * along_normal
  )
  return to_x, to_scale, to_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _means(arrays, axis_name):
  """The means [c] of arrays [... c], over the mapped axis too if there is one.

  Replicas hold equally many rows each.
  """
  means = tuple(sum_of_rows(x) / (x.size // x.shape[-1]) for x in arrays)
  return means if axis_name is None else lax.pmean(means, axis_name)
