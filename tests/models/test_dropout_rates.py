"""Dropout after fc6 and after fc7, each at its own rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from twostream_jax import models
from twostream_jax.models.layers import Dropout, hidden_layers


class Hidden(nn.Module):
  """The hidden layers alone, at small sizes."""

  fc6_rate: float
  fc7_rate: float | None

  @nn.compact
  def __call__(self, x, *, train):
    return hidden_layers(
      x,
      (("fc6", 20), ("fc7", 30)),
      width=1.0,
      dropout=Dropout(self.fc6_rate),
      last_rate=self.fc7_rate,
      dtype=jnp.float32,
      train=train,
    )


@pytest.mark.parametrize(
  "fc6_rate, fc7_rate, fc7_changes, output_changes",
  [
    (0.0, 0.5, False, True),
    (0.5, 0.0, True, True),
    (0.0, None, False, False),
    (0.5, None, True, True),
  ],
)
def test_each_rate_acts_after_its_own_layer(
  fc6_rate, fc7_rate, fc7_changes, output_changes
):
  model = Hidden(fc6_rate, fc7_rate)
  x = jax.random.normal(jax.random.key(0), [4, 10])
  variables = model.init(jax.random.key(1), x, train=False)
  output, features = model.apply(variables, x, train=False)
  trained, seen = model.apply(
    variables, x, train=True, rngs={"dropout": jax.random.key(2)}
  )
  np.testing.assert_array_equal(seen["fc6"], features["fc6"])
  assert np.allclose(seen["fc7"], features["fc7"], rtol=1e-4) != fc7_changes
  assert np.allclose(trained, output, rtol=1e-4) != output_changes


@pytest.mark.parametrize("name", ["vgg16", "cnn_m"])
def test_networks_pass_the_rate_on(name):
  model = models.create_model(
    name, num_classes=5, width=0.02, dropout_rate=0.0, fc7_dropout_rate=1.5
  )
  init = functools.partial(model.init, train=True)
  with pytest.raises(ValueError, match="dropout rate.*got 1.5"):
    jax.eval_shape(init, jax.random.key(0), jnp.zeros([2, 64, 64, 3]))
