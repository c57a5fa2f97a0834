"""Overlays: what is drawn, and video files with true times and colours."""

import dataclasses
import errno

import av
import numpy as np
import pytest

from tests import decoded, full_disk
from tests.stub_predictor import SPEC, coded
from twostream_jax.data.video.frames import VideoError
from twostream_jax.predict import following, outputs, overlay, video_file
from twostream_jax.predict.following import Seen, Window

VARIED = [0.0, 0.1, 0.15, 0.9, 1.0, 2.5, 2.55]
CODECS = {
  ".mp4": "h264",
  ".m4v": "h264",
  ".mov": "h264",
  ".mkv": "h264",
  ".webm": "vp9",
}


def probe(path):
  """Codec, pixel format, times of the packets and duration, in seconds."""
  with av.open(str(path)) as found:
    stream = found.streams.video[0]
    times = [
      float(packet.pts * packet.time_base)
      for packet in found.demux(stream)
      if packet.size
    ]
    context = stream.codec_context
    assert (context.colorspace, context.color_range) == (1, 1)
    return context.name, context.pix_fmt, times, found.duration / av.time_base


def shown(times, images, fps=25.0):
  """Frames at their times; the last one lasts 1 / fps seconds."""
  ends = [*times[1:], times[-1] + 1 / fps]
  return [*map(video_file.Shown, times, ends, images)]


def grey(times, size=(48, 64), fps=25.0):
  """Frames that are ever brighter, at their times."""
  images = [np.full((*size, 3), 20 * n, np.uint8) for n in range(len(times))]
  return shown(times, images, fps)


def test_an_overlay_shows_every_frame_once(tmp_path):
  frames = coded([n / 25 for n in range(9)], (48, 64))
  windows = [
    Seen(first, shown, np.eye(3)[i % 3])
    for i, (first, shown) in enumerate(
      following.slide(frames, Window(0.16, 0.08), 2)
    )
  ]
  path = tmp_path / "shown.mp4"
  names = ["run", "jump", "wave"]
  overlay.write(path, windows, names, spec=SPEC, top=2)
  assert list(tmp_path.iterdir()) == [path]
  images = decoded.images(path)
  assert {image.shape for image in images} == {(48 + 2 * 24, 128, 3)}
  levels = [image[8:40, 8:56].mean() for image in images]
  np.testing.assert_allclose(levels, np.arange(9) * 25, atol=3)
  assert probe(path)[2] == pytest.approx([frame.time for frame in frames])


@pytest.mark.parametrize("extension", CODECS)
def test_frames_have_their_times_in_every_format(tmp_path, extension):
  path = tmp_path / f"a{extension}"
  video_file.write(path, grey(VARIED, fps=2.5))
  codec, pixels, times, duration = probe(path)
  assert (codec, pixels) == (CODECS[extension], "yuv420p")
  assert times == pytest.approx(VARIED, abs=1e-3)
  assert duration == pytest.approx(VARIED[-1] + 1 / 2.5, abs=2e-3)


@pytest.mark.parametrize("fps", [0.01, 0.5, 66.123, 105.611, 999.999])
def test_any_frame_rate_is_written(tmp_path, fps):
  path = tmp_path / "a.mp4"
  video_file.write(path, grey([n / fps for n in range(7)], fps=fps))
  _, _, times, duration = probe(path)
  assert times == pytest.approx([n / fps for n in range(7)], abs=1e-4)
  assert duration == pytest.approx(7 / fps, abs=2e-3)


def test_times_that_round_to_one_are_told_apart(tmp_path):
  times = [0.0, 0.0001, 0.0002, 1.0]
  video_file.write(tmp_path / "a.mkv", grey(times, fps=1.0))
  assert probe(tmp_path / "a.mkv")[2] == [0.0, 0.001, 0.002, 1.0]


def test_the_index_of_an_mp4_comes_first(tmp_path):
  video_file.write(tmp_path / "a.mp4", grey(VARIED, fps=2.5))
  data = (tmp_path / "a.mp4").read_bytes()
  assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("extension", [".mp4", ".webm"])
def test_colours_are_those_that_were_drawn(tmp_path, extension):
  path = tmp_path / f"a{extension}"
  colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 180, 240)]
  colours += [(255, 255, 255), (10, 10, 10), (200, 40, 120), (0, 128, 128)]
  image = np.repeat(np.repeat(np.uint8([colours] * 2), 32, 0), 16, 1)
  video_file.write(path, shown([n / 25 for n in range(4)], [image] * 4))
  # Two columns at each side of an edge share a chroma sample.
  inside = np.arange(16 * len(colours)) % 16
  columns = (inside > 2) & (inside < 13)
  for found in decoded.images(path):
    differences = np.abs(found.astype(int) - image)[:, columns]
    assert differences.mean() < 3, differences.mean(axis=0)


def test_odd_sides_get_a_row_and_a_column(tmp_path):
  path = tmp_path / "a.mp4"
  video_file.write(path, grey([0.0, 0.5], size=(47, 63), fps=2.0))
  first, second = decoded.images(path)
  assert first.shape == (48, 64, 3)
  np.testing.assert_allclose(second, 20, atol=3)


@pytest.mark.parametrize("name", ["a.avi", "a", "a.gif", "mp4"])
def test_other_extensions_are_refused(tmp_path, name):
  path = tmp_path / name
  with pytest.raises(ValueError, match="must end in one of .mp4, .m4v, .mov"):
    overlay.write(path, [], ["run"], spec=SPEC, top=1)
  assert not list(tmp_path.iterdir())


def test_a_pyav_without_the_encoder_is_told(tmp_path, monkeypatch):
  missing = dataclasses.replace(
    video_file._FORMATS[".webm"], encoding=video_file._Encoding("libno", {})
  )
  monkeypatch.setitem(video_file._FORMATS, ".webm", missing)
  with pytest.raises(ValueError, match="lacks the encoder libno"):
    video_file.check_format(tmp_path / "a.webm")


@pytest.mark.parametrize(
  "extension, share",
  [(".mp4", 0.0), (".mp4", 0.3), (".mp4", 0.999), (".webm", 0.95)],
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, extension, share):
  noise = np.random.default_rng(0).integers(
    0, 256, (12, 96, 96, 3), dtype=np.uint8
  )
  frames = shown([n / 25 for n in range(12)], noise)
  whole = tmp_path / f"whole{extension}"
  video_file.write(whole, frames)
  size = whole.stat().st_size
  assert size > 50_000
  path = tmp_path / "in" / f"o{extension}"
  path.parent.mkdir()
  path.write_bytes(b"an older one")
  with (
    pytest.raises(outputs.WriteError) as caught,
    full_disk.largest_file(int(share * size)),
    outputs.written(path) as temporary,
  ):
    video_file.write(temporary, frames)
  assert str(caught.value) == f"can't write {path}: File too large"
  assert caught.value.errno == errno.EFBIG and caught.value.of_the_machine
  assert list(path.parent.iterdir()) == [path]
  assert path.read_bytes() == b"an older one"


def test_a_file_is_read_back(tmp_path, monkeypatch):
  mux = video_file._Encoder._mux
  monkeypatch.setattr(
    video_file._Encoder, "_mux", lambda self, packets: mux(self, packets[:1])
  )
  path = tmp_path / "a.mp4"
  with pytest.raises(OSError, match="it holds 1 frames"):
    video_file.write(path, grey([0.0, 0.5, 1.0], fps=2.0))


def test_an_error_of_the_frames_stays_itself(tmp_path):
  def broken():
    yield from grey([0.0, 0.5])
    raise VideoError("torn")

  path = tmp_path / "o.mp4"
  with (
    pytest.raises(VideoError, match="torn"),
    outputs.written(path) as temporary,
  ):
    video_file.write(temporary, broken())
  assert not list(tmp_path.iterdir())
  with pytest.raises(VideoError, match="no frame"):
    video_file.write(path, [])


def test_an_overlay_that_can_not_be_written_says_so(tmp_path):
  windows = [Seen(0, coded([0, 0.04]), np.array([1.0]))]
  path = tmp_path / "missing" / "o.mp4"
  with pytest.raises(OSError, match="can't write .*missing/o.mp4: No such"):
    overlay.write(path, windows, ["run"], spec=SPEC, top=1)


def test_an_overlay_may_have_the_longest_name(tmp_path):
  path = tmp_path / f"{'x' * 251}.mp4"
  windows = [Seen(0, coded([0, 0.04]), np.array([1.0]))]
  overlay.write(path, windows, ["run"], spec=SPEC, top=1)
  assert list(tmp_path.iterdir()) == [path]
