"""Batches are what the records hold, and a function of (seed, step)."""

import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from twostream_jax.data import dataset
from twostream_jax.data.loader import input_pipeline, sampling
from twostream_jax.data.loader import views as views_lib
from twostream_jax.data.loader.augment import Box, CornerCrop, RandomCrop
from twostream_jax.data.loader.input_pipeline import InputSpec
from twostream_jax.data.video import images
from twostream_jax.flow import spec as flow_spec

BOTH = InputSpec(("rgb", "flow"), 64, 3, 1, "loop")


def train_transform(spec=BOTH, segments=1, scale=(0.7, 1.0), flip=True):
  return input_pipeline.TrainTransform(
    spec=spec, num_segments=segments, crop=RandomCrop(scale, 1.2), flip=flip
  )


def take(batches, count):
  return list(itertools.islice(iter(batches), count))


def assert_same(one, other):
  assert one.keys() == other.keys()
  for key in one:
    np.testing.assert_array_equal(one[key], other[key])


def whole_frame(record):
  return Box(0, 0, int(record["height"]), int(record["width"]))


def test_views_are_the_decoded_frames_and_fields(tiny):
  record = tiny.sources["train"][0]
  size = int(record["height"])
  spec = InputSpec(("rgb", "flow"), size, 3, 1, "loop")
  box = Box(0, 0, size, size)
  loaded = views_lib.load_views(record, np.array([2]), [box], spec)
  frame = dataset.decode_rgb(record["rgb"][3])
  np.testing.assert_array_equal(loaded["rgb"][0, 0], frame[:, :size])
  fields = [dataset.decode_flow_codes(record["flow"][i]) for i in (2, 3, 4)]
  stack = np.concatenate(fields, axis=-1)[:, :size].transpose(2, 0, 1)
  np.testing.assert_array_equal(loaded["flow"][0, 0], stack)


def test_stored_flow_is_the_flow_of_the_stored_frames(tiny):
  # The whole road: decode the record's JPEGs and compute flow again. JPEG noise
  # separates the two by little; a swapped axis, sign or scale by much.
  record = tiny.sources["train"][0]
  gray = [
    cv2.cvtColor(dataset.decode_rgb(record["rgb"][i]), cv2.COLOR_RGB2GRAY)
    for i in (4, 5)
  ]
  expected = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
    *gray, None
  )
  codes = dataset.decode_flow_codes(record["flow"][4])
  stored = flow_spec.dequantise(codes, tiny.flow_spec.bound)
  error = np.hypot(*np.moveaxis(stored - expected, -1, 0)).mean()
  assert error < 0.35
  assert error < 0.5 * np.hypot(*np.moveaxis(expected, -1, 0)).mean()


def test_batches_have_the_contract_s_shapes(tiny):
  (batch,) = take(
    input_pipeline.train_batches(
      tiny.sources["train"],
      train_transform(segments=2),
      batch_size=4,
      seed=0,
      threads=2,
    ),
    1,
  )
  assert batch["rgb"].shape == (4, 2, 64, 64, 3)
  assert batch["flow"].shape == (4, 2, 6, 64, 64)
  assert batch["rgb"].dtype == batch["flow"].dtype == np.uint8
  assert batch["label"].dtype == np.int32
  assert batch["mask"].dtype == bool and batch["mask"].all()


def test_batches_depend_on_seed_and_step_alone(tiny):
  def batches(seed, threads, start=0, processes=0):
    return input_pipeline.train_batches(
      tiny.sources["train"],
      train_transform(),
      batch_size=5,
      seed=seed,
      threads=threads,
      processes=processes,
      start=start,
    )

  first = take(batches(0, 1), 8)
  for one, other in zip(first, take(batches(0, 3), 8), strict=True):
    assert_same(one, other)
  for one, other in zip(first, take(batches(0, 1, 0, 2), 8), strict=True):
    assert_same(one, other)
  different = take(batches(1, 1), 1)[0]
  assert different["video_id"].tolist() != first[0]["video_id"].tolist()

  later = take(batches(0, 2, start=5), 2)
  assert_same(later[0], first[5])
  assert_same(later[1], first[6])


@pytest.mark.parametrize("processes, micro_batches", [(2, 1), (1, 3), (2, 3)])
def test_processes_and_micro_batches_share_the_same_batches(
  tiny, processes, micro_batches
):
  def batches(share, micro_batches):
    return take(
      input_pipeline.train_batches(
        tiny.sources["train"],
        train_transform(),
        batch_size=12,
        seed=0,
        threads=1,
        start=1,
        share=share,
        micro_batches=micro_batches,
      ),
      2,
    )

  whole = batches(sampling.ALL, 1)
  assert whole[0]["index"].tolist() == list(range(12))
  shares = [
    batches(sampling.Share(i, processes), micro_batches)
    for i in range(processes)
  ]
  for number, expected in enumerate(whole):
    parts = [share[number] for share in shares]
    # The first third of a process's part is of the first micro-batch.
    first = parts[-1]["index"][: 12 // processes // micro_batches]
    assert max(first) < 12 // micro_batches
    joined = {k: np.concatenate([p[k] for p in parts]) for k in expected}
    order = np.argsort(joined["index"])
    assert_same({k: x[order] for k, x in joined.items()}, expected)


def test_an_order_says_which_videos_are_seen(tiny):
  batches = input_pipeline.train_batches(
    tiny.sources["train"],
    train_transform(),
    batch_size=4,
    seed=0,
    threads=1,
    start=1,
    order=lambda position: 23 - position % 3,
  )
  source = tiny.sources["train"]
  expected = [
    input_pipeline.text(source[23 - p % 3]["video_id"]) for p in range(4, 8)
  ]
  (batch,) = take(batches, 1)
  assert batch["video_id"].tolist() == expected
  # The same video at another position is another sample.
  assert not np.array_equal(batch["rgb"][0], batch["rgb"][3])


def test_every_epoch_shows_every_video_once_and_otherwise(tiny):
  count = len(tiny.sources["train"])
  epochs = take(
    input_pipeline.train_batches(
      tiny.sources["train"],
      train_transform(),
      batch_size=count,
      seed=0,
      threads=1,
    ),
    2,
  )
  ids = [epoch["video_id"].tolist() for epoch in epochs]
  assert len(set(ids[0])) == count and set(ids[0]) == set(ids[1])
  assert ids[0] != ids[1]
  labels = [
    dict(zip(epoch["video_id"].tolist(), epoch["label"], strict=True))
    for epoch in epochs
  ]
  assert labels[0] == labels[1]


def counted_record(num_frames, step=1, side=16):
  """A record of which every field is one colour that tells which it is.

  Forward field i has x = 20 + i and y = 60 + i, backward field i has
  x = 100 + i and y = 140 + i; frame i is gray i.
  """

  def jpegs(count, *firsts):
    part = np.ones((side, side), np.uint8)
    images = [np.hstack([part * (f + i) for f in firsts]) for i in range(count)]
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in images]

  return {
    "num_frames": num_frames,
    "height": side,
    "width": side,
    "rgb": jpegs(num_frames, 0),
    "flow": jpegs(num_frames - step, 20, 60),
    "flow_backward": jpegs(num_frames - step, 100, 140),
    "video_id": "counted",
    "label": 0,
  }


def channels(fields):
  """Colours of a stack of `counted_record`: (forward, backward) indices."""
  onward, back = fields
  forward = [c + i for i in onward for c in (20, 60)]
  return forward + [c + i for i in back for c in (100, 140)]


@pytest.mark.parametrize(
  "length, step, start, centre, fields",
  [
    (2, 1, 0, 1, ([1], [0])),
    (4, 1, 3, 5, ([5, 6], [4, 3])),
    (6, 1, 13, 16, ([16, 17, 18], [15, 14, 13])),
    (4, 3, 2, 8, ([8, 11], [5, 2])),
  ],
)
def test_bidirectional_stacks_go_forward_then_back_from_the_frame(
  length, step, start, centre, fields
):
  record = counted_record(20, step)
  spec = InputSpec(
    ("rgb", "flow"), 16, length, step, "loop", direction="bidirectional"
  )
  loaded = views_lib.load_views(
    record, np.array([start]), [whole_frame(record)], spec
  )
  assert loaded["rgb"].shape == (1, 1, 16, 16, 3)
  assert (loaded["rgb"] == centre).all()
  assert loaded["flow"].shape == (1, 1, 2 * length, 16, 16)
  assert (loaded["flow"] == np.reshape(channels(fields), (-1, 1, 1))).all()


@pytest.mark.parametrize(
  "num_frames, rule, centre, fields",
  [
    (2, "loop", 1, ([0, 0], [0, 0])),
    (2, "hold", 1, ([0, 0], [0, 0])),
    (4, "loop", 2, ([2, 0], [1, 0])),
    (4, "hold", 2, ([2, 2], [1, 0])),
  ],
)
def test_short_clips_have_bidirectional_stacks(
  num_frames, rule, centre, fields
):
  record = counted_record(num_frames)
  spec = InputSpec(("rgb", "flow"), 16, 4, 1, rule, direction="bidirectional")
  views = views_lib.load_views(
    record, np.zeros(3, int), [whole_frame(record)], spec
  )
  assert (views["rgb"] == centre).all()
  assert views["flow"].shape == (1, 3, 8, 16, 16)
  assert (views["flow"] == np.reshape(channels(fields), (-1, 1, 1))).all()


def test_a_field_is_decoded_once_however_many_stacks_show_it(monkeypatch):
  record = counted_record(12)
  spec = InputSpec(("flow",), 16, 4, 1, "loop", direction="bidirectional")
  decode, decoded = images.decode_flow, []
  monkeypatch.setattr(
    images,
    "decode_flow",
    lambda data, memory: decoded.append(data) or decode(data, memory),
  )
  views_lib.load_views(record, np.arange(3), [whole_frame(record)] * 2, spec)
  # Centres 2, 3 and 4: forward fields 2 to 5, backward fields 0 to 3.
  assert sorted(decoded) == sorted(
    record["flow"][2:6] + record["flow_backward"][:4]
  )


def test_forward_stacks_need_no_backward_fields():
  both = counted_record(12)
  views = [whole_frame(both)]
  spec = InputSpec(("flow",), 16, 3, 1, "loop")
  one = views_lib.load_views(
    both | {"flow_backward": []}, np.array([4]), views, spec
  )
  assert_same(one, views_lib.load_views(both, np.array([4]), views, spec))
  assert one["flow"][0, 0, :, 0, 0].tolist() == channels(([4, 5, 6], []))


def test_bidirectional_stacks_need_an_even_length():
  spec = InputSpec(("flow",), 16, 4, 1, "loop", direction="bidirectional")
  with pytest.raises(ValueError, match="input.stack_length=5 must be even"):
    dataclasses.replace(spec, stack_length=5)
  # Frames have no halves.
  dataclasses.replace(spec, stack_length=5, modalities=("rgb",))


def ramps(size=64, frames=6):
  """A record whose every frame and field shows where its pixels are.

  Red and flow-x are 2 x, green and flow-y are 2 y, whatever the time.
  """
  x = np.tile(2 * np.arange(size, dtype=np.uint8), (size, 1))
  image = np.stack([x, x.T, np.full_like(x, 128)], axis=-1)
  field = cv2.imencode(
    ".jpg", np.hstack([x, x.T]), [cv2.IMWRITE_JPEG_QUALITY, 100]
  )[1].tobytes()
  return {
    "num_frames": frames,
    "height": size,
    "width": size,
    "rgb": [dataset.encode_rgb(image, 100)] * frames,
    "flow": [field] * (frames - 1),
    "video_id": "ramps",
    "label": 0,
  }


@pytest.mark.parametrize(
  "crop",
  [RandomCrop((0.5, 1.0), 1.3), CornerCrop((1.0, 0.75, 0.5), max_distort=1)],
)
def test_frames_and_fields_of_a_sample_share_one_view(crop):
  record, rng = ramps(), np.random.default_rng(0)
  transform = dataclasses.replace(train_transform(segments=2), crop=crop)
  flips, crops = 0, set()
  for _ in range(20):
    batch = transform.load([transform.draw(record, rng)])
    rgb, flow = batch["rgb"][0].astype(int), batch["flow"][0].astype(int)
    flips += batch["flip"].item()
    crops.add((rgb[0, 0, 0, 0], rgb[0, 0, -1, 0], rgb[0, 0, 0, 1]))
    # Colour is stored at half the resolution, so it is off by a little.
    red = np.repeat(rgb[:, None, ..., 0], 3, axis=1)
    np.testing.assert_allclose(flow[:, 0::2], red, atol=8)
    green = np.repeat(rgb[:, None, ..., 1], 3, axis=1)
    np.testing.assert_allclose(flow[:, 1::2], green, atol=8)
  assert 3 < flips < 17 and len(crops) > 6


def test_nothing_is_mirrored_where_labels_name_a_direction(tiny):
  transform = train_transform(flip=False)
  rng = np.random.default_rng(0)
  samples = [transform.draw(tiny.sources["train"][0], rng) for _ in range(20)]
  assert not any(sample.flip for sample in samples)
  assert "flip" not in transform.load(samples)


def test_colours_are_jittered_by_seed_and_position_alone(tiny):
  def first(jitter, seed=0, threads=1, **kwargs):
    transform = dataclasses.replace(
      train_transform(**kwargs), rgb_jitter=jitter
    )
    (batch,) = take(
      input_pipeline.train_batches(
        tiny.sources["train"],
        transform,
        batch_size=6,
        seed=seed,
        threads=threads,
      ),
      1,
    )
    return batch

  shifted, plain = first(0.1), first(0.0)
  shift = shifted.pop("rgb_shift")
  assert (shift.shape, shift.dtype) == ((6, 3), np.float32)
  assert len(np.unique(shift, axis=0)) == 6
  # Nothing else is drawn again.
  assert_same(shifted, plain)
  np.testing.assert_array_equal(first(0.1, threads=2)["rgb_shift"], shift)
  np.testing.assert_allclose(first(0.3)["rgb_shift"], 3 * shift, rtol=1e-5)
  assert (first(0.1, seed=1)["rgb_shift"] != shift).all()
  flow = InputSpec(("flow",), 64, 3, 1, "loop")
  assert "rgb_shift" not in first(0.1, spec=flow)


def test_settings_out_of_range_are_refused():
  with pytest.raises(ValueError, match="direction='back'"):
    dataclasses.replace(BOTH, direction="back")
  with pytest.raises(ValueError, match="audio"):
    InputSpec(("audio",), 64, 1, 1, "loop")
  with pytest.raises(ValueError, match="stack_length"):
    InputSpec(("flow",), 64, 0, 1, "loop")
  with pytest.raises(ValueError, match="input.num_segments"):
    train_transform(segments=0)
  for jitter in (-0.1, float("nan"), float("inf")):
    with pytest.raises(ValueError, match="input.rgb_jitter"):
      dataclasses.replace(train_transform(), rgb_jitter=jitter)
