"""Class activation maps: known answers, and numbers by perturbation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from twostream_jax.models import create_feature_model, create_model
from twostream_jax.models.resnet import BasicBlock, ResNet
from twostream_jax.models.stream import Stream
from twostream_jax.models.two_stream import FUSIONS, TwoStream
from twostream_jax.results import class_maps


def randomised(variables, seed=0):
  """Variables without zeros: a fresh classifier's weights are tiny."""
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    tree,
    [
      jnp.asarray(x + rng.uniform(0.01, 0.1, x.shape), jnp.float32)
      for x in leaves
    ],
  )


def images(*shape, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def setup(model, inputs):
  init = jax.jit(lambda: model.init(jax.random.key(0), inputs, train=False))
  return randomised(init())


def narrow():
  return create_model("cnn_m", num_classes=3, width=0.02, normalisation="none")


class Identity(nn.Module):
  """A network whose last map is its input, classified by a global mean."""

  num_classes: int = 3

  def __call__(self, x, *, train):
    return self.head(self.trunk(x, train=train), train=train)[0], {}

  def trunk(self, x, *, train):
    return x

  @nn.compact
  def head(self, x, *, train):
    return nn.Dense(self.num_classes)(x.mean(axis=(1, 2))), {}


def test_after_a_global_mean_it_is_cam():
  """Zhou et al. 2016, equation 2: the kernel's column weighs the channels."""
  model = Stream(modality="rgb", backbone=Identity())
  x = images(2, 3, 4, 5, 6)
  variables = setup(model, {"rgb": x})
  classes = jnp.array([2, 0])
  found = class_maps.class_maps(variables, {"rgb": x}, classes, model=model)
  kernel = np.asarray(variables["params"]["backbone"]["Dense_0"]["kernel"])
  cam = np.einsum("bthwc,cb->bthw", x, kernel[:, np.asarray(classes)])
  # A logit is the mean over 3 segments of 20 positions.
  expected = np.maximum(cam, 0) / (3 * 20)
  assert list(found) == ["backbone"] and (expected == 0).any()
  np.testing.assert_allclose(found["backbone"], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_resnet_s_map_is_cam():
  net = ResNet(num_classes=4, stage_sizes=(1, 1), block=BasicBlock, width=0.125)
  model = Stream(modality="flow", backbone=net)
  x = images(2, 1, 64, 64, 6)
  variables = setup(model, {"flow": x})
  classes = jnp.array([1, 3])
  found = class_maps.class_maps(variables, {"flow": x}, classes, model=model)
  _, features = model.apply(variables, {"flow": x}, train=False)
  layers = variables["params"]["backbone"]
  (kernel,) = (
    np.asarray(layer["kernel"])
    for layer in layers.values()
    if "kernel" in layer and layer["kernel"].shape[-1] == 4
  )
  conv = np.asarray(features["conv"])
  cam = np.einsum("bthwc,cb->bthw", conv, kernel[:, np.asarray(classes)])
  positions = conv.shape[2] * conv.shape[3]
  expected = np.maximum(cam, 0) / positions
  assert expected.max() > 0
  np.testing.assert_allclose(found["backbone"], expected, rtol=1e-4, atol=1e-7)


def by_differences(net, variables, conv, label):
  """Equations 1 and 2 with the gradient taken by central differences."""

  @jax.jit
  def logit(maps):
    return net.apply(variables, maps, train=False, method="head")[0][:, label]

  n, step = conv.size, 1e-2
  offsets = step * np.eye(n, dtype=np.float32).reshape((n,) + conv.shape)
  above, below = logit(conv + offsets), logit(conv - offsets)
  gradient = np.asarray(above - below).reshape(conv.shape) / (2 * step)
  weights = gradient.mean(axis=(0, 1))
  return np.maximum((weights * conv).sum(axis=-1), 0)


@pytest.mark.slow
def test_cnn_m_agrees_with_differences():
  net = narrow()
  model = Stream(modality="rgb", backbone=net)
  x = images(1, 1, 64, 64, 3)
  variables = setup(model, {"rgb": x})
  _, features = model.apply(variables, {"rgb": x}, train=False)
  own = {"params": variables["params"]["backbone"]}
  conv = np.asarray(features["conv"])[0, 0]
  expected = by_differences(net, own, conv, 2)
  found = class_maps.class_maps(
    variables, {"rgb": x}, jnp.array([2]), model=model
  )
  assert expected.max() > 0
  np.testing.assert_allclose(
    found["backbone"][0, 0], expected, rtol=0.02, atol=0.01 * expected.max()
  )


# One of each kind of layers between the map and the logits.
@pytest.mark.parametrize("name", ["cnn_m", "vgg11_bn", "resnet18"])
def test_backbones_have_a_map(name):
  model = Stream(
    modality="rgb", backbone=create_model(name, num_classes=3, width=0.02)
  )
  inputs = {"rgb": jax.ShapeDtypeStruct((2, 1, 64, 64, 3), jnp.float32)}
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), inputs
  )
  found = jax.eval_shape(
    lambda v, x: class_maps.class_maps(v, x, jnp.array([0, 2]), model=model),
    variables,
    inputs,
  )
  shape = found["backbone"].shape
  assert shape[:2] == (2, 1) and min(shape[2:]) >= 2
  assert found["backbone"].dtype == jnp.float32


@pytest.mark.parametrize("fusion", FUSIONS)
def test_both_networks_of_a_joint_stage_have_a_map(fusion):
  model = TwoStream(spatial=narrow(), temporal=narrow(), fusion=fusion)
  inputs = {
    "rgb": jax.ShapeDtypeStruct((2, 1, 64, 64, 3), jnp.float32),
    "flow": jax.ShapeDtypeStruct((2, 1, 64, 64, 4), jnp.float32),
  }

  def maps(inputs):
    variables = model.init(jax.random.key(0), inputs, train=False)
    classes = jnp.array([1, 2])
    return class_maps.class_maps(variables, inputs, classes, model=model)

  found = jax.eval_shape(maps, inputs)
  assert set(found) == {"spatial", "temporal"}
  assert all(x.shape[:2] == (2, 1) for x in found.values())


def test_a_mean_of_logits_halves_the_maps_of_both():
  model = TwoStream(spatial=Identity(), temporal=Identity(), fusion="average")
  inputs = {"rgb": images(2, 1, 4, 5, 3), "flow": images(2, 1, 6, 5, 4)}
  variables = setup(model, inputs)
  classes = jnp.array([1, 2])
  found = class_maps.class_maps(variables, inputs, classes, model=model)
  for name, modality in (("spatial", "rgb"), ("temporal", "flow")):
    alone = Stream(modality=modality, backbone=Identity())
    own = {"params": {"backbone": variables["params"][name]}}
    expected = class_maps.class_maps(own, inputs, classes, model=alone)[
      "backbone"
    ]
    assert np.asarray(expected).max() > 0
    np.testing.assert_allclose(found[name], expected / 2, rtol=1e-4, atol=1e-8)


def test_what_has_no_image_network_is_refused():
  model = create_feature_model(
    "concat", num_classes=3, sources=("spatial", "temporal")
  )
  inputs = {
    "spatial": images(2, 4, 5),
    "temporal": images(2, 4, 6),
    "length": np.array([4, 2]),
  }
  with pytest.raises(ValueError, match="ConcatFusion calls no image network"):
    class_maps.class_maps(
      setup(model, inputs), inputs, jnp.array([0, 1]), model=model
    )
