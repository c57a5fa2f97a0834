import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostream_jax.models.vgg import VGG11, VGG16

# Compiling the default generator takes seconds; this one is compiled at once.
_KEY = jax.random.key(0, impl="rbg")


def _small(vgg=VGG11, **fields):
  return vgg(**{"num_classes": 5, "width": 0.02, **fields})


def _images(height=64, width=64):
  return jax.random.normal(_KEY, (2, height, width, 3))


@functools.cache
def _init(model, height=64, width=64):
  init = jax.jit(model.init, static_argnames="train")
  return init(_KEY, _images(height, width), train=False)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _apply(model, variables, x, train=False):
  return model.apply(
    variables,
    x,
    train=train,
    rngs={"dropout": _KEY},
    mutable=["batch_stats"],
  )


def test_layers_are_those_of_table_1_column_d():
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  model = VGG16(num_classes=1000)
  (_, features), variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
  )
  channels = {
    name: layer["kernel"].shape[-1]
    for name, layer in variables["params"].items()
  }
  assert channels == {
    **{"conv1_1": 64, "conv1_2": 64, "conv2_1": 128, "conv2_2": 128},
    **{"conv3_1": 256, "conv3_2": 256, "conv3_3": 256},
    **{"conv4_1": 512, "conv4_2": 512, "conv4_3": 512},
    **{"conv5_1": 512, "conv5_2": 512, "conv5_3": 512},
    **{"fc6": 4096, "fc7": 4096, "logits": 1000},
  }
  assert features["conv"].shape == (1, 14, 14, 512)
  assert variables["params"]["fc6"]["kernel"].shape[0] == 7 * 7 * 512


@pytest.mark.slow
def test_fc6_flattens_rows_then_columns_then_channels():
  model = _small()
  x = _images(height=96, width=160)
  variables = _init(model, height=96, width=160)
  (_, features), _ = _apply(model, variables, x)
  conv = np.asarray(features["conv"])
  assert conv.shape == (2, 6, 10, 10)
  pooled = conv.reshape(2, 3, 2, 5, 2, 10).max(axis=(2, 4))
  fc6 = jax.tree.map(np.asarray, variables["params"]["fc6"])
  kernel = fc6["kernel"].reshape(3, 5, 10, -1)
  expected = np.einsum("bhwc,hwcn->bn", pooled, kernel) + fc6["bias"]
  np.testing.assert_allclose(
    features["fc6"], np.maximum(expected, 0), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  "use_batch_norm", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_gradients_reach_every_parameter(use_batch_norm):
  model = _small(use_batch_norm=use_batch_norm)
  x = _images()
  variables = _init(model)

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
    # Batch norm subtracts a preceding bias again: its gradient is rounding.
    if not (use_batch_norm and "conv" in name and "bias" in name):
      assert np.abs(gradient).max() > 1e-6, name


@pytest.mark.slow
def test_statistics_move_only_in_training():
  model = _small(use_batch_norm=True)
  x = _images()
  variables = _init(model)
  assert len(variables["batch_stats"]) == 8
  for train in (True, False):
    _, updated = _apply(model, variables, x, train)
    for layer, stats in updated["batch_stats"].items():
      before = variables["batch_stats"][layer]
      moved = np.any(stats["mean"] != before["mean"])
      assert moved == train, layer


def test_bfloat16_keeps_logits_and_parameters_float32():
  model = _small(dtype=jnp.bfloat16, use_batch_norm=True)
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, _images())
  assert logits.dtype == jnp.float32
  assert features["conv"].dtype == jnp.bfloat16
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_activations_keep_their_scale_at_initialisation():
  model = _small()
  x = _images()
  (_, features), _ = _apply(model, _init(model), x)
  for name, feature in features.items():
    assert 0.1 < float(jnp.sqrt(jnp.mean(feature**2))) < 10.0, name


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
