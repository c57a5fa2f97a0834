"""A trained run is scored again, and stays as it is."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from configs import default
from tests import finished_run, tiny_config
from twostream_jax import checkpoints, scores, train
from twostream_jax.data.loader import features
from twostream_jax.experiment import rescore
from twostream_jax.files import workdir
from twostream_jax.files.workdir import features_path
from twostream_jax.stages import create

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_dir):
  """Two streams and an LSTM."""
  config = tiny_config.get_config()
  config.data.dir = str(tiny_dir)
  with config.unlocked():
    config.lstm = default.get_features("lstm", ("temporal",))
  config.stages = ("spatial", "temporal", "lstm")
  config.features.num_frames = 4
  config.lstm.model.fields = {"hidden_sizes": (6, 5), "output": "mean"}
  for name in config.stages:
    config[name].batch_size = 8
    config[name].total_steps = 4
  config.fusion.rules = ("average", "weighted", "fitted_weights")
  config.fusion.weights = (1.0, 2.0, 1.0)
  return config


@pytest.fixture(scope="module")
def trained(config, tiny, tmp_path_factory):
  """Folder of a finished run, and its results; two checkpoints of temporal."""
  folder = tmp_path_factory.mktemp("rescore")
  other = config.copy_and_resolve_references()
  other.seed = 1
  finished_run.save_checkpoint(other, "temporal", folder, tiny, step=2)
  return folder, finished_run.make(config, folder, tiny)


@pytest.fixture(autouse=True)
def forbid_training(monkeypatch, trained):  # Once that is made.
  def fail(*_, **__):
    raise AssertionError("trained")

  monkeypatch.setattr(train, "train_stage", fail)


def with_evaluation(config, split, protocol):
  changed = config.copy_and_resolve_references()
  changed.data.test_split = split
  changed.eval.protocol = protocol
  return changed


def contents(folder):
  """Every file of a run but its evaluations and features."""
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
    and path.relative_to(folder).parts[0] not in ("evaluations", "features")
  }


def test_the_same_protocol_gives_the_same_numbers(trained, config, tiny):
  folder, before = trained
  files = contents(folder)
  where, found = rescore.rescore(config, folder, tiny)
  assert where == folder / "evaluations" / "test-2x1"
  assert found.pop("checkpoints") == dict.fromkeys(config.stages, 4)
  assert found == before
  assert json.loads((where / "results.json").read_text())["videos"] == 12
  assert (where / "report.html").exists()
  for name in (*config.stages, *config.fusion.rules):
    ours, theirs = (
      scores.load_scores(root / "scores" / f"{name}-test.npz")
      for root in (where, folder)
    )
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=1e-6)
  assert contents(folder) == files


def test_another_split_and_protocol(trained, config, tiny, capsys):
  folder, _ = trained
  files = contents(folder)
  changed = with_evaluation(config, "train", "1x5")
  where, found = rescore.rescore(changed, folder, tiny)
  assert where.name == "train-1x5" and found["videos"] == 24
  assert found["protocols"]["spatial"].startswith("1x5: the middle clip")
  assert list(found["fusion"]) == ["average", "weighted", "fitted_weights"]
  # Fitted again, by this protocol.
  fitted_on = scores.load_scores(where / "scores" / "spatial-validation.npz")
  assert fitted_on.protocol == found["protocols"]["spatial"]
  changed = with_evaluation(config, "validation", "single")
  where, found = rescore.rescore(changed, folder, tiny)
  assert where.name == "validation-single"
  assert list(found["fusion"]) == ["average", "weighted"]
  assert "fitted on 'validation': fitted_weights" in capsys.readouterr().out
  assert contents(folder) == files


def test_any_checkpoint_of_one_stage(trained, config, tiny):
  folder, _ = trained
  where, found = rescore.rescore(
    config, folder, tiny, only_stage="temporal", step=2
  )
  assert where.name == "test-2x1-2-temporal"
  assert found["checkpoints"] == {"temporal": 2}
  assert list(found["streams"]) == ["temporal"] and found["fusion"] == {}
  early, late = (
    scores.load_scores(root / "scores" / "temporal-test.npz").logits
    for root in (where, folder)
  )
  assert np.abs(early - late).max() > 1e-4
  with pytest.raises(ValueError, match="'temporal' has no.* step 3.*of 2, 4$"):
    rescore.rescore(config, folder, tiny, only_stage="temporal", step=3)


def test_a_sequence_network_sees_every_window(trained, config, tiny):
  folder, _ = trained
  changed = with_evaluation(config, "test", "dense")
  _, found = rescore.rescore(changed, folder, tiny, only_stage="lstm")
  assert found["protocol"].startswith("dense: sequences of 4 equally spaced")
  changed.fusion.rules, changed.fusion.fit_split = (), ""
  stage = create.create_stage(changed, "lstm", tiny, folder)
  with checkpoints.open_reader(folder / "lstm" / "checkpoints") as manager:
    variables = checkpoints.restore_variables(manager)
  stored = features.read_features(
    features_path(folder, "temporal", "fc6", "test", dense=True)
  )
  # 4 windows a sequence.
  counts = [stored.ids.count(name) for name in dict.fromkeys(stored.ids)]
  frames = [tiny.sources["test"][i]["num_frames"] for i in range(12)]
  assert counts == [-(-n // 4) for n in frames] and min(counts) > 1
  inputs = {
    "temporal": np.asarray(stored.values, np.float32),
    "length": stored.lengths,
  }
  apply = jax.jit(functools.partial(stage.model.apply, train=False))
  logits, _ = apply(variables, stage.preprocess(inputs))
  ends = np.cumsum(counts)
  expected = [
    logits[end - count : end].mean(axis=0)
    for end, count in zip(ends, counts, strict=True)
  ]
  where = folder / "evaluations" / "test-dense-lstm"
  got = scores.load_scores(where / "scores" / "lstm-test.npz")
  np.testing.assert_allclose(got.logits, expected, rtol=0, atol=1e-5)


def test_what_was_never_trained_is_refused(trained, config, tiny, tmp_path):
  with pytest.raises(ValueError, match="'spatial' was never trained"):
    rescore.rescore(config, tmp_path, tiny)
  copy = tmp_path / "run"
  shutil.copytree(trained[0], copy, ignore=shutil.ignore_patterns("lstm"))
  with pytest.raises(ValueError, match="'lstm' was never trained: .*lstm/ch"):
    rescore.rescore(config, copy, tiny)
  # A stage alone needs no other.
  rescore.rescore(config, copy, tiny, only_stage="spatial")


def test_other_settings_are_refused(trained, config, tiny):
  changed = config.copy_and_resolve_references()
  changed.spatial.model.width = 0.05
  with pytest.raises(workdir.ConfigMismatchError, match="spatial.model.width"):
    rescore.rescore(changed, trained[0], tiny)
  changed = with_evaluation(config, "dev", "single")
  with pytest.raises(ValueError, match="test_split='dev'"):
    rescore.rescore(changed, trained[0], tiny)
