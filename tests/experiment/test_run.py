"""A whole run in one process: results, resume, refusals."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests import tiny_config
from twostream_jax import (
  checkpoints,
  metric_logger,
  parallel,
  report,
  results,
  scores,
  train,
)
from twostream_jax.data import dataset
from twostream_jax.experiment import run
from twostream_jax.files import workdir
from twostream_jax.flow import spec as flow_spec
from twostream_jax.results import gallery
from twostream_jax.stages import create


@pytest.fixture(scope="module")
def config(tiny_dir):
  config = tiny_config.get_config()
  config.data.dir = str(tiny_dir)
  return config


@pytest.fixture(scope="module")
def finished(config, tiny, tmp_path_factory):
  """Folder of a finished run and what the run returned."""
  folder = tmp_path_factory.mktemp("run")
  return folder, run.train_and_evaluate(config, folder, tiny)


@pytest.fixture
def forbid_training(monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError("trained again")

  monkeypatch.setattr(train._Trainer, "run", fail)


def final_state(config, name, folder, data):
  stage = create.create_stage(config, name, data, folder)
  template = stage.state_shapes()
  with checkpoints.open_manager(
    folder / name / "checkpoints", keep=2
  ) as manager:
    found = checkpoints.restore_newest(manager, template)
    return found.step, found.state


@pytest.mark.parametrize(
  "step, due", [(1, 0), (5, 1), (10, 1), (12, 1), (6, 0)]
)
def test_cadence(step, due):
  assert train.is_due(step, 5, 12) == bool(due)


def test_results_are_the_contract_s(finished, tiny):
  folder, returned = finished
  written = json.loads((folder / "results.json").read_text())
  assert written == returned
  assert list(written) == [
    "dataset",
    "split",
    "protocol",
    "videos",
    "skipped",
    "streams",
    "fusion",
    "intervals",
    "protocols",
    "digests",
    "subsets",
  ]
  assert written["videos"] == 12 and written["skipped"] == 0
  assert list(written["streams"]) == ["spatial", "temporal"]
  assert list(written["fusion"]) == ["average", "fitted_weights"]
  for group in ("streams", "fusion"):
    for name, values in written[group].items():
      assert list(values) == ["top1", "top5", "mean_class_accuracy"]
      found = scores.load_scores(folder / "scores" / f"{name}-test.npz")
      assert len(found.class_names) == found.logits.shape[1] == 12
      top1 = (found.logits.argmax(axis=1) == found.labels).mean()
      assert values["top1"] == pytest.approx(top1)
      intervals = written["intervals"][group][name]
      assert list(intervals) == list(values)
      for metric, (low, high) in intervals.items():
        assert 0 <= low <= values[metric] <= high <= 1
  assert "3x1" not in written["protocol"] and "2x1" in written["protocol"]
  assert str(results.table(written)).count("\n") == 8


def test_every_file_of_the_workdir_is_there(finished):
  folder, _ = finished
  page = (folder / "report.html").read_text()
  assert page.count("<html") == 1 and "amber-slide" in page
  for name in ("spatial", "temporal"):
    records = metric_logger.read_metrics(folder / name)
    steps = [r["step"] for r in records if r["split"] == "train"]
    assert steps == [2, 4, 6, 8]
    assert [r["step"] for r in records if r["split"] == "validation"] == [4, 8]
    assert all(np.isfinite(r["loss"]) for r in records)
    assert (folder / "scores" / f"{name}-validation.npz").exists()


def test_checkpoints_carry_the_flow_spec(finished, tiny):
  folder, _ = finished
  _, metadata = checkpoints.read_metadata(folder / "temporal" / "checkpoints")
  assert metadata["flow_spec"]["algorithm"] == "dis"
  assert metadata["flow_spec"]["bound"] == tiny.flow_spec.bound
  assert tuple(metadata["class_names"]) == tiny.class_names


def test_a_finished_run_does_nothing_twice(
  finished, config, tiny, forbid_training, monkeypatch
):
  folder, returned = finished

  def fail(*args, **kwargs):
    raise AssertionError("evaluated again")

  monkeypatch.setattr(run.evaluate, "evaluate", fail)
  assert run.train_and_evaluate(config, folder, tiny) == returned


def test_a_removal_cut_off_at_the_end_of_training_is_made_good(
  finished, config, tiny, forbid_training, tmp_path
):
  """A stage at its end is not opened to train again."""
  folder, returned = finished
  copy = tmp_path / "run"
  shutil.copytree(folder, copy)
  kept = copy / "spatial" / "checkpoints"
  before = sorted(kept.iterdir())
  shutil.copytree(before[-1], kept / "1")
  shutil.rmtree(kept / "1" / "progress")
  assert run.train_and_evaluate(config, copy, tiny) == returned
  assert sorted(kept.iterdir()) == before


@pytest.mark.slow
def test_another_protocol_scores_anew_without_training(
  finished, config, tiny, forbid_training, tmp_path
):
  folder, returned = finished
  changed = config.copy_and_resolve_references()
  changed.eval.protocol = "3x1"
  again = run.train_and_evaluate(changed, folder, tiny)
  assert "3x1" in again["protocol"]
  assert run.train_and_evaluate(config, folder, tiny) == returned


@pytest.mark.slow
def test_resuming_stage_by_stage_gives_the_same_bits(
  finished, config, tiny, tmp_path, monkeypatch
):
  folder, returned = finished
  calls = []

  def save_then_stop(manager, step, *args, **kwargs):
    saved(manager, step, *args, **kwargs)
    calls.append(step)
    if len(calls) in (1, 6):
      manager.wait_until_finished()
      raise KeyboardInterrupt

  saved = checkpoints.save
  monkeypatch.setattr(checkpoints, "save", save_then_stop)
  with pytest.raises(KeyboardInterrupt):
    run.train_and_evaluate(config, tmp_path, tiny, "temporal")
  assert run.train_and_evaluate(config, tmp_path, tiny, "temporal") is None
  assert not (tmp_path / "results.json").exists()
  with pytest.raises(KeyboardInterrupt):
    run.train_and_evaluate(config, tmp_path, tiny)
  assert run.train_and_evaluate(config, tmp_path, tiny) == returned
  assert calls == [2, 4, 6, 8, 2, 4, 6, 8]
  for name in ("spatial", "temporal"):
    step, state = final_state(config, name, folder, tiny)
    resumed_step, resumed = final_state(config, name, tmp_path, tiny)
    assert step == resumed_step == 8
    for a, b in zip(
      jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True
    ):
      np.testing.assert_array_equal(a, b)
    ours, theirs = (
      (where / name / metric_logger.FILENAME).read_bytes()
      for where in (folder, tmp_path)
    )
    assert ours == theirs


def test_another_model_is_not_resumed(finished, config, tiny):
  folder, _ = finished
  changed = config.copy_and_resolve_references()
  changed.temporal.model.width = 0.05
  with pytest.raises(workdir.ConfigMismatchError, match="temporal.model.width"):
    run.train_and_evaluate(changed, folder, tiny)


def test_a_checkpoint_of_another_model_is_refused(finished, config, tiny):
  folder, _ = finished
  changed = config.copy_and_resolve_references()
  changed.temporal.model.width = 0.1
  with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
    final_state(changed, "temporal", folder, tiny)


@pytest.fixture(scope="module")
def rebound(tiny, tmp_path_factory):
  """A copy of the tiny dataset that states another bound, opened."""
  folder = tmp_path_factory.mktemp("rebound") / "data"
  shutil.copytree(tiny.path, folder)
  path = folder / dataset.METADATA_FILE
  metadata = json.loads(path.read_text())
  metadata["flow_spec"]["bound"] = 7.0
  path.write_text(json.dumps(metadata))
  return dataset.open_dataset(folder)


def copied_run(folder, target):
  """A copy of a run that has lost its config.json."""
  shutil.copytree(folder, target)
  (target / "config.json").unlink()
  return target


def assert_refused(config, folder, data):
  with pytest.raises(flow_spec.FlowSpecError) as refused:
    run.train_and_evaluate(config, folder, data)
  words = str(refused.value)
  assert str(folder / "temporal" / "checkpoints") in words
  assert str(data.path) in words
  assert "bound: 20.0 != 7.0" in words
  # Nothing of the other dataset stays behind to refuse the right one.
  assert not (folder / "config.json").exists()


def test_flow_of_another_kind_is_refused_without_a_config(
  finished, config, tiny, rebound, forbid_training, tmp_path
):
  folder, returned = finished
  copy = copied_run(folder, tmp_path / "run")
  assert_refused(config, copy, rebound)
  # To score again, the weights are restored with the dataset.
  (copy / "scores" / "temporal-test.npz").unlink()
  assert_refused(config, copy, rebound)
  assert run.train_and_evaluate(config, copy, tiny) == returned


def test_an_interrupted_stage_does_not_go_on_with_other_flow(
  finished, config, rebound, forbid_training, tmp_path
):
  copy = copied_run(finished[0], tmp_path / "run")
  shutil.rmtree(copy / "temporal" / "checkpoints" / "8")
  shutil.rmtree(copy / "scores")
  assert_refused(config, copy, rebound)


def test_frames_do_not_ask_for_the_flow_they_came_with(
  finished, config, rebound, forbid_training, tmp_path
):
  copy = copied_run(finished[0], tmp_path / "run")
  (copy / "scores" / "spatial-test.npz").unlink()
  changed = config.copy_and_resolve_references()
  changed.stages = ("spatial",)
  changed.fusion.weights = (1.0,)
  alone = run.train_and_evaluate(changed, copy, rebound)
  assert alone["streams"]["spatial"] == finished[1]["streams"]["spatial"]


def test_a_checkpoint_without_a_whole_spec_is_named(
  finished, config, tiny, monkeypatch, tmp_path
):
  def without_bound(directory):
    path, metadata = read(directory)
    del metadata["flow_spec"]["bound"]
    return path, metadata

  read = checkpoints.read_metadata
  folder, _ = finished
  monkeypatch.setattr(checkpoints, "read_metadata", without_bound)
  with pytest.raises(
    flow_spec.FlowSpecError, match=r"temporal/checkpoints/8: .*'bound'"
  ):
    run.train_and_evaluate(config, folder, tiny)


def test_reading_metadata_leaves_the_folder_alone(finished, tmp_path):
  missing = tmp_path / "checkpoints"
  assert checkpoints.read_metadata(missing) is None
  assert not missing.exists()
  folder = tmp_path / "copy"
  shutil.copytree(finished[0] / "temporal" / "checkpoints", folder)
  # What a save in progress looks like.
  (folder / "10.orbax-checkpoint-tmp").mkdir()
  path, metadata = checkpoints.read_metadata(folder)
  assert path == folder / "8" and metadata["flow_spec"]["bound"] == 20.0
  assert (folder / "10.orbax-checkpoint-tmp").exists()


def test_a_stage_learns_the_direction_of_the_dataset_s_flow(
  config, tiny, tmp_path
):
  both_ways = dataclasses.replace(
    tiny,
    flow_spec=dataclasses.replace(tiny.flow_spec, direction="bidirectional"),
  )
  for data, expected in ((tiny, "forward"), (both_ways, "bidirectional")):
    stage = create.create_stage(config, "temporal", data, tmp_path)
    assert stage.inputs.train.spec.direction == expected
    assert stage.inputs.evaluation.spec.direction == expected
  changed = config.copy_and_resolve_references()
  changed.temporal.input.stack_length = 3
  with pytest.raises(ValueError, match="stack_length=3 must be even"):
    create.create_stage(changed, "temporal", both_ways, tmp_path)


@pytest.mark.slow
def test_a_run_that_diverges_says_where(config, tiny, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.temporal.optim.learning_rate = 1e30
  changed.temporal.optim.max_grad_norm = 0.0
  with pytest.raises(
    FloatingPointError,
    match=r"'temporal', step 3:.*not finite.*train/\w+-\w+/00\d\.avi",
  ):
    run.train_and_evaluate(changed, tmp_path, tiny, "temporal")


def test_a_stage_is_not_named_as_a_rule(config, tiny):
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.average = changed.spatial
  changed.stages = ("average", "temporal")
  with pytest.raises(ValueError, match=r"both have \['average'\]"):
    run.check_config(changed, tiny, "")


@pytest.mark.parametrize(
  "path, value, match",
  [
    ("stages", ("spatial", "audio"), "'audio'"),
    ("data.test_split", "dev", "test_split='dev'.*train"),
    ("fusion.fit_split", "", "fitted_weights.*need config.fusion.fit_split"),
    ("fusion.fit_split", "test", "is the test split"),
    ("fusion.fit_split", "dev", "fit_split='dev'"),
    ("fusion.rules", ("average", "voting"), "voting"),
    ("selection.metric", "top1", "selection.metric='top1'"),
    ("selection.patience", 2, "patience=2 needs config.selection.metric"),
    ("precision", "float16", "precision='float16'.*bfloat16"),
    ("train.micro_batches", 3, "8 devices in 3 micro-batches: use 24"),
    ("init_from", "no-such-run", "no-such-run.*not a workdir"),
    ("spatial.optim.ema_decay", 1.0, "ema_decay=1.0"),
    ("eval.protocol", "25x7", "eval.protocol='25x7'.*'dense'"),
    ("eval.views_per_pass", 0, "views_per_pass=0 must be"),
    ("eval.crop_fraction", 1.5, "1.5"),
    ("spatial.batch_size", 9, "spatial.batch_size=9"),
    ("spatial.kind", "sequence", "spatial.kind='sequence'"),
    ("spatial.optim.name", "lion", "lion"),
    ("spatial.init.weights", "no-such-file.pth", "no-such-file.pth"),
    ("spatial.model.name", "resnet19", "resnet19"),
    ("spatial.optim.schedule", "linear", "linear"),
    ("spatial.input.short_clip", "mirror", "mirror"),
  ],
)
def test_settings_that_can_not_work_are_named(
  config, tiny, tmp_path, path, value, match
):
  changed = config.copy_and_resolve_references()
  *parents, key = path.split(".")
  part = changed
  for parent in parents:
    part = part[parent]
  part[key] = value
  with pytest.raises(ValueError, match=match):
    run.train_and_evaluate(changed, tmp_path, tiny)
  assert not (tmp_path / "spatial" / "checkpoints").exists()


def test_mirrored_crops_need_mirrored_training(config, tiny, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.eval.protocol = "4x10"
  changed.temporal.input.flip = False
  with pytest.raises(ValueError, match="temporal.input.flip is off: use '4x5'"):
    run.train_and_evaluate(changed, tmp_path, tiny)


@pytest.mark.slow
def test_one_stage_alone_is_not_fused(finished, config, tiny, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.stages = ("temporal",)
  changed.fusion.weights = (1.0,)
  alone = run.train_and_evaluate(changed, tmp_path, tiny)
  assert alone["fusion"] == {}
  assert alone["streams"]["temporal"] == finished[1]["streams"]["temporal"]


def test_the_gallery_shows_the_clip_it_names(tiny):
  source = tiny.sources["test"]
  shown = gallery.example(source[5], tiny)
  assert isinstance(shown, report.Example)
  assert shown.video_id == source[5]["video_id"].decode()
  assert len(shown.frames) == len(shown.flows) == 3
  assert shown.frames[0].shape[:2] == shown.flows[0].shape[:2]
  assert np.abs(shown.flows).max() <= tiny.flow_spec.bound
  assert parallel.num_replicas() == 8
