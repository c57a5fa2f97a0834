"""The pyramid of images of TV-L1: its sizes, and resizing between them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

Flow = tuple[Array, Array]

# A coarsest image below this holds nothing to match.
_SMALLEST_SIDE = 16


def pyramid_sizes(h, w, nscales, scale_step) -> tuple[tuple[int, int], ...]:
  """Heights and widths from the finest to the coarsest image."""
  sizes = [(h, w)]
  for scale in range(1, nscales):
    size = (round(h * scale_step**scale), round(w * scale_step**scale))
    if min(size) < _SMALLEST_SIDE:
      break
    sizes.append(size)
  return tuple(sizes)


def resize(images: Array, size: tuple[int, int]) -> Array:
  """Resizes [b h w] linearly; averages where it shrinks.

  As `jax.image.resize`, but for the few pixels that have a weight: products
  with its matrices of weights take a GPU's compiler half a minute to tune.
  """
  for axis, length in enumerate(size, start=1):
    images = _resize_axis(images, length, axis)
  return images


def _resize_axis(images: Array, length: int, axis: int) -> Array:
  old = images.shape[axis]
  # A triangle that reaches to the neighbour's centre, in the coarser of both.
  reach = max(1.0, old / length)
  centre = (np.arange(length) + 0.5) * (old / length) - 0.5
  first = np.floor(centre - reach).astype(int) + 1
  taps = first[:, None] + np.arange(math.ceil(2 * reach))
  weights = np.maximum(0.0, 1.0 - np.abs(taps - centre[:, None]) / reach)
  weights[(taps < 0) | (taps >= old)] = 0.0
  weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
  wide = [1, 1, 1]
  wide[axis] = length
  # There are always taps, so it is not the 0 that `sum` may return.
  resized: Any = sum(
    jnp.take(images, np.clip(tap, 0, old - 1), axis) * weight.reshape(wide)
    for tap, weight in zip(taps.T, weights.T, strict=True)
  )
  return resized


def upsample(flow: Flow, size: tuple[int, int]) -> Flow:
  """Resizes the components of a flow, and its pixels with it."""
  h, w = flow[0].shape[1:]
  if (h, w) == size:
    return flow
  u, v = (resize(component, size) for component in flow)
  return u * (size[1] / w), v * (size[0] / h)
