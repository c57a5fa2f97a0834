"""The kernel for GPUs, interpreted, against the plain updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostream_jax.flow import tvl1, tvl1_kernel

PARAMETERS = {"tau": 0.25, "lambda_": 0.3, "theta": 0.4}


def random_problem(b, h, w):
  """State and linear terms, as in the middle of a solution."""
  rng = np.random.default_rng(0)

  def draw(scale):
    return jnp.asarray(scale * rng.normal(size=(b, h, w)), jnp.float32)

  state = tuple(draw(s) for s in (2.0, 2.0, 0.3, 0.3, 0.3, 0.3))
  return state, (draw(10.0), draw(5.0), draw(5.0))


@pytest.mark.parametrize(
  "shape, iterations",
  [
    ((2, 37, 91), 7),  # Several tiles each way; a pass that is not full.
    pytest.param((1, 16, 21), 1, marks=pytest.mark.slow),
    pytest.param((3, 2, 300), 3, marks=pytest.mark.slow),
    pytest.param((1, 130, 2), 6, marks=pytest.mark.slow),
  ],
)
def test_the_kernel_equals_the_plain_updates(shape, iterations):
  state, linear = random_problem(*shape)
  expected = tvl1.plain_updates(
    state, linear, iterations=iterations, **PARAMETERS
  )
  found = tvl1_kernel.updates(
    state, linear, iterations=iterations, interpret=True, **PARAMETERS
  )
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_flow_by_the_kernel_is_the_flow(monkeypatch):
  rng = np.random.default_rng(0)
  image = np.asarray(
    jax.image.resize(rng.uniform(0, 255, (8, 10)), (50, 70), "cubic")
  )
  pair = image[2:42, 3:63], image[1:41, 1:61]
  settings = {"nscales": 2, "warps": 2, "iterations": 6}
  expected = tvl1.tvl1(*pair, **settings)
  monkeypatch.setattr(
    tvl1,
    "_updates",
    lambda *args, **parameters: tvl1_kernel.updates(
      *args, interpret=True, **parameters
    ),
  )
  tvl1.tvl1.clear_cache()
  found = tvl1.tvl1(*pair, **settings)
  tvl1.tvl1.clear_cache()
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_there_is_no_kernel_on_a_cpu():
  assert not tvl1.has_kernel()


@pytest.mark.parametrize("form", ["plain", "kernel"])
def test_no_pairs_have_no_flow(monkeypatch, form):
  monkeypatch.setattr(tvl1, "has_kernel", lambda: form == "kernel")
  tvl1.tvl1.clear_cache()
  nothing = np.zeros((0, 20, 20), np.uint8)
  assert tvl1.tvl1(nothing, nothing).shape == (0, 20, 20, 2)
  tvl1.tvl1.clear_cache()


@pytest.mark.slow
def test_derivatives_are_those_of_the_plain_form(monkeypatch):
  state, linear = random_problem(1, 8, 9)
  plain = functools.partial(tvl1.plain_updates, iterations=2, **PARAMETERS)
  monkeypatch.setattr(tvl1, "has_kernel", lambda: True)

  def either(state, linear):
    # Lowered for the CPU, which gets the plain form of the two.
    return tvl1._updates(state, linear, iterations=2, **PARAMETERS)

  for own, expected in zip(
    jax.vjp(jax.jit(either), state, linear)[1](state),
    jax.vjp(jax.jit(plain), state, linear)[1](state),
    strict=True,
  ):
    for a, b in zip(own, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.jit(either)(state, linear),
    jax.jit(plain)(state, linear),
  )
