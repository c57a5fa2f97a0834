"""Codecs, pixel formats, fields and display matrices, written by PyAV.

`benchmarks/decode_sweep.py` does the same for all that the ffmpeg command can
write, against that command.
"""

import io
from fractions import Fraction

import av
import av.filter
import cv2
import numpy as np
import PIL.Image
import pytest

from twostream_jax.data.video import decode

_HEIGHT, _WIDTH, _FRAMES = 64, 96, 5
# AV_CODEC_FLAG_INTERLACED_DCT and _ME.
_INTERLACED = (1 << 18) | (1 << 29)
# Codec, pixel format, container, options, and the mean difference in gray
# levels that coding and subsampled chroma explain.
_FILES = [
  ("libx264", "yuv420p", "mkv", {"crf": "10"}, 2.0),
  ("libx264", "yuvj420p", "mp4", {"crf": "10"}, 2.0),
  ("libx264", "yuv422p10le", "mov", {"crf": "10"}, 2.0),
  ("libx264rgb", "rgb24", "mkv", {"qp": "0"}, 0.0),
  ("libx265", "yuv420p10le", "mp4", {"x265-params": "log-level=0:qp=10"}, 2.0),
  ("libsvtav1", "yuv420p10le", "webm", {"crf": "8", "preset": "10"}, 2.0),
  ("libvpx", "yuv420p", "webm", {"b": "4M"}, 2.0),
  ("libvpx-vp9", "yuv444p", "webm", {"b": "4M", "deadline": "realtime"}, 1.5),
  ("mpeg1video", "yuv420p", "mpg", {"b": "4M"}, 2.5),
  ("mpeg2video", "yuv422p", "ts", {"b": "4M"}, 2.5),
  ("mpeg4", "yuv420p", "avi", {"b": "4M"}, 2.5),
  ("wmv2", "yuv420p", "asf", {"b": "4M"}, 2.5),
  ("flv", "yuv420p", "flv", {"b": "4M"}, 2.5),
  ("mjpeg", "yuvj422p", "avi", {"qmin": "1", "qmax": "1"}, 2.0),
  ("dvvideo", "yuv420p", "avi", {}, 2.5),
  ("prores_ks", "yuva444p10le", "mov", {"profile": "4444"}, 0.5),
  ("dnxhd", "yuv422p", "mov", {"profile": "dnxhr_hq"}, 3.0),
  ("cfhd", "yuv422p10le", "mov", {}, 2.5),
  ("v210", "yuv422p10le", "mov", {}, 2.0),
  ("ffv1", "bgra", "mkv", {}, 0.0),
  ("ffv1", "yuv411p", "mkv", {}, 2.5),
  ("utvideo", "gbrp", "avi", {}, 0.0),
  ("huffyuv", "rgb24", "avi", {}, 0.0),
  ("png", "rgb48be", "mov", {}, 0.0),
  ("qtrle", "argb", "mov", {}, 0.0),
  ("rawvideo", "rgb565le", "nut", {}, 3.5),
  ("rawvideo", "nv12", "nut", {}, 2.0),
  ("rawvideo", "uyvy422", "avi", {}, 2.0),
  ("rawvideo", "gbrpf32le", "nut", {}, 0.1),
]
_SIZES = {"dvvideo": (576, 720), "dnxhd": (128, 256)}
# x' = a x + c y, y' = b x + d y, and the same of an image.
_TURNS = [
  ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
  ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
  ((0, -1, 1, 0), lambda image: np.rot90(image)),
  ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
  ((1, 0, 0, -1), lambda image: image[::-1]),
  ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
  ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
]


def moments(height=_HEIGHT, width=_WIDTH, count=_FRAMES):
  """A texture that moves by 2 pixels a moment: uint8 [t h w 3]."""
  rng = np.random.default_rng(0)
  image = np.full((height, width, 3), 128.0)
  for parts, gray, tint in ((3, 50, 25), (12, 20, 5)):
    coarse = gray * rng.uniform(-1, 1, (parts, parts, 1))
    coarse = coarse + tint * rng.uniform(-1, 1, (parts, parts, 3))
    image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  image = np.clip(image, 16, 240).astype(np.uint8)
  return np.stack([np.roll(image, 2 * i, axis=1) for i in range(count)])


def write(
  path, images, codec, pixels, options, *, fields=None, colorspace=None
):
  """Encodes images; `fields`: "tff" or "bff", which field is first."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25, options=dict(options))
    stream.height, stream.width = images[0].shape[:2]
    stream.pix_fmt = pixels
    if fields:
      stream.codec_context.flags |= _INTERLACED
    for i, image in enumerate(images):
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame = frame.reformat(
        format=pixels, interpolation="BICUBIC", dst_colorspace=colorspace
      )
      frame.pts = i
      if fields:
        frame = marked(frame, fields)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def marked(frame, fields):
  """The frame, marked as interlaced."""
  graph = av.filter.Graph()
  source = graph.add_buffer(
    width=frame.width,
    height=frame.height,
    format=frame.format,
    time_base=Fraction(1, 25),
  )
  graph.link_nodes(
    source, graph.add("setfield", fields), graph.add("buffersink")
  ).configure()
  graph.push(frame)
  return graph.pull()


def read(path):
  return [frame.rgb for frame in decode.read_frames(path)]


def differences(found, expected):
  """Mean difference of each frame, in gray levels."""
  assert len(found) == len(expected)
  assert [a.shape for a in found] == [b.shape for b in expected]
  return [
    np.abs(a.astype(int) - b).mean()
    for a, b in zip(found, expected, strict=True)
  ]


@pytest.mark.parametrize(
  "codec, pixels, container, options, tolerance",
  [pytest.param(*row, id="-".join(row[:3])) for row in _FILES],
)
def test_codecs_and_pixel_formats(
  tmp_path, codec, pixels, container, options, tolerance
):
  images = moments(*_SIZES.get(codec, (_HEIGHT, _WIDTH)))
  path = write(tmp_path / f"a.{container}", images, codec, pixels, options)
  assert max(differences(read(path), images)) <= tolerance


@pytest.mark.parametrize("matrix, turned", _TURNS)
def test_display_matrices(tmp_path, matrix, turned):
  images = moments()
  path = write(tmp_path / "a.mov", images, "png", "rgb24", {})
  turn(path, matrix)
  assert not any(differences(read(path), [turned(x) for x in images]))


def turn(path, matrix):
  """Puts a display matrix into the track header of a MOV or MP4 file."""
  data = bytearray(path.read_bytes())
  start = data.index(b"tkhd") + 4
  start += 52 if data[start] else 40
  a, b, c, d = (value << 16 for value in matrix)
  whole = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
  data[start : start + 36] = np.array(whole, ">i4").tobytes()
  path.write_bytes(data)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p10le", "yuvj444p"])
@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize("matrix, turned", [((1, 0, 0, 1), None), _TURNS[0]])
def test_fields_of_two_moments(tmp_path, pixels, first, matrix, turned):
  images = moments(count=2 * _FRAMES)
  woven = images[::2].copy()
  later = int(first == "tff")
  woven[:, later::2] = images[1::2, later::2]
  options = {"crf": "5", "x264-params": f"interlaced=1:{first}=1"}
  path = write(
    tmp_path / "a.mp4", woven, "libx264", pixels, options, fields=first
  )
  turn(path, matrix)
  # A frame shows the moment of its first field.
  expected = images[::2] if turned is None else [turned(x) for x in images[::2]]
  assert np.mean(differences(read(path), expected)) < 2.1
  assert np.mean(differences(woven, images[::2])) > 2.6


@pytest.mark.parametrize(
  "shape", [(2, 2), (1, 1), (16, 1), (1, 16), (17, 35), (5, 3)]
)
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv411p", "yuv420p10le"])
def test_small_and_odd_sizes(tmp_path, shape, pixels):
  images = np.full((3, *shape, 3), (180, 120, 60), np.uint8)
  path = write(tmp_path / "a.nut", images, "rawvideo", pixels, {})
  assert max(differences(read(path), images)) <= 2


def test_a_camera_s_exif_turns_the_frames(tmp_path):
  """EXIF is side data of a frame for which PyAV has no name."""
  image = moments(count=1)[0]
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # Orientation: to be turned clockwise.
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, "JPEG", quality=98, exif=exif)
  path = tmp_path / "a.mjpeg"
  path.write_bytes(3 * file.getvalue())
  assert max(differences(read(path), 3 * [np.rot90(image, -1)])) < 3


def test_constant_luminance_is_shown_by_the_matrix_of_bt_2020(tmp_path):
  """As ffmpeg 5 did; FFmpeg's scaler now refuses this matrix."""
  images = np.full((2, _HEIGHT, _WIDTH, 3), (200, 20, 20), np.uint8)
  options = {"crf": "5", "x264-params": "colormatrix=bt2020c"}
  matrix = av.video.reformatter.Colorspace.BT2020
  path = tmp_path / "a.mp4"
  write(path, images, "libx264", "yuv420p", options, colorspace=matrix)
  # By BT.601 green would be off by 12.
  assert max(differences(read(path), images)) < 3


def test_the_passes_of_a_png_are_not_fields(tmp_path):
  """FFmpeg marks Adam7 as interlaced."""
  images = moments()
  path = tmp_path / "a.mov"
  write(path, images, "png", "rgb24", {}, fields="tff")
  assert not any(differences(read(path), images))


@pytest.mark.parametrize("pixels", ["rgb565be", "bgr565be"])
def test_bytes_of_16_bit_pixels_are_swapped(tmp_path, pixels):
  """FFmpeg 8's scaler forgets it where it takes a short way to RGB."""
  images = moments()
  r, g, b = np.moveaxis(images.astype(np.uint16), -1, 0)
  if pixels.startswith("b"):
    r, b = b, r
  packed = (r >> 3 << 11 | g >> 2 << 5 | b >> 3).astype(">u2")
  path = tmp_path / "a.nut"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("rawvideo", rate=25)
    stream.height, stream.width = _HEIGHT, _WIDTH
    stream.pix_fmt = pixels
    for i, image in enumerate(packed):
      frame = av.VideoFrame(_WIDTH, _HEIGHT, pixels)
      frame.planes[0].update(image.tobytes())
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  assert max(differences(read(path), images)) < 3.5
