"""The train step: one device or eight, the same update."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from twostream_jax import losses, metrics, optim, parallel, steps
from twostream_jax.data.loader.views import image_shapes
from twostream_jax.models.layers import Dropout, batch_norm
from twostream_jax.models.stream import Stream
from twostream_jax.stages.preprocess import Preprocess, standardise

CLASSES = 5
SIZE = 16


class TinyBackbone(nn.Module):
  """Convolution, optional batch norm over all replicas, dropout, logits."""

  dropout_rate: float = 0.0
  sync_batch_norm: bool = False

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Conv(6, (3, 3), strides=2)(x)
    if self.sync_batch_norm:
      x = batch_norm(
        train=train, dtype=np.float32, axis_name=parallel.AXIS, sync=True
      )()(x)
    features = nn.relu(x).mean(axis=(1, 2))
    x = Dropout(self.dropout_rate)(features, deterministic=not train)
    return nn.Dense(CLASSES)(x), {"pool": features}


def make_parts(modality="flow", **fields):
  backbone = TinyBackbone(**fields)
  schedule = optim.create_schedule("constant", learning_rate=0.1, total_steps=9)
  return dict(
    model=Stream(modality=modality, backbone=backbone),
    tx=optim.create_optimizer(
      schedule,
      momentum=0.9,
      nesterov=False,
      weight_decay=1e-3,
      max_grad_norm=1.0,
    ),
    preprocess=Preprocess(
      rgb_mean=(0.4, 0.5, 0.6),
      rgb_std=(0.2, 0.3, 0.4),
      flow_bound=20.0,
      flow_scale=5.0,
      subtract_mean_flow=True,
    ),
  )


def make_batch(modality="flow", b=8):
  rng = np.random.default_rng(0)
  shape = image_shapes([modality], SIZE, stack_length=2)[modality]
  batch = {
    modality: rng.integers(0, 256, (b, 1, *shape), np.uint8),
    "label": rng.integers(0, CLASSES, b).astype(np.int32),
    "mask": np.ones(b, bool),
    "index": np.arange(b, dtype=np.int32),
  }
  if modality == "rgb":
    batch["rgb_shift"] = rng.normal(0.0, 0.2, (b, 3)).astype(np.float32)
  return batch


def init(parts, batch, **kwargs):
  return steps.create_train_state(
    jax.random.key(0), **parts, batch=batch, **kwargs
  )


def run_step(parts, state, batch, devices, count=2, micro_batches=1):
  """Steps on the first `devices` devices; the state of the first one."""
  parts = dict(parts, micro_batches=micro_batches)
  step = jax.pmap(
    functools.partial(
      steps.train_step,
      **parts,
      loss_fn=losses.softmax_cross_entropy,
      axis_name=parallel.AXIS,
    ),
    axis_name=parallel.AXIS,
    in_axes=(0, 0, None),
    devices=jax.devices()[:devices],
  )
  state = jax.tree.map(lambda x: np.stack([x] * devices), state)
  lead = (devices, -1)
  if micro_batches > 1:
    lead = (
      devices,
      micro_batches,
      len(batch["mask"]) // devices // micro_batches,
    )
  sharded = {k: x.reshape(lead + x.shape[1:]) for k, x in batch.items()}
  for _ in range(count):
    state, metrics = step(state, sharded, jax.random.key(7))
  for leaf in jax.tree.leaves((state, metrics)):
    leaf = np.asarray(leaf)
    np.testing.assert_array_equal(leaf, np.stack([leaf[0]] * devices))
  return jax.tree.map(lambda x: np.asarray(x)[0], (state, metrics))


@pytest.mark.parametrize(
  "modality, fields",
  [
    pytest.param("flow", {"dropout_rate": 0.5}, marks=pytest.mark.slow),
    ("rgb", {"sync_batch_norm": True}),
  ],
)
def test_one_and_eight_devices_make_the_same_update(modality, fields):
  assert jax.device_count() == 8
  parts, batch = make_parts(modality, **fields), make_batch(modality)
  state = init(parts, batch)
  one, one_metrics = run_step(parts, state, batch, 1)
  eight, eight_metrics = run_step(parts, state, batch, 8)
  assert int(one.step) == int(eight.step) == 2
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
  for key in one_metrics:
    np.testing.assert_allclose(one_metrics[key], eight_metrics[key], rtol=1e-3)
  moved = [
    np.abs(a - b).max()
    for a, b in zip(
      jax.tree.leaves(one.params), jax.tree.leaves(state.params), strict=True
    )
  ]
  assert min(moved) > 0


@pytest.mark.parametrize("devices, micro_batches", [(1, 4), (2, 2)])
def test_micro_batches_make_the_update_of_the_whole_batch(
  devices, micro_batches
):
  parts, batch = make_parts(dropout_rate=0.5), make_batch()
  batch["mask"] = np.arange(8) != 5
  state = init(parts, batch)
  whole, metrics = run_step(parts, state, batch, 1)
  got, got_metrics = run_step(
    parts, state, batch, devices, micro_batches=micro_batches
  )
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
  for key in metrics:
    np.testing.assert_allclose(metrics[key], got_metrics[key], rtol=1e-3)


def test_micro_batches_pass_on_the_statistics_of_batch_norm():
  parts = make_parts("rgb", sync_batch_norm=True)
  batch = make_batch("rgb")
  state = init(parts, batch)
  halves = [{k: x[i : i + 4] for k, x in batch.items()} for i in (0, 4)]
  parts["tx"] = optax.set_to_zero()
  state = state.replace(opt_state=parts["tx"].init(state.params))
  expected = state
  for half in halves:
    expected, _ = run_step(parts, expected, half, 1, count=1)
  got, _ = run_step(parts, state, batch, 1, count=1, micro_batches=2)
  for a, b in zip(
    jax.tree.leaves(expected.batch_stats),
    jax.tree.leaves(got.batch_stats),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
  parts, batch = make_parts("rgb", sync_batch_norm=True), make_batch("rgb")
  state = init(parts, batch, keep_ema=True)
  parts["ema_decay"] = 0.5
  state, _ = run_step(parts, state, batch, 2, count=1)
  batch["rgb_shift"][3, 1] = np.nan
  after, metrics = run_step(parts, state, batch, 2, count=1)
  assert not metrics["finite"]
  assert (after.step, after.skipped) == (2, 1) and metrics["skipped"] == 1
  for a, b in zip(
    jax.tree.leaves(state.replace(step=2, skipped=1)),
    jax.tree.leaves(after),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  good = make_batch("rgb")
  later, metrics = run_step(parts, after, good, 2, count=1)
  assert metrics["finite"] and (later.step, later.skipped) == (3, 1)
  assert np.isfinite(metrics["loss"])


def test_parameters_and_their_statistics_are_averaged_by_one_formula():
  """To predict, averaged parameters come with averaged statistics."""
  parts = make_parts("rgb", sync_batch_norm=True)
  batch = make_batch("rgb")
  state = init(parts, batch, keep_ema=True)

  def newest(state):
    found = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(np.asarray, found)

  expected = newest(state)
  for step in range(3):
    state, _ = run_step(parts | {"ema_decay": 0.15}, state, batch, 1, count=1)
    decay = min(0.15, (1 + step) / (10 + step))
    expected = jax.tree.map(
      lambda old, new, d=decay: d * old + (1 - d) * new, expected, newest(state)
    )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    state.variables,
    expected,
  )
  for kind, tree in newest(state).items():
    kept, averaged = (jax.tree.leaves(x) for x in (tree, expected[kind]))
    assert not np.allclose(kept[0], averaged[0])


def test_masked_examples_do_not_count():
  parts, batch = make_parts(), make_batch()
  state = init(parts, batch)
  half = {k: x[:4] for k, x in batch.items()}
  masked = dict(batch, mask=np.arange(8) < 4)
  masked["flow"] = batch["flow"].copy()
  masked["flow"][4:] = 77
  a, a_metrics = run_step(parts, state, half, 1)
  b, b_metrics = run_step(parts, state, masked, 1)
  assert float(b_metrics["count"]) == float(b_metrics["rated"]) == 4
  np.testing.assert_allclose(a_metrics["loss"], b_metrics["loss"], rtol=1e-4)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_the_step_is_gradient_descent_on_the_mean_loss():
  parts, batch = make_parts(), make_batch()
  parts["tx"] = optax.sgd(0.1)
  state = init(parts, batch)

  def mean_loss(params):
    logits, _ = parts["model"].apply(
      {"params": params}, parts["preprocess"](batch), train=False
    )
    own = jax.nn.log_softmax(logits)[np.arange(8), batch["label"]]
    return -own.mean()

  grads = jax.grad(mean_loss)(state.params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
  got, metrics = run_step(parts, state, batch, 8, count=1)
  for x, y in zip(
    jax.tree.leaves(got.params), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(
    metrics["loss"] / 8, mean_loss(state.params), rtol=1e-4
  )
  np.testing.assert_allclose(
    metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-3
  )


def test_preprocess_is_the_written_formula():
  preprocess = make_parts()["preprocess"]
  rng = np.random.default_rng(1)
  batch = {
    "rgb": rng.integers(0, 256, (2, 1, 8, 8, 3), np.uint8),
    "flow": rng.integers(0, 256, (2, 1, 6, 8, 8), np.uint8),
    "label": np.zeros(2, np.int32),
  }
  inputs = jax.jit(preprocess)(batch)
  assert inputs.keys() == {"rgb", "flow"}
  rgb = (batch["rgb"] / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
  np.testing.assert_allclose(inputs["rgb"], rgb, rtol=1e-4, atol=1e-5)
  shift = rng.normal(size=(2, 3)).astype(np.float32)
  shifted = jax.jit(preprocess)(batch | {"rgb_shift": shift})
  assert shifted.keys() == {"rgb", "flow"}
  moved = rgb + shift[:, None, None, None] / [0.2, 0.3, 0.4]
  np.testing.assert_allclose(shifted["rgb"], moved, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(shifted["flow"], inputs["flow"])
  flow = np.moveaxis(batch["flow"], 2, -1) / 255 * 40 - 20
  flow = flow - flow.mean(axis=(2, 3), keepdims=True)
  np.testing.assert_allclose(inputs["flow"], flow / 5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_what_is_mirrored_moves_the_other_way(shape):
  """Samples of a batch, or views of each of its rows."""
  preprocess = make_parts()["preprocess"]
  rng = np.random.default_rng(1)
  batch = {
    "rgb": rng.integers(0, 256, (*shape, 1, 8, 6, 3), np.uint8),
    "flow": rng.integers(0, 256, (*shape, 1, 4, 8, 6), np.uint8),
  }
  flip = np.array([False, True, True, False]).reshape(shape)
  plain = jax.jit(preprocess)(batch)
  found = jax.jit(preprocess)(batch | {"flip": flip})
  for i in np.ndindex(shape):
    rgb, flow = np.asarray(plain["rgb"][i]), np.asarray(plain["flow"][i])
    if flip[i]:
      # Of what has lost its mean, that is all there is to do.
      rgb, flow = (
        rgb[..., ::-1, :],
        flow[..., ::-1, :] * np.array([-1, 1, -1, 1]),
      )
    np.testing.assert_array_equal(found["rgb"][i], rgb)
    np.testing.assert_allclose(found["flow"][i], flow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("views_per_pass", [1, 4, 100])
def test_prediction_is_the_mean_over_views(views_per_pass):
  parts = make_parts()
  state = init(parts, make_batch())
  rng = np.random.default_rng(2)
  views = rng.integers(0, 256, (3, 5, 1, 4, SIZE, SIZE), np.uint8)
  model, preprocess = parts["model"], parts["preprocess"]
  got = jax.jit(
    functools.partial(
      steps.predict_step,
      model=model,
      preprocess=preprocess,
      views_per_pass=views_per_pass,
      num_classes=CLASSES,
    )
  )(state.variables, {"flow": views})
  for i in range(3):
    one_by_one = [
      model.apply(
        state.variables, preprocess({"flow": views[i, j][None]}), train=False
      )[0][0]
      for j in range(5)
    ]
    np.testing.assert_allclose(got[i], np.mean(one_by_one, axis=0), atol=1e-5)


def test_segments_share_one_opinion():
  parts = make_parts()
  state = init(parts, make_batch())
  rng = np.random.default_rng(3)
  clip = rng.integers(0, 256, (2, 3, 4, SIZE, SIZE), np.uint8)
  apply = functools.partial(parts["model"].apply, state.variables, train=False)
  whole, features = apply(parts["preprocess"]({"flow": clip}))
  each = [
    apply(parts["preprocess"]({"flow": clip[:, i : i + 1]}))[0]
    for i in range(3)
  ]
  np.testing.assert_allclose(whole, np.mean(each, axis=0), atol=1e-5)
  assert features["pool"].shape == (2, 3, 6)


def test_features_are_standardised():
  rng = np.random.default_rng(4)
  features = rng.normal(5.0, 3.0, [40, 7, 3]).astype(np.float32)
  features[..., 2] = 4.0
  flat = features.reshape(-1, 3)
  statistics = {"spatial": (flat.mean(axis=0), flat.std(axis=0))}
  batch = {"spatial": features, "length": np.full(40, 7), "label": 0}
  inputs = jax.jit(functools.partial(standardise, statistics=statistics))(
    {k: batch[k] for k in ("spatial", "length")}
  )
  assert set(inputs) == {"spatial", "length"}
  flat = np.asarray(inputs["spatial"]).reshape(-1, 3)
  np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(flat.std(axis=0), [1, 1, 0], atol=1e-4)


def test_answers_are_rated_as_in_tests():
  """Without a class there is no right answer; a tie at the top is none."""
  logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
  logits[3] = 1.0
  several = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]], np.float32)
  found = steps.rate(logits, several)
  np.testing.assert_array_equal(found, [[1, 0, 0, 0], [1, 1, 0, 1]])
  right, rated = np.sum(found, axis=1)
  assert right / rated == pytest.approx(metrics.precision_at_1(logits, several))
  one = np.array([0, 2, 2, 0])
  found = steps.rate(logits, one)
  np.testing.assert_array_equal(found, [[1, 0, 1, 0], [1] * 4])
  assert found[0].mean() == metrics.top_k_accuracy(logits, one, 1)
  # Labels from 3 are of a second dataset, which this answer is not for.
  np.testing.assert_array_equal(
    steps.rate(logits, np.array([0, 3, 5, 2])), [[1, 0, 0, 0], [1, 0, 0, 1]]
  )
  assert not steps.rate(np.full((1, 3), np.nan), np.zeros(1, int))[0].any()


def test_frozen_parameters_get_no_gradient_and_do_not_move():
  parts = make_parts()
  frozen = (("backbone/Conv_0", 0.0),)
  schedule = optim.create_schedule("constant", learning_rate=0.1, total_steps=9)
  parts["tx"] = optim.create_optimizer(
    schedule,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-3,
    max_grad_norm=0.0,
    multipliers=frozen,
  )
  batch = make_batch()
  state = init(parts, batch)
  stop = functools.partial(optim.stop_frozen, multipliers=frozen)
  free, cut = (
    run_step(parts | extra, state, batch, devices=1)[0]
    for extra in ({}, {"stop_frozen": stop})
  )
  jax.tree.map(np.testing.assert_array_equal, free.params, cut.params)
  before, after = (
    params["backbone"]["Conv_0"]["kernel"]
    for params in (state.params, cut.params)
  )
  np.testing.assert_array_equal(after, before)
