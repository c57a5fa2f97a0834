"""A finished run, opened without its dataset."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from tests import finished_run
from twostream_jax import checkpoints, scores, steps
from twostream_jax.data.loader.eval_pipeline import Rows
from twostream_jax.stages import trained
from twostream_jax.stages.trained import TrainedRunError


@pytest.fixture(scope="module")
def opened(finished_dir, tmp_path_factory):
  """A copy of the run from where neither it nor its dataset is."""
  copy = tmp_path_factory.mktemp("moved") / "run"
  shutil.copytree(finished_dir, copy)
  change_settings(copy, ["config", "data", "dir"], "/no/such/folder")
  for values in copy.glob("features/*/*/values.npy"):
    values.unlink()
  return trained.open_run(copy)


@pytest.fixture
def copy(finished_dir, tmp_path):
  shutil.copytree(finished_dir, tmp_path / "run")
  return tmp_path / "run"


def change_settings(folder, keys, value):
  path = folder / "config.json"
  settings = json.loads(path.read_text())
  part = settings
  for key in keys[:-1]:
    part = part[key]
  if value is None:
    del part[keys[-1]]
  else:
    part[keys[-1]] = value
  path.write_text(json.dumps(settings))


def test_it_says_what_the_run_was(opened, tiny):
  assert list(opened.stages) == ["spatial", "temporal", "network", "joint"]
  assert list(opened.rules) == [
    "average",
    "average_logits",
    "weighted",
    "fitted_weights",
  ]
  assert opened.class_names == tiny.class_names
  assert not opened.multi_label and opened.name == tiny.name
  assert opened.flow_spec == tiny.flow_spec
  assert opened.rgb_quality == tiny.rgb_quality == 95
  assert opened.config.is_locked and opened.config.stages == (
    *finished_run.BOTH,
    "network",
    "joint",
  )
  kinds = {name: stage.kind for name, stage in opened.stages.items()}
  assert set(kinds.values()) == {"stream", "features", "joint"}
  network = opened.stages["network"]
  assert network.sources == ("spatial", "temporal") and network.views is None
  assert opened.stages["temporal"].step == 8


def score(stage, batch):
  predict = functools.partial(
    steps.predict_step,
    stage.variables,
    model=stage.model,
    preprocess=stage.preprocess,
    views_per_pass=4,
    num_classes=stage.num_classes,
  )
  return jax.jit(predict)({k: batch[k] for k in stage.example})


@pytest.mark.parametrize("name", ["spatial", "temporal", "joint"])
def test_streams_score_as_in_the_run(opened, tiny, name):
  stage = opened.stages[name]
  expected = scores.load_scores(opened.workdir / "scores" / f"{name}-test.npz")
  assert stage.protocol == expected.protocol
  source = tiny.sources["test"]
  places = np.arange(stage.views.counts(source)[4])
  rows = Rows(places, np.full(len(places), 4), places)
  found = score(stage, stage.views.load(source, rows, len(places)))
  np.testing.assert_allclose(
    found.mean(axis=0), expected.logits[4], rtol=1e-4, atol=1e-5
  )


def test_stages_of_features_score_as_in_the_run(opened, finished_dir):
  network = opened.stages["network"]
  batch = {"length": np.full(2, 3, np.int32)}
  for source in network.sources:
    feature = opened.stages[source].feature
    values = np.load(
      finished_dir / "features" / f"{source}-{feature}" / "test" / "values.npy"
    )
    batch[source] = values[:2, None].astype(np.float32)
  batch["length"] = batch["length"][:, None]
  expected = scores.load_scores(opened.workdir / "scores" / "network-test.npz")
  assert network.protocol == expected.protocol
  np.testing.assert_allclose(
    score(network, batch), expected.logits[:2], rtol=1e-4, atol=1e-5
  )


def test_rules_fuse_as_in_the_run(opened):
  streams = {
    name: scores.load_scores(opened.workdir / "scores" / f"{name}-test.npz")
    for name in opened.stages
  }
  for name, rule in opened.rules.items():
    expected = scores.load_scores(
      opened.workdir / "scores" / f"{name}-test.npz"
    )
    fused = rule(streams)
    np.testing.assert_array_equal(fused.logits, expected.logits)
    assert fused.protocol == expected.protocol


def test_opening_writes_nothing(copy):
  def listing():
    return {path: path.stat().st_mtime_ns for path in sorted(copy.rglob("*"))}

  # What a save in progress looks like.
  (copy / "spatial" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
  before = listing()
  trained.open_run(copy)
  assert listing() == before


@pytest.mark.parametrize(
  "keys, value, match",
  [
    (["config"], None, r"config.json can't be read: KeyError\('config'\)"),
    (["config", "eval", "protocol"], None, "lacks a setting.*protocol"),
    (["config", "temporal", "model", "width"], 0.05, "'temporal' does not fit"),
    (["dataset", "class_names"], ["a", "b"], "class_names of .*spatial"),
    (["dataset", "class_names"], ["a" * 9000], "class_names of .{,900}$"),
    (["dataset", "flow_spec", "bound"], 7.0, "other flow.*20.0 != 7.0"),
    (["config", "spatial", "total_steps"], 99, "'spatial'.*step 8 of 99"),
    (["config", "stages"], ["spatial", "audio"], "lacks a setting.*audio"),
    (["config", "stages"], ["../run/spatial"], "is not the name of a file"),
  ],
)
def test_settings_that_do_not_fit_are_named(copy, keys, value, match):
  change_settings(copy, keys, value)
  with pytest.raises(ValueError, match=match):
    trained.open_run(copy)


@pytest.mark.parametrize(
  "missing, match",
  [
    ("config.json", "no run in .*no config.json"),
    ("joint/checkpoints", "'joint' of .* is not trained"),
    ("scores/joint-validation.npz", "fusion of .*joint-validation.npz"),
  ],
)
def test_what_is_missing_is_named(copy, missing, match):
  path = copy / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(TrainedRunError, match=match):
    trained.open_run(copy)


def change_scores(path, **changes):
  found = scores.load_scores(path)
  scores.save_scores(path, dataclasses.replace(found, **changes))


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"weights": "others"}, "'spatial' on 'validation'.* of other weights"),
    ({"protocol": "one view"}, "under the protocol 'one view', not '2x1"),
    ({"videos": "others"}, "of other videos, labels or images"),
    # Earlier versions did not write it down.
    ({"weights": "", "videos": ""}, None),
  ],
)
def test_rules_are_fitted_on_scores_of_the_weights_that_are_there(
  copy, monkeypatch, opened, changes, match
):
  def open_stage(config, name, workdir):  # As in the run, in less time.
    return opened.stages[name]

  monkeypatch.setattr(trained, "open_stage", open_stage)
  change_scores(copy / "scores" / "spatial-validation.npz", **changes)
  if match is None:
    assert "fitted_weights" in trained.open_run(copy).rules
  else:
    with pytest.raises(TrainedRunError, match=match):
      trained.open_run(copy)
    # Rules without parameters need no scores.
    change_settings(copy, ["config", "fusion", "rules"], ["average"])
    assert list(trained.open_run(copy).rules) == ["average"]


def test_another_protocol_leaves_rules_as_the_run_fitted_them(copy):
  found = trained.open_run(copy, "single").rules["fitted_weights"].fitted
  assert "2x1" in found.fitted_on


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(TrainedRunError, match="no run in .*nowhere"):
    trained.open_run(tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_named(copy):
  for path in (copy / "temporal" / "checkpoints" / "8" / "state").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(checkpoints.CheckpointError, match="temporal.*can't be"):
    trained.open_run(copy)


def test_features_that_were_stored_are_not_needed(copy):
  shutil.rmtree(copy / "features")
  assert trained.open_run(copy).stages["network"].sources == finished_run.BOTH


def test_the_second_head_is_known_without_its_dataset(tiny_dir, tiny, tmp_path):
  config = finished_run.get_config(tiny_dir)
  config.stages = ("temporal",)
  config.data.second_dir = str(tiny_dir)
  finished_run.save_checkpoint(config, "temporal", tmp_path, tiny)
  settings = {
    "config": config.to_dict(),
    "dataset": json.loads(
      json.dumps(trained_facts(tmp_path / "temporal" / "checkpoints"))
    ),
  }
  settings["config"]["data"]["second_dir"] = "/no/such/folder"
  (tmp_path / "config.json").write_text(json.dumps(settings))
  stage = trained.open_run(tmp_path).stages["temporal"]
  assert (stage.num_classes, stage.num_outputs) == (12, 24)


def trained_facts(folder):
  return checkpoints.read_metadata(folder)[1]
