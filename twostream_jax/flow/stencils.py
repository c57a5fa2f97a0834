"""Differences, samples and medians of images, for solvers of optical flow."""

import jax.numpy as jnp
from jax import Array

# Networks of compare-exchanges that leave the median of 9 in place 4 (Smith
# 1996): a sort is ruinous on a CPU.
_MEDIAN_OF_9 = (
  (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8),
  (0, 3), (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4),
  (4, 2),
)  # fmt: skip


def derivatives(image: Array) -> tuple[Array, Array]:
  """Five-point derivatives in x and y of [h w]; edges are repeated."""
  h, w = image.shape
  padded = jnp.pad(image, 2, mode="edge")

  def combine(shift):
    return (shift(0) - 8 * shift(1) + 8 * shift(3) - shift(4)) / 12

  return (
    combine(lambda i: padded[2:-2, i : i + w]),
    combine(lambda i: padded[i : i + h, 2:-2]),
  )


def sample(stack: Array, x: Array, y: Array) -> tuple[Array, ...]:
  """Bilinear samples of [h w c] at x, y [h w]: one array a channel.

  Positions outside the image take the value at its edge.
  """
  h, w, channels = stack.shape
  x, y = jnp.clip(x, 0, w - 1), jnp.clip(y, 0, h - 1)
  left = jnp.clip(jnp.floor(x), 0, w - 2)
  top = jnp.clip(jnp.floor(y), 0, h - 2)
  part_x, part_y = (x - left)[..., None], (y - top)[..., None]
  index = top.astype(jnp.int32) * w + left.astype(jnp.int32)
  flat = stack.reshape(h * w, channels)
  upper = flat[index] * (1 - part_x) + flat[index + 1] * part_x
  lower = flat[index + w] * (1 - part_x) + flat[index + w + 1] * part_x
  sampled = upper * (1 - part_y) + lower * part_y
  return tuple(sampled[..., c] for c in range(channels))


def forward_x(field: Array) -> Array:
  """Forward difference along the columns of [b h w]; zero at the last."""
  return _pad(field[:, :, 1:] - field[:, :, :-1], (0, 0), (0, 1))


def forward_y(field: Array) -> Array:
  """Forward difference along the rows of [b h w]; zero at the last."""
  return _pad(field[:, 1:] - field[:, :-1], (0, 1), (0, 0))


def divergence(dual_x: Array, dual_y: Array) -> Array:
  """Minus the adjoint of the forward differences (dual is 0 at the ends)."""
  before_x = _pad(dual_x[:, :, :-1], (0, 0), (1, 0))
  before_y = _pad(dual_y[:, :-1], (1, 0), (0, 0))
  return dual_x - before_x + dual_y - before_y


def _pad(field: Array, rows: tuple[int, int], columns: tuple[int, int]):
  return jnp.pad(field, ((0, 0), rows, columns))


def median(field: Array) -> Array:
  """Median over 3 x 3 pixels of [b h w]; edges are repeated."""
  h, w = field.shape[1:]
  padded = jnp.pad(field, ((0, 0), (1, 1), (1, 1)), mode="edge")
  values = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
  for a, b in _MEDIAN_OF_9:
    low = jnp.minimum(values[a], values[b])
    values[b] = jnp.maximum(values[a], values[b])
    values[a] = low
  return values[4]
