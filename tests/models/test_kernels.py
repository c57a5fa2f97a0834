"""The forms for CPUs equal the plain operations, and so do their gradients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from twostream_jax.models import CNNM, VGG, ResNet, kernels
from twostream_jax.models.resnet import BasicBlock


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_gradients(function, *arguments):
  """The value, and the gradients of a random weighting of it."""
  value, pull = jax.vjp(function, *arguments)
  return value, pull(jnp.asarray(normal(*value.shape, seed=9), value.dtype))


def assert_equal(own, plain, *arguments, atol):
  found, expected = (
    jax.jit(functools.partial(value_and_gradients, function))(*arguments)
    for function in (own, plain)
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol),
    found,
    expected,
  )


@pytest.mark.parametrize(
  "size, window, stride, padding",
  [
    ((8, 6), 2, 2, ((0, 0), (0, 0))),
    ((9, 7), 2, 2, ((0, 0), (0, 0))),  # A row and a column are left over.
    ((8, 9), 3, 2, ((1, 1), (1, 1))),
    ((7, 8), 3, 2, ((0, 0), (0, 1))),
    ((7, 9), 2, 5, ((0, 0), (0, 0))),  # Pixels between windows.
    ((6, 6), 1, 2, ((0, 0), (0, 0))),
    ((2, 1), 3, 2, ((0, 1), (0, 2))),
    ((5, 7), 4, 3, ((1, 2), (2, 1))),
  ],
)
def test_pooling_equals_plain_pooling_also_where_values_tie(
  size, window, stride, padding
):
  # Small whole numbers: nearly every window has several maxima.
  x = np.round(normal(2, *size, 3))
  assert_equal(
    lambda x: kernels.max_pool(x, window, stride, padding),
    lambda x: nn.max_pool(x, (window,) * 2, (stride,) * 2, padding),
    x,
    atol=1e-6,
  )


@pytest.mark.parametrize("window, padding", [(2, 0), (3, 1)])
def test_the_gradient_of_pooling_is_the_plain_one_beside_nans(window, padding):
  x = np.round(normal(4, 9, 9, 3))
  x[np.abs(normal(*x.shape, seed=1)) > 1] = np.nan
  x[np.abs(normal(*x.shape, seed=2)) > 1.5] = -np.inf
  padding = ((padding, padding),) * 2
  gradients = [
    jax.vjp(pool, jnp.asarray(x))
    for pool in (
      lambda x: kernels.max_pool(x, window, 2, padding),
      lambda x: nn.max_pool(x, (window,) * 2, (2, 2), padding),
    )
  ]
  weights = np.arange(1.0, 1 + gradients[0][0].size, dtype=np.float32)
  found, expected = (back(weights.reshape(y.shape))[0] for y, back in gradients)
  np.testing.assert_array_equal(found, expected)


def test_the_gradient_of_pooling_finds_the_maxima_of_rounded_values():
  # One program computes, rounds and pools: XLA may leave the rounding out.
  weights = jnp.asarray(normal(2, 8, 8, 4, seed=1))

  def loss(x):
    y = kernels.max_pool(x, 2, 2, ((0, 0), (0, 0)))
    return (y.astype(jnp.float32) * weights).sum()

  def rounded(a):
    return (1.1 * nn.relu(a) + 0.3).astype(jnp.bfloat16)

  a = jnp.asarray(normal(2, 16, 16, 4))
  found = jax.jit(jax.grad(lambda a: loss(rounded(a))))(a)
  expected = 1.1 * jax.grad(loss)(rounded(a)).astype(jnp.float32) * (a > 0)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_pooling_finds_maxima_that_are_computed_twice(dtype):
  """XLA may compute batch norm again, and round otherwise, for the gradient."""

  class Pooled(nn.Module):
    pool: Callable

    @nn.compact
    def __call__(self, x):
      norm = kernels.BatchNorm(use_running_average=False, dtype=dtype)
      return self.pool(nn.relu(norm(x)))

  def gradient(pool, x):
    model = Pooled(pool)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda leaf: jnp.ones_like(leaf), variables)

    def loss(x):
      y, _ = model.apply(ones, x, mutable=["batch_stats"])
      return (y**2).sum()

    return jax.grad(loss)(x)

  with jax.enable_x64(dtype == "float64"):
    x = jnp.asarray(normal(3, 32, 32, 8), dtype)
    found, expected = (
      jax.jit(functools.partial(gradient, pool))(x)
      for pool in (
        lambda x: kernels.max_pool(x, 2, 2, ((0, 0), (0, 0))),
        lambda x: nn.max_pool(x, (2, 2), (2, 2)),
      )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_pooling_keeps_bfloat16():
  x = jnp.asarray(normal(1, 4, 4, 2), jnp.bfloat16)
  y, (gradient,) = value_and_gradients(
    lambda x: kernels.max_pool(x, 2, 2, ((0, 0), (0, 0))), x
  )
  assert y.dtype == gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  "size, window, stride, padding",
  [
    ((6, 7), 1, 1, 0),
    ((6, 7), 1, 2, 0),
    ((6, 7), 1, 2, 1),
    ((2, 2), 3, 1, 1),
    ((4, 5), 3, 2, 1),
    ((9, 9), 5, 2, 1),
    ((9, 9), 3, 1, 1),  # Too large a map: the plain convolution.
  ],
)
def test_convolution_equals_plain_convolution(size, window, stride, padding):
  def convolution(function, x, kernel):
    return function(
      x,
      kernel,
      (stride, stride),
      [(padding, padding)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  assert_equal(
    functools.partial(convolution, kernels.convolve),
    functools.partial(convolution, lax.conv_general_dilated),
    normal(2, *size, 4),
    normal(window, window, 4, 5, seed=1),
    atol=1e-5,
  )


@pytest.mark.parametrize("rows", [1, 7, 10_500, 100_003, 3_211_264])
def test_sum_of_rows_is_the_sum_of_however_many(rows):
  x = np.random.default_rng(0).random((rows, 2), np.float32)
  expected = x.sum(axis=0, dtype=np.float64)
  np.testing.assert_allclose(kernels.sum_of_rows(x), expected, rtol=2e-6)


def test_sum_of_rows_is_the_sum():
  x = normal(3, 50, 70, 4)
  expected = x.astype(np.float64).sum(axis=(0, 1, 2))
  np.testing.assert_allclose(kernels.sum_of_rows(x), expected, atol=1e-3)


@pytest.mark.parametrize("use_running_average", [False, True])
def test_batch_norm_equals_that_of_flax(use_running_average):
  options = {"use_running_average": use_running_average, "momentum": 0.9}
  x = 3 + 2 * normal(4, 5, 6, 7)
  params = {"scale": normal(7, seed=1), "bias": normal(7, seed=2)}
  stats = {"mean": normal(7, seed=3), "var": np.square(normal(7, seed=4))}

  def apply(norm, x, params, stats):
    variables = {"params": params, "batch_stats": stats}
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    changed = changed.get("batch_stats", stats)
    # Statistics beside the values: one array for value_and_gradients.
    rows = [lax.stop_gradient(changed[name]) for name in ("mean", "var")]
    return jnp.concatenate([y.reshape(-1, 7), jnp.stack(rows)])

  own, plain = (
    functools.partial(apply, norm(**options), stats=stats)
    for norm in (kernels.BatchNorm, nn.BatchNorm)
  )
  assert_equal(own, plain, x, params, atol=1e-4)


def test_synchronised_batch_norm_is_that_of_the_whole_batch():
  x = normal(8, 3, 3, 5)
  params = {"scale": normal(5, seed=1), "bias": normal(5, seed=2)}
  stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

  def run(axis_name, x, params):
    norm = kernels.BatchNorm(use_running_average=False, axis_name=axis_name)

    def loss(x, params):
      variables = {"params": params, "batch_stats": stats}
      y, _ = norm.apply(variables, x, mutable=["batch_stats"])
      return jnp.sum(jnp.sin(y))

    to_x, to_params = jax.grad(loss, argnums=(0, 1))(x, params)
    if axis_name is not None:
      to_params = lax.psum(to_params, axis_name)
    return to_x, to_params

  whole = run(None, x, params)
  to_x, to_params = jax.pmap(
    functools.partial(run, "replica"),
    axis_name="replica",
    in_axes=(0, None),
    devices=jax.devices()[:4],
  )(x.reshape(4, 2, 3, 3, 5), params)
  split = to_x.reshape(x.shape), jax.tree.map(lambda g: g[0], to_params)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    split,
    whole,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "network",
  [
    functools.partial(CNNM, normalisation="batch", dropout_rate=0.0),
    # Batch norm takes the gradient of the biases, but for rounding.
    functools.partial(VGG, stage_sizes=(1, 1, 1, 1, 1), dropout_rate=0.0),
    functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock),
  ],
)
def test_a_network_of_flax_s_own_layers_is_the_same(network):
  def pool(x, window, stride, padding):
    return nn.max_pool(x, (window, window), (stride, stride), padding)

  ours = network(num_classes=3, width=0.02)
  plain = ours.clone(conv=nn.Conv, norm=nn.BatchNorm, pool=pool)
  x = normal(2, 64, 64, 3)
  variables = ours.init(jax.random.key(0), x, train=False)

  def gradient(model):
    def loss(params):
      all_of_it = {**variables, "params": params}
      (logits, _), changed = model.apply(
        all_of_it, x, train=True, mutable=["batch_stats"]
      )
      return jnp.square(logits - 1).sum(), changed

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

  for a, b in zip(
    *map(jax.tree.leaves, map(gradient, (ours, plain))), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max())
