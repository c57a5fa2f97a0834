"""Decoding of files that OpenCV's decoder got wrong, written by PyAV."""

import os
import threading
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from tests import decoded
from twostream_jax.data.video import decode, frames, reading
from twostream_jax.data.video.frames import VideoError

_HEIGHT, _WIDTH = 64, 96


def moving(count=12):
  """A smooth pattern that moves by 2 pixels a frame: uint8 [t h w 3]."""
  rng = np.random.default_rng(0)
  # Gray with little colour: chroma of half resolution blurs its edges.
  coarse = rng.uniform(60, 190, (8, 12, 1)) + rng.uniform(-20, 20, (8, 12, 3))
  image = cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_LINEAR)
  image = image.astype(np.uint8)
  return np.stack([np.roll(image, 2 * i, axis=1) for i in range(count)])


def write(
  path,
  frames,
  codec="libx264",
  *,
  pixels="yuv420p",
  options=None,
  times=None,
  base=Fraction(1, 25),
  interlaced=False,
  colorspace=None,
):
  """Encodes frames; `times` are in units of `base`."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=1 / base, options=options or {})
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = pixels
    stream.time_base = base
    if codec == "libx264":
      stream.options = {"crf": "10"} | (options or {})
    if interlaced:
      # AV_CODEC_FLAG_INTERLACED_DCT and _ME.
      stream.codec_context.flags |= (1 << 18) | (1 << 29)
    if colorspace is not None:
      stream.codec_context.colorspace = colorspace
    for i, image in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame = frame.reformat(format=pixels, dst_colorspace=colorspace)
      frame.pts = i if times is None else times[i]
      frame.time_base = base
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def assert_like(found, expected, atol=6.0):
  """Equal up to coding: mean difference of every frame."""
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape and a.dtype == np.uint8
    assert np.abs(a.astype(int) - b).mean() < atol


def marks(path):
  """Whether each frame of a file is marked as interlaced."""
  with av.open(str(path)) as container:
    return [frame.interlaced_frame for frame in container.decode(video=0)]


@pytest.mark.parametrize(
  "name, codec, options",
  [
    ("a.mp4", "libx264", {"x264-params": "interlaced=1:tff=1"}),
    ("a.mpg", "mpeg2video", {"b": "4M"}),
    ("a.avi", "mpeg4", {"b": "4M"}),
  ],
)
def test_interlaced_video_has_all_its_frames(tmp_path, name, codec, options):
  frames = moving()
  path = write(tmp_path / name, frames, codec, options=options, interlaced=True)
  assert all(marks(path))
  assert_like(decoded.images(path), frames)


def test_video_that_becomes_interlaced_goes_on(tmp_path):
  frames = moving(24)
  options = {"b": "4M", "g": "12"}
  for i, interlaced in enumerate((False, True)):
    write(
      tmp_path / f"{i}.mpg",
      frames[12 * i : 12 * i + 12],
      "mpeg2video",
      options=options,
      interlaced=interlaced,
    )
  path = tmp_path / "both.mpg"
  path.write_bytes(
    b"".join((tmp_path / f"{i}.mpg").read_bytes() for i in (0, 1))
  )
  assert marks(path) == [False] * 12 + [True] * 12
  assert_like(decoded.images(path), frames)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_av1_is_decoded(tmp_path, name):
  frames = moving()
  path = write(
    tmp_path / name,
    frames,
    "libsvtav1",
    options={"crf": "10", "preset": "10"},
  )
  assert_like(decoded.images(path), frames)
  assert decoded.rate(path) == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize(
  "pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"]
)
def test_pixel_formats(tmp_path, pixels):
  frames = moving()
  if pixels == "gray":
    gray = frames @ np.array([0.299, 0.587, 0.114])
    frames = gray[..., None].repeat(3, axis=-1)
  path = write(tmp_path / "a.mkv", frames.astype(np.uint8), pixels=pixels)
  assert_like(decoded.images(path), frames)


def test_the_colour_matrix_of_the_file_is_used(tmp_path):
  matrix = av.video.reformatter.Colorspace.ITU709
  red = np.full((3, _HEIGHT, _WIDTH, 3), (200, 20, 20), np.uint8)
  path = write(tmp_path / "a.mp4", red, colorspace=matrix)
  # By the other matrix green would be off by 20.
  for frame in decoded.images(path):
    np.testing.assert_allclose(frame.mean((0, 1)), (200, 20, 20), atol=4)


def test_odd_sides(tmp_path):
  frames = moving()[:, :63, :95]
  path = write(tmp_path / "a.mkv", frames, pixels="yuv444p")
  assert_like(decoded.images(path), frames)


def test_frame_rate_of_a_browser_s_recording(tmp_path):
  """WebM whose header can't say the rate: times in milliseconds."""
  times = [0, 40, 95, 120, 170, 210, 260, 290, 330, 380, 410, 450]
  path = write(
    tmp_path / "a.webm",
    moving(),
    "libvpx",
    times=times,
    base=Fraction(1, 1000),
  )
  assert decoded.rate(path) == pytest.approx(11 / 0.45, rel=0.01)


def test_frame_rate_that_changes_is_the_mean(tmp_path):
  # A second of 30 fps, then two of 10 fps.
  times = [i * 1000 // 30 for i in range(30)] + [
    1000 + 100 * i for i in range(20)
  ]
  path = write(
    tmp_path / "a.mkv", moving(50), times=times, base=Fraction(1, 1000)
  )
  assert decoded.rate(path) == pytest.approx(49 / 2.9, rel=0.02)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_a_constant_frame_rate_is_the_header_s(tmp_path, rate):
  path = write(tmp_path / "a.mp4", moving(), base=1 / rate)
  assert decoded.rate(path) == float(rate)


def test_a_frame_that_is_missing_is_no_other_rate(tmp_path):
  times = [*range(10), *range(11, 33)]
  path = write(tmp_path / "a.mp4", moving(32), times=times)
  assert decoded.rate(path) == pytest.approx(25 * 31 / 32, rel=0.04)
  stretched = write(
    tmp_path / "b.mp4", moving(32), times=[*range(16), *range(32, 48)]
  )
  assert decoded.rate(stretched) == pytest.approx(25 * 31 / 47, rel=0.02)


def test_frames_have_the_times_of_the_file(tmp_path):
  # Two parts with nothing between them.
  times = [*range(6), *range(750, 756)]
  path = write(tmp_path / "a.mp4", moving(), times=times)
  np.testing.assert_allclose(decoded.times(path), np.array(times) / 25)
  durations = [frame.duration for frame in reading.read_frames(path)]
  assert durations[5] == pytest.approx(29.8) and sum(durations) < 30.4


@pytest.mark.parametrize(
  "name, options",
  [
    ("a.mkv", {"bf": "2"}),
    ("a.avi", {"bf": "2"}),
    ("a.ts", {"bf": "2"}),
    ("a.mp4", {"x264-params": "interlaced=1:tff=1", "bf": "0"}),
    ("b.avi", {"x264-params": "interlaced=1:tff=1", "bf": "2"}),
  ],
)
def test_times_of_a_constant_rate(tmp_path, name, options):
  interlaced = "x264-params" in options
  path = write(
    tmp_path / name, moving(), options=options, interlaced=interlaced
  )
  # Matroska rounds to milliseconds.
  np.testing.assert_allclose(
    decoded.times(path), np.arange(12) / 25, atol=0.001
  )


def test_a_stream_of_two_recordings_has_rising_times(tmp_path):
  parts = []
  for i, start in enumerate((100_000, 500)):
    path = write(
      tmp_path / f"{i}.ts", moving(), times=[start + k for k in range(12)]
    )
    parts.append(path.read_bytes())
  for order in (parts, parts[::-1]):
    (tmp_path / "both.ts").write_bytes(b"".join(order))
    times = decoded.times(tmp_path / "both.ts")
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-3)
    assert len(times) == 24


def test_frames_without_a_time_follow_each_other(tmp_path):
  path = write(tmp_path / "a.h264", moving())
  times = decoded.times(path)
  assert len(times) == 12 and min(np.diff(times)) > 0


def test_a_codec_that_ffmpeg_does_not_know_is_told(tmp_path):
  # MPEG's program streams have no name for it.
  path = write(tmp_path / "a.mpg", moving(3), "png", pixels="rgb24")
  for read in (decode.stated_rate, decoded.images):
    with pytest.raises(VideoError, match="FFmpeg has no decoder for it"):
      read(path)
  with pytest.raises(VideoError, match="FFmpeg has no decoder for it"):
    next(decode.read_url(path.as_uri(), patience=1.0))


def test_music_with_a_cover_is_not_a_video(tmp_path):
  path = tmp_path / "a.m4a"
  with av.open(str(path), "w", format="mp4") as container:
    sound = container.add_stream("aac", rate=8000)
    cover = container.add_stream("mjpeg", rate=1)
    cover.height, cover.width, cover.pix_fmt = 64, 96, "yuvj420p"
    cover.disposition = av.stream.Disposition.attached_pic
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 8000), "f4"), "fltp", "mono"
    )
    frame.sample_rate = 8000
    container.mux(sound.encode(frame))
    container.mux(sound.encode())
    picture = av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24")
    container.mux(cover.encode(picture))
    container.mux(cover.encode())
  with pytest.raises(VideoError, match="a cover picture is not a video"):
    next(reading.read_frames(path))
  with pytest.raises(VideoError, match="a cover picture is not a video"):
    next(decode.read_url(path.as_uri(), patience=1.0))


@pytest.mark.parametrize("turn", [0, 90])
def test_anamorphic_video_becomes_square_pixels(tmp_path, turn):
  path = tmp_path / "a.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.height, stream.width, stream.pix_fmt = _HEIGHT, _WIDTH, "yuv420p"
    stream.codec_context.sample_aspect_ratio = Fraction(2)
    if turn:
      stream.set_display_rotation(turn)
    for image in moving(3):
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  frame = next(reading.read_frames(path))
  height, width = (_WIDTH, _HEIGHT) if turn else (_HEIGHT, _WIDTH)
  assert frame.rgb.shape[:2] == (height, width)
  assert frame.pixel_aspect == (0.5 if turn else 2)
  # 192 x 64 in square pixels.
  resized = next(reading.read_resized(path, 32))
  assert resized.rgb.shape[:2] == ((96, 32) if turn else (32, 96))
  assert resized.pixel_aspect == frame.pixel_aspect


def test_names_that_are_no_text_and_no_pattern(tmp_path):
  frames = moving(3)
  whole = write(tmp_path / "a.mkv", frames).read_bytes()
  for name in (
    b"caf\xe9.mkv",
    b"100%03d.mkv",
    b"-i.mkv",
    "\u6f22 a.mkv".encode(),
  ):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
      file.write(whole)
    assert_like(decoded.images(os.fsdecode(path)), frames)
    assert decoded.rate(os.fsdecode(path)) == 25


_PLAYLIST = (
  "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n#EXT-X-ENDLIST\n"
)
_LIST = "ffconcat version 1.0\nfile secret.ts\n"
_SESSION = (
  "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
  "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.mark.parametrize("extension", ["", ".mp4", ".txt"])
@pytest.mark.parametrize("content", [_PLAYLIST, _LIST, _SESSION])
@pytest.mark.parametrize("by_url", [False, True])
def test_no_file_opens_another_one(tmp_path, content, extension, by_url):
  secret = tmp_path / "secret.ts"
  os.mkfifo(secret)  # Who opens it waits.
  path = tmp_path / f"list{extension}"
  path.write_text(content)
  said = []

  def read():
    url = decode.read_url(path.as_uri(), patience=1.0)
    with pytest.raises(VideoError, match="can't be opened") as caught:
      next(url if by_url else reading.read_frames(path))
    said.append(caught.value)

  reader = threading.Thread(target=read, daemon=True)
  reader.start()
  reader.join(10)
  waits = reader.is_alive()
  if waits:
    os.close(os.open(secret, os.O_WRONLY | os.O_NONBLOCK))
  assert said and not waits


def test_extensions_of_videos_are_of_containers_that_are_opened():
  for extension in frames._VIDEO_EXTENSIONS:
    guessed = [
      name
      for name in sorted(av.formats_available)
      for form in [av.format.ContainerFormat(name)]
      if form.is_input and extension[1:] in form.extensions
    ]
    assert not guessed or set(guessed) & set(decode._CONTAINERS), extension


@pytest.mark.parametrize(
  "url",
  [
    "concat://a",
    "subfile,,start,0,end,9,,://etc/hosts",
    "data://x",
    "pipe://0",
  ],
)
def test_a_url_is_of_the_network_or_a_file(url):
  with pytest.raises(VideoError, match="no protocol of the network"):
    next(decode.read_url(url, patience=1.0))


def test_damaged_packets_are_passed_over(tmp_path):
  frames = moving(40)
  path = write(tmp_path / "a.ts", frames, options={"g": "5"})
  data = bytearray(path.read_bytes())
  rng = np.random.default_rng(0)
  middle = slice(len(data) // 3, len(data) // 3 + 400)
  data[middle] = rng.integers(0, 256, 400, np.uint8).tobytes()
  path.write_bytes(data)
  read = list(reading.read_frames(path))
  assert sum(frame.damaged for frame in read) > 0
  assert read[0].damaged == read[-1].damaged == 0
  found = [frame.rgb for frame in read]
  assert len(frames) - 10 <= len(found) <= len(frames)
  assert_like(found[-5:], frames[-5:])


@pytest.mark.parametrize(
  "kind, expected",
  [
    (av.error.InvalidDataError, VideoError),
    (av.error.MemoryError, MemoryError),
  ],
)
def test_errors_of_ffmpeg_are_the_file_s_but_for_memory(
  tmp_path, monkeypatch, kind, expected
):
  path = write(tmp_path / "a.mkv", moving(3))

  def fail(*args):
    raise kind(1, "it does not work")

  monkeypatch.setattr(decode.pictures, "to_rgb", fail)
  with pytest.raises(expected, match="it does not work"):
    next(decode.read_frames(path))


def test_a_lack_of_memory_while_decoding_is_not_the_file_s_fault(
  tmp_path, monkeypatch
):
  path = write(tmp_path / "a.mkv", moving(3))

  def fail(*args, **kwargs):
    raise av.error.MemoryError(12, "no memory")

  with monkeypatch.context() as patch:
    patch.setattr(av, "open", fail)
    with pytest.raises(MemoryError):
      next(decode.read_frames(path))
  with pytest.raises(MemoryError):
    list(decode._decode(_Failing(), _Failing(), decode._Damage()))


def test_a_stream_that_is_found_late_is_no_error(tmp_path):
  class Container:
    def demux(self, stream):
      yield av.Packet(4)
      raise IndexError("list index out of range")

  assert len(list(decode._packets(Container(), None))) == 1


class _Failing:
  """A container that gives a packet, and a stream that can't decode it."""

  def demux(self, stream):
    packet = av.Packet(4)
    yield packet

  def decode(self, packet):
    raise av.error.MemoryError(12, "no memory")


@pytest.mark.skipif(
  not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc"
)
def test_a_file_with_an_odd_name_is_closed(tmp_path):
  name = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.mkv"))
  with open(name, "wb") as file:
    file.write(write(tmp_path / "a.mkv", moving(3)).read_bytes())
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(3):
    assert len(list(decode.read_frames(name))) == 3
    decode.stated_rate(name)
  assert len(os.listdir("/proc/self/fd")) == before


def test_animated_webp_is_decoded_or_named(tmp_path):
  frames = moving(3)
  path = write(tmp_path / "a.webp", frames, "libwebp_anim", pixels="yuv420p")
  if av.library_versions["libavcodec"] >= (63,):  # FFmpeg 9.
    assert_like(decoded.images(path), frames, atol=12)
  else:
    with pytest.raises(VideoError, match="no frame .*no animated WebP"):
      decoded.images(path)
