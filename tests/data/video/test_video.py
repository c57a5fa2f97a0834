"""Decoding, on small files written here, and on odd ones where they are."""

import struct

import cv2
import numpy as np
import pytest

from tests import decoded
from tests.paths import SHARED
from twostream_jax.data.video import reading
from twostream_jax.data.video.reading import VideoError

_ODD = SHARED / "odd_videos"


def _odd(name):
  if not (_ODD / name).is_file():
    pytest.skip(f"no odd video {_ODD / name}")
  return _ODD / name


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
  frames = decoded.images(path)
  assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
  assert frames[0].dtype == np.uint8
  for frame, color in zip(frames, colors, strict=True):
    np.testing.assert_allclose(frame.mean((0, 1)), color, atol=12)


def test_frame_rate(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(9)] * 3, fps=12.5)
  assert decoded.rate(path) == 12.5


def test_a_file_s_rate_is_the_header_s_or_that_of_the_times(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(9)] * 3, fps=12.5)
  assert reading.frame_rate(path, [0.0]) == 12.5
  assert reading.frame_rate(path, [0.0, 0.5, 1.0]) == 2.0


def test_frames_are_counted_not_believed(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
  path = _write_video(tmp_path / "a.avi", noise)
  whole = path.read_bytes()
  cut = tmp_path / "cut.avi"
  cut.write_bytes(whole[: len(whole) // 2])
  decoded = sum(1 for _ in reading.read_frames(cut))
  assert 0 < decoded < _stated_frames(cut) == 20


def _stated_frames(path):
  return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).get(
    cv2.CAP_PROP_FRAME_COUNT
  )


def _write_lie(path, claimed):
  """Writes an AVI file of 5 frames whose headers claim another number."""
  data = bytearray(
    _write_video(path, [_plain(40 * i) for i in range(5)]).read_bytes()
  )
  # dwTotalFrames of the main header and dwLength of the stream's, after name
  # and size of the chunk.
  for chunk, offset in [(b"avih", 16), (b"strh", 32)]:
    at = data.index(chunk) + 8 + offset
    assert data[at : at + 4] == struct.pack("<I", 5)
    data[at : at + 4] = struct.pack("<I", claimed)
  path.write_bytes(data)
  return path


def test_a_header_that_claims_more_frames_than_there_are(tmp_path):
  path = _write_lie(tmp_path / "a.avi", 5544)
  assert _stated_frames(path) == 5544
  levels = [image.mean() for image in decoded.images(path)]
  np.testing.assert_allclose(levels, [0, 40, 80, 120, 160], atol=2)


def test_a_header_that_claims_frames_where_there_are_none(tmp_path):
  path = _write_lie(tmp_path / "a.avi", 5544)
  data = path.read_bytes()
  path.write_bytes(data[: data.index(b"movi") + 4])
  assert _stated_frames(path) == 5544
  with pytest.raises(VideoError, match="no frame could be decoded"):
    next(reading.read_frames(path))


@pytest.mark.optional
def test_odd_headers():
  with pytest.raises(VideoError, match="no frame could be decoded"):
    next(reading.read_frames(_odd("mp4parse/invalid_userdata.mp4")))
  corrupted = _odd("decord/test_data_corrupted.mp4")
  n = sum(1 for _ in reading.read_frames(corrupted))
  assert 0 < n < _stated_frames(corrupted)


# The display matrix of a track (ISO/IEC 14496-12, 8.3.2), row by row, that
# turns its frames clockwise by so many degrees.
_MATRIX = {
  0: (1, 0, 0, 0, 1, 0, 0, 0, 1),
  90: (0, 1, 0, -1, 0, 0, 0, 0, 1),
  180: (-1, 0, 0, 0, -1, 0, 0, 0, 1),
  270: (0, -1, 0, 1, 0, 0, 0, 0, 1),
}


def _display_matrix(degrees):
  # The third column is 2.30 fixed point, the others 16.16.
  fixed = [
    v << (30 if i % 3 == 2 else 16) for i, v in enumerate(_MATRIX[degrees])
  ]
  return struct.pack(">9i", *fixed)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_of_a_turned_video_come_upright(tmp_path, degrees):
  coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 3), np.uint8)
  path = _write_video(
    tmp_path / "a.mp4", coarse.repeat(8, 1).repeat(8, 2), codec="mp4v"
  )
  unturned = decoded.images(path)
  assert [frame.shape for frame in unturned] == [(32, 64, 3)] * 3
  data = path.read_bytes()
  matrix = data.index(_display_matrix(0), data.index(b"tkhd"))
  turned = tmp_path / "turned.mp4"
  turn = _display_matrix(degrees)
  turned.write_bytes(data[:matrix] + turn + data[matrix + len(turn) :])
  # np.rot90 turns counter-clockwise.
  expected = [np.rot90(frame, -degrees // 90) for frame in unturned]
  frames = decoded.images(turned)
  np.testing.assert_array_equal(frames, expected)
  resized = next(reading.read_resized(turned, 16)).rgb
  assert resized.shape == ((16, 32, 3) if degrees == 180 else (32, 16, 3))


@pytest.mark.optional
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_the_turned_videos_of_cameras_come_upright(degrees):
  upright = decoded.first_image(_odd("decord/test_data_video_0.mov"))
  frame = decoded.first_image(_odd(f"decord/test_data_video_{degrees}.mov"))
  assert frame.shape == np.rot90(upright, degrees // 90).shape


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
    next(reading.read_frames(path))
  assert caught.value.reason == reason
  with pytest.raises(VideoError, match=reason):
    reading.frame_rate(path, [])


def test_an_empty_folder_is_no_video(tmp_path):
  with pytest.raises(VideoError, match="the folder holds no numbered images"):
    next(reading.read_frames(tmp_path))


def test_a_header_without_frames(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(i) for i in range(5)])
  data = path.read_bytes()
  path.write_bytes(data[: data.index(b"movi") + 4])
  with pytest.raises(VideoError, match="no frame could be decoded"):
    next(reading.read_frames(path))


def test_an_image_is_not_the_start_of_a_sequence(tmp_path):
  for i in range(3):
    cv2.imwrite(str(tmp_path / f"clip_0{i}.png"), _plain(i))
  assert len(list(reading.read_frames(tmp_path / "clip_00.png"))) == 1


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
  assert reading.target_size(height, width, short_side) == expected


def test_target_size_keeps_proportions_and_blocks():
  rng = np.random.default_rng(0)
  for height, width in rng.integers(16, 2000, (200, 2)).tolist():
    size = reading.target_size(height, width, 128)
    assert min(size) == 128
    assert size[0] % 8 == size[1] % 8 == 0
    exact = 128 * max(height, width) / min(height, width)
    assert abs(max(size) - exact) <= 4


@pytest.mark.parametrize("short_side", [0, -8, 4, 100, 225])
def test_target_size_refuses_other_than_multiples_of_8(short_side):
  with pytest.raises(ValueError, match=f"multiple of 8: {short_side}"):
    reading.target_size(240, 320, short_side)


def test_shrinking_averages():
  checker = np.zeros((64, 64, 3), np.uint8)
  checker[::2, ::2] = checker[1::2, 1::2] = 255
  # Sampling single pixels would give 0 or 255.
  np.testing.assert_allclose(reading.resize(checker, 16, 16), 127.5, atol=1)


def test_enlarging_interpolates():
  image = np.array([[0, 200]], np.uint8)
  row = reading.resize(image, 1, 8)[0].astype(int)
  assert (np.diff(row) >= 0).all()
  assert len(np.unique(row)) > 2


def test_read_resized(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(i, 60, 90) for i in range(3)])
  frames = list(reading.read_resized(path, 32))
  assert [frame.rgb.shape for frame in frames] == [(32, 48, 3)] * 3


def test_read_resized_refuses_a_ribbon(tmp_path):
  path = _write_video(tmp_path / "a.avi", [_plain(9, 16, 1600)] * 2)
  with pytest.raises(VideoError, match="1600x16.*6400x64, above 4096"):
    next(reading.read_resized(path, 64))
