"""Changes of brightness of a pair of images, and their texture without it."""

import jax
import jax.numpy as jnp
from jax import Array

# Gray levels of a pair's change of brightness (`brightness_change`) below which
# its images are matched as they are, and above which their texture is. Between
# frames of real videos it is up to 0.6, where nothing but motion changes them.
_CHANGE = (0.75, 1.5)
# A pixel's part in the change of brightness, gray levels: what a bright object
# adds that enters the image, or the black edge of a shaken one, stays small.
_LARGEST_PART = 4.0
# Side of the squares whose means give the local mean, pixels of each scale.
_SQUARE = 5
# Gray levels up to and from which a pixel may have been clipped.
_CLIPPED = (5.0, 250.0)
# Largest ratio of the contrasts of a pair that is taken for a gain.
_LARGEST_GAIN = 4.0


def texture_pyramids(
  images: list[tuple[Array, Array]], texture: float
) -> list[tuple[Array, Array]]:
  """Takes the local mean from pairs whose brightness changes.

  A change of brightness that is smooth in space is in the mean and not in what
  remains. That is the structure-texture decomposition of Wedel et al. 2009,
  section 2.1, with two differences. The structure is a local mean at each
  scale, not a total-variation filter's result at the finest, which would take
  as long as the flow. And it is done only where the brightness of a pair
  changes, in proportion: where it does not, the mean says much about motion
  that the texture does not.

  Where a pixel is black or white in either image, what remains is taken from
  both, so that smoothness decides: clipping has removed the texture of one.

  What remains of the second image is scaled to the contrast of the first one,
  which takes out a change of exposure (a gain).

  What remains is up to twice as strong, so that smoothness does not outweigh
  the weaker texture: the same as up to twice `lambda_`.

  Args:
    images: Both images at each scale, finest first, float32 [b h w], 0..255.
    texture: Share of the mean that is removed at most, in [0, 1].

  Returns:
    Images in their place, of the same shapes. Those of a pair without a change
    of brightness are as they were.
  """
  low, high = _CHANGE
  change = jnp.abs(brightness_change(*images[-1]))
  part = jnp.clip((change - low) / (high - low), 0, 1)[:, None, None]

  def remaining(image):
    return (1 + part) * (image - texture * part * _local_mean(image))

  def decompose(images):
    pairs = [(remaining(first), remaining(second)) for first, second in images]
    # A change of exposure scales the texture; the finest scale shows it best.
    (first, second), textures = images[0], pairs[0]
    ratio = _contrast_ratio(first, second, *textures)
    gain = 1 + texture * part * (ratio - 1)
    weights = [1 - part * (1 - _unclipped(*pair) ** 2) for pair in images]
    return [
      (weight * first, weight * gain * second)
      for weight, (first, second) in zip(weights, pairs, strict=True)
    ]

  # Most pairs are spared all of it.
  return jax.lax.cond((part > 0).any(), decompose, lambda same: same, images)


def _contrast_ratio(first, second, first_texture, second_texture):
  """Contrast of the first images' texture over the second's: [b 1 1].

  Of the pixels whose windows are neither black nor white anywhere: what was
  clipped has lost its texture and says nothing about the others.
  """
  seen = _unclipped(first, second) == 1

  def energy(texture):
    energies = jnp.where(seen, texture * texture, 0)
    # The ratio is 1 where there is no texture.
    return energies.sum(axis=(1, 2), keepdims=True) + 1e-3

  ratio = jnp.sqrt(energy(first_texture) / energy(second_texture))
  return jnp.clip(ratio, 1 / _LARGEST_GAIN, _LARGEST_GAIN)


def _unclipped(first: Array, second: Array) -> Array:
  """Share of the window of each pixel that is neither black nor white, 0..1."""
  low, high = _CLIPPED
  clipped = jnp.minimum(first, second) <= low
  clipped |= jnp.maximum(first, second) >= high
  return 1 - _local_mean(clipped.astype(jnp.float32))


def brightness_change(first: Array, second: Array) -> Array:
  """Change of brightness that most of a pair's pixels share.

  Motion makes some pixels brighter and others darker, which cancels out.

  Args:
    first: float32 [b h w], 0..255; the coarsest scale, in which motion and
      noise make little difference.
    second: Of the same shape.

  Returns:
    float32 [b]: gray levels, each pixel's limited to 4.
  """
  difference = jnp.clip(second - first, -_LARGEST_PART, _LARGEST_PART)
  return difference.mean(axis=(1, 2))


def _local_mean(images: Array) -> Array:
  """Mean of [b h w] under a window; edges are repeated.

  The window is the mean of means over squares: about a Gaussian with a standard
  deviation of 2 pixels.
  """
  reach = _SQUARE - 1
  around = ((0, 0), (reach, reach), (reach, reach))
  images = jnp.pad(images, around, mode="edge")
  for _ in range(2):
    for window in ((1, _SQUARE, 1), (1, 1, _SQUARE)):
      images = jax.lax.reduce_window(
        images, 0.0, jax.lax.add, window, (1, 1, 1), "valid"
      )
  return images / _SQUARE**4
