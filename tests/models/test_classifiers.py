"""The last layer of every network computes in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from twostream_jax import models
from twostream_jax.models.layers import classifier
from twostream_jax.models.two_stream import FUSIONS, TwoStream

CLASSES = 400


def image_network(name, **fields):
  return models.create_model(
    name, num_classes=CLASSES, dtype=jnp.bfloat16, width=0.1, **fields
  )


def two_stream(fusion):
  spatial, temporal = (image_network("cnn_m") for _ in range(2))
  return TwoStream(
    spatial=spatial, temporal=temporal, fusion=fusion, dtype=jnp.bfloat16
  )


def feature_model(name):
  sources = ("s",) if name == "lstm" else ("s", "t")
  return models.create_feature_model(
    name, num_classes=CLASSES, sources=sources, dtype=jnp.bfloat16
  )


IMAGES = jnp.zeros((2, 64, 64, 3))
VIDEOS = {
  "rgb": jnp.zeros((2, 1, 64, 64, 3)),
  "flow": jnp.zeros((2, 1, 64, 64, 4)),
}
FEATURES = {
  "s": jnp.zeros((2, 3, 8)),
  "t": jnp.zeros((2, 3, 8)),
  "length": jnp.ones(2, jnp.int32),
}
NETWORKS = {
  **{
    name: (functools.partial(image_network, name), IMAGES)
    for name in ("cnn_m", "vgg11", "resnet18")  # Depths share their heads.
  },
  **{name: (functools.partial(two_stream, name), VIDEOS) for name in FUSIONS},
  **{
    name: (functools.partial(feature_model, name), FEATURES)
    for name in models.FEATURE_MODELS
  },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_rounds_its_logits(name):
  create, inputs = NETWORKS[name]
  dtypes = []

  def note(run, args, kwargs, context):
    output = run(*args, **kwargs)
    if context.module.name == "logits":
      dtypes.append((jnp.dtype(context.module.dtype).name, output.dtype.name))
    return output

  def init():
    return create().init(jax.random.key(0), inputs, train=False)

  with nn.intercept_methods(note):
    jax.eval_shape(init)  # Nothing is computed.
  assert dtypes and set(dtypes) == {("float32", "float32")}


def test_classes_do_not_tie_at_the_top_in_bfloat16():
  class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
      return classifier(x, CLASSES)

  x = jax.random.normal(jax.random.key(1), (500, 64), jnp.bfloat16)
  logits, _ = Head().init_with_output(jax.random.key(0), x)
  top = np.sort(np.asarray(logits), axis=1)[:, -2:]
  assert (top[:, 0] < top[:, 1]).all()
