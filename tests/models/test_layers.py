import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from twostream_jax.models.layers import (
  Dropout,
  batch_norm,
  check_input,
  local_response_normalisation,
  max_pool_ceil,
  scale_width,
)


def _drop(x, key, rate=0.5, index=None):
  batch = {} if index is None else {"batch": {"index": index}}
  return Dropout(rate).apply(
    batch, x, deterministic=False, rngs={"dropout": key}
  )


def test_dropout_zeroes_or_scales_and_preserves_the_mean():
  x = jnp.ones((8, 5000))
  y = np.asarray(_drop(x, jax.random.key(0), rate=0.9))
  np.testing.assert_allclose(np.unique(y), [0.0, 10.0], rtol=1e-6)
  # 40000 draws: the standard deviation of the mean is 0.015.
  assert abs(y.mean() - 1.0) < 0.06


def test_dropout_masks_differ_between_examples_and_keys():
  x = jnp.ones((4, 100))
  masks = [np.asarray(_drop(x, jax.random.key(k))) for k in range(2)]
  rows = np.concatenate(masks)
  assert len(np.unique(rows, axis=0)) == 8


def test_dropout_is_reproducible_and_independent_of_the_batch_size():
  x = jnp.ones((6, 100))
  y = _drop(x, jax.random.key(3))
  np.testing.assert_array_equal(y, _drop(x, jax.random.key(3)))
  np.testing.assert_array_equal(y[:2], _drop(x[:2], jax.random.key(3)))


def test_dropout_is_identity_when_deterministic_or_rate_is_zero():
  x = jax.random.normal(jax.random.key(0), (3, 7))
  np.testing.assert_array_equal(
    Dropout(0.9).apply({}, x, deterministic=True), x
  )
  np.testing.assert_array_equal(
    Dropout(0.0).apply({}, x, deterministic=False), x
  )


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_refuses_a_rate_outside_its_range(rate):
  with pytest.raises(ValueError, match="rate must be in"):
    Dropout(rate).apply({}, jnp.ones((1, 2)), deterministic=True)


class _Nested(nn.Module):
  @nn.compact
  def __call__(self, x):
    return _Inner(name="inner")(x)


class _Inner(nn.Module):
  @nn.compact
  def __call__(self, x):
    return Dropout(0.5)(x, deterministic=False)


@pytest.mark.parametrize("segments", [1, 3])
def test_dropout_of_parts_of_a_batch_is_that_of_the_whole(segments):
  x = jnp.ones((6 * segments, 100))
  rngs = {"dropout": jax.random.key(5)}
  whole = _Nested().apply({}, x, rngs=rngs).reshape(6, segments, 100)
  for index in (jnp.array([4, 1]), jnp.array([0, 2, 3, 5])):
    part = _Nested().apply(
      {"batch": {"index": index}}, x[: len(index) * segments], rngs=rngs
    )
    np.testing.assert_array_equal(part.reshape(-1, segments, 100), whole[index])


def test_dropout_initialises_without_a_batch():
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  assert Dropout(0.5).init(rngs, jnp.ones((2, 3)), deterministic=False) == {}


def test_dropout_keeps_the_dtype():
  y = _drop(jnp.ones((2, 4), jnp.bfloat16), jax.random.key(0))
  assert y.dtype == jnp.bfloat16


def _lrn_numpy(x, size, k, alpha, beta):
  y = np.empty_like(x)
  for i in range(x.shape[-1]):
    first, last = max(0, i - size // 2), i + size // 2
    energy = np.sum(x[..., first : last + 1] ** 2, axis=-1)
    y[..., i] = x[..., i] / (k + alpha * energy) ** beta
  return y


@pytest.mark.parametrize("size, channels", [(5, 9), (5, 3), (3, 4), (1, 2)])
def test_lrn_equals_brute_force(size, channels):
  x = np.random.default_rng(0).normal(size=(2, 3, 4, channels)) * 50
  y = local_response_normalisation(jnp.asarray(x), size, 2.0, 1e-2, 0.75)
  expected = _lrn_numpy(x, size, 2.0, 1e-2, 0.75)
  np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_lrn_defaults_are_those_of_krizhevsky():
  x = np.random.default_rng(0).normal(size=(1, 2, 2, 7)) * 100
  y = local_response_normalisation(jnp.asarray(x))
  np.testing.assert_allclose(y, _lrn_numpy(x, 5, 2.0, 1e-4, 0.75), rtol=1e-5)


def test_lrn_sums_bfloat16_in_float32():
  x = jnp.full((1, 1, 1, 5), 100.0, jnp.bfloat16)
  y = local_response_normalisation(x)
  assert y.dtype == jnp.bfloat16
  middle = 100.0 / (2.0 + 1e-4 * 5 * 100.0**2) ** 0.75
  np.testing.assert_allclose(float(y[0, 0, 0, 2]), middle, rtol=2**-8)


@pytest.mark.parametrize("size", [0, 4, -1])
def test_lrn_refuses_a_size_without_a_centre(size):
  with pytest.raises(ValueError, match="odd"):
    local_response_normalisation(jnp.ones((1, 1, 1, 8)), size)


def _pool_numpy(x, window, stride):
  h, w = x.shape[1:3]
  rows, columns = (
    [
      i * stride
      for i in range(max(0, math.ceil((size - window) / stride)) + 1)
      if i * stride < size
    ]
    for size in (h, w)
  )
  return np.stack(
    [
      np.stack(
        [
          x[:, r : r + window, c : c + window].max(axis=(1, 2)) for c in columns
        ],
        axis=1,
      )
      for r in rows
    ],
    axis=1,
  )


@pytest.mark.parametrize(
  "height, width, window, stride",
  [
    (9, 8, 3, 2),
    (7, 10, 2, 2),
    (8, 11, 3, 3),
    (6, 6, 1, 2),  # The last window would start outside.
    (7, 9, 2, 5),
    (2, 1, 3, 2),  # The window is larger than the input.
  ],
)
def test_ceil_pool_equals_brute_force(height, width, window, stride):
  x = np.random.default_rng(0).normal(size=(2, height, width, 3)) - 5
  x = x.astype(np.float32)
  y = max_pool_ceil(jnp.asarray(x), window, stride)
  np.testing.assert_array_equal(y, _pool_numpy(x, window, stride))
  assert np.isfinite(y).all()


@pytest.mark.parametrize("size, pooled", [(109, 54), (26, 13), (13, 6)])
def test_ceil_pool_has_the_geometry_of_cnn_m(size, pooled):
  y = jax.eval_shape(max_pool_ceil, jnp.zeros((1, size, size, 1)))
  assert y.shape == (1, pooled, pooled, 1)


def test_ceil_pool_rounds_up_where_floor_would_lose_the_border():
  x = jnp.zeros((1, 6, 6, 1)).at[0, 5, 5, 0].set(1.0)
  assert nn.max_pool(x, (3, 3), (2, 2)).max() == 0.0
  assert max_pool_ceil(x).shape == (1, 3, 3, 1)
  assert max_pool_ceil(x)[0, 2, 2, 0] == 1.0


def test_ceil_pool_refuses_an_empty_window():
  with pytest.raises(ValueError, match="at least 1"):
    max_pool_ceil(jnp.ones((1, 4, 4, 1)), window=0)


def _running_mean(x, axis_name, sync):
  norm = batch_norm(
    train=True, dtype=jnp.float32, axis_name=axis_name, sync=sync
  )()
  variables = {
    "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
    "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
  }
  _, updated = norm.apply(variables, x, mutable=["batch_stats"])
  return updated["batch_stats"]["mean"]


def test_batch_norm_shares_statistics_only_where_asked():
  x = jax.random.normal(jax.random.key(0), (4, 2, 3))
  means = {
    sync: jax.pmap(
      functools.partial(_running_mean, axis_name="replica", sync=sync),
      axis_name="replica",
      devices=jax.devices()[:4],
    )(x)
    for sync in (True, False)
  }
  np.testing.assert_allclose(means[False], 0.1 * x.mean(axis=1), atol=1e-6)
  whole = 0.1 * x.reshape(8, 3).mean(axis=0)
  np.testing.assert_allclose(
    means[True], np.broadcast_to(whole, (4, 3)), atol=1e-6
  )


def test_synchronised_batch_norm_needs_an_axis_in_training():
  norm = functools.partial(
    batch_norm, dtype=jnp.float32, axis_name=None, sync=True
  )
  norm(train=False)
  with pytest.raises(ValueError, match="needs axis_name"):
    norm(train=True)


@pytest.mark.parametrize(
  "count, width, expected",
  [(96, 1.0, 96), (96, 0.5, 48), (64, 0.01, 8), (64, 2.0, 128), (50, 0.3, 15)],
)
def test_width_scales_counts(count, width, expected):
  assert scale_width(count, width) == expected


@pytest.mark.parametrize("width", [0.0, -1.0])
def test_width_must_be_positive(width):
  with pytest.raises(ValueError, match="width must be positive"):
    scale_width(64, width)


@pytest.mark.parametrize(
  "x, message",
  [
    (np.zeros((64, 64, 3), np.float32), "b h w c"),
    (np.zeros((1, 64, 64, 3), np.uint8), "uint8"),
    (np.zeros((1, 63, 64, 3), np.float32), "minimum is 64 x 64"),
    (np.zeros((1, 64, 32, 3), np.float32), "64 x 32"),
  ],
)
def test_input_errors_say_what_is_wrong(x, message):
  with pytest.raises(ValueError, match=message):
    check_input(jnp.asarray(x))
