import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from twostream_jax.models.resnet import (
  BasicBlock,
  BottleneckBlock,
  ResNet,
)

# Compiling the default generator takes seconds; this one is compiled at once.
_KEY = jax.random.key(0, impl="rbg")

Small = functools.partial(ResNet, num_classes=5, width=0.02, stage_sizes=(1, 2))


def _images():
  return jax.random.normal(_KEY, (3, 64, 64, 3))


@functools.cache
def _init(model):
  """Variables with every batch norm scale set to 1.

  At a fresh initialisation the residual branches are switched off (a scale
  of zero), so that neither values nor gradients pass through them.
  """
  init = jax.jit(model.init, static_argnames="train")
  variables = init(_KEY, _images(), train=False)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      jnp.ones_like(leaf) if "scale" in jax.tree_util.keystr(path) else leaf
    ),
    variables,
  )


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _apply(model, variables, x, train=False):
  return model.apply(
    variables,
    x,
    train=train,
    rngs={"dropout": _KEY},
    mutable=["batch_stats"],
  )


def _conv_numpy(x, layer, stride, padding):
  pad = (padding, padding)
  window = layer["kernel"].shape[:2]
  patches = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, [(0, 0), pad, pad, (0, 0)]), window, axis=(1, 2)
  )[:, ::stride, ::stride]
  return np.einsum("bhwcij,ijcn->bhwn", patches, layer["kernel"])


def _norm_numpy(x, params, stats):
  scale = params["scale"] / np.sqrt(stats["var"] + 1e-5)
  return (x - stats["mean"]) * scale + params["bias"]


def _block_numpy(variables, x, layers, stride):
  """layers: (conv name, norm name, stride, padding) of the residual branch."""
  params, stats = variables["params"], variables["batch_stats"]
  y = x
  for index, (conv, norm, conv_stride, padding) in enumerate(layers):
    y = np.maximum(y, 0) if index else y
    y = _conv_numpy(y, params[conv], conv_stride, padding)
    y = _norm_numpy(y, params[norm], stats[norm])
  if "downsample_conv" in params:
    x = _conv_numpy(x, params["downsample_conv"], stride, 0)
    x = _norm_numpy(x, params["downsample_bn"], stats["downsample_bn"])
  return np.maximum(x + y, 0)


@pytest.mark.parametrize("channels, stride", [(8, 1), (6, 1), (6, 2)])
@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_block_equals_numpy(block, channels, stride):
  module = block(
    channels=channels,
    stride=stride,
    conv=functools.partial(nn.Conv, use_bias=False, padding=0),
    norm=functools.partial(
      nn.BatchNorm, use_running_average=True, epsilon=1e-5
    ),
  )
  x = jax.random.normal(jax.random.key(0), (2, 7, 8, 8))
  # Scales, means and variances that are neither 0 nor 1 show each mistake.
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32),
    module.init(_KEY, x),
  )
  layers = {
    BasicBlock: [("conv1", "bn1", stride, 1), ("conv2", "bn2", 1, 1)],
    BottleneckBlock: [
      ("conv1", "bn1", 1, 0),
      ("conv2", "bn2", stride, 1),
      ("conv3", "bn3", 1, 0),
    ],
  }[block]
  expected = _block_numpy(variables, np.asarray(x), layers, stride)
  np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4)


def test_stages_have_the_sizes_of_table_1():
  model = ResNet(num_classes=7, stage_sizes=(1, 1, 1, 1), block=BottleneckBlock)
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  (_, features), variables = jax.eval_shape(
    lambda x: model.init_with_output(
      jax.random.key(0), x, train=False, capture_intermediates=True
    ),
    x,
  )
  maps = [
    variables["intermediates"][f"layer{stage}_0"]["__call__"][0].shape
    for stage in range(1, 5)
  ]
  assert maps == [
    (1, 56, 56, 256),
    (1, 28, 28, 512),
    (1, 14, 14, 1024),
    (1, 7, 7, 2048),
  ]
  assert features["conv"].shape == (1, 7, 7, 2048)
  assert features["pool"].shape == (1, 2048)


def test_stem_pads_symmetrically():
  model = Small(block=BasicBlock)
  x = _images()
  variables = _init(model)
  _, state = model.apply(variables, x, train=False, capture_intermediates=True)
  stem = state["intermediates"]["conv1"]["__call__"][0]
  expected = _conv_numpy(
    np.asarray(x), jax.tree.map(np.asarray, variables["params"]["conv1"]), 2, 3
  )
  np.testing.assert_allclose(stem, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "block", [BasicBlock, pytest.param(BottleneckBlock, marks=pytest.mark.slow)]
)
def test_gradients_reach_every_parameter(block):
  model = Small(block=block, dropout_rate=0.2)
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
    assert np.abs(gradient).max() > 1e-6, name


@pytest.mark.parametrize(
  "block, last",
  [
    (BasicBlock, "bn2"),
    pytest.param(BottleneckBlock, "bn3", marks=pytest.mark.slow),
  ],
)
def test_every_block_starts_as_its_shortcut(block, last):
  init = jax.jit(Small(block=block).init, static_argnames="train")
  params = init(_KEY, _images(), train=False)["params"]
  blocks = [value for name, value in params.items() if "layer" in name]
  assert len(blocks) == 3
  for block_params in blocks:
    zero = [
      name
      for name, layer in block_params.items()
      if "scale" in layer and not layer["scale"].any()
    ]
    assert zero == [last]


def test_statistics_move_only_in_training():
  model = Small(block=BasicBlock)
  x = _images()
  variables = _init(model)
  before = jax.tree.leaves(variables["batch_stats"])
  for train in (True, False):
    _, updated = _apply(model, variables, x, train)
    after = jax.tree.leaves(updated["batch_stats"])
    moved = [np.any(a != b) for a, b in zip(after, before, strict=True)]
    assert all(moved) if train else not any(moved)


def test_bfloat16_keeps_logits_and_parameters_float32():
  model = Small(block=BasicBlock, dtype=jnp.bfloat16)
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, _images())
  assert logits.dtype == jnp.float32
  assert features["conv"].dtype == jnp.bfloat16
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_logits_are_those_of_the_pooled_map():
  model = Small(block=BasicBlock)
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, _images())
  pool = np.asarray(features["conv"]).mean(axis=(1, 2))
  np.testing.assert_allclose(features["pool"], pool, rtol=1e-5, atol=1e-6)
  head = jax.tree.map(np.asarray, variables["params"]["logits"])
  np.testing.assert_allclose(
    logits, pool @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-6
  )


def test_head_after_trunk_is_the_whole_network():
  model = Small(block=BasicBlock)
  x = _images()
  variables = _init(model)
  (logits, features), _ = _apply(model, variables, x, train=False)
  apply = functools.partial(
    model.apply, variables, train=False, rngs={"dropout": _KEY}
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
