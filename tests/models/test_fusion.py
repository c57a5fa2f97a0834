"""Feature fusion: the formulas, no dead branch, and what needs two sources."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twostream_jax import optim
from twostream_jax.models.fusion import (
  ConcatFusion,
  JointHybrid,
  RegularisedFusion,
)

# Compiling the default generator takes seconds; this one is compiled at once.
_KEY = jax.random.key(0, impl="rbg")

LENGTH = np.array([4, 1, 3], np.int32)
TINY = {
  "concat": ConcatFusion(num_classes=2, dropout_rate=0.0),
  "regularised": RegularisedFusion(num_classes=2, hidden=12, dropout_rate=0.0),
  "joint": JointHybrid(
    num_classes=2, lstm_sizes=(4,), hidden=8, dropout_rate=0.0
  ),
}


def _inputs(fill=0.0):
  rng = np.random.default_rng(0)
  inputs = {
    "spatial": rng.normal(size=(3, 4, 5)).astype(np.float32),
    "temporal": rng.normal(size=(3, 4, 7)).astype(np.float32),
  }
  for x in inputs.values():
    x[np.arange(4) >= LENGTH[:, None]] = fill
  return inputs | {"length": LENGTH}


@functools.cache
def _init(model):
  init = jax.jit(model.init, static_argnames="train")
  return init(_KEY, _inputs(), train=False)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _apply(model, variables, inputs, train=False):
  rngs = {"dropout": _KEY}
  return model.apply(variables, inputs, train=train, rngs=rngs)


def _means_numpy(inputs):
  return [
    np.stack([inputs[k][i, :n].mean(axis=0) for i, n in enumerate(LENGTH)])
    for k in ("spatial", "temporal")
  ]


def _dense_numpy(params, x):
  return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def _hidden_numpy(params, inputs):
  names = ("hidden_spatial", "hidden_temporal")
  return [
    np.maximum(_dense_numpy(params[name], mean), 0)
    for name, mean in zip(names, _means_numpy(inputs), strict=True)
  ]


def test_concat_is_linear_in_the_means():
  model, inputs = TINY["concat"], _inputs()
  variables = _init(model)
  logits, features = _apply(model, variables, inputs)
  x = np.concatenate(_means_numpy(inputs), axis=1)
  np.testing.assert_allclose(features["concat"], x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    logits, _dense_numpy(variables["params"]["logits"], x), rtol=1e-4, atol=1e-6
  )


def test_regularised_stacks_the_sources_below_one_layer():
  model, inputs = TINY["regularised"], _inputs()
  params = _init(model)["params"]
  logits, features = _apply(model, {"params": params}, inputs)
  x = np.concatenate(_hidden_numpy(params, inputs), axis=1)
  fused = np.maximum(_dense_numpy(params["fusion"], x), 0)
  np.testing.assert_allclose(features["fusion"], fused, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    logits, _dense_numpy(params["logits"], fused), rtol=1e-4, atol=1e-5
  )


def test_joint_adds_the_sources_and_classifies_all_three_parts():
  model, inputs = TINY["joint"], _inputs()
  params = _init(model)["params"]
  logits, features = _apply(model, {"params": params}, inputs)
  x = sum(_hidden_numpy(params, inputs))
  fused = np.maximum(_dense_numpy(params["fusion"], x), 0)
  np.testing.assert_allclose(features["fusion"], fused, rtol=1e-4, atol=1e-5)
  parts = [features["lstm_spatial"], features["lstm_temporal"], fused]
  assert [part.shape[1] for part in parts] == [4, 4, 8]
  np.testing.assert_allclose(
    logits,
    _dense_numpy(params["logits"], np.concatenate(parts, axis=1)),
    rtol=1e-4,
    atol=1e-5,
  )


def _shapes(model):
  inputs = {
    "spatial": jax.ShapeDtypeStruct((2, 25, 4096), jnp.float32),
    "temporal": jax.ShapeDtypeStruct((2, 25, 2048), jnp.float32),
    "length": jax.ShapeDtypeStruct((2,), jnp.int32),
  }
  variables = jax.eval_shape(
    lambda inputs: model.init(_KEY, inputs, train=False), inputs
  )
  return jax.tree.map(lambda leaf: leaf.shape, variables["params"])


def test_layers_have_the_papers_sizes():
  shapes = _shapes(RegularisedFusion(num_classes=20))
  assert {name: layer["kernel"] for name, layer in shapes.items()} == {
    "hidden_spatial": (4096, 200),
    "hidden_temporal": (2048, 200),
    "fusion": (400, 200),
    "logits": (200, 20),
  }
  shapes = _shapes(JointHybrid(num_classes=20))
  assert shapes["fusion"]["kernel"] == (200, 200)
  assert shapes["logits"]["kernel"] == (512 + 512 + 200, 20)
  for source in ("spatial", "temporal"):
    layers = shapes[f"lstm_{source}"]
    assert layers["layer1"]["recurrent"]["kernel"] == (1024, 4 * 1024)
    assert layers["layer2"]["recurrent"]["kernel"] == (512, 4 * 512)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("fill", [5.0, np.nan])
def test_padding_changes_neither_logits_nor_gradients(name, fill):
  model = TINY[name]
  variables = _init(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def loss(variables, sources):
    logits, _ = model.apply(
      variables, sources | {"length": LENGTH}, train=False
    )
    return jnp.sum(logits**2 + logits)

  def split(inputs):
    return {k: inputs[k] for k in ("spatial", "temporal")}

  value, (grads, of_sources) = loss(variables, split(_inputs()))
  other, (of_other, _) = loss(variables, split(_inputs(fill)))
  assert value == other
  jax.tree.map(np.testing.assert_array_equal, grads, of_other)
  padding = np.arange(4) >= LENGTH[:, None]
  for of_source in jax.tree.map(np.asarray, of_sources).values():
    assert not of_source[padding].any()
    assert of_source[~padding].any()


@pytest.mark.parametrize("name", TINY)
def test_dropout_acts_in_training_only(name):
  model = TINY[name].clone(dropout_rate=0.5)
  variables = _init(model)
  still, _ = _apply(model, variables, _inputs())
  again, _ = _apply(TINY[name], variables, _inputs())
  np.testing.assert_array_equal(still, again)
  moved, _ = _apply(model, variables, _inputs(), True)
  assert np.abs(moved - still).max() > 1e-4


def test_bfloat16_keeps_logits_and_parameters_float32():
  model, variables = TINY["joint"], _init(TINY["joint"])
  low = model.clone(dtype=jnp.bfloat16)
  logits, _ = _apply(low, variables, _inputs())
  assert logits.dtype == jnp.float32
  full, _ = _apply(model, variables, _inputs())
  np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())
  fresh = jax.eval_shape(
    lambda inputs: low.init(_KEY, inputs, train=False), _inputs()
  )
  assert {p.dtype for p in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def _task(name):
  """64 clips of which each source shows one bit; the label is of both bits."""
  rng = np.random.default_rng(4)
  bits = rng.integers(0, 2, (2, 64))
  inputs = {"length": rng.integers(2, 5, 64).astype(np.int32)}
  for source, bit in zip(("spatial", "temporal"), bits, strict=True):
    x = rng.normal(size=(64, 4, 6)) / 2
    x[..., 0] += (2 * bit - 1)[:, None]
    inputs[source] = x.astype(np.float32)
  label = bits[0] ^ bits[1] if name == "xor" else bits[0] & bits[1]
  return inputs, label


def _loss(model, params, inputs, label):
  logits, _ = model.apply({"params": params}, inputs, train=True)
  return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


@functools.cache
def _train(model, task, steps=100, l21=0.0):
  """Trains on the whole task; parameters before and after."""
  inputs, label = _task(task)
  if l21:
    tx = optim.create_optimizer(
      lambda step: 0.1,
      momentum=0.9,
      nesterov=False,
      weight_decay=1e-4,
      max_grad_norm=0.0,
      penalised="fusion/kernel",
      l21=l21,
    )
  else:
    tx = optax.adam(0.02)
  update = optax.with_extra_args_support(tx).update
  init = jax.jit(model.init, static_argnames="train")
  before = init(_KEY, inputs, train=False)["params"]

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      grads = jax.grad(functools.partial(_loss, model))(params, inputs, label)
      updates, state = update(grads, state, params, step=0)
      return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    return jax.lax.scan(step, carry, length=steps)[0][0]

  return before, train(before)


def _accuracy(model, params, task):
  inputs, label = _task(task)
  logits, _ = _apply(model, {"params": params}, inputs)
  return float((np.asarray(logits).argmax(axis=1) == label).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regularised", "joint"])
def test_what_only_both_sources_tell_is_learned(name):
  _, params = _train(TINY[name], "xor")
  assert _accuracy(TINY[name], params, "xor") == 1.0


def test_concat_learns_what_adds_up_but_no_xor():
  _, params = _train(TINY["concat"], "and")
  assert _accuracy(TINY["concat"], params, "and") > 0.9
  _, params = _train(TINY["concat"], "xor")
  assert _accuracy(TINY["concat"], params, "xor") < 0.8


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow) if name == "joint" else name
    for name in TINY
  ],
)
def test_no_branch_and_no_unit_is_dead(name):
  model = TINY[name]
  inputs, label = _task("xor")
  gradient = jax.jit(jax.grad(functools.partial(_loss, model)))
  # Training may switch off a ReLU; a branch that starts dead stays so.
  for params, alive in zip(_train(model, "xor"), (1.0, 0.7), strict=True):
    grads = gradient(params, inputs, label)
    for path, leaf in jax.tree.leaves_with_path(grads):
      assert np.isfinite(leaf).all(), path
      if leaf.ndim == 2:
        # A unit whose weights get no gradient never changes.
        assert (np.abs(leaf).max(axis=0) > 0).mean() >= alive, path
  logits, _ = _apply(model, {"params": params}, inputs)
  for source in ("spatial", "temporal"):
    without = {**inputs, source: np.zeros_like(inputs[source])}
    others, _ = _apply(model, {"params": params}, without)
    assert np.abs(others - logits).max() > 0.1


@pytest.mark.slow
def test_fused_units_vanish_as_their_penalty_grows():
  model = TINY["regularised"]
  used = []
  for l21 in (1e-6, 3e-3, 1e-2, 1.0):
    _, params = _train(model, "xor", steps=200, l21=l21)
    columns = np.abs(params["fusion"]["kernel"]).max(axis=0)
    used.append(int((columns > 0).sum()))
    if l21 <= 3e-3:
      assert _accuracy(model, params, "xor") == 1.0
  assert used[0] == 12
  assert used == sorted(used, reverse=True)
  assert 0 < used[2] < used[0]
  assert used[-1] == 0


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("sources", [(), ("spatial", "spatial")])
def test_sources_must_differ(name, sources):
  with pytest.raises(ValueError, match="sources must be different names"):
    TINY[name].clone(sources=sources).init(_KEY, _inputs(), train=False)


@pytest.mark.parametrize("name", TINY)
def test_a_missing_source_is_named(name):
  inputs = _inputs()
  del inputs["temporal"]
  with pytest.raises(ValueError, match="no input temporal; .* spatial, length"):
    TINY[name].init(_KEY, inputs, train=False)
