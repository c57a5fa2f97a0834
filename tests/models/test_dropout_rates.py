"""Dropout after fc6 and after fc7, each at its own rate."""

import jax
import numpy as np
import pytest

from twostream_jax import models


@pytest.mark.parametrize("name", ["vgg11", "cnn_m"])
@pytest.mark.parametrize(
  "fc6_rate, fc7_rate, fc7_changes, logits_change",
  [
    (0.0, 0.5, False, True),
    (0.5, 0.0, True, True),
    (0.0, None, False, False),
    (0.5, None, True, True),
  ],
)
def test_each_rate_acts_after_its_own_layer(
  name, fc6_rate, fc7_rate, fc7_changes, logits_change
):
  model = models.create_model(
    name,
    num_classes=5,
    width=0.05,
    dropout_rate=fc6_rate,
    fc7_dropout_rate=fc7_rate,
  )
  x = jax.random.normal(jax.random.key(0), [4, 64, 64, 3])
  variables = model.init(jax.random.key(1), x, train=False)
  logits, features = model.apply(variables, x, train=False)
  trained, seen = model.apply(
    variables, x, train=True, rngs={"dropout": jax.random.key(2)}
  )
  np.testing.assert_array_equal(seen["fc6"], features["fc6"])
  assert np.allclose(seen["fc7"], features["fc7"], rtol=1e-4) != fc7_changes
  assert np.allclose(trained, logits, rtol=1e-4) != logits_change
