import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostream_jax.models.cnn_m import CNNM
from twostream_jax.models.layers import (
  local_response_normalisation,
  max_pool_ceil,
)

# Compiling the default generator takes seconds; this one is compiled at once.
_KEY = jax.random.key(0, impl="rbg")


def _small(**fields):
  return CNNM(**{"num_classes": 5, "width": 0.02, **fields})


def _images(channels=3, size=64):
  return jax.random.normal(_KEY, (2, size, size, channels))


@functools.cache
def _init(model, channels=3, size=64):
  init = jax.jit(model.init, static_argnames="train")
  return init(_KEY, _images(channels, size), train=False)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _apply(model, variables, x, train=False):
  return model.apply(
    variables,
    x,
    train=train,
    rngs={"dropout": _KEY},
    mutable=["batch_stats"],
  )


def test_maps_and_layers_have_the_papers_sizes():
  x = jax.ShapeDtypeStruct((1, 224, 224, 20), jnp.float32)
  model = CNNM(num_classes=101)
  (logits, features), variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
  )
  kernels = {k: v["kernel"].shape for k, v in variables["params"].items()}
  assert kernels == {
    "conv1": (7, 7, 20, 96),
    "conv2": (5, 5, 96, 256),
    "conv3": (3, 3, 256, 512),
    "conv4": (3, 3, 512, 512),
    "conv5": (3, 3, 512, 512),
    "fc6": (18432, 4096),
    "fc7": (4096, 2048),
    "logits": (2048, 101),
  }
  shapes = {k: v.shape for k, v in features.items()}
  assert shapes == {
    "conv": (1, 13, 13, 512),
    "fc6": (1, 4096),
    "fc7": (1, 2048),
  }
  assert logits.shape == (1, 101)


def _conv_numpy(x, layer, stride, padding):
  pad = (padding, padding)
  window = layer["kernel"].shape[:2]
  patches = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, [(0, 0), pad, pad, (0, 0)]), window, axis=(1, 2)
  )[:, ::stride, ::stride]
  return (
    np.einsum("bhwcij,ijcn->bhwn", patches, layer["kernel"]) + layer["bias"]
  )


def _forward_numpy(params, x, lrns):
  """The layer table of the paper, written out; lrns: 0, 1 or 2 LRNs."""
  p = jax.tree.map(np.asarray, params)
  normalise = [local_response_normalisation] * lrns + [np.asarray] * (2 - lrns)
  x = np.maximum(_conv_numpy(x, p["conv1"], 2, 0), 0)
  x = np.asarray(max_pool_ceil(normalise[0](x)))
  x = np.maximum(_conv_numpy(x, p["conv2"], 2, 1), 0)
  x = np.asarray(max_pool_ceil(normalise[1](x)))
  for name in ("conv3", "conv4", "conv5"):
    x = np.maximum(_conv_numpy(x, p[name], 1, 1), 0)
  x = np.asarray(max_pool_ceil(x)).reshape(len(x), -1)
  for name in ("fc6", "fc7"):
    x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
  return x @ p["logits"]["kernel"] + p["logits"]["bias"]


@pytest.mark.parametrize(
  "fields, lrns",
  [
    ({}, 2),
    ({"second_lrn": False}, 1),
    ({"normalisation": "none"}, 0),
  ],
)
def test_forward_equals_the_layer_table(fields, lrns):
  model = _small(**fields)
  x = 20 * _images(size=75)  # Large values: LRN is far from a mere scaling.
  variables = _init(model, size=75)
  (logits, _), _ = _apply(model, variables, x)
  expected = _forward_numpy(variables["params"], np.asarray(x), lrns)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  others = [
    _forward_numpy(variables["params"], np.asarray(x), n)
    for n in {0, 1, 2} - {lrns}
  ]
  for other in others:
    assert np.abs(other - expected).max() > 1e-3


@pytest.mark.parametrize(
  "normalisation",
  [
    "lrn",
    pytest.param("batch", marks=pytest.mark.slow),
    pytest.param("none", marks=pytest.mark.slow),
  ],
)
def test_gradients_reach_every_parameter(normalisation):
  model = _small(normalisation=normalisation, dropout_rate=0.1)
  x = _images(channels=4)
  variables = _init(model, channels=4)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    (logits, _), _ = _apply(
      model, {**variables, "params": params}, x, train=True
    )
    return jnp.sum(logits**2 + logits)

  value, gradients = loss(variables["params"])
  assert np.isfinite(value)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(gradient).all(), name
    assert np.abs(gradient).max() > 0, name


def test_batch_norm_replaces_lrn_and_moves_only_in_training():
  model = _small(normalisation="batch")
  x = _images()
  variables = _init(model)
  assert set(variables["batch_stats"]) == {f"bn{i}" for i in range(1, 6)}
  for train in (True, False):
    _, updated = _apply(model, variables, x, train)
    for layer, stats in updated["batch_stats"].items():
      before = variables["batch_stats"][layer]
      moved = np.any(stats["mean"] != before["mean"])
      assert moved == train, layer


def test_bfloat16_keeps_logits_and_parameters_float32():
  model = _small(dtype=jnp.bfloat16)
  x = _images()
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, x)
  assert logits.dtype == jnp.float32
  assert features["fc7"].dtype == jnp.bfloat16
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  (full, _), _ = _apply(_small(), variables, x)
  np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())


def test_features_are_taken_before_dropout():
  model = _small(dropout_rate=0.9)
  x = _images()
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, x, train=True)
  (still, reference), _ = _apply(model, variables, x)
  np.testing.assert_allclose(features["fc6"], reference["fc6"], rtol=1e-6)
  assert np.abs(logits - still).max() > 0


def test_an_unknown_normalisation_is_refused():
  with pytest.raises(ValueError, match="lrn, batch, none"):
    _init(_small(normalisation="layer"))


def test_head_after_trunk_is_the_whole_network():
  model = _small()
  x = _images()
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, x, train=True)
  apply = functools.partial(
    model.apply, variables, train=True, rngs={"dropout": _KEY}
  )

  @jax.jit
  def in_parts(x):
    conv = apply(x, method="trunk")
    return conv, apply(conv, method="head"), apply(conv, method="embed")

  conv, (of_head, others), (vector, _) = in_parts(x)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  close(conv, features["conv"])
  close(of_head, logits)
  for name, value in others.items():
    close(value, features[name])
  assert set(features) == {"conv"} | set(others)
  classifier = jax.tree.map(np.asarray, variables["params"]["logits"])
  close(np.asarray(vector) @ classifier["kernel"] + classifier["bias"], logits)
