"""Stages that read other stages: features, joint networks, imported weights."""

import functools
import html
import shutil

import jax
import numpy as np
import pytest

from configs import default
from tests import tiny_config
from twostream_jax import checkpoints, results, scores, train
from twostream_jax.data import dataset
from twostream_jax.data.loader import features, sampling
from twostream_jax.experiment import run
from twostream_jax.files.workdir import features_path, scores_path
from twostream_jax.results import class_maps, gallery
from twostream_jax.stages import create

pytestmark = pytest.mark.slow


def get_config(directory):
  """The tiny recipe and four stages that read its streams."""
  config = tiny_config.get_config()
  config.data.dir = str(directory)
  both = ("spatial", "temporal")
  with config.unlocked():
    config.lstm = default.get_features("lstm", ("temporal",))
    config.network = default.get_features("regularised", both)
    config.hybrid = default.get_features("joint_hybrid", both)
    config.joint = default.get_joint(both)
  config.stages = (*both, "lstm", "network", "hybrid", "joint")
  config.spatial.feature = "fc6"
  config.features.num_frames = 4
  for name in ("lstm", "network", "hybrid", "joint"):
    stage = config[name]
    stage.batch_size = 8
    stage.total_steps = 4
  config.lstm.model.fields = {"hidden_sizes": (6, 5), "output": "mean"}
  config.network.model.fields = {"hidden": 7}
  config.network.optim.penalised = "fusion/kernel"
  config.network.optim.l21 = 1e-3
  config.hybrid.model.fields = {"hidden": 7, "lstm_sizes": (6, 5)}
  config.joint.model.name = "conv"
  config.joint.input = config.temporal.input
  config.joint.optim.learning_rate = 0.0
  config.joint.optim.weight_decay = 0.0
  config.fusion.rules = ("average", "fitted_weights", "svm", "adaptive")
  return config


@pytest.fixture(scope="module")
def config(tiny_dir):
  return get_config(tiny_dir)


@pytest.fixture(scope="module")
def finished(config, tiny, tmp_path_factory):
  """Folder of a finished run and what the run returned."""
  folder = tmp_path_factory.mktemp("hybrid")
  return folder, run.train_and_evaluate(config, folder, tiny)


def test_every_stage_and_fusion_has_its_row(finished, config):
  _, outcome = finished
  assert tuple(outcome["streams"]) == config.stages
  assert tuple(outcome["fusion"]) == config.fusion.rules
  assert outcome["protocols"]["lstm"].startswith("sequence: 4 equally spaced")
  # All subsets of two or more of six stages.
  assert len(outcome["subsets"]) == 2**6 - 1 - 6
  best = [row["top1"] for row in outcome["subsets"]]
  assert best == sorted(best, reverse=True)


def test_features_are_those_of_the_trained_stream(finished, config, tiny):
  folder, _ = finished
  stage = create.create_stage(config, "temporal", tiny, folder)
  with checkpoints.open_reader(folder / "temporal" / "checkpoints") as reader:
    variables = checkpoints.restore_variables(reader)
  found = features.read_features(
    features_path(folder, "temporal", "fc6", "test")
  )
  rows = stage.inputs.frame_rows("test", views_per_pass=8, replicas=1)
  batch = next(iter(rows.batches))
  inputs = stage.preprocess({"flow": batch["flow"][:, :, 0]})
  _, expected = stage.model.apply(variables, inputs, train=False)
  np.testing.assert_allclose(
    found.values[:2], expected["fc6"], rtol=2e-3, atol=2e-3
  )
  assert found.ids == rows.ids and batch["video"].tolist() == [0, 1]


def test_a_finished_hybrid_is_not_done_again(
  finished, config, tiny, monkeypatch
):
  folder, outcome = finished

  def fail(*_, **__):
    raise AssertionError("done again")

  monkeypatch.setattr(train._Trainer, "run", fail)
  monkeypatch.setattr(run, "write_features", fail)
  assert run.train_and_evaluate(config, folder, tiny) == outcome


def test_a_stage_done_again_gives_the_same(finished, config, tiny, tmp_path):
  folder, outcome = finished
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  shutil.rmtree(copy / "network")
  shutil.rmtree(copy / "features" / "spatial-fc6" / "train")
  # Another process trains the stream: a save is under way.
  under_way = copy / "spatial" / "checkpoints" / "9.orbax-checkpoint-tmp-1"
  under_way.mkdir()
  (copy / "scores" / "network-test.npz").unlink()
  (copy / "scores" / "network-validation.npz").unlink()
  assert run.train_and_evaluate(config, copy, tiny) == outcome
  assert under_way.exists()


def test_towers_begin_with_the_weights_of_their_streams(finished, config, tiny):
  folder, _ = finished
  stage = create.create_stage(config, "joint", tiny, folder)
  fresh = stage.init_state()
  under_way = folder / "spatial" / "checkpoints" / "9.orbax-checkpoint-tmp-1"
  under_way.mkdir()
  state = stage.warm_start(fresh)
  under_way.rmdir()  # A save that is under way is left alone.
  for tower in ("spatial", "temporal"):
    with checkpoints.open_reader(folder / tower / "checkpoints") as reader:
      trained = checkpoints.restore_variables(reader)["params"]["backbone"]
    for layer in state.params[tower]:
      jax.tree.map(
        np.testing.assert_array_equal,
        state.params[tower][layer],
        trained[layer],
      )
  # With a learning rate of zero they are still there at the end.
  with checkpoints.open_reader(folder / "joint" / "checkpoints") as reader:
    last = checkpoints.restore_variables(reader)["params"]
  jax.tree.map(np.testing.assert_array_equal, last, dict(state.params))


def test_a_late_joint_network_scores_as_the_average_of_its_streams(
  finished, config, tiny, tmp_path
):
  folder, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  shutil.rmtree(copy / "joint")
  for path in (copy / "scores").glob("joint-*"):
    path.unlink()
  (copy / "config.json").unlink()
  late = config.copy_and_resolve_references()
  late.joint.model.name = "average"
  # One input size and window for both: see the frame of a stack of flow.
  run.train_and_evaluate(late, copy, tiny, "joint")
  joint = scores.load_scores(copy / "scores" / "joint-test.npz")
  temporal = scores.load_scores(folder / "scores" / "temporal-test.npz")
  assert joint.ids == temporal.ids
  stage = create.create_stage(late, "joint", tiny, copy)
  variables = stage.warm_start(stage.init_state()).variables
  rows = stage.inputs.eval_rows("test", views_per_pass=4, replicas=1)
  batch = next(iter(rows.batches))
  inputs = stage.preprocess({k: batch[k][:, 0] for k in ("rgb", "flow")})
  logits, found = stage.model.apply(variables, inputs, train=False)
  assert batch["video"].tolist() == [0, 0, 1, 1]
  np.testing.assert_allclose(
    joint.logits[:2],
    logits.reshape(2, 2, -1).mean(axis=1),
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "path, value, match",
  [
    ("lstm.sources", (), "lstm.sources names no stage"),
    ("lstm.sources", ("joint",), "'joint', which is not a stream"),
    ("lstm.sources", ("temporal", "spatial"), "an lstm reads one stream"),
    ("stages", ("lstm", "spatial", "temporal"), "must be a stage before it"),
    ("joint.towers", ("temporal", "spatial"), "one of flow"),
    ("joint.model.name", "mean", "fusion must be one of"),
    ("network.optim.penalised", "nothing", "matches no parameter"),
    ("network.model.name", "vote", "vote"),
    ("spatial.feature", "fc9", "no feature vector 'fc9'"),
  ],
)
def test_settings_that_can_not_work_are_named(
  finished, config, tiny, tmp_path, path, value, match
):
  folder = tmp_path / "run"
  shutil.copytree(
    finished[0],
    folder,
    ignore=shutil.ignore_patterns(
      "config.json", "features", "scores", "lstm", "network", "joint", "hybrid"
    ),
  )
  changed = config.copy_and_resolve_references()
  *parents, key = path.split(".")
  part = changed
  for parent in parents:
    part = part[parent]
  part[key] = value
  changed.fusion.rules = ("average",)
  changed.fusion.fit_split = ""
  only = parents[0] if parents and parents[0] != "spatial" else "network"
  if path == "stages":
    only = "lstm"
  with pytest.raises(ValueError, match=match):
    run.train_and_evaluate(changed, folder, tiny, only)


@pytest.fixture(scope="module")
def with_maps(config):
  """The recipe with class activation maps in its report."""
  config = config.copy_and_resolve_references()
  config.report.class_maps = True
  return config


def load_streams(config, folder):
  return {
    name: scores.load_scores(scores_path(folder, name, "test"))
    for name in config.stages
  }


def test_maps_are_of_the_answer_in_the_middle_of_the_clip(
  finished, with_maps, tiny
):
  folder, _ = finished
  streams = load_streams(with_maps, folder)
  ids = streams["spatial"].ids
  # More than a batch, and in another order than the split.
  chosen = ids[9::-1]
  shown, unmapped = gallery.gather(with_maps, folder, tiny, chosen, streams)
  assert list(unmapped) == ["lstm", "network", "hybrid"]
  assert set(unmapped.values()) == {
    "reads features of other stages, not pixels"
  }
  assert [e.video_id for e in shown] == list(chosen)
  stage = create.create_stage(with_maps, "temporal", tiny, folder)
  with checkpoints.open_reader(folder / "temporal" / "checkpoints") as reader:
    variables = checkpoints.restore_variables(reader)
  rows = stage.inputs.eval_rows(
    "test", quick=True, views_per_pass=12, replicas=1
  )
  (quick,) = rows.batches
  inputs = stage.preprocess({"flow": quick["flow"][:, 0]})
  answers = streams["temporal"].logits.argmax(axis=1)
  maps = jax.jit(functools.partial(class_maps.class_maps, model=stage.model))
  expected = maps(variables, inputs, answers)["backbone"]
  for i, example in enumerate(shown):
    found = {(m.model, m.modality): m for m in example.maps}
    assert list(found) == [
      ("spatial", "rgb"),
      ("temporal", "flow"),
      ("joint", "rgb"),
      ("joint", "flow"),
    ]
    for (name, _), one in found.items():
      row = streams[name].ids.index(example.video_id)
      assert one.label == streams[name].logits[row].argmax()
      assert one.view.shape == (64, 64, 3)
    np.testing.assert_allclose(
      found["temporal", "flow"].heat,
      expected[9 - i, 0],
      rtol=1e-3,
      atol=1e-3 * float(np.max(expected)),
    )
    # What is shown under the map is the frame in the middle.
    record = tiny.sources["test"][9 - i]
    middle = sampling.even_starts(int(record["num_frames"]), 1)[0]
    frame = dataset.decode_rgb(record["rgb"][int(middle)])
    seen = found["spatial", "rgb"].view.astype(float)
    assert abs(seen.mean() - frame.astype(float).mean()) < 12


def test_without_a_checkpoint_the_report_has_the_rest(
  finished, with_maps, tiny, tmp_path
):
  copy = tmp_path / "copy"
  shutil.copytree(finished[0], copy)
  shutil.rmtree(copy / "spatial" / "checkpoints")
  for path in (copy / "joint" / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  results.conclude(with_maps, copy, tiny)
  page = (copy / "report.html").read_text()
  assert "No maps of spatial: has no checkpoint;" in page
  assert "joint: its checkpoint can't be read." in html.unescape(page)
  assert "lstm, network, hybrid: reads features of other stages" in page
  assert page.count("Where temporal finds") == 3
  assert "Where joint finds" not in page


def test_maps_can_be_left_out(finished, config, tiny, monkeypatch):
  monkeypatch.setattr(jax, "jit", None)
  streams = load_streams(config, finished[0])
  shown, unmapped = gallery.gather(
    config, finished[0], tiny, streams["spatial"].ids[:1], streams
  )
  assert shown[0].maps == ()
  assert set(unmapped.values()) == {"config.report.class_maps is off"}
