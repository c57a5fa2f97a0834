"""Two streams in one network: the formulas of fusion, and what is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from twostream_jax.models import create_model
from twostream_jax.models.layers import batch_norm
from twostream_jax.models.two_stream import FUSIONS, TwoStream

# Compiling the default generator takes seconds; this one is compiled at once.
_KEY = jax.random.key(0, impl="rbg")
CONVOLUTIONAL = ("sum", "max", "conv_concat", "conv")


class TinyBackbone(nn.Module):
  """A backbone of one convolution, batch norm and one hidden layer."""

  num_classes: int = 3
  channels: int = 6

  def __call__(self, x, *, train):
    conv = self.trunk(x, train=train)
    logits, features = self.head(conv, train=train)
    return logits, {"conv": conv} | features

  @nn.compact
  def trunk(self, x, *, train):
    x = nn.Conv(self.channels, (3, 3), strides=2, name="conv")(x)
    norm = batch_norm(
      train=train, dtype=jnp.float32, axis_name=None, sync=False
    )
    return nn.relu(norm(name="bn")(x))

  @nn.compact
  def embed(self, conv, *, train):
    hidden = nn.relu(nn.Dense(7, name="hidden")(conv.mean(axis=(1, 2))))
    return hidden, {"hidden": hidden}

  @nn.compact
  def head(self, conv, *, train):
    hidden, features = self.embed(conv, train=train)
    return nn.Dense(self.num_classes, name="logits")(hidden), features


def _tiny(fusion):
  return TwoStream(TinyBackbone(), TinyBackbone(), fusion)


def _inputs(b=2):
  rng = np.random.default_rng(0)
  return {
    "rgb": rng.normal(size=(b, 3, 8, 8, 3)).astype(np.float32),
    "flow": rng.normal(size=(b, 3, 8, 8, 4)).astype(np.float32),
  }


@functools.cache
def _init(model):
  init = jax.jit(model.init, static_argnames="train")
  return init(_KEY, _inputs(), train=False)


@functools.partial(jax.jit, static_argnames=("model", "train", "method"))
def _apply(model, variables, *args, train=False, method=None):
  return model.apply(variables, *args, train=train, method=method)


def _of(variables, stream):
  return {kind: tree[stream] for kind, tree in variables.items()}


def test_average_is_the_mean_of_both_networks_own_logits():
  model, inputs = _tiny("average"), _inputs(b=1)
  variables = _init(model)
  logits, features = _apply(model, variables, inputs)
  own = {
    stream: _apply(TinyBackbone(), _of(variables, stream), inputs[modality][0])
    for stream, modality in (("spatial", "rgb"), ("temporal", "flow"))
  }
  expected = (own["spatial"][0] + own["temporal"][0]).mean(axis=0) / 2
  np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-6)
  for stream, (_, theirs) in own.items():
    for feature, value in theirs.items():
      np.testing.assert_allclose(
        features[f"{stream}_{feature}"][0], value, rtol=1e-4, atol=1e-5
      )


def test_concat_classifies_both_vectors():
  model, inputs = _tiny("concat"), _inputs()
  variables = _init(model)
  logits, features = _apply(model, variables, inputs)
  vectors = [features[f"{name}_hidden"] for name in ("spatial", "temporal")]
  x = np.concatenate(vectors, axis=-1)
  layer = jax.tree.map(np.asarray, variables["params"]["logits"])
  expected = (x @ layer["kernel"] + layer["bias"]).mean(axis=1)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
  # Classifiers that are never read do not exist.
  for stream in ("spatial", "temporal"):
    assert "logits" not in variables["params"][stream]


def _fuse_numpy(fusion, a, b, params):
  if fusion == "sum":
    return a + b
  if fusion == "max":
    return np.maximum(a, b)
  both = np.concatenate([a, b], axis=-1)
  if fusion == "conv_concat":
    return both
  layer = jax.tree.map(np.asarray, params["fusion"])
  return both @ layer["kernel"][0, 0] + layer["bias"]


@pytest.mark.parametrize("fusion", CONVOLUTIONAL)
def test_fused_maps_go_on_through_the_spatial_network(fusion):
  model, inputs = _tiny(fusion), _inputs()
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda leaf: leaf + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32),
    _init(model),
  )
  logits, features = _apply(model, variables, inputs)
  maps = [
    _apply(
      TinyBackbone(),
      _of(variables, stream),
      inputs[modality].reshape((6,) + inputs[modality].shape[2:]),
      method="trunk",
    )
    for stream, modality in (("spatial", "rgb"), ("temporal", "flow"))
  ]
  fused = _fuse_numpy(fusion, *map(np.asarray, maps), variables["params"])
  own, _ = _apply(
    TinyBackbone(), _of(variables, "spatial"), fused, method="head"
  )
  np.testing.assert_allclose(
    features["fused_conv"].reshape(fused.shape), fused, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    logits, own.reshape(2, 3, 3).mean(axis=1), rtol=1e-4, atol=1e-5
  )
  # The temporal network ends at its last map.
  assert set(variables["params"]["temporal"]) == {"conv", "bn"}


def test_conv_starts_as_the_sum_and_learns_beyond_it():
  inputs = _inputs()
  model = _tiny("conv")
  variables = _init(model)
  kernel = np.asarray(variables["params"]["fusion"]["kernel"])
  np.testing.assert_array_equal(kernel[0, 0], np.tile(np.eye(6), (2, 1)))
  params = dict(variables["params"])
  del params["fusion"]
  logits, _ = _apply(model, variables, inputs)
  of_sum, _ = _apply(_tiny("sum"), {**variables, "params": params}, inputs)
  np.testing.assert_allclose(logits, of_sum, rtol=1e-5, atol=1e-6)
  grads, _ = _gradients(model)
  off_diagonal = grads["fusion"]["kernel"][0, 0][kernel[0, 0] == 0]
  assert (off_diagonal != 0).mean() > 0.9


@functools.cache
def _gradients(model):
  variables = _init(model)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(params, inputs):
    (logits, _), _ = model.apply(
      {**variables, "params": params},
      inputs,
      train=True,
      mutable=["batch_stats"],
    )
    return jnp.sum(logits**2 + logits)

  found = gradients(variables["params"], _inputs())
  return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_reach_every_parameter_and_both_inputs(fusion):
  of_params, of_inputs = _gradients(_tiny(fusion))
  for path, gradient in jax.tree.leaves_with_path(of_params):
    assert np.isfinite(gradient).all(), path
    # Batch norm subtracts a preceding bias again: its gradient is rounding.
    if "conv" not in str(path) or gradient.ndim > 1:
      assert np.abs(gradient).max() > 1e-6, path
  for name, gradient in of_inputs.items():
    assert (np.abs(gradient).max(axis=(2, 3, 4)) > 0).all(), name


def test_both_networks_statistics_move_in_training_only():
  model = _tiny("conv")
  variables = _init(model)
  for train in (True, False):
    _, changed = model.apply(
      variables, _inputs(), train=train, mutable=["batch_stats"]
    )
    for stream, before in variables["batch_stats"].items():
      after = changed["batch_stats"][stream]["bn"]["mean"]
      assert np.any(after != before["bn"]["mean"]) == train, stream


def _shapes(model, size=64):
  inputs = {
    "rgb": jax.ShapeDtypeStruct((2, 1, size, size, 3), jnp.float32),
    "flow": jax.ShapeDtypeStruct((2, 1, size, size, 20), jnp.float32),
  }
  return jax.eval_shape(
    lambda inputs: model.init_with_output(_KEY, inputs, train=False), inputs
  )


def _paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["cnn_m", "vgg11_bn", "resnet18"])
def test_parameters_are_those_of_the_single_streams(name, fusion):
  backbone = create_model(name, num_classes=11, width=0.1)
  model = TwoStream(backbone, backbone.clone(), fusion)
  (logits, _), variables = _shapes(model)
  assert (logits.shape, logits.dtype) == ((2, 11), jnp.float32)
  found = _paths(variables["params"])
  for stream, channels in (("spatial", 3), ("temporal", 20)):
    x = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32)
    alone = jax.eval_shape(
      lambda x: backbone.init(_KEY, x, train=False)["params"], x
    )
    expected = _paths(alone)
    differing = {
      path
      for path, shape in expected.items()
      if found.get(f"{stream}/{path}") != shape
    }
    layers = {path.split("/")[0] for path in differing}
    first, *others = (
      ["logits"] if name == "resnet18" else ["fc6", "fc7", "logits"]
    )
    if stream == "temporal" and fusion in CONVOLUTIONAL:
      assert layers == {first, *others}
    elif fusion == "concat":
      assert layers == {"logits"}
    elif fusion == "conv_concat":
      assert differing == {f"{first}/kernel"}
    else:
      assert not layers


def test_maps_of_different_sizes_are_refused():
  model = TwoStream(
    create_model("vgg16", num_classes=5, width=0.1),
    create_model("cnn_m", num_classes=5, width=0.1),
    "conv",
  )
  with pytest.raises(ValueError, match="14 x 14.*13 x 13.*pixel by pixel"):
    _shapes(model, size=224)
  (logits, _), _ = _shapes(model.clone(fusion="concat"), size=224)
  assert logits.shape == (2, 5)


@pytest.mark.parametrize("fusion", ["sum", "max", "conv"])
def test_maps_with_different_channels_are_refused(fusion):
  model = TwoStream(TinyBackbone(), TinyBackbone(channels=5), fusion)
  with pytest.raises(ValueError, match="6 .spatial. and 5 .temporal. channels"):
    _shapes(model)
  (logits, features), _ = _shapes(model.clone(fusion="conv_concat"))
  assert logits.shape == (2, 3)
  assert features["fused_conv"].shape[-1] == 11


def test_networks_of_different_classes_are_refused():
  model = TwoStream(TinyBackbone(3), TinyBackbone(4), "average")
  with pytest.raises(ValueError, match="3 classes.*4"):
    _shapes(model)


@pytest.mark.parametrize(
  "change, match",
  [
    ({"flow": None}, "no input flow; the inputs are rgb"),
    ({"flow": np.zeros((2, 1, 8, 8, 4))}, "as many clips b and segments t"),
    ({"rgb": np.zeros((2, 8, 8, 3))}, r"\[b t h w c\]"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(change, match):
  inputs = {k: x for k, x in (_inputs() | change).items() if x is not None}
  with pytest.raises(ValueError, match=match):
    _tiny("sum").init(_KEY, inputs, train=False)


def test_one_network_cannot_be_both():
  backbone = TinyBackbone()
  with pytest.raises(ValueError, match="the same module"):
    TwoStream(backbone, backbone).init(_KEY, _inputs(), train=False)


def test_an_unknown_fusion_is_refused():
  with pytest.raises(ValueError, match="average, concat, .*got 'bilinear'"):
    _tiny("bilinear").init(_KEY, _inputs(), train=False)
