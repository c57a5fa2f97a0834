"""Clips to records, and images to bytes and back."""

import dataclasses

import cv2
import numpy as np
import pytest

from twostream_jax.data import dataset
from twostream_jax.data.build import encode
from twostream_jax.data.build.check import Rejection
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.flow import compute_flow, default_parameters
from twostream_jax.flow.spec import FlowSpec, dequantise, quantise

_SPEC = FlowSpec("farneback", default_parameters("farneback"), short_side=64)


def _moving_frames(n, seed=0, height=64, width=80):
  """A texture that moves 2 pixels to the right a frame."""
  noise = np.random.default_rng(seed).random((height, width + 2 * n, 3))
  smooth = cv2.GaussianBlur(noise, (0, 0), 2)
  image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
  return [image[:, 2 * (n - i) :][:, :width] for i in range(n)]


def _write_video(path, frames, fps=12.5):
  path.parent.mkdir(parents=True, exist_ok=True)
  height, width = frames[0].shape[:2]
  fourcc = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(path), fourcc, fps, (width, height))
  for frame in frames:
    writer.write(frame[..., ::-1])
  writer.release()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  root = tmp_path_factory.mktemp("videos")
  for i in range(4):
    _write_video(root / f"{i}.avi", _moving_frames(4 + i, seed=i))
  return root


def _clip(path, split="train", label="b", group=""):
  return Clip(path.name, path, split, label, group)


def test_record_of_a_clip(videos):
  record = process_clip(_clip(videos / "1.avi", group="g"), _SPEC, 95)
  frames = [dataset.decode_rgb(data) for data in record.rgb]
  fields = [dataset.decode_flow_codes(data) for data in record.flow]
  assert (record.video_id, record.label, record.group) == ("1.avi", "b", "g")
  assert (record.fps, record.num_frames) == (12.5, 5)
  assert (record.height, record.width) == (64, 80)
  assert len(frames) == 5
  assert len(fields) == 4
  for frame, true in zip(frames, _moving_frames(5, seed=1), strict=True):
    assert frame.shape == (64, 80, 3)
    assert np.abs(frame.astype(int) - true).mean() < 6
  for codes in fields:
    assert codes.shape == (64, 80, 2)
    motion = np.median(dequantise(codes, 20.0)[16:-16, 16:-16], axis=(0, 1))
    np.testing.assert_allclose(motion, [2, 0], atol=0.2)


def test_step_is_the_distance_of_the_frames_of_a_field(videos):
  spec = dataclasses.replace(_SPEC, step=2)
  record = process_clip(_clip(videos / "1.avi"), spec, 95)
  assert record.num_frames == len(record.rgb) == 5
  assert len(record.flow) == 3
  codes = dataset.decode_flow_codes(record.flow[1])
  motion = np.median(dequantise(codes, 20.0)[16:-16, 16:-16], axis=(0, 1))
  np.testing.assert_allclose(motion, [4, 0], atol=0.3)


def test_stored_flow_is_the_flow_of_the_decoded_frames(tmp_path):
  # Frames of one gray level survive Motion JPEG, so all is known but the flow's
  # own JPEG.
  frames = [np.full((64, 80, 3), level, np.uint8) for level in (80, 160)]
  _write_video(tmp_path / "a.avi", frames)
  record = process_clip(_clip(tmp_path / "a.avi"), _SPEC, 95)
  flow = compute_flow(_SPEC, frames[0][..., 0], frames[1][..., 0])
  stored = dataset.decode_flow_codes(record.flow[0]).astype(int)
  assert np.abs(stored - quantise(flow, _SPEC.bound)).max() <= 3


def test_x_and_y_do_not_bleed_into_each_other():
  flow = np.stack(np.broadcast_arrays(np.ones((64, 88)), -20.0), -1)
  flow[..., 0] = 20.0
  codes = dataset.decode_flow_codes(dataset.encode_flow(flow, _SPEC))
  np.testing.assert_array_equal(codes[..., 0], 255)
  np.testing.assert_array_equal(codes[..., 1], 0)


@pytest.mark.parametrize(
  "decode", [dataset.decode_rgb, dataset.decode_flow_codes]
)
@pytest.mark.parametrize("data", [b"", b"no image"])
def test_decoding_what_is_no_image(decode, data):
  with pytest.raises(
    ValueError, match=f"{len(data)} bytes that are not an image"
  ):
    decode(data)


def test_quality_is_used():
  frame = _moving_frames(1)[0]
  sizes = [len(dataset.encode_rgb(frame, quality)) for quality in (20, 95)]
  assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize(
  "n, step, reason",
  [
    (1, 1, "1 frame decoded, at least 2 needed"),
    (3, 3, "3 frames decoded, at least 4 needed"),
  ],
)
def test_too_few_frames(tmp_path, n, step, reason):
  _write_video(tmp_path / "a.avi", _moving_frames(n))
  spec = dataclasses.replace(_SPEC, step=step)
  result = process_clip(_clip(tmp_path / "a.avi"), spec, 95)
  assert result == Rejection(reason)


def test_clip_above_the_size_limit(videos):
  result = process_clip(_clip(videos / "1.avi"), _SPEC, 95, max_bytes=5000)
  assert isinstance(result, Rejection)
  assert "longer than a record can be" in result.reason


def test_unexpected_error_becomes_a_reason(videos, monkeypatch):
  def fail(*_):
    raise ZeroDivisionError("oh")

  monkeypatch.setattr(encode, "encode_flow", fail)
  result = process_clip(_clip(videos / "1.avi"), _SPEC, 95)
  assert result == Rejection("unexpected ZeroDivisionError: oh")


def test_bidirectional_flow_is_stored_both_ways(videos):
  spec = dataclasses.replace(_SPEC, direction="bidirectional")
  record = process_clip(_clip(videos / "1.avi"), spec, 95)
  alone = process_clip(_clip(videos / "1.avi"), _SPEC, 95)
  assert alone.flow_backward == []
  assert record.flow == alone.flow
  assert len(record.flow_backward) == 4
  codes = dataset.decode_flow_codes(record.flow_backward[0])
  motion = np.median(dequantise(codes, 20.0)[16:-16, 16:-16], axis=(0, 1))
  np.testing.assert_allclose(motion, [-2, 0], atol=0.2)


def test_extracted_flow_is_stored_as_it_is(tmp_path):
  rng = np.random.default_rng(0)
  codes = []
  for i, frame in enumerate(_moving_frames(4)):
    cv2.imwrite(str(tmp_path / f"img_{i:05d}.jpg"), frame)
    if i < 3:
      small = rng.integers(0, 256, [2, 4, 5], np.uint8)
      field = [
        cv2.resize(c, (80, 64), interpolation=cv2.INTER_CUBIC) for c in small
      ]
      codes.append(field)
      for axis, image in zip("xy", field, strict=True):
        cv2.imwrite(str(tmp_path / f"flow_{axis}_{i:05d}.png"), image)
  spec = FlowSpec("extracted", {}, short_side=64, bound=15.0, quality=100)
  record = process_clip(_clip(tmp_path), spec, 95)
  assert (record.num_frames, record.height, record.width) == (4, 64, 80)
  assert len(record.flow) == 3
  for data, (x, y) in zip(record.flow, codes, strict=True):
    stored = dataset.decode_flow_codes(data).astype(int)
    # What remains is the JPEG of quality 100.
    assert np.abs(stored - np.stack([x, y], -1)).max() <= 3
