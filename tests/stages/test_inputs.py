"""Where batches come from: videos, or stored features."""

import dataclasses

import numpy as np
import pytest

from configs import default
from twostream_jax.data.loader import augment, features, protocols
from twostream_jax.data.loader.combine import CombinedSource
from twostream_jax.data.loader.eval_pipeline import (
  EvalTransform,
  FrameTransform,
  Rows,
)
from twostream_jax.data.loader.input_pipeline import InputSpec, TrainTransform
from twostream_jax.stages.inputs import (
  FeatureInputs,
  VideoInputs,
  create_inputs,
  create_video_inputs,
)

SPEC = InputSpec(("rgb", "flow"), 32, 2, 1, "loop")
PART = {"views_per_pass": 12, "replicas": 1}
FACTS = {"description": "spatial fc6", "weights": "w", "videos": "v"}


@pytest.fixture
def videos(tiny):
  return VideoInputs(
    sources=tiny.sources,
    train=TrainTransform(SPEC, 2, augment.RandomCrop((0.8, 1.0), 1.2), True),
    evaluation=EvalTransform(SPEC, protocols.parse("3x5"), crop_fraction=0.9),
    frames=FrameTransform(SPEC, 4, crop_fraction=0.9),
    threads=1,
  )


def test_the_protocol_says_what_was_done(videos):
  assert videos.protocol() == (
    "3x5: 3 equally spaced clips, 5 crops of 0.9 of the short side at 32 px,"
    " mean of logits"
  )
  assert videos.protocol(quick=True).startswith("single: the middle clip, ce")


def test_an_example_has_the_shapes_of_training(videos):
  batch = next(iter(videos.train_batches("train", batch_size=1, seed=0)))
  example = videos.example()
  assert set(example) == {"rgb", "flow", "flip"}
  for name, array in example.items():
    assert (array.shape, array.dtype) == (batch[name].shape, batch[name].dtype)


def test_jitter_of_colours_is_for_training_alone(videos):
  jittered = dataclasses.replace(videos.train, rgb_jitter=0.1)
  videos = dataclasses.replace(videos, train=jittered)
  batch = next(iter(videos.train_batches("train", batch_size=1, seed=0)))
  example = videos.example()
  assert set(example) == {"rgb", "flow", "flip", "rgb_shift"}
  for name, array in example.items():
    assert (array.shape, array.dtype) == (batch[name].shape, batch[name].dtype)
  for quick in (False, True):
    rows = videos.eval_rows("test", quick=quick, **PART)
    assert "rgb_shift" not in next(iter(rows.batches))
  rows = videos.frame_rows("test", **PART)
  assert "rgb_shift" not in next(iter(rows.batches))


def test_balanced_batches_hold_every_class_equally_often(videos):
  train, test = videos.sources["train"], videos.sources["test"]
  # 12 classes of two videos and, of the second dataset, 12 of one.
  two_heads = dataclasses.replace(
    videos,
    train=dataclasses.replace(videos.train, num_classes=12),
    second=test,
    balanced=True,
  )
  # One of the 24 videos is missing.
  both = CombinedSource(train, test, 12)
  fewer = WithLabels(both, [i for i in range(36) if i != 3])
  one_head = dataclasses.replace(
    videos, sources={"train": fewer}, balanced=True
  )
  for inputs, varied in ((two_heads, 12), (one_head, 11)):
    batches = iter(inputs.train_batches("train", batch_size=24, seed=0))
    first, second = next(batches), next(batches)
    for batch in (first, second):
      assert sorted(batch["label"].tolist()) == list(range(24))
    assert first["label"].tolist() != second["label"].tolist()
    # A class of two videos then shows the other one.
    shown = [
      dict(zip(batch["label"].tolist(), batch["video_id"], strict=True))
      for batch in (first, second)
    ]
    others = [
      label for label in range(24) if shown[0][label] != shown[1][label]
    ]
    assert len(others) == varied and max(others) < 12
    again = inputs.train_batches("train", batch_size=24, seed=0, start=1)
    np.testing.assert_array_equal(next(iter(again))["rgb"], second["rgb"])


@dataclasses.dataclass
class WithLabels:
  """Some videos of a source."""

  source: CombinedSource
  indices: list

  def __len__(self):
    return len(self.indices)

  def __getitem__(self, i):
    return self.source[self.indices[i]]

  @property
  def labels(self):
    return self.source.labels[self.indices]


def test_balance_is_for_one_label_a_clip(tiny, tmp_path):
  config = default.get_config()
  config.temporal.balanced = True
  several = dataclasses.replace(tiny, multi_label=True)
  create_inputs(config, "temporal", tiny, tmp_path)
  create_inputs(config, "spatial", several, tmp_path)
  with pytest.raises(ValueError, match="config.temporal.balanced.*one label"):
    create_inputs(config, "temporal", several, tmp_path)


def test_settings_choose_the_crop(tiny):
  config = default.get_config()

  def crop():
    return create_video_inputs(config, "spatial", tiny).train.crop

  assert crop() == augment.RandomCrop((0.66, 1.0), 1.33)
  config.spatial.input.crop, config.spatial.input.max_distort = "corner", 1
  scales = (1.0, 224 / 256, 192 / 256, 168 / 256)
  assert crop() == augment.CornerCrop(scales, 1)
  config.spatial.input.crop = "centre"
  with pytest.raises(ValueError, match="input.crop='centre'"):
    crop()


def test_frames_are_centre_crops_of_evenly_spaced_windows(videos, tiny):
  source = tiny.sources["test"]
  protocol = protocols.parse("4x1")
  views = dataclasses.replace(videos.evaluation, protocol=protocol)
  batch = next(iter(videos.frame_rows("test", **PART).batches))
  np.testing.assert_array_equal(batch["length"], [4, 4, 4])
  numbers = np.arange(12)
  expected = views.load(source, Rows(numbers, numbers // 4, numbers % 4), 12)
  for name in ("rgb", "flow"):
    found = batch[name].reshape(expected[name].shape)
    np.testing.assert_array_equal(found, expected[name])


def test_a_short_video_gives_each_window_and_then_its_last(videos, tiny):
  source = tiny.sources["test"]
  length = int(source[0]["num_frames"])
  available = SPEC.num_starts(length)
  assert available < length
  frames = dataclasses.replace(videos.frames, num_frames=length + 3)
  videos = dataclasses.replace(videos, frames=frames)
  rows = videos.frame_rows("test", **PART)
  batch = next(iter(rows.batches))
  assert batch["length"] == [length]
  frames = batch["flow"][0]
  for later in frames[length:]:
    np.testing.assert_array_equal(later, frames[length - 1])
  assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == available


def stored(folder, *, ids=("a", "b", "c"), lengths=(2, 3, 1), dim=4):
  rng = np.random.default_rng(len(ids))
  batches = [
    {
      "video_id": list(ids[i : i + 2]),
      "label": np.arange(len(ids))[i : i + 2],
      "length": np.array(lengths[i : i + 2]),
      "values": rng.random([len(ids[i : i + 2]), 3, dim]).astype(np.float16),
    }
    for i in range(0, len(ids), 2)
  ]
  features.write_features(
    folder, iter(batches), num_sequences=len(ids), **FACTS
  )
  return np.concatenate([batch["values"] for batch in batches])


def test_features_come_back_as_they_were_stored(tmp_path):
  values = stored(tmp_path / "spatial" / "test")
  found = features.read_features(tmp_path / "spatial" / "test")
  assert found.ids == ("a", "b", "c")
  assert FACTS.items() <= dataclasses.asdict(found).items()
  np.testing.assert_array_equal(found.values, values)
  np.testing.assert_array_equal(found.lengths, [2, 3, 1])
  there = np.concatenate([values[0, :2], values[1], values[2, :1]])
  np.testing.assert_allclose(found.mean, there.astype(float).mean(0), rtol=1e-5)
  np.testing.assert_allclose(found.std, there.astype(float).std(0), rtol=1e-4)
  assert features.read_features(tmp_path / "spatial" / "train") is None
  assert [f.name for f in (tmp_path / "spatial").iterdir()] == ["test"]


def test_features_that_are_cut_off_are_none(tmp_path):
  def broken():
    yield {
      "video_id": ["a"],
      "label": np.zeros(1, int),
      "length": np.ones(1, int),
      "values": np.zeros([1, 3, 4]),
    }
    raise OSError("killed")

  folder = tmp_path / "train"
  with pytest.raises(OSError, match="killed"):
    features.write_features(folder, broken(), num_sequences=2, **FACTS)
  assert features.read_features(folder) is None
  stored(folder)
  assert len(features.read_features(folder).ids) == 3


def test_features_that_overflow_are_refused(tmp_path):
  batch = {
    "video_id": ["a"],
    "label": np.zeros(1, int),
    "length": np.ones(1, int),
    "values": np.full([1, 3, 4], 1e6),
  }
  with pytest.raises(features.FeatureError, match="'a'.*not finite"):
    features.write_features(tmp_path / "x", [batch], num_sequences=1, **FACTS)


def test_features_of_other_videos_do_not_mix(tmp_path):
  stored(tmp_path / "one")
  stored(tmp_path / "two", ids=("a", "x", "c"))
  stored(tmp_path / "three", lengths=(3, 3, 1))
  one, two, three = (
    features.read_features(tmp_path / name) for name in ("one", "two", "three")
  )
  for other in (two, three):
    with pytest.raises(features.FeatureError, match="'spatial' and 'temporal'"):
      features.FeatureSource({"spatial": one, "temporal": other})


def test_feature_batches(tmp_path):
  values = stored(tmp_path / "one")
  stored(tmp_path / "two", dim=6)
  source = features.FeatureSource(
    {
      "spatial": features.read_features(tmp_path / "one"),
      "temporal": features.read_features(tmp_path / "two"),
    }
  )
  inputs = FeatureInputs(
    {"train": source}, {"train": source}, "sequence: of a test"
  )
  assert {k: v.shape for k, v in inputs.example().items()} == {
    "spatial": (1, 3, 4),
    "temporal": (1, 3, 6),
    "length": (1,),
  }
  rows = inputs.eval_rows("train", views_per_pass=2, replicas=2)
  assert (rows.ids, rows.counts.tolist()) == (("a", "b", "c"), [1, 1, 1])
  (batch,) = rows.batches
  assert batch["spatial"].shape == (4, 1, 3, 4)
  np.testing.assert_array_equal(batch["spatial"][:3, 0], values)
  np.testing.assert_array_equal(batch["length"][:3, 0], [2, 3, 1])
  np.testing.assert_array_equal(batch["mask"], [True, True, True, False])
  batches = iter(inputs.train_batches("train", batch_size=3, seed=0))
  assert sorted(next(batches)["video_id"]) == ["a", "b", "c"]
  balanced = dataclasses.replace(inputs, balanced=True)
  batch = next(iter(balanced.train_batches("train", batch_size=6, seed=0)))
  assert sorted(batch["label"]) == [0, 0, 1, 1, 2, 2]
  assert next(batches)["temporal"].shape == (3, 3, 6)
