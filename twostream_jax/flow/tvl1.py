"""TV-L1 optical flow in JAX, for CPU, GPU and TPU from the same code.

The duality-based method of Zach, Pock & Bischof 2007 ("A Duality Based Approach
for Realtime TV-L1 Optical Flow"), with three parts of Wedel et al. 2009 ("An
Improved Algorithm for TV-L1 Optical Flow"): median filtering between warps,
five-point derivatives, and derivatives blended between the two images. Where
the brightness of a pair changes as a whole, which the method takes for motion,
the texture of the images is matched instead: `brightness.texture_pyramids`.
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

from twostream_jax.flow import brightness, pyramid, stencils

# A preset for `tvl1`: about half the time. It is less exact on the Middlebury
# pair, and more on warped images.
FAST = {"warps": 3, "iterations": 10}

# Share of the first image's derivative (Wedel et al. 2009, section 3).
_BLEND = 0.4

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
    images = brightness.texture_pyramids(images, texture)
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


def _solve_scale(first, second, flow, tau, lambda_, theta, warps, iterations):
  """Warps `second` by the flow, solves the linearised problem; repeatedly."""
  first_x, first_y = jax.vmap(stencils.derivatives)(first)
  stack = jnp.stack([second, *jax.vmap(stencils.derivatives)(second)], axis=-1)

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
    return stencils.median(u), stencils.median(v), *dual

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
  warped, warped_x, warped_y = stencils.sample(stack, x, y)
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
    across, down = stencils.forward_x(component), stencils.forward_y(component)
    norm = 1.0 + rate * jnp.sqrt(across * across + down * down)
    return (dual_x + rate * across) / norm, (dual_y + rate * down) / norm

  def update(_, state):
    u, v, u_x, u_y, v_x, v_y = state
    residual = constant + grad_x * u + grad_y * v
    # Zach et al. 2007, eq. 15, the three cases as one clip.
    step = jnp.clip(-residual * inverse, -limit, limit)
    u = u + step * grad_x + theta * stencils.divergence(u_x, u_y)
    v = v + step * grad_y + theta * stencils.divergence(v_x, v_y)
    return u, v, *ascend(u, u_x, u_y), *ascend(v, v_x, v_y)

  return jax.lax.fori_loop(0, iterations, update, state)
