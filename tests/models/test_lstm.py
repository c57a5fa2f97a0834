"""LSTMs against a step-by-step reference; padding that never counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from twostream_jax.models.lstm import (
  LSTM,
  LSTMClassifier,
  masked_mean,
  read_frames,
)

# Compiling the default generator takes seconds; this one is compiled at once.
_KEY = jax.random.key(0, impl="rbg")

LENGTH = np.array([5, 1, 3, 2], np.int32)
VARIANTS = [
  (output, bidirectional)
  for output in ("last", "mean")
  for bidirectional in (False, True)
]


def _small(**fields):
  return LSTMClassifier(
    **{
      "num_classes": 3,
      "source": "rgb",
      "hidden_sizes": (4, 3),
      "dropout_rate": 0.0,
      **fields,
    }
  )


def _inputs(t=5, fill=None):
  """Four sequences of 1..5 steps in t; `fill` is put into the padding."""
  x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
  x = np.pad(x, [(0, 0), (0, t - 5), (0, 0)])
  if fill is not None:
    x[np.arange(t) >= LENGTH[:, None]] = fill
  return {"rgb": x, "length": LENGTH}


@functools.cache
def _init(model):
  """Variables that are all away from their special initial values."""
  init = jax.jit(model.init, static_argnames="train")
  variables = init(_KEY, _inputs(), train=False)
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) / 2,
    variables,
  )


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _apply(model, variables, inputs, train=False, key=_KEY):
  rngs = {"dropout": key}
  return model.apply(variables, inputs, train=train, rngs=rngs)


@functools.cache
def _loss_and_gradients(model):
  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def loss(params, x):
    inputs = {"rgb": x, "length": LENGTH}
    logits, _ = model.apply({"params": params}, inputs, train=False)
    return jnp.sum(logits**2)

  return loss


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _layer_numpy(params, x, reverse):
  """States [t h] of one sequence [t d] without padding."""
  kernel, bias = params["input"]["kernel"], params["input"]["bias"]
  recurrent = params["recurrent"]["kernel"]
  size = len(recurrent)
  cell, hidden = np.zeros(size), np.zeros(size)
  states = np.zeros((len(x), size))
  steps = range(len(x))
  for step in reversed(steps) if reverse else steps:
    gates = x[step] @ kernel + hidden @ recurrent + bias
    i, f, g, o = gates.reshape(4, size)
    cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
    hidden = _sigmoid(o) * np.tanh(cell)
    states[step] = hidden
  return states


def _classify_numpy(params, x, output, bidirectional):
  """Logits [n] of one sequence [t d] without padding."""
  for layer in ("layer1", "layer2"):
    states = _layer_numpy(params["lstm"][layer], x, False)
    last = states[-1]
    if bidirectional:
      backward = _layer_numpy(params["lstm"][f"{layer}_backward"], x, True)
      states = np.concatenate([states, backward], axis=1)
      last = np.concatenate([last, backward[0]])
    x = states
  video = last if output == "last" else states.mean(axis=0)
  return video @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.mark.parametrize(
  "output, bidirectional",
  [
    *(pair for pair in VARIANTS if pair != ("last", False)),
    pytest.param("last", False, marks=pytest.mark.slow),
  ],
)
def test_logits_equal_the_reference_for_every_length(output, bidirectional):
  model = _small(output=output, bidirectional=bidirectional)
  inputs, variables = _inputs(), _init(model)
  logits, _ = _apply(model, variables, inputs)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables)
  expected = [
    _classify_numpy(params["params"], x[:length], output, bidirectional)
    for x, length in zip(inputs["rgb"], LENGTH, strict=True)
  ]
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fill", [7.0, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("output, bidirectional", VARIANTS)
def test_what_the_padding_holds_changes_nothing(output, bidirectional, fill):
  model = _small(hidden_sizes=(4,), output=output, bidirectional=bidirectional)
  variables, loss = _init(model), _loss_and_gradients(model)
  value, (of_params, of_x) = loss(variables["params"], _inputs()["rgb"])
  other, (of_other, _) = loss(variables["params"], _inputs(fill=fill)["rgb"])
  assert np.isfinite(value)
  assert value == other
  jax.tree.map(np.testing.assert_array_equal, of_params, of_other)
  padding = np.arange(5) >= LENGTH[:, None]
  of_x = np.asarray(of_x)
  assert not of_x[padding].any()
  assert (np.abs(of_x[~padding]).max(axis=-1) > 0).all()


@pytest.mark.slow
def test_how_much_padding_there_is_changes_nothing():
  model = _small(output="mean", bidirectional=True, dropout_rate=0.5)
  variables = _init(model)
  short, _ = _apply(model, variables, _inputs(t=5), True)
  long, _ = _apply(model, variables, _inputs(t=9, fill=3.0), True)
  np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-6)


def test_dropout_is_on_in_training_only_and_the_feature_is_before_it():
  model = _small(hidden_sizes=(32,), dropout_rate=0.5)
  variables = _init(model)
  still, feature = _apply(model, variables, _inputs())
  moved, same = _apply(model, variables, _inputs(), True)
  np.testing.assert_allclose(feature["lstm"], same["lstm"], rtol=1e-6)
  assert (np.abs(moved - still).max(axis=1) > 1e-3).all()


def test_parts_of_a_batch_drop_what_the_whole_drops():
  model, key = _small(hidden_sizes=(4,), dropout_rate=0.5), jax.random.key(2)
  variables, inputs = _init(model), _inputs()
  expected, _ = _apply(model, variables, inputs, True, key)
  for index in (np.array([1, 3]), np.array([0, 2])):
    part = jax.tree.map(lambda x, index=index: x[index], inputs)
    batch = {"batch": {"index": jnp.asarray(index)}}
    found, _ = _apply(model, {**variables, **batch}, part, True, key)
    np.testing.assert_allclose(found, expected[index], rtol=1e-5, atol=1e-6)


def test_a_sequence_read_backwards_swaps_the_directions():
  model = _small(hidden_sizes=(4,), bidirectional=True)
  variables = _init(model)
  layers = variables["params"]["lstm"]
  swapped = {
    "params": {
      **variables["params"],
      "lstm": {
        "layer1": layers["layer1_backward"],
        "layer1_backward": layers["layer1"],
      },
    }
  }
  inputs = _inputs(fill=9.0)
  reversed_x = inputs["rgb"].copy()
  for x, length in zip(reversed_x, LENGTH, strict=True):
    x[:length] = x[:length][::-1].copy()
  _, features = _apply(model, variables, inputs)
  _, mirrored = _apply(model, swapped, {**inputs, "rgb": reversed_x})
  forward, backward = np.split(np.asarray(features["lstm"]), 2, axis=1)
  np.testing.assert_allclose(
    mirrored["lstm"], np.concatenate([backward, forward], axis=1), rtol=1e-5
  )


def _gated(i, f, o):
  """An LSTM of 2 units whose gates are constant: 1 for +50, 0 for -50."""
  bias = np.repeat(np.array([i, f, 0.0, o], np.float32), 2)
  kernel = np.zeros((3, 8), np.float32)
  kernel[:, 4:6] = [[1, 0], [0, 1], [1, 1]]
  return {
    "params": {
      "input": {"kernel": kernel, "bias": bias},
      "recurrent": {"kernel": np.zeros((2, 8), np.float32)},
    }
  }


@pytest.mark.parametrize(
  "gates, expected",
  [
    ((50, 50, 50), lambda g: np.tanh(g.cumsum(axis=0))),
    ((50, -50, 50), np.tanh),
    ((-50, 50, 50), np.zeros_like),
    ((50, 50, -50), np.zeros_like),
  ],
)
def test_open_and_closed_gates_give_closed_forms(gates, expected):
  x = np.random.default_rng(3).normal(size=(1, 4, 3)).astype(np.float32)
  apply = jax.jit(LSTM(2).apply)
  states, last = apply(_gated(*gates), x, np.ones((1, 4), bool))
  g = np.tanh(x[0] @ np.array([[1, 0], [0, 1], [1, 1]]))
  np.testing.assert_allclose(states[0], expected(g), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(last[0], states[0, -1])


def test_gates_start_orthogonal_and_remembering():
  x, valid = np.zeros((1, 2, 6), np.float32), np.ones((1, 2), bool)
  params = jax.jit(LSTM(5).init)(_KEY, x, valid)["params"]
  kernel = np.asarray(params["recurrent"]["kernel"])
  gates = np.split(kernel, 4, axis=1)
  for gate in gates:
    np.testing.assert_allclose(gate.T @ gate, np.eye(5), atol=1e-5)
  assert np.abs(gates[0] - gates[1]).max() > 0.1
  bias = np.asarray(params["input"]["bias"]).reshape(4, 5)
  np.testing.assert_array_equal(bias, np.eye(4)[1][:, None] * np.ones((1, 5)))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_papers_layers(bidirectional):
  inputs = {
    "rgb": jax.ShapeDtypeStruct((2, 25, 4096), jnp.float32),
    "length": jax.ShapeDtypeStruct((2,), jnp.int32),
  }
  model = LSTMClassifier(101, "rgb", bidirectional=bidirectional)
  (logits, features), variables = jax.eval_shape(
    lambda inputs: model.init_with_output(
      jax.random.key(0), inputs, train=False
    ),
    inputs,
  )
  directions = 2 if bidirectional else 1
  layers = variables["params"]["lstm"]
  assert len(layers) == 2 * directions
  assert layers["layer1"]["input"]["kernel"].shape == (4096, 4096)
  assert layers["layer2"]["input"]["kernel"].shape == (
    1024 * directions,
    2048,
  )
  assert layers["layer2"]["recurrent"]["kernel"].shape == (512, 2048)
  assert features["lstm"].shape == (2, 512 * directions)
  assert logits.shape == (2, 101)


def test_bfloat16_keeps_logits_states_and_parameters_float32():
  model = _small(dtype=jnp.bfloat16)
  variables = _init(model)
  (logits, features) = _apply(model, variables, _inputs())
  assert logits.dtype == features["lstm"].dtype == jnp.float32
  full, _ = _apply(_small(), variables, _inputs())
  np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())
  kinds = {p.dtype for p in jax.tree.leaves(variables)}
  assert kinds == {jnp.dtype("float32")}


@pytest.mark.slow
def test_the_order_of_frames_is_learned():
  """Both classes have the same frames; only their order differs."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(16, 6, 4)).astype(np.float32) / 4
  label = np.arange(16) % 2
  x[np.arange(16), np.where(label, 0, 3), 0] += 2.0
  x[np.arange(16), np.where(label, 3, 0), 1] += 2.0
  inputs = {"rgb": x, "length": np.full(16, 5, np.int32)}
  model = _small(num_classes=2, hidden_sizes=(8,))
  init = jax.jit(model.init, static_argnames="train")
  params = init(_KEY, inputs, train=False)["params"]
  tx = optax.adam(0.03)

  def loss(params):
    logits, _ = model.apply({"params": params}, inputs, train=True)
    own = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return own.mean(), logits

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      grads, _ = jax.grad(loss, has_aux=True)(params)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=80)
    return loss(params)[1]

  np.testing.assert_array_equal(train(params).argmax(axis=1), label)


def test_a_clip_that_only_fills_up_a_batch_stays_finite():
  x = np.ones((2, 3, 4), np.float32)
  frames, valid = read_frames(
    {"rgb": x, "length": np.array([0, 2], np.int32)}, "rgb"
  )
  np.testing.assert_array_equal(valid.sum(axis=1), [0, 2])
  np.testing.assert_array_equal(
    masked_mean(frames, valid), [[0.0] * 4, [1.0] * 4]
  )


@pytest.mark.parametrize(
  "fields, change, match",
  [
    ({"source": "audio"}, {}, "no input audio; the inputs are rgb, length"),
    ({"output": "max"}, {}, "last, mean, got 'max'"),
    ({"hidden_sizes": ()}, {}, "at least one layer"),
    ({}, {"rgb": np.zeros((4, 6), np.float32)}, r"\[b t d\].*\(4, 6\)"),
    ({}, {"rgb": np.zeros((4, 5, 6), np.uint8)}, "uint8"),
    ({}, {"length": np.array([1, 2], np.int32)}, r"\(2,\).*4 clips"),
  ],
)
def test_errors_say_what_is_wrong(fields, change, match):
  with pytest.raises(ValueError, match=match):
    _small(**fields).init(
      jax.random.key(0), {**_inputs(), **change}, train=False
    )


def test_a_missing_length_is_named():
  with pytest.raises(ValueError, match="no input length"):
    read_frames({"rgb": np.zeros((1, 2, 3), np.float32)}, "rgb")
