"""Every view of a protocol is in one batch, and in one alone."""

import numpy as np
import pytest

from tests.data.loader.test_input_pipeline import counted_record
from twostream_jax.data.loader import eval_pipeline, protocols
from twostream_jax.data.loader.eval_pipeline import (
  EvalTransform,
  FrameTransform,
  Rows,
)
from twostream_jax.data.loader.sampling import Share
from twostream_jax.data.loader.views import InputSpec
from twostream_jax.data.video import images
from twostream_jax.stages.preprocess import Preprocess

PREPROCESS = Preprocess((0.0,) * 3, (1.0,) * 3, 20.0, 1.0, False)
BOTH = InputSpec(("rgb", "flow"), 64, 3, 1, "loop")


def transform(name, spec=BOTH, fraction=0.9):
  return EvalTransform(spec, protocols.parse(name), fraction)


class Source(list):
  """Records in memory."""

  @property
  def video_ids(self):
    return tuple(str(i) for i in range(len(self)))


def rows_of(source, how, **part):
  part = {"views_per_pass": 8, "replicas": 1, "threads": 1} | part
  return eval_pipeline.eval_rows(source, how, np.arange(len(source)), **part)


def load_all(source, how, video=0):
  """All rows of a video at once."""
  count = int(how.counts(source)[video])
  places = np.arange(count)
  return how.load(
    source, Rows(places, np.full(count, video), places), size=count
  )


@pytest.mark.parametrize("replicas", [2, 8])
@pytest.mark.parametrize("views_per_pass", [5, 40, 1000])
def test_processes_evaluate_every_window_once(tiny, replicas, views_per_pass):
  source = tiny.sources["test"]
  parts = [
    rows_of(
      source,
      transform("3x5"),
      replicas=replicas,
      views_per_pass=views_per_pass,
      share=Share(i, 2),
    )
    for i in range(2)
  ]
  batches = [list(rows.batches) for rows in parts]
  # As many batches, also where one process has only padding.
  assert len(batches[0]) == len(batches[1]) == parts[0].num_batches
  assert len({batch["rgb"].shape for part in batches for batch in part}) == 1
  seen = [
    video
    for both in zip(*batches, strict=True)
    for batch in both
    for video in batch["video"][batch["mask"]].tolist()
  ]
  assert seen == [video for video in range(12) for _ in range(3)]


@pytest.mark.parametrize("name", ["single", "3x1", "4x5", "dense"])
@pytest.mark.parametrize("views_per_pass", [1, 7, 1000])
def test_batches_cut_anywhere_hold_the_same_views(tiny, name, views_per_pass):
  source = tiny.sources["test"]
  how = transform(name, InputSpec(("rgb", "flow"), 32, 3, 1, "loop"))
  rows = rows_of(source, how, views_per_pass=views_per_pass, replicas=2)
  batches = list(rows.batches)
  found = {
    key: np.concatenate([batch[key][batch["mask"]] for batch in batches])
    for key in ("rgb", "flow", "video")
  }
  np.testing.assert_array_equal(
    np.bincount(found.pop("video")), how.counts(source)
  )
  for key, array in found.items():
    expected = [load_all(source, how, video)[key] for video in range(12)]
    np.testing.assert_array_equal(array, np.concatenate(expected))


def test_a_batch_is_no_larger_than_what_passes_together():
  size = eval_pipeline.batch_size
  part = {"views_per_pass": 64, "replicas": 8}
  assert size(1000, 10, **part) == 48
  assert size(1000, 100, **part) == 8
  # Nor than the split.
  assert size(12, 1, **part) == 16


def test_the_views_of_a_protocol_are_distinct(tiny):
  spec = InputSpec(("flow",), 64, 1, 1, "loop")
  how = transform("19x10", spec, 0.8)
  batch = load_all(tiny.sources["test"], how)
  views = PREPROCESS(batch)["flow"]
  assert views.shape[:2] == (19, 10)
  distinct = {view.tobytes() for window in views for view in window}
  assert len(distinct) == 190


def test_the_first_crop_is_the_centre(tiny):
  spec = InputSpec(("rgb",), 64, 0, 1, "loop")
  several, centre = (
    load_all(tiny.sources["test"], transform(name, spec, 0.8))["rgb"]
    for name in ("3x10", "3x1")
  )
  np.testing.assert_array_equal(several[:, :1], centre)


def test_dense_shows_every_window_in_order():
  spec = InputSpec(("rgb", "flow"), 16, 4, 1, "loop")
  source = Source([counted_record(9), counted_record(3)])
  how = transform("dense", spec, 1.0)
  assert how.counts(source).tolist() == [5, 1]
  views = load_all(source, how)
  assert views["rgb"][:, 0, 0, 0, 0, 0].tolist() == [2, 3, 4, 5, 6]
  first = views["flow"][:, 0, 0, 0, 0, 0]  # x of the first field
  assert first.tolist() == [20, 21, 22, 23, 24]


def test_a_clip_shorter_than_the_stack_is_looped(tiny):
  record = dict(tiny.sources["train"][0])
  record["num_frames"], record["flow"] = 3, record["flow"][:2]
  record["rgb"] = record["rgb"][:3]
  spec = InputSpec(("rgb", "flow"), 64, 5, 1, "loop")
  views = load_all([record], transform("3x1", spec, 1.0))
  assert views["flow"].shape == (3, 1, 1, 10, 64, 64)
  flow = views["flow"][0, 0, 0]
  np.testing.assert_array_equal(flow[4:6], flow[0:2])
  assert (flow[0:2] != flow[2:4]).any()


@pytest.mark.parametrize("name, most", [("25x10", 25), ("dense", 125)])
def test_fields_are_decoded_about_once(name, most, monkeypatch):
  """Ten crops cost no decoding, and overlapping stacks little."""
  source = Source([counted_record(110)])
  decode, decoded = images.decode_flow, []
  monkeypatch.setattr(
    images,
    "decode_flow",
    lambda *arguments: decoded.append(1) or decode(*arguments),
  )
  length = 1 if name == "25x10" else 10
  spec = InputSpec(("flow",), 16, length, 1, "loop")
  how = transform(name, spec, 1.0)
  rows = rows_of(source, how, views_per_pass=64)
  assert sum(batch["mask"].sum() for batch in rows.batches) in (25, 100)
  # Of 25 and of 109 fields; again those where one batch ends.
  assert len(decoded) <= most


@pytest.mark.parametrize("available", [1, 4, 5, 6, 23])
def test_dense_sequences_show_every_window(available):
  length = min(5, available)
  (alone,) = protocols.sequence_starts(available, length)
  count = -(-available // 5)
  several = protocols.sequence_starts(available, length, count)
  assert len(several) == count
  assert {len(starts) for starts in several} == {length}
  assert set(np.concatenate(several)) == set(range(available))
  for starts in several:
    # Spaced as in the one sequence, give or take a rounding.
    np.testing.assert_allclose(
      np.diff(starts), available / len(alone), rtol=0, atol=1
    )
  if available <= 5:
    assert several[0].tolist() == alone.tolist() == list(range(available))


def test_sequences_of_frames(tiny):
  source = tiny.sources["test"]
  spec = InputSpec(("flow",), 32, 3, 1, "loop")
  windows = load_all(source, transform("dense", spec))["flow"][:, 0]
  how = FrameTransform(spec, 4, 0.9, dense=True)
  rows = rows_of(source, how, views_per_pass=8)
  count = -(-int(source[0]["num_frames"]) // 4)
  starts = protocols.sequence_starts(len(windows), 4, count)
  assert rows.counts[0] == len(starts) > 1
  batches = list(rows.batches)
  found = np.concatenate([batch["flow"] for batch in batches])[: len(starts)]
  np.testing.assert_array_equal(found, windows[np.stack(starts)])
  assert {n for b in batches for n in b["length"].tolist()} == {4}


@pytest.mark.parametrize("frames", [2, 6, 9, 30])
def test_sequences_of_short_videos_are_as_long_for_flow_as_for_frames(frames):
  lengths = set()
  for modality, stack in (("rgb", 10), ("flow", 10), ("flow", 3)):
    spec = InputSpec((modality,), 16, stack, 1, "loop")
    how = FrameTransform(spec, 8, 1.0)
    (batch,) = rows_of(Source([counted_record(frames)]), how).batches
    lengths.add(int(batch["length"][0]))
  assert lengths == {min(8, frames)}


@pytest.mark.parametrize(
  "name", ["25", "25x3", "0x1", "x", "25 x 10", "-1x1", "Dense", ""]
)
def test_an_unknown_protocol_is_refused(name):
  with pytest.raises(ValueError, match="eval.protocol=.*'single', 'dense'"):
    protocols.parse(name)


@pytest.mark.parametrize("name", ["single", "25x1", "25x10", "1x5", "dense"])
def test_a_protocol_has_its_name(name):
  protocol = protocols.parse(name)
  assert protocol.name == name
  assert protocol.describe(0.875, 224).startswith(f"{name}: ")


def test_one_view_has_one_name():
  assert protocols.parse("1x1").name == "single"
