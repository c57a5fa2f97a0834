"""Two datasets, one trunk, a head for each."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import finished_run, tiny_config
from twostream_jax import checkpoints, losses, scores
from twostream_jax.data import dataset
from twostream_jax.data.dataset import METADATA_FILE
from twostream_jax.data.loader.combine import CombinedSource
from twostream_jax.experiment import run
from twostream_jax.files import workdir
from twostream_jax.files.workdir import ConfigMismatchError
from twostream_jax.flow.spec import FlowSpecError
from twostream_jax.stages import create, needs


def test_each_example_trains_the_head_of_its_own_dataset():
  logits = jax.random.normal(jax.random.key(0), [4, 5])
  labels = jnp.array([0, 2, 3, 4])  # Three classes, then two.

  def loss(logits):
    return losses.multi_task_cross_entropy(logits, labels, num_classes=3)

  expected = np.concatenate(
    [
      losses.softmax_cross_entropy(logits[:2, :3], labels[:2]),
      losses.softmax_cross_entropy(logits[2:, 3:], labels[2:] - 3),
    ]
  )
  np.testing.assert_allclose(loss(logits), expected, rtol=1e-6)
  gradient = jax.grad(lambda x: loss(x).sum())(logits)
  np.testing.assert_array_equal(gradient[:2, 3:], 0)
  np.testing.assert_array_equal(gradient[2:, :3], 0)
  assert (np.abs(gradient[:2, :3]) > 0).all()
  assert (np.abs(gradient[2:, 3:]) > 0).all()


def test_labels_of_the_second_dataset_continue(tiny):
  source = CombinedSource(tiny.sources["test"], tiny.sources["train"], 12)
  assert len(source) == 12 + 24
  labels = [int(source[i]["label"]) for i in range(len(source))]
  assert sorted(labels[:12]) == list(range(12))
  assert set(labels[12:]) == set(range(12, 24))
  np.testing.assert_array_equal(source.labels, labels)
  assert source[12]["video_id"] == tiny.sources["train"][0]["video_id"]


@pytest.fixture
def config(tiny_dir):
  config = tiny_config.get_config()
  config.data.dir = config.data.second_dir = str(tiny_dir)
  config.stages = ("temporal",)
  # Scored as well, on its own: the second dataset is only trained on.
  config.fusion.fit_split = "train"
  return config


@pytest.mark.slow
def test_a_run_with_two_heads_scores_the_first(config, tiny, tmp_path):
  outcome = run.train_and_evaluate(config, tmp_path, tiny)
  assert outcome["videos"] == 12
  found = scores.load_scores(tmp_path / "scores" / "temporal-test.npz")
  assert found.logits.shape == (12, 12)
  fitted_on = scores.load_scores(tmp_path / "scores" / "temporal-train.npz")
  assert fitted_on.logits.shape == (24, 12)
  stage = create.create_stage(config, "temporal", tiny, tmp_path)
  assert stage.model.backbone.num_classes == 24
  batch = next(iter(stage.inputs.train_batches("train", batch_size=48, seed=0)))
  assert set(batch["label"].tolist()) == set(range(24))


def test_a_second_dataset_with_other_flow_is_refused(
  config, tiny, tiny_dir, tmp_path
):
  shutil.copytree(tiny.path, tmp_path / "second")
  path = tmp_path / "second" / METADATA_FILE
  metadata = json.loads(path.read_text())
  metadata["flow_spec"]["bound"] = 7.0
  path.write_text(json.dumps(metadata))
  config.data.second_dir = str(tmp_path / "second")
  with pytest.raises(FlowSpecError, match="bound"):
    create.create_stage(config, "temporal", tiny, tmp_path)


def relabelled(data, split="train"):
  """The dataset, built again with other labels of a split."""
  source = data.sources[split]

  class Corrected:
    digest = f"another {split}"

    def __getattr__(self, name):
      return getattr(source, name)

    def __len__(self):
      return len(source)

  return dataclasses.replace(data, sources={**data.sources, split: Corrected()})


@pytest.mark.parametrize("lost", ["config.json", "second_dataset", None])
def test_a_second_dataset_that_was_built_again_is_refused(
  config, tiny, tmp_path, monkeypatch, lost
):
  finished_run.save_checkpoint(config, "temporal", tmp_path, tiny, step=3)
  _, metadata = checkpoints.read_metadata(tmp_path / "temporal/checkpoints")
  assert metadata["second_dataset"] == dataset.identity(tiny)
  facts = needs.run_facts(config, tiny)
  if lost == "second_dataset":  # An earlier version wrote config.json.
    del facts[lost]
  if lost != "config.json":
    workdir.write_config(tmp_path, facts)
  monkeypatch.setattr(needs, "open_dataset", lambda _: relabelled(tiny))
  with pytest.raises(ConfigMismatchError, match="built again"):
    run.train_and_evaluate(config, tmp_path, tiny)
  # The other splits of it are not read.
  monkeypatch.setattr(needs, "open_dataset", lambda _: relabelled(tiny, "test"))
  facts = needs.run_facts(config, tiny)
  run.check_trained_data(config, tmp_path, tiny, facts)
  workdir.check_config_file(tmp_path, facts)


def test_two_heads_are_for_single_label_sets(config, tiny, tmp_path):
  several = dataclasses.replace(tiny, multi_label=True)
  with pytest.raises(ValueError, match="one label a clip"):
    create.create_stage(config, "temporal", several, tmp_path)
