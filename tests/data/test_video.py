"""Decoding, on small files written here."""

import cv2
import numpy as np
import pytest

from twostream_jax.data import video
from twostream_jax.data.video import VideoError


def _write_video(path, frames, fps=12.5, codec="MJPG"):
  height, width = frames[0].shape[:2]
  fourcc = cv2.VideoWriter.fourcc(*codec)
  writer = cv2.VideoWriter(str(path), fourcc, fps, (width, height))
  assert writer.isOpened()
  for frame in frames:
    writer.write(frame[..., ::-1])
  writer.release()
  return path


def _plain(color, height=48, width=64):
  return np.full((height, width, 3), color, np.uint8)


@pytest.mark.parametrize("name, codec", [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_frames_are_rgb_in_order(tmp_path, name, codec):
  colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
  path = _write_video(tmp_path / name, [_plain(c) for c in colors], codec=codec)
  frames = list(video.read_frames(path))
  assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
  assert frames[0].dtype == np.uint8
  for frame, color in zip(frames, colors, strict=True):
    np.testing.assert_allclose(frame.mean((0, 1)), color, atol=12)


def test_frame_rate(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(9)] * 3, fps=12.5)
  assert video.read_fps(path) == 12.5


@pytest.mark.parametrize(
  "stated, fps", [(0.0, 25.0), (float("nan"), 25.0), (9e4, 25.0), (50.0, 50.0)]
)
def test_frame_rate_that_can_not_be_true(tmp_path, monkeypatch, stated, fps):
  path = _write_video(tmp_path / "a.avi", [_plain(9)] * 3)

  class Capture:
    def get(self, _):
      return stated

    def release(self):
      pass

  monkeypatch.setattr(video, "_open", lambda _: Capture())
  assert video.read_fps(path) == fps


def test_frames_are_counted_not_believed(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
  path = _write_video(tmp_path / "a.avi", noise)
  whole = path.read_bytes()
  cut = tmp_path / "cut.avi"
  cut.write_bytes(whole[: len(whole) // 2])
  stated = cv2.VideoCapture(str(cut)).get(cv2.CAP_PROP_FRAME_COUNT)
  decoded = sum(1 for _ in video.read_frames(cut))
  assert 0 < decoded < stated == 20


def test_header_rotation_is_applied(tmp_path):
  upright = _plain(255, 32, 64)
  upright[:, :32] = 0
  path = _write_video(tmp_path / "a.mp4", [upright] * 2, codec="mp4v")
  # The display matrix of the track header (ISO/IEC 14496-12, 8.3.2), 16.16
  # fixed point: the identity becomes a quarter turn clockwise.
  one, minus = (1 << 16).to_bytes(4), (0xFFFF0000).to_bytes(4)
  zero, w = bytes(4), (1 << 30).to_bytes(4)
  identity = one + zero * 3 + one + zero * 3 + w
  turn = zero + one + zero + minus + zero * 4 + w
  data = path.read_bytes()
  track = data.index(b"tkhd")
  matrix = data.index(identity, track)
  path.write_bytes(data[:matrix] + turn + data[matrix + len(turn) :])
  frame = next(video.read_frames(path))
  assert frame.shape == (64, 32, 3)
  assert frame[:28].mean() < 20
  assert frame[36:].mean() > 235


@pytest.mark.parametrize(
  "name, content, reason",
  [
    ("none.avi", None, "no such file"),
    ("empty.mp4", b"", "the file is empty"),
    ("noise.mp4", bytes(range(256)) * 40, "can't be opened as a video"),
    # FFmpeg opens these as films of a text terminal.
    ("readme.txt", b"hello\n" * 200, "can't be opened as a video"),
    ("credits.nfo", b"hello\n" * 200, "can't be opened as a video"),
  ],
)
def test_reason_for_no_video(tmp_path, name, content, reason):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(VideoError) as caught:
    next(video.read_frames(path))
  assert caught.value.reason == reason
  with pytest.raises(VideoError, match=reason):
    video.read_fps(path)


def test_a_folder_is_no_video(tmp_path):
  with pytest.raises(VideoError, match="no such file"):
    next(video.read_frames(tmp_path))


def test_a_header_without_frames(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(i) for i in range(5)])
  data = path.read_bytes()
  path.write_bytes(data[: data.index(b"movi") + 4])
  with pytest.raises(VideoError, match="no frame could be decoded"):
    next(video.read_frames(path))


def test_an_image_is_not_the_start_of_a_sequence(tmp_path):
  for i in range(3):
    cv2.imwrite(str(tmp_path / f"clip_0{i}.png"), _plain(i))
  assert len(list(video.read_frames(tmp_path / "clip_00.png"))) == 1


@pytest.mark.parametrize(
  "height, width, short_side, expected",
  [
    (240, 320, 256, (256, 344)),
    (320, 240, 256, (344, 256)),
    (256, 340, 256, (256, 336)),
    (1080, 1920, 224, (224, 400)),
    (2, 2, 64, (64, 64)),
    (100, 101, 64, (64, 64)),
    (64, 72, 64, (64, 72)),
  ],
)
def test_target_size(height, width, short_side, expected):
  assert video.target_size(height, width, short_side) == expected


def test_target_size_keeps_proportions_and_blocks():
  rng = np.random.default_rng(0)
  for height, width in rng.integers(16, 2000, (200, 2)).tolist():
    size = video.target_size(height, width, 128)
    assert min(size) == 128
    assert size[0] % 8 == size[1] % 8 == 0
    exact = 128 * max(height, width) / min(height, width)
    assert abs(max(size) - exact) <= 4


@pytest.mark.parametrize("short_side", [0, -8, 4, 100, 225])
def test_target_size_refuses_other_than_multiples_of_8(short_side):
  with pytest.raises(ValueError, match=f"multiple of 8: {short_side}"):
    video.target_size(240, 320, short_side)


def test_shrinking_averages():
  checker = np.zeros((64, 64, 3), np.uint8)
  checker[::2, ::2] = checker[1::2, 1::2] = 255
  # Sampling single pixels would give 0 or 255.
  np.testing.assert_allclose(video.resize(checker, 16, 16), 127.5, atol=1)


def test_enlarging_interpolates():
  image = np.array([[0, 200]], np.uint8)
  row = video.resize(image, 1, 8)[0].astype(int)
  assert (np.diff(row) >= 0).all()
  assert len(np.unique(row)) > 2


def test_read_resized(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(i, 60, 90) for i in range(3)])
  frames = list(video.read_resized(path, 32))
  assert [frame.shape for frame in frames] == [(32, 48, 3)] * 3


def test_read_resized_refuses_a_ribbon(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(9, 16, 1600)] * 2)
  with pytest.raises(VideoError, match="1600x16.*6400x64, above 4096"):
    next(video.read_resized(path, 64))
