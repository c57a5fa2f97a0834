"""Schedules and SGD against their formulas."""

import numpy as np
import pytest

from twostream_jax import optim


def test_step_schedule_is_simonyan_s():
  schedule = optim.create_schedule(
    "step",
    learning_rate=1e-2,
    total_steps=80_000,
    boundaries=(50_000, 70_000),
  )
  at = [0, 49_999, 50_001, 69_999, 70_001, 79_999]
  np.testing.assert_allclose(
    [schedule(step) for step in at],
    [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4],
    rtol=1e-5,
  )


def test_boundaries_count_from_the_start_also_with_warmup():
  schedule = optim.create_schedule(
    "step",
    learning_rate=1.0,
    total_steps=100,
    warmup_steps=10,
    boundaries=(50,),
  )
  values = [float(schedule(step)) for step in (0, 5, 10, 49, 51)]
  np.testing.assert_allclose(values, [0, 0.5, 1, 1, 0.1], rtol=1e-5)


def test_cosine_ends_at_zero():
  schedule = optim.create_schedule(
    "cosine", learning_rate=2.0, total_steps=110, warmup_steps=10
  )
  values = [float(schedule(step)) for step in (10, 60, 110)]
  np.testing.assert_allclose(values, [2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
  "name, settings, match",
  [
    ("linear", {}, "linear"),
    ("cosine", {"warmup_steps": 100}, "warmup_steps=100"),
    ("step", {"boundaries": (100,)}, "boundaries"),
    ("step", {"boundaries": (5,), "warmup_steps": 5}, "boundaries"),
  ],
)
def test_schedules_that_do_not_fit_are_refused(name, settings, match):
  with pytest.raises(ValueError, match=match):
    optim.create_schedule(name, learning_rate=1.0, total_steps=100, **settings)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbook_s(nesterov):
  tx = optim.create_optimizer(
    lambda step: 0.1,
    momentum=0.9,
    nesterov=nesterov,
    weight_decay=0.01,
    max_grad_norm=0.0,
  )
  params = {
    "kernel": np.ones((2, 2), np.float32),
    "bias": np.ones(2, np.float32),
  }
  grads = {
    "kernel": np.full((2, 2), 0.5, np.float32),
    "bias": np.full(2, 0.5, np.float32),
  }
  state = tx.init(params)
  for key, decay in (("kernel", 0.01), ("bias", 0.0)):
    weight, velocity, opt = 1.0, 0.0, state
    tree = params
    for _ in range(3):
      gradient = 0.5 + decay * weight
      velocity = 0.9 * velocity + gradient
      step = gradient + 0.9 * velocity if nesterov else velocity
      weight -= 0.1 * step
      updates, opt = tx.update(grads, opt, tree)
      tree = {k: tree[k] + updates[k] for k in tree}
      np.testing.assert_allclose(tree[key], weight, rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm():
  tx = optim.create_optimizer(
    lambda step: 1.0,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  params = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
  grads = {
    "a": np.array([3.0, 0.0], np.float32),
    "b": np.array([0.0, 4.0], np.float32),
  }
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.6, 0], rtol=1e-5)
  np.testing.assert_allclose(updates["b"], [0, -0.8], rtol=1e-5)
