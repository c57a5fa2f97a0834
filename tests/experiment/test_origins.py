"""Weights, features and scores know what they came from."""

import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest

from configs import default
from tests import finished_run, tiny_config
from twostream_jax import (
  checkpoints,
  models,
  pretrained,
  results,
  scores,
  train,
)
from twostream_jax.data.loader import features
from twostream_jax.experiment import rescore, run
from twostream_jax.files import workdir
from twostream_jax.files.workdir import ConfigMismatchError
from twostream_jax.flow.spec import FlowSpecError, to_dict
from twostream_jax.stages import create, trained, warm_start
from twostream_jax.stages.trained import TrainedRunError


@pytest.fixture
def config(tiny_dir):
  """A temporal stream, and a network of its features."""
  config = tiny_config.get_config()
  config.data.dir = str(tiny_dir)
  with config.unlocked():
    config.network = default.get_features("regularised", ("temporal",))
    config.joint = default.get_joint(("spatial", "temporal"))
  config.stages = ("temporal", "network")
  config.features.num_frames = 2
  config.network.model.fields = {"hidden": 3}
  config.joint.input = config.temporal.input
  for name in ("network", "joint"):
    config[name].batch_size = 8
    config[name].total_steps = 3
  config.fusion.rules = ("average",)
  return config


def changed(config, **settings):
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(settings)
  return copy


def with_labels(data, split):
  """The dataset, built again with another label of one video of a split."""
  source = data.sources[split]
  labels = source.labels.copy()
  labels[0] = (labels[0] + 1) % len(data.class_names)

  class Corrected:
    def __getattr__(self, name):
      return getattr(source, name)

    def __len__(self):
      return len(source)

    def __getitem__(self, index):
      return source[index] | {"label": int(labels[index])}

  other = Corrected()
  other.labels, other.digest = labels, f"another {split}"
  return dataclasses.replace(data, sources={**data.sources, split: other})


# Streams that are not trained to their end.


def test_features_of_a_half_trained_stream_are_refused(config, tiny, tmp_path):
  finished_run.save_checkpoint(config, "temporal", tmp_path, tiny, step=3)
  with pytest.raises(TrainedRunError, match="'temporal' .* step 3 of 8"):
    run.train_and_evaluate(config, tmp_path, tiny, only_stage="network")
  assert not (tmp_path / "features").exists()


def test_towers_that_are_half_trained_are_refused(config, tiny, tmp_path):
  config.stages = ("spatial", "temporal", "joint")
  finished_run.save_checkpoint(config, "spatial", tmp_path, tiny)
  finished_run.save_checkpoint(config, "temporal", tmp_path, tiny, step=3)
  with pytest.raises(TrainedRunError, match="'temporal' .* step 3 of 8"):
    create.create_stage(config, "joint", tiny, tmp_path)


def test_another_run_to_begin_from_has_to_be_finished(config, tiny, tmp_path):
  finished_run.save_checkpoint(config, "temporal", tmp_path, tiny, step=3)
  new = changed(config, init_from=str(tmp_path))
  stage = create.create_stage(new, "temporal", tiny, tmp_path / "new")
  with pytest.raises(TrainedRunError, match="'temporal' .* step 3 of 8"):
    stage.warm_start(stage.init_state())


# Caches of weights that have changed.


@pytest.mark.slow
def test_features_and_scores_are_of_the_weights_that_are_there(
  config, tiny, tmp_path
):
  finished_run.make(config, tmp_path, tiny)
  path = workdir.features_path(tmp_path, "temporal", "fc6", "train")
  first = features.read_features(path)
  scored = scores.load_scores(tmp_path / "scores" / "temporal-test.npz")
  opened = trained.open_run(tmp_path)
  assert first.weights == scored.weights == opened.stages["temporal"].digest

  # The stream is trained again.
  other = changed(config, seed=1)
  for step in (tmp_path / "temporal" / "checkpoints").iterdir():
    step.rename(tmp_path / f"old-{step.name}")
  finished_run.save_checkpoint(other, "temporal", tmp_path, tiny)
  for look in (
    lambda: trained.open_run(tmp_path),
    lambda: run.train_and_evaluate(config, tmp_path, tiny),
    lambda: rescore.rescore(config, tmp_path, tiny),
  ):
    with pytest.raises(TrainedRunError, match="'network' .*had other weights"):
      look()
  again = scores.load_scores(tmp_path / "scores" / "temporal-test.npz")
  assert again.weights != scored.weights
  assert not np.array_equal(again.logits, scored.logits)
  run.compute_features(config, "network", tmp_path, tiny, train.Watch())
  assert features.read_features(path).weights == again.weights

  # Training on the old features does not resume with the new ones.
  longer = changed(config, **{"network.total_steps": 9})
  with pytest.raises(ValueError, match="other features"):
    create.create_stage(longer, "network", tiny, tmp_path)


def test_results_go_when_a_stage_alone_is_scored_by_another_protocol(
  finished_dir, tiny_dir, tiny, tmp_path
):
  folder = tmp_path / "run"
  shutil.copytree(finished_dir, folder)
  found = results.read_results(folder)
  for name in finished_run.BOTH:
    of_test = scores.load_scores(folder / "scores" / f"{name}-test.npz")
    assert found["digests"]["weights"][name] == of_test.weights != ""
    assert found["digests"]["videos"] == of_test.videos != ""
  config = finished_run.get_config(tiny_dir)
  config.eval.protocol = "single"
  assert run.train_and_evaluate(config, folder, tiny, "spatial") is None
  for name in (results.RESULTS_FILE, results.REPORT_FILE):
    assert not (folder / name).exists()
  with pytest.raises(TrainedRunError, match="'temporal' on .*give the command"):
    trained.open_run(folder)


def test_a_finished_run_without_checkpoints_stays_as_it_is(
  config, tiny, tmp_path
):
  config.stages = ("temporal",)
  expected = finished_run.make(config, tmp_path, tiny)
  (tmp_path / "temporal" / "checkpoints").rename(tmp_path / "elsewhere")
  assert run.train_and_evaluate(config, tmp_path, tiny) == expected


def test_a_joint_stage_keeps_to_the_towers_that_it_began_with(
  finished_dir, tiny_dir, tiny, tmp_path
):
  folder = tmp_path / "run"
  shutil.copytree(finished_dir, folder)
  config = finished_run.get_config(tiny_dir)
  joint = trained.open_stage(config, "joint", folder)
  trained.check_sources(config, joint, folder)
  warm_start.check_resumed(config, "joint", folder)

  shutil.rmtree(folder / "temporal" / "checkpoints")
  trained.check_sources(config, joint, folder)  # Somebody has removed them.
  finished_run.save_checkpoint(
    changed(config, seed=1), "temporal", folder, tiny
  )
  match = "'joint'.* began with other weights of 'temporal' than it has now"
  with pytest.raises(TrainedRunError, match=match):
    trained.check_sources(config, joint, folder)
  with pytest.raises(
    TrainedRunError, match="other weights of stage 'temporal'"
  ):
    warm_start.check_resumed(config, "joint", folder)
  # Of an earlier version, which did not write it down.
  del joint.metadata[warm_start.ORIGINS]
  trained.check_sources(config, joint, folder)


def test_what_a_stage_began_with_is_inherited_by_its_checkpoints():
  stage = types.SimpleNamespace(origins=lambda: {"files": {"a": "now"}})
  assert train._origins(stage, None) == {
    warm_start.ORIGINS: {"files": {"a": "now"}}
  }
  began = {warm_start.ORIGINS: {"files": {"a": "then"}}}
  found = checkpoints.Restored(3, None, {}, began | {"inputs": {}})
  assert train._origins(stage, found) == began
  assert train._origins(stage, found._replace(metadata={"inputs": {}})) == {}


def test_a_resumed_stage_says_that_it_began_with_other_weights(
  config, tiny, tmp_path
):
  other, path = tmp_path / "other", tmp_path / "image.safetensors"
  finished_run.save_checkpoint(config, "temporal", other, tiny)
  new = changed(config, init_from=str(other))
  new.temporal.init.weights = weights_of(
    config, path, convention=pretrained.IMAGENET
  )
  finished_run.save_checkpoint(new, "temporal", tmp_path, tiny, step=3)
  warm_start.check_resumed(new, "temporal", tmp_path)
  path.write_bytes(b"others")
  with pytest.warns(UserWarning, match="image.* other weights .*'temporal'"):
    warm_start.check_resumed(new, "temporal", tmp_path)
  path.unlink()
  warm_start.check_resumed(new, "temporal", tmp_path)
  shutil.rmtree(other / "temporal")
  warm_start.check_resumed(new, "temporal", tmp_path)
  finished_run.save_checkpoint(changed(config, seed=1), "temporal", other, tiny)
  with pytest.warns(UserWarning, match="other has other weights"):
    warm_start.check_resumed(new, "temporal", tmp_path)


# Datasets that were built again.


def test_the_digest_of_a_split_tells_labels(tiny):
  digests = {split: source.digest for split, source in tiny.sources.items()}
  assert len(set(digests.values())) == 3
  assert (
    tiny.sources["test"]
    .__reduce__()[0](*tiny.sources["test"].__reduce__()[1])
    .digest
    == digests["test"]
  )
  labels = tiny.sources["test"]._index.labels
  labels[0] += 1
  try:
    del tiny.sources["test"].digest
    assert tiny.sources["test"].digest != digests["test"]
  finally:
    labels[0] -= 1
    del tiny.sources["test"].digest


def test_corrected_labels_of_the_test_split_are_scored_again(
  config, tiny, tmp_path
):
  config.stages = ("temporal",)
  finished_run.make(config, tmp_path, tiny)
  path = tmp_path / "scores" / "temporal-test.npz"
  before = scores.load_scores(path)
  run.train_and_evaluate(config, tmp_path, with_labels(tiny, "test"))
  after = scores.load_scores(path)
  assert (after.labels != before.labels).sum() == 1
  np.testing.assert_array_equal(after.logits, before.logits)


def test_corrected_labels_of_the_training_split_are_refused(
  config, tiny, tmp_path
):
  config.stages = ("temporal",)
  finished_run.make(config, tmp_path, tiny)
  other = with_labels(tiny, "train")
  for without_settings in (False, True):
    if without_settings:
      (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigMismatchError, match="built again"):
      run.train_and_evaluate(config, tmp_path, other)


# Inputs of networks travel with their weights.


@pytest.mark.parametrize(
  "stream, key, value",
  [
    ("temporal", "flow_scale", 0.5),
    ("temporal", "subtract_mean_flow", False),
    pytest.param(
      "spatial", "rgb_mean", (0.0, 0.0, 0.0), marks=pytest.mark.slow
    ),
    ("spatial", "rgb_std", (1.0, 1.0, 1.0)),
  ],
)
def test_towers_are_shown_what_they_were_trained_on(
  config, tiny, tmp_path, stream, key, value
):
  config.stages = ("spatial", "temporal", "joint")
  config.joint.input = config.temporal.input.copy_and_resolve_references()
  config[stream].input[key] = value
  for name in ("spatial", "temporal"):
    finished_run.save_checkpoint(config, name, tmp_path, tiny)
  match = f"config.joint.input.{key}=.* '{stream}' was trained with"
  with pytest.raises(ValueError, match=match):
    create.create_stage(config, "joint", tiny, tmp_path)
  config.joint.input[key] = value
  stage = create.create_stage(config, "joint", tiny, tmp_path)
  assert getattr(stage.preprocess, key) == value


def weights_of(config, path, *, convention=None, notes=None):
  """A file of weights for the temporal or the spatial network."""
  settings = config.temporal.model
  channels = 4 if convention is None else 3
  model = models.create_model(
    settings.name,
    num_classes=12,
    width=settings.width,
    dropout_rate=0.0,
    **settings.fields.to_dict(),
  )
  variables = model.init(
    {"params": jax.random.key(5)},
    np.zeros((1, 64, 64, channels), np.float32),
    train=False,
  )
  metadata = pretrained.Metadata(settings.name, 12, convention, notes or {})
  pretrained.save_weights(path, variables, metadata)
  return str(path)


@pytest.mark.slow
def test_weights_of_a_network_of_flow_bring_its_numbers(config, tiny, tmp_path):
  inputs = {"flow_scale": 0.25, "subtract_mean_flow": False}
  spec = to_dict(tiny.flow_spec)
  for notes, error in (
    ({"flow_spec": spec, "inputs": inputs}, None),
    ({"flow_spec": spec | {"bound": 3.0}, "inputs": inputs}, FlowSpecError),
    ({"class_names": ["a"]}, pretrained.WeightsError),
  ):
    config.temporal.init.weights = weights_of(
      config, tmp_path / "own.safetensors", notes=notes
    )
    if error is None:
      stage = create.create_stage(config, "temporal", tiny, tmp_path / "run")
      found = stage.preprocess
      assert (found.flow_scale, found.subtract_mean_flow) == (0.25, False)
    else:
      with pytest.raises(error):
        create.create_stage(config, "temporal", tiny, tmp_path / "run")


@pytest.mark.slow
def test_features_of_another_layer_are_no_beginning(config, tiny, tmp_path):
  for name in config.stages:
    run.compute_features(config, name, tmp_path, tiny, train.Watch())
    finished_run.save_checkpoint(config, name, tmp_path, tiny)
  new = changed(config, init_from=str(tmp_path))
  new.temporal.feature = "fc7"
  folder = tmp_path / "new"
  finished_run.save_checkpoint(new, "temporal", folder, tiny)
  run.compute_features(new, "network", folder, tiny, train.Watch())
  stage = create.create_stage(new, "network", tiny, folder)
  with pytest.raises(ValueError, match="feature of 'temporal': fc6 there, fc7"):
    stage.warm_start(stage.init_state())


def test_imported_weights_are_needed_once(config, tiny, tmp_path):
  config.stages = ("temporal",)
  path = tmp_path / "image.safetensors"
  config.temporal.init.weights = weights_of(
    config, path, convention=pretrained.IMAGENET
  )
  folder = tmp_path / "run"
  expected = finished_run.make(config, folder, tiny)
  spread = trained.open_run(folder).stages["temporal"].preprocess.flow_scale
  weights_of(
    config,
    path,
    convention=dataclasses.replace(pretrained.IMAGENET, std=(0.5, 0.5, 0.5)),
  )
  stage = create.create_stage(config, "temporal", tiny, folder)
  assert (
    stage.preprocess.flow_scale == spread != config.temporal.input.flow_scale
  )
  path.unlink()
  assert run.train_and_evaluate(config, folder, tiny) == expected
  _, found = rescore.rescore(config, folder, tiny)
  assert found["streams"] == expected["streams"]
  with pytest.raises(ValueError, match="is not a file"):
    run.train_and_evaluate(config, tmp_path / "new", tiny)


# Settings that training depends on.


@pytest.mark.parametrize(
  "settings, is_refused",
  [
    ({"train.micro_batches": 2}, True),
    ({"train.log_every": 3, "train.keep_checkpoints": 9}, False),
    ({"train.validate_every": 2}, False),
    ({"data.validation_split": ""}, False),
    ({"selection.metric": "loss"}, True),
  ],
)
def test_settings_that_change_training_are_kept(
  config, tmp_path, settings, is_refused
):
  check_settings(config, config, tmp_path, settings, is_refused)


@pytest.mark.parametrize(
  "settings",
  [
    {"train.validate_every": 2},
    {"data.validation_split": ""},
    {"eval.crop_fraction": 0.5},
  ],
)
def test_settings_that_choose_a_checkpoint_are_kept(config, tmp_path, settings):
  config.selection.metric = "loss"
  check_settings(config, config, tmp_path, settings, True)
  new = {"config": changed(config, **settings).to_dict(), "dataset": {}}
  workdir.check_config_file(tmp_path, new, to_train=False)


def check_settings(config, begun, folder, settings, is_refused):
  workdir.write_config(folder, {"config": begun.to_dict(), "dataset": {}})
  new = {"config": changed(config, **settings).to_dict(), "dataset": {}}
  if not is_refused:
    return workdir.check_config_file(folder, new)
  with pytest.raises(ConfigMismatchError, match=next(iter(settings))):
    workdir.check_config_file(folder, new)


def test_a_fact_that_an_earlier_version_did_not_write_is_no_change(
  config, tmp_path
):
  begun = {"config": config.to_dict(), "dataset": {"name": "a"}}
  workdir.write_config(tmp_path, begun)
  facts = {"rgb_quality": 95, "digest": {"train": "x"}, "name": "a"}
  workdir.check_config_file(tmp_path, begun | {"dataset": facts})
  workdir.write_config(tmp_path, begun | {"dataset": facts})
  for other in ({"rgb_quality": 90}, {"digest": {"train": "y"}}):
    with pytest.raises(ConfigMismatchError):
      workdir.check_config_file(tmp_path, begun | {"dataset": facts | other})


@pytest.mark.slow
def test_fusion_may_be_fitted_on_any_split(config, tiny, tmp_path):
  config.data.validation_split = ""
  config.fusion.fit_split = "validation"
  config.fusion.rules = ("fitted_weights",)
  found = finished_run.make(config, tmp_path, tiny)
  assert set(found["streams"]) == {"temporal", "network"}
