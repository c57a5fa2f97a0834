"""TV-L1 optical flow in JAX, for CPU, GPU and TPU from the same code.

The duality-based method of Zach, Pock & Bischof 2007 ("A Duality Based Approach
for Realtime TV-L1 Optical Flow"), with three parts of Wedel et al. 2009 ("An
Improved Algorithm for TV-L1 Optical Flow"): median filtering between warps,
five-point derivatives, and derivatives blended between the two images. Where
the brightness of a pair changes as a whole, which the method takes for motion,
the texture of the images is matched in their place: see `texture_pyramids`.
Names of parameters are those of OpenCV's DualTVL1; where a default differs,
that is because it was better or faster, see `tvl1`.
"""

import functools
import importlib
import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from twostream_jax.flow import pyramid

# A preset for `tvl1`: about half the time. It is less exact on the Middlebury
# pair, and more on warped images.
FAST = {"warps": 3, "iterations": 10}

# Share of the first image's derivative (Wedel et al. 2009, section 3).
_BLEND = 0.4
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
# Networks of compare-exchanges that leave the median of 9 in place 4 (Smith
# 1996): a sort is ruinous on a CPU.
_MEDIAN_OF_9 = (
  (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8),
  (0, 3), (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4),
  (4, 2),
)  # fmt: skip


# Parameters are constants of the program: flow is the same, to the bit, whether
# a default is passed or left out.
_PARAMETERS = (
  "tau",
  "lambda_",
  "theta",
  "nscales",
  "scale_step",
  "warps",
  "iterations",
  "texture",
)


@functools.partial(jax.jit, static_argnames=_PARAMETERS)
def tvl1(
  previous: Array,
  following: Array,
  *,
  tau: float = 0.25,
  lambda_: float = 0.3,
  theta: float = 0.4,
  nscales: int = 5,
  scale_step: float = 0.5,
  warps: int = 5,
  iterations: int = 15,
  texture: float = 1.0,
) -> Array:
  """Optical flow between pairs of gray images.

  Minimises, over the flow u, the sum over pixels of
  |grad u_x| + |grad u_y| + lambda |following(x + u) - previous(x)|. Of a pair
  whose brightness changes as a whole the texture takes the place of the images.

  Args:
    previous: [... h w], uint8 or float, 0..255.
    following: of the same shape.
    tau: step of the dual update; converges up to 0.25.
    lambda_: weight of the data term; smaller is smoother. OpenCV: 0.15.
    theta: tightness of the coupling of data term and smoothness. OpenCV: 0.3.
    nscales: images of the pyramid, fewer where they would be tiny.
    scale_step: ratio of their sides, in (0, 1). OpenCV: 0.8.
    warps: linearisations of the data term at each scale.
    iterations: primal-dual updates a warp. OpenCV: up to 300, until they
      change little; here always as many, so that no device waits.
    texture: share of the local mean, in [0, 1], that is removed from both
      images of a pair whose brightness changes as a whole (a flash, a fade, an
      automatic exposure). 0 never removes any: flow as datasets hold it whose
      parameters do not name `texture`.

  It is compiled again for every shape and every value of a parameter.

  Returns:
    float32 [... h w 2]: pixels, x (to the right) then y (downwards).

  Raises:
    ValueError: the shapes differ or are too small, or a parameter is out of
      range.
  """
  if previous.shape != following.shape or previous.ndim < 2:
    raise ValueError(
      f"two gray images [... h w] are needed, not {previous.shape} and"
      f" {following.shape}"
    )
  if min(previous.shape[-2:]) < 2:
    raise ValueError(f"images of at least 2 x 2 are needed: {previous.shape}")
  if not 0 < scale_step < 1 or min(nscales, warps, iterations) < 1:
    raise ValueError(
      f"scale_step must be in (0, 1), nscales, warps and iterations at least"
      f" 1: {scale_step}, {nscales}, {warps}, {iterations}"
    )
  if not 0 <= texture <= 1:
    raise ValueError(f"texture must be in [0, 1]: {texture}")
  h, w = previous.shape[-2:]
  flow = _solve(
    previous.reshape((-1, h, w)).astype(jnp.float32),
    following.reshape((-1, h, w)).astype(jnp.float32),
    tau=tau,
    lambda_=lambda_,
    theta=theta,
    sizes=pyramid.pyramid_sizes(h, w, nscales, scale_step),
    warps=warps,
    iterations=iterations,
    texture=texture,
  )
  return flow.reshape(previous.shape + (2,))


def tvl1_of_pairs(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  pairs_at_once: int | None = None,
  **parameters,
) -> Iterator[np.ndarray]:
  """Optical flow of a stream of pairs of one size, in chunks of equal size.

  The last chunk is filled up, so that all of them run one compiled program.

  Args:
    pairs: (previous, following), [h w] each; taken a chunk at a time.
    pairs_at_once: pairs in a chunk; None: `default_pairs_at_once()`.
    **parameters: those of `tvl1`.

  Yields:
    float32 [h w 2] for each pair: pixels, x (to the right) then y (downwards).
  """
  pairs = iter(pairs)
  size = pairs_at_once or default_pairs_at_once()
  while chunk := list(itertools.islice(pairs, size)):
    filled = chunk + [chunk[-1]] * (size - len(chunk))
    previous, following = (
      np.stack(images) for images in zip(*filled, strict=True)
    )
    flows = np.asarray(tvl1(previous, following, **parameters))
    yield from flows[: len(chunk)]


def default_pairs_at_once() -> int:
  """Pairs for one call of `tvl1`, by the device that JAX uses.

  A CPU's caches hold the images of one pair, not of many; other devices need
  many to be busy.
  """
  return 1 if jax.default_backend() == "cpu" else 128


def _solve(
  previous,
  following,
  *,
  tau,
  lambda_,
  theta,
  sizes,
  warps,
  iterations,
  texture,
):
  """Coarse-to-fine solution for float32 [b h w]: float32 [b h w 2]."""
  images = [(previous, following)]
  for size in sizes[1:]:
    first, second = images[-1]
    images.append((pyramid.resize(first, size), pyramid.resize(second, size)))
  if texture:
    images = texture_pyramids(images, texture)
  batch = previous.shape[0]
  still = jnp.zeros((batch, *sizes[-1]), jnp.float32)
  flow = still, still
  for size, (first, second) in zip(
    reversed(sizes), reversed(images), strict=True
  ):
    flow = pyramid.upsample(flow, size)
    flow = _solve_scale(
      first, second, flow, tau, lambda_, theta, warps, iterations
    )
  return jnp.stack(flow, axis=-1)


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
    return [(first, gain * second) for first, second in pairs]

  # Most pairs are spared all of it.
  return jax.lax.cond((part > 0).any(), decompose, lambda same: same, images)


def _contrast_ratio(first, second, first_texture, second_texture):
  """Contrast of the first images' texture over the second's: [b 1 1].

  Of the pixels whose windows are neither black nor white anywhere: what was
  clipped has lost its texture and says nothing about the others.
  """
  low, high = _CLIPPED
  clipped = jnp.minimum(first, second) <= low
  clipped |= jnp.maximum(first, second) >= high
  seen = _local_mean(clipped.astype(jnp.float32)) == 0

  def energy(texture):
    energies = jnp.where(seen, texture * texture, 0)
    # The ratio is 1 where there is no texture.
    return energies.sum(axis=(1, 2), keepdims=True) + 1e-3

  ratio = jnp.sqrt(energy(first_texture) / energy(second_texture))
  return jnp.clip(ratio, 1 / _LARGEST_GAIN, _LARGEST_GAIN)


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


def _solve_scale(first, second, flow, tau, lambda_, theta, warps, iterations):
  """Warps `second` by the flow, solves the linearised problem; repeatedly."""
  first_x, first_y = jax.vmap(_derivatives)(first)
  stack = jnp.stack([second, *jax.vmap(_derivatives)(second)], axis=-1)

  def warp(_, state):
    u, v, *dual = state
    linear = jax.vmap(_linearise)(first, first_x, first_y, stack, u, v)
    u, v, *dual = _updates(
      (u, v, *dual),
      linear,
      tau=tau,
      lambda_=lambda_,
      theta=theta,
      iterations=iterations,
    )
    return _median(u), _median(v), *dual

  dual = (jnp.zeros_like(first),) * 4
  return jax.lax.fori_loop(0, warps, warp, (*flow, *dual))[:2]


def _linearise(first, first_x, first_y, stack, u, v):
  """The data term's residual at no motion, and its derivatives: [h w] each.

  Args:
    first: [h w], the first image.
    first_x: its derivative in x.
    first_y: its derivative in y.
    stack: [h w 3], the second image and its derivatives.
    u: [h w], the flow about which to linearise, to the right.
    v: downwards.
  """
  h, w = first.shape
  x = jnp.arange(w, dtype=jnp.float32)[None, :] + u
  y = jnp.arange(h, dtype=jnp.float32)[:, None] + v
  warped, warped_x, warped_y = _sample(stack, x, y)
  grad_x = _BLEND * first_x + (1 - _BLEND) * warped_x
  grad_y = _BLEND * first_y + (1 - _BLEND) * warped_y
  # Where the motion leaves the image there is no data: smoothness decides.
  inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
  grad_x = jnp.where(inside, grad_x, 0.0)
  grad_y = jnp.where(inside, grad_y, 0.0)
  difference = jnp.where(inside, warped - first, 0.0)
  return difference - grad_x * u - grad_y * v, grad_x, grad_y


def _updates(state, linear, **parameters):
  """Primal-dual updates, by the fastest form that the platform has.

  Derivatives are those of the plain form.
  """
  plain = functools.partial(plain_updates, **parameters)
  size = state[0].size  # No number where a batch is exported of any size.
  # The kernel counts pixels in 32 bits, and needs some.
  if not (has_kernel() and isinstance(size, int) and 0 < size < 2**31):
    return plain(state, linear)
  from twostream_jax.flow import tvl1_kernel

  kernel = functools.partial(tvl1_kernel.updates, **parameters)

  @jax.custom_jvp
  def either(state, linear):
    # A GPU machine computes on its CPU too.
    return jax.lax.platform_dependent(state, linear, cuda=kernel, default=plain)

  either.defjvp(functools.partial(jax.jvp, plain))
  return either(state, linear)


@functools.cache
def has_kernel() -> bool:
  """Whether `tvl1` uses `tvl1_kernel` here: an NVIDIA GPU from Ampere on."""
  if jax.default_backend() != "gpu":
    return False
  capability = getattr(jax.local_devices()[0], "compute_capability", "")
  major = str(capability).partition(".")[0]
  # Of an AMD GPU it is a name.
  if not major.isdigit() or int(major) < 8:
    return False
  # JAX has deprecated the backend of Pallas that the kernel is written for.
  try:
    importlib.import_module("jax.experimental.pallas.triton")
  except ImportError:
    return False
  return True


def plain_updates(
  state: tuple[Array, ...],
  linear: tuple[Array, Array, Array],
  *,
  tau: float,
  lambda_: float,
  theta: float,
  iterations: int,
) -> tuple[Array, ...]:
  """Updates of the flow and of its dual variables (Zach et al. 2007, sec. 2.3).

  Args:
    state: u, v (flow to the right and downwards, pixels), and the dual
      variables in x and y of u, then of v; float32 [b h w] each.
    linear: Residual of the data term at no motion, and its derivatives by u
      and v; float32 [b h w] each.
    tau: Step of the dual update.
    lambda_: Weight of the data term.
    theta: Tightness of the coupling of data term and smoothness.
    iterations: Number of updates.

  Returns:
    The new state.
  """
  constant, grad_x, grad_y = linear
  inverse = 1.0 / (grad_x * grad_x + grad_y * grad_y + 1e-6)
  limit = lambda_ * theta
  rate = tau / theta

  def ascend(component, dual_x, dual_y):
    across, down = _forward_x(component), _forward_y(component)
    norm = 1.0 + rate * jnp.sqrt(across * across + down * down)
    return (dual_x + rate * across) / norm, (dual_y + rate * down) / norm

  def update(_, state):
    u, v, u_x, u_y, v_x, v_y = state
    residual = constant + grad_x * u + grad_y * v
    # Zach et al. 2007, eq. 15, the three cases as one clip.
    step = jnp.clip(-residual * inverse, -limit, limit)
    u = u + step * grad_x + theta * _divergence(u_x, u_y)
    v = v + step * grad_y + theta * _divergence(v_x, v_y)
    return u, v, *ascend(u, u_x, u_y), *ascend(v, v_x, v_y)

  return jax.lax.fori_loop(0, iterations, update, state)


def _derivatives(image: Array) -> tuple[Array, Array]:
  """Five-point derivatives in x and y of [h w]; edges are repeated."""
  h, w = image.shape
  padded = jnp.pad(image, 2, mode="edge")

  def combine(shift):
    return (shift(0) - 8 * shift(1) + 8 * shift(3) - shift(4)) / 12

  return (
    combine(lambda i: padded[2:-2, i : i + w]),
    combine(lambda i: padded[i : i + h, 2:-2]),
  )


def _sample(stack: Array, x: Array, y: Array) -> tuple[Array, ...]:
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


def _forward_x(field: Array) -> Array:
  """Forward difference along the columns of [b h w]; zero at the last."""
  return _pad(field[:, :, 1:] - field[:, :, :-1], (0, 0), (0, 1))


def _forward_y(field: Array) -> Array:
  """Forward difference along the rows of [b h w]; zero at the last."""
  return _pad(field[:, 1:] - field[:, :-1], (0, 1), (0, 0))


def _divergence(dual_x: Array, dual_y: Array) -> Array:
  """Minus the adjoint of the forward differences (dual is 0 at the ends)."""
  before_x = _pad(dual_x[:, :, :-1], (0, 0), (1, 0))
  before_y = _pad(dual_y[:, :-1], (1, 0), (0, 0))
  return dual_x - before_x + dual_y - before_y


def _pad(field: Array, rows: tuple[int, int], columns: tuple[int, int]):
  return jnp.pad(field, ((0, 0), rows, columns))


def _median(field: Array) -> Array:
  """Median over 3 x 3 pixels of [b h w]; edges are repeated."""
  h, w = field.shape[1:]
  padded = jnp.pad(field, ((0, 0), (1, 1), (1, 1)), mode="edge")
  values = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
  for a, b in _MEDIAN_OF_9:
    low = jnp.minimum(values[a], values[b])
    values[b] = jnp.maximum(values[a], values[b])
    values[a] = low
  return values[4]
