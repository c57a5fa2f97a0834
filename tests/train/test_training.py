"""What the loop does beside its steps: stops, chooses, begins, is watched."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_config
from twostream_jax import (
  checkpoints,
  interrupts,
  metric_logger,
  parallel,
  steps,
  train,
)
from twostream_jax.experiment import run
from twostream_jax.flow import spec as flow_spec
from twostream_jax.stages import create, warm_start
from twostream_jax.train import window

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_dir):
  config = tiny_config.get_config()
  config.data.dir = str(tiny_dir)
  config.stages = ("temporal",)
  config.fusion.rules = ()
  return config


@pytest.fixture(scope="module")
def finished(config, tiny, tmp_path_factory):
  """Workdir of a run of the temporal stage."""
  folder = tmp_path_factory.mktemp("training")
  run.train_and_evaluate(config, folder, tiny)
  return folder


def changed(config, **settings):
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict(settings)
  return copy


def asked_at(number):
  """Asks to stop from the given question on."""
  count = iter(range(1, 10**6))
  return lambda: next(count) >= number


def test_stopped_between_two_records_it_goes_on_to_the_same_records(
  finished, config, tiny, tmp_path
):
  # Records are written every 2 steps, checkpoints too.
  with pytest.raises(interrupts.Interrupted, match="after step 3 of 8"):
    run.train_and_evaluate(
      config, tmp_path, tiny, watch=train.Watch(asked_at(3))
    )
  folder = tmp_path / "temporal" / "checkpoints"
  assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
  # Asked again in the evaluation, which has nothing to save.
  with pytest.raises(interrupts.Interrupted, match="temporal, validation"):
    run.train_and_evaluate(
      config, tmp_path, tiny, watch=train.Watch(asked_at(6))
    )
  run.train_and_evaluate(config, tmp_path, tiny)
  for name in ("temporal/metrics.jsonl", "results.json"):
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_best_counts_and_patience_ends_a_stage(
  config, tiny, tmp_path, monkeypatch
):
  settled = changed(
    config,
    **{
      "precision": "bfloat16",
      "selection.metric": "loss",
      "selection.patience": 2,
      "train.validate_every": 2,
      "train.keep_checkpoints": 1,
      "temporal.optim.ema_decay": 0.5,
      "temporal.optim.learning_rate": 0.0,
      "temporal.model.fields.normalisation": "none",
    },
  )
  run.train_and_evaluate(
    settled, tmp_path, tiny, watch=train.Watch(profile_steps=1)
  )
  # Nothing is learned, so that the first validation stays the best.
  folder = tmp_path / "temporal"
  with checkpoints.open_reader(folder / "checkpoints") as reader:
    assert sorted(reader.all_steps()) == [2, 6]
    assert checkpoints.chosen_step(reader) == 2
    stage = create.create_stage(settled, "temporal", tiny, tmp_path)
    state = checkpoints.restore_newest(reader, stage.state_shapes()).state
  for kept, averaged in zip(
    jax.tree.leaves(state.params),
    jax.tree.leaves(state.ema_params),
    strict=True,
  ):
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, averaged, atol=1e-6)
  recorded = [record["step"] for record in metric_logger.read_metrics(folder)]
  assert max(recorded) == 6
  # What is watched beside it.
  assert any((folder / "profile").rglob("*.xplane.pb"))
  events = b"".join(p.read_bytes() for p in (folder / "tensorboard").iterdir())
  assert b"input/flow" in events and b"timing/data_wait" in events
  timing = metric_logger.read_metrics(folder, metric_logger.TIMING)
  assert [record["step"] for record in timing] == [2, 4, 6]

  def fail(*args, **kwargs):
    raise AssertionError("trained again")

  monkeypatch.setattr(train._Trainer, "run", fail)
  (tmp_path / "scores" / "temporal-test.npz").unlink()
  run.train_and_evaluate(settled, tmp_path, tiny)


def test_bfloat16_computes_in_it_and_keeps_float32(config, tiny, tmp_path):
  half = changed(config, precision="bfloat16")
  stage = create.create_stage(half, "temporal", tiny, tmp_path)
  state = stage.state_shapes()
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {
    jnp.dtype("float32")
  }

  def apply(variables, batch):
    return stage.model.apply(variables, stage.preprocess(batch), train=False)

  logits, features = jax.eval_shape(
    apply, state.variables, stage.inputs.example()
  )
  assert logits.dtype == jnp.float32 and features["fc6"].dtype == jnp.bfloat16


def begun_from(config, folder, data, **settings):
  """The first state of a run that begins from another one."""
  new = changed(config, init_from=str(folder), **settings)
  stage = create.create_stage(new, "temporal", data, folder / "new")
  return stage.warm_start(stage.init_state())


def test_a_run_begins_with_the_weights_of_another(
  finished, config, tiny, capsys
):
  with checkpoints.open_reader(finished / "temporal" / "checkpoints") as reader:
    trained = checkpoints.restore_variables(reader)["params"]
  # That run continues: a save is under way.
  under_way = finished / "temporal" / "checkpoints" / "9.orbax-checkpoint-tmp-1"
  under_way.mkdir()
  state = begun_from(
    config, finished, tiny, **{"temporal.optim.ema_decay": 0.9}
  )
  under_way.rmdir()  # Still there.
  assert "16 arrays" in capsys.readouterr().out
  for tree in (state.params, state.ema_params):
    for a, b in zip(
      jax.tree.leaves(tree), jax.tree.leaves(trained), strict=True
    ):
      np.testing.assert_array_equal(a, b)
  assert state.step == 0


def test_an_average_begins_with_the_statistics_of_loaded_weights(
  config, tiny, tmp_path, monkeypatch
):
  loaded = {"params": {"kernel": 1.0}, "batch_stats": {"mean": 2.0}}
  monkeypatch.setattr(warm_start, "_load_file", lambda *args, **kwargs: loaded)
  fresh = {"params": {"kernel": 0.0}, "batch_stats": {"mean": 0.0}}
  state = steps.TrainState(
    step=0,
    skipped=0,
    **fresh,
    ema_params=fresh["params"],
    ema_batch_stats=fresh["batch_stats"],
    opt_state=(),
  )
  begin = warm_start.create(config, "temporal", tiny, tmp_path, {})
  found = begin(state)
  assert found.variables == loaded
  assert (found.params, found.batch_stats) == tuple(loaded.values())


def test_what_does_not_fit_another_run_stays_fresh_and_is_named(
  finished, config, tiny, capsys
):
  more = types.SimpleNamespace(
    **{**vars(tiny), "class_names": (*tiny.class_names, "another")}
  )
  begun_from(config, finished, more)
  said = capsys.readouterr().out
  assert (
    "fresh: backbone/logits/bias, backbone/logits/kernel; not used: 2" in said
  )


@pytest.mark.parametrize(
  "settings, match",
  [
    ({"temporal.input.flow_scale": 3.0}, "flow_scale: 1.0 there, 3.0 here"),
    ({"temporal.model.width": 0.3}, "only 1 of 16 arrays of .*8 fit"),
  ],
)
def test_weights_that_mean_something_else_are_refused(
  finished, config, tiny, settings, match
):
  with pytest.raises(ValueError, match=match):
    begun_from(config, finished, tiny, **settings)


def test_weights_for_other_flow_are_refused(finished, config, tiny):
  other = types.SimpleNamespace(
    **{
      **vars(tiny),
      "flow_spec": flow_spec.FlowSpec("farneback", {}, short_side=64),
    }
  )
  with pytest.raises(flow_spec.FlowSpecError, match="farneback"):
    begun_from(config, finished, other)


def sums(loss, skipped, rated=2):
  values = {
    "loss": np.float32(loss),
    "correct": np.float32(1),
    "count": np.float32(2),
    "grad_norm": np.float32(3),
    "rated": np.float32(rated),
    "finite": np.bool_(np.isfinite(loss)),
    "skipped": np.int32(skipped),
  }
  return parallel.replicate(values)


def test_accuracy_is_a_share_of_what_can_be_right():
  stage = types.SimpleNamespace(name="spatial", schedule=lambda step: 0.1)
  seen = window.Window(stage, max_skipped=1)
  ids = np.array(["a.avi", "b.avi"])
  seen.add(1, ids, sums(2.0, 0, rated=1))
  record, _ = seen.compute_and_reset()
  assert (record["accuracy"], record["loss"]) == (1.0, 1.0)
  seen.add(2, ids, sums(2.0, 0, rated=0))
  record, timing = seen.compute_and_reset()
  assert "accuracy" not in record
  assert "accuracy=nan" in train._postfix(record, timing)


def test_skipped_steps_are_named_and_do_not_count(capsys):
  stage = types.SimpleNamespace(name="spatial", schedule=lambda step: 0.1)
  seen = window.Window(stage, max_skipped=1, sums=[[4.0, 0.0, 2.0, 1.0]])
  ids = np.array(["a.avi", "b.avi"])
  seen.add(7, ids, sums(2.0, 0))
  seen.add(8, ids, sums(np.nan, 1))
  record, timing = seen.compute_and_reset()
  assert record == {
    "loss": 1.5,
    "accuracy": 0.25,
    "learning_rate": 0.1,
    "grad_norm": 2.0,
  }
  assert timing["clips_per_second"] > 0
  said = "".join(capsys.readouterr())
  assert "step 8" in said and "a.avi, b.avi" in said
  seen.add(9, ids, sums(np.inf, 2))
  with pytest.raises(FloatingPointError, match="step 9.*a.avi, b.avi") as error:
    seen.settle()
  assert "2 steps of this stage had no update" in str(error.value)
  assert "config.train.max_skipped_steps=1" in str(error.value)
