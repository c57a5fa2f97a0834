"""Schedules, optimisers and proximal steps against their formulas."""

import jax
import numpy as np
import optax
import pytest
from scipy import optimize

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
      updates, opt = tx.update(grads, opt, tree, step=0)
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
  updates, _ = tx.update(grads, tx.init(params), params, step=0)
  np.testing.assert_allclose(updates["a"], [-0.6, 0], rtol=1e-5)
  np.testing.assert_allclose(updates["b"], [0, -0.8], rtol=1e-5)


def _create(**settings):
  defaults = {
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
  }
  return optim.create_optimizer(lambda step: 0.1, **{**defaults, **settings})


def _network():
  """Parameters and gradients of a backbone, a fusion layer and logits."""
  rng = np.random.default_rng(0)

  def layer(*shape):
    return {
      "kernel": rng.normal(size=shape).astype(np.float32),
      "bias": rng.normal(size=shape[-1:]).astype(np.float32),
    }

  def tree():
    return {
      "backbone": {"conv1": layer(3, 3, 2, 4), "conv10": layer(3, 3, 4, 4)},
      "fusion": layer(6, 5),
      "logits": layer(5, 2),
    }

  return tree(), tree()


def _run(tx, params, grads, steps=3):
  """Parameters after some steps with the same gradients."""
  state = tx.init(params)
  update = jax.jit(optax.with_extra_args_support(tx).update)
  for step in range(steps):
    updates, state = update(grads, state, params, step=step)
    params = optax.apply_updates(params, updates)
  return jax.tree.map(np.asarray, params)


def test_adam_is_optax_s_with_l2_on_kernels():
  params, grads = _network()
  got = _run(_create(name="adam", weight_decay=0.01), params, grads, steps=1)
  expected = jax.tree.map(
    lambda p, g: g + 0.01 * p if p.ndim > 1 else g, params, grads
  )
  # The first step of Adam is the learning rate, in the gradient's direction.
  for p, before, g in zip(
    *map(jax.tree.leaves, (got, params, expected)), strict=True
  ):
    np.testing.assert_allclose(before - p, 0.1 * np.sign(g), rtol=1e-3)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_multipliers_scale_each_step_exactly(name):
  params, grads = _network()
  multipliers = (("backbone/conv10", 0.5), ("backbone/", 0.25), (".*bias", 2.0))
  plain = _create(name=name, weight_decay=0.01)
  scaled = _create(name=name, weight_decay=0.01, multipliers=multipliers)
  factors = {
    "backbone": {
      "conv1": {"kernel": 0.25, "bias": 0.25},
      "conv10": {"kernel": 0.5, "bias": 0.5},
    },
    "fusion": {"kernel": 1.0, "bias": 2.0},
    "logits": {"kernel": 1.0, "bias": 2.0},
  }
  state, scaled_state = plain.init(params), scaled.init(params)
  for _ in range(2):
    one, state = plain.update(grads, state, params, step=0)
    other, scaled_state = scaled.update(grads, scaled_state, params, step=0)
    expected = jax.tree.map(lambda u, factor: u * factor, one, factors)
    jax.tree.map(np.testing.assert_array_equal, other, expected)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_frozen_parameters_stay_to_the_bit(name):
  params, grads = _network()
  grads["backbone"]["conv1"]["kernel"][0] = np.nan
  tx = _create(
    name=name,
    weight_decay=0.1,
    max_grad_norm=1.0,
    multipliers=(("backbone", 0.0),),
  )
  got = _run(tx, params, grads)
  jax.tree.map(
    np.testing.assert_array_equal, got["backbone"], params["backbone"]
  )
  # The others move as if the frozen ones were not there.
  rest = [
    {k: tree[k] for k in ("fusion", "logits")} for tree in (params, grads)
  ]
  alone = _run(_create(name=name, weight_decay=0.1, max_grad_norm=1.0), *rest)
  for layer, values in alone.items():
    jax.tree.map(np.testing.assert_array_equal, got[layer], values)
  shapes = {leaf.shape for leaf in jax.tree.leaves(tx.init(params))}
  assert (3, 3, 2, 4) not in shapes  # No momentum for what is frozen.
  assert (6, 5) in shapes


@pytest.mark.parametrize("l1, l21", [(0.3, 0.0), (0.0, 0.8), (0.3, 0.8)])
def test_proximal_point_minimises_its_objective(l1, l21):
  """Against a general minimiser, from several starts, column by column."""
  rng = np.random.default_rng(0)
  v = rng.normal(size=(3, 6)) * np.geomspace(0.2, 3, 6)
  got = np.asarray(optim.proximal_point(v.astype(np.float32), l1=l1, l21=l21))

  def objective(w, column):
    squares = np.sum((w - column) ** 2) / 2
    return squares + l1 * np.abs(w).sum() + l21 * np.sqrt(np.sum(w**2))

  for column, w in zip(v.T, got.T, strict=True):
    starts = [column, np.zeros(3), w, column / 2]
    found = [
      optimize.minimize(
        objective,
        start,
        args=(column,),
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000},
      )
      for start in starts
    ]
    best = min(found, key=lambda result: result.fun)
    assert objective(w, column) <= best.fun + 1e-6
    np.testing.assert_allclose(w, best.x, atol=1e-3)
  if l21:
    zero = ~got.any(axis=0)
    assert 0 < zero.sum() < 6


def test_proximal_point_by_hand():
  v = np.array([[3.0, 0.5, -4.0, 0.0], [5.0, -0.5, 1.0, 0.0]], np.float32)
  # Soft threshold 1: columns (2, 4), (0, 0), (-3, 0), (0, 0).
  got = optim.proximal_point(v, l1=1.0, l21=1.5)
  shrink = 1 - 1.5 / np.sqrt(20)
  expected = [[2 * shrink, 0, -1.5, 0], [4 * shrink, 0, 0, 0]]
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  np.testing.assert_array_equal(optim.proximal_point(v, l1=0.0, l21=0.0), v)
  kernel = v.reshape(1, 1, 2, 4)
  np.testing.assert_array_equal(
    optim.proximal_point(kernel, l1=1.0, l21=1.5)[0, 0], got
  )


def test_proximal_step_follows_the_update_and_the_schedule():
  params, grads = _network()
  tx = optim.proximal(
    optax.sgd(lambda step: 0.1 / (step + 1)),
    lambda step: 0.1 / (step + 1),
    l1=2.0,
    l21=3.0,
    select=lambda path: path == "fusion/kernel",
  )
  got = _run(tx, params, grads, steps=2)
  kernel = params["fusion"]["kernel"]
  for eta in (0.1, 0.05):
    kernel = optim.proximal_point(
      kernel - eta * grads["fusion"]["kernel"], l1=eta * 2, l21=eta * 3
    )
  np.testing.assert_allclose(got["fusion"]["kernel"], kernel, atol=1e-6)
  np.testing.assert_array_equal(got["fusion"]["kernel"] == 0, kernel == 0)
  assert 0 < (kernel == 0).mean() < 1
  plain = _run(optax.sgd(lambda step: 0.1 / (step + 1)), params, grads, 2)
  for layer in ("backbone", "logits"):
    jax.tree.map(np.testing.assert_array_equal, got[layer], plain[layer])


def _descend(tx, v, steps=600):
  """Minimises 1/2 ||w - v||^2 plus the optimiser's penalty."""

  @jax.jit
  def run(w):
    def step(carry, number):
      w, state = carry
      grads = {"fusion": {"kernel": w["fusion"]["kernel"] - v}}
      updates, state = tx.update(grads, state, w, step=number)
      return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w, tx.init(w)), np.arange(steps))[0][0]

  w = run({"fusion": {"kernel": np.ones_like(v)}})
  return np.asarray(w["fusion"]["kernel"])


@pytest.mark.parametrize(
  "settings",
  [
    {"momentum": 0.0},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "multipliers": (("fusion", 0.3),)},
    {"momentum": 0.5, "weight_decay": 1.0},
    {"momentum": 0.0, "max_grad_norm": 0.5},
    {"momentum": 0.9, "max_grad_norm": 0.5},
    {"momentum": 0.5, "nesterov": True, "max_grad_norm": 0.5},
    {"momentum": 0.5, "multipliers": (("fusion", 0.3),), "max_grad_norm": 1.0},
  ],
)
def test_penalties_mean_the_same_whatever_the_momentum_and_the_clip(settings):
  """The minimum is known; weight decay must not act on what is penalised.

  At the minimum the gradient is as steep as the penalty: it stays clipped.
  """
  v = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  v *= np.linspace(0.3, 2, 6, dtype=np.float32)
  penalty = {"l1": 0.2, "l21": 0.5}
  tx = _create(**settings, penalised="fusion/kernel", **penalty)
  expected = np.asarray(optim.proximal_point(v, **penalty))
  assert np.linalg.norm(expected - v) > settings.get("max_grad_norm", 0.0)
  got = _descend(tx, v)
  np.testing.assert_allclose(got, expected, atol=1e-4)
  np.testing.assert_array_equal(got == 0, expected == 0)
  assert 0 < (expected == 0).mean() < 1


def test_zeros_grow_with_each_penalty():
  v = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
  for penalty in ("l1", "l21"):
    zeros = [
      (_descend(_create(penalised="fusion", **{penalty: weight}), v) == 0)
      for weight in (1e-3, 1.3, 2.0, 10.0)
    ]
    shares = [zero.mean() for zero in zeros]
    assert shares == sorted(set(shares)), penalty
    assert shares[-1] == 1.0
    if penalty == "l21":  # Whole units, never single weights.
      for zero in zeros:
        np.testing.assert_array_equal(zero.all(axis=0), zero.any(axis=0))


@pytest.mark.parametrize(
  "settings, match",
  [
    ({"name": "lamb"}, "'lamb'"),
    ({"penalised": "fusion"}, "penalised='fusion' and l1=0.0, l21=0.0"),
    ({"l1": 0.1}, "penalised=''"),
    ({"penalised": "fusion", "l21": 0.1, "name": "adam"}, "need .*'sgd'"),
    ({"penalised": "fusion", "l21": -0.1}, "l21=-0.1 must be at least 0"),
    ({"multipliers": (("fusion", -1.0),)}, "multiplier -1.0 of 'fusion'"),
  ],
)
def test_settings_that_do_not_fit_are_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    _create(**settings)


@pytest.mark.parametrize(
  "settings",
  [
    {"multipliers": (("backbone", 0.1), ("spatial", 0.0))},
    {"penalised": "spatial", "l1": 0.1},
  ],
)
def test_a_pattern_without_a_parameter_is_refused(settings):
  params, _ = _network()
  with pytest.raises(
    ValueError, match="matches no parameter of backbone/conv1"
  ):
    _create(**settings).init(params)


def test_the_learning_rate_is_that_of_the_step_whatever_was_left_out():
  """Updates that were left out must not slow the schedule down."""
  params, grads = _network()
  tx = optim.create_optimizer(
    lambda step: 0.5**step,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    max_grad_norm=0.0,
    penalised="fusion/kernel",
    l1=0.01,
  )
  state = tx.init(params)
  early, _ = tx.update(grads, state, params, step=0)
  late, _ = tx.update(grads, state, params, step=3)
  for layer in ("backbone", "logits"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b * 0.125, rtol=1e-6),
      late[layer],
      early[layer],
    )
  kernel, slope = (tree["fusion"]["kernel"] for tree in (params, grads))
  for eta, found in ((1.0, early), (0.125, late)):
    point = optim.proximal_point(kernel - eta * slope, l1=eta * 0.01, l21=0.0)
    np.testing.assert_allclose(
      found["fusion"]["kernel"], point - kernel, atol=1e-6
    )


def test_proximal_needs_the_parameters():
  params, grads = _network()
  tx = _create(penalised="fusion/kernel", l1=0.1)
  with pytest.raises(ValueError, match="needs the parameters"):
    tx.update(grads, tx.init(params), step=0)
