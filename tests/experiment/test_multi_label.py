"""A set in which a clip has any number of classes, from files to the report."""

import dataclasses
import json

import numpy as np
import pytest
import sklearn.metrics

from configs import default
from tests import tiny_config
from tests.report.test_report import Page
from twostream_jax import metric_logger, results, scores, train
from twostream_jax.data import dataset
from twostream_jax.data.build import builder
from twostream_jax.data.datasets import annotations
from twostream_jax.experiment import run
from twostream_jax.results import gallery

BARE = "test/amber-bob/000.avi"  # A test clip without any class.
UNSEEN = "spin"  # A class that no test clip shows.
pytestmark = pytest.mark.slow

STAGES = ("spatial", "temporal", "lstm")
RULES = ("average", "fitted_weights", "logistic")


def relabel(clip):
  """Appearance and motion as two classes, but for the cases above."""
  names = tuple(clip.label.split("-"))
  if clip.split == "test":
    names = tuple(name for name in names if name != UNSEEN)
  if clip.video_id == BARE:
    names = ()
  return dataclasses.replace(clip, label=names)


@pytest.fixture(scope="module")
def data(tiny_dir, tiny, tmp_path_factory):
  """The tiny videos again: 7 classes; 2 a clip, or 1, or none."""
  directory = tmp_path_factory.mktemp("multi_label")
  builder.build_dataset(
    directory,
    name="several",
    clips=[relabel(c) for c in annotations.read_folder(tiny_dir / "videos")],
    flow_spec=tiny.flow_spec,
    progress=False,
  )
  return dataset.open_dataset(directory)


@pytest.fixture(scope="module")
def config(data):
  config = tiny_config.get_config()
  config.data.dir = str(data.path)
  with config.unlocked():
    config.lstm = default.get_features("lstm", ("temporal",))
  config.stages = STAGES
  config.lstm.batch_size = 8
  config.lstm.total_steps = 4
  config.lstm.model.fields = {"hidden_sizes": (6, 5)}
  config.features.num_frames = 4
  config.fusion.rules = RULES
  config.report.num_examples = 12
  return config


@pytest.fixture(scope="module")
def finished(config, data, tmp_path_factory):
  """Folder of a finished run and what the run returned."""
  folder = tmp_path_factory.mktemp("run")
  return folder, run.train_and_evaluate(config, folder, data)


def test_scores_carry_the_labels_of_the_clips(finished, data):
  folder, _ = finished
  for name in (*STAGES, *RULES):
    found = scores.load_scores(folder / "scores" / f"{name}-test.npz")
    assert found.multi_label and found.labels.dtype == bool
    for video_id, label in zip(found.ids, found.labels, strict=True):
      shown = {data.class_names[i] for i in np.flatnonzero(label)}
      expected = set(video_id.split("/")[1].split("-")) - {UNSEEN}
      assert shown == (set() if video_id == BARE else expected)


def test_metrics_are_those_of_the_score_files(finished):
  folder, returned = finished
  rows = returned["streams"] | returned["fusion"]
  assert list(rows) == [*STAGES, *RULES]
  for name, values in rows.items():
    found = scores.load_scores(folder / "scores" / f"{name}-test.npz")
    shown = found.labels.any(axis=0)
    assert shown.sum() == 6
    expected = sklearn.metrics.average_precision_score(
      found.labels[:, shown], found.logits[:, shown], average="macro"
    )
    right = [
      label[logits.argmax()]
      for label, logits in zip(found.labels, found.logits, strict=True)
      if label.any()
    ]
    assert len(right) == 11
    assert values == pytest.approx(
      {"map": expected, "precision_at_1": np.mean(right)}
    )


def test_results_are_strict_json(finished):
  folder, returned = finished

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  text = (folder / "results.json").read_text()
  assert json.loads(text, parse_constant=refuse) == returned
  assert returned["left_out"] == {"classes": [UNSEEN], "videos": 1}
  assert [row["stages"] for row in returned["subsets"]].count([*STAGES]) == 1
  best = [row["map"] for row in returned["subsets"]]
  assert len(best) == 4 and best == sorted(best, reverse=True)


def test_curves_have_the_metrics_of_the_set(finished):
  folder, _ = finished
  for name in STAGES:
    records = metric_logger.read_metrics(folder / name)
    last = records[-1]
    assert last["split"] == "validation"
    assert 0 <= last["map"] <= 1 and 0 <= last["accuracy"] <= 1
    # Seven decisions a clip, each close to open after a few steps.
    assert all(0 < r["loss"] < 7 for r in records)


def test_terminal_shows_the_metrics_and_what_they_leave_out(finished):
  _, returned = finished
  lines = results.table(returned).splitlines()
  assert lines[1].startswith("spatial, temporal: 2x1: 2 equally spaced clips")
  assert lines[2].startswith("lstm: sequence: 4 equally spaced clips")
  assert lines[3] == "map leaves out classes that no video shows: spin"
  assert lines[4] == "precision_at_1 leaves out videos without a class: 1"
  assert lines[5].startswith("in brackets: 95 % confidence")
  assert lines[7].split() == ["model", "map", "precision_at_1"]
  assert [line.split()[0] for line in lines[8:]] == [*STAGES, *RULES]
  for group in ("streams", "fusion"):
    for name, values in returned[group].items():
      (line,) = (line for line in lines[8:] if line.split()[0] == name)
      bounds = returned["intervals"][group][name]
      assert line.split()[1:] == [
        word
        for metric, value in values.items()
        for low, high in [bounds[metric]]
        for word in (f"{value:.3f}", f"({low:.3f}-{high:.3f})")
      ]


def test_report_is_of_a_multi_label_set(finished, data):
  folder, _ = finished
  page = Page((folder / "report.html").read_text())
  assert "Average precision of each class" in page.words
  assert "onfusion" not in page.words and "accuracy" not in page.words
  assert "nan" not in page.words.lower()
  classes = next(t for t in page.tables if t[0][0] == "Class")
  assert {row[0] for row in classes[1:]} == set(data.class_names)
  # All but the bare clip; one label is dropped where it would be the unseen.
  cards = page.classed("card")
  assert len(cards) == 11
  assert BARE not in page.words and "test/amber-spin/000.avi" in page.words
  assert "amber, slide" in page.words


def test_a_finished_run_does_nothing_twice(finished, config, data, monkeypatch):
  folder, returned = finished

  def fail(*_, **__):
    raise AssertionError("done again")

  monkeypatch.setattr(train._Trainer, "run", fail)
  monkeypatch.setattr(run, "write_features", fail)
  monkeypatch.setattr(run.evaluate, "evaluate", fail)
  assert run.train_and_evaluate(config, folder, data) == returned


def test_example_of_a_clip_has_all_its_labels(data):
  shown = {
    example.video_id: [data.class_names[i] for i in example.label]
    for example in (
      gallery.example(record, data) for record in data.sources["test"]
    )
  }
  assert shown[BARE] == []
  assert shown["test/amber-spin/000.avi"] == ["amber"]
  assert shown["test/amber-slide/000.avi"] == ["amber", "slide"]
