"""Partial batch norm: only the first layer follows the batches."""

import functools

import jax
import numpy as np
import pytest

from twostream_jax import models


@pytest.mark.parametrize(
  "name, fields, first",
  [
    pytest.param("resnet18", {}, "bn1", marks=pytest.mark.slow),
    pytest.param(
      "vgg11_bn", {"dropout_rate": 0.0}, "bn1_1", marks=pytest.mark.slow
    ),
    ("cnn_m", {"normalisation": "batch", "dropout_rate": 0.0}, "bn1"),
  ],
)
def test_all_but_the_first_keep_their_statistics(name, fields, first):
  x = jax.random.normal(jax.random.key(0, impl="rbg"), [4, 64, 64, 3]) + 1.0
  partial, full = (
    models.create_model(
      name, num_classes=5, width=0.1, partial_batch_norm=on, **fields
    )
    for on in (True, False)
  )
  init = jax.jit(functools.partial(full.init, train=False))
  variables = init(jax.random.key(1, impl="rbg"), x)

  def moved(model):
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    _, changed = jax.jit(apply)(variables, x)
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(variables["batch_stats"]),
      jax.tree.leaves(changed["batch_stats"]),
      strict=True,
    )
    return {
      jax.tree_util.keystr(path, simple=True, separator="/")
      for (path, before), after in pairs
      if not np.array_equal(before, after)
    }

  assert moved(partial) == {f"{first}/mean", f"{first}/var"}
  assert len(moved(full)) == len(jax.tree.leaves(variables["batch_stats"]))
