"""The files of `decode_sweep.py`: what ffmpeg can write, case by case."""

import contextlib
import dataclasses
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np

FIELDS = ("progressive", "tff", "bff")
_FRAMES = 8
_SECONDS = 60
# Sides that a codec insists on; the others take 96 x 64.
_SIZES = {
  "a64multi": (320, 200),
  "a64multi5": (320, 200),
  "avui": (720, 486),
  "dnxhd": (1920, 1080),
  "dvvideo": (720, 576),
  "h261": (176, 144),
  "h263": (176, 144),
  "roqvideo": (128, 64),
  "vbn": (96, 64),
  "xface": (48, 48),
}
_OPTIONS = {
  "dnxhd": ["-b:v", "120M"],
  "dvvideo": [],
  "libaom-av1": ["-cpu-used", "8", "-crf", "10", "-b:v", "0"],
  "librav1e": ["-speed", "10", "-qp", "30"],
  "libsvtav1": ["-preset", "10", "-crf", "10"],
  "libvpx": ["-b:v", "2M", "-deadline", "realtime", "-auto-alt-ref", "0"],
  "libvpx-vp9": ["-b:v", "2M", "-deadline", "realtime"],
  "libx264": ["-crf", "12", "-preset", "veryfast"],
  "libx265": ["-crf", "12", "-preset", "ultrafast"],
}
_LOSSY = ["-q:v", "3", "-g", "6"]
# The first one that takes a codec is its own, and holds all pixel formats.
CONTAINERS = (
  *("mkv", "mov", "avi", "nut", "mp4", "webm", "ts", "mpg", "asf", "flv"),
  *("mxf", "ogg", "3gp", "wtv"),
)
CONTAINERS_OF = {
  "amv": ["amv"],
  "apng": ["apng"],
  "dvvideo": ["dv", "gxf"],
  "flv": ["swf"],
  "gif": ["gif"],
  "libaom-av1": ["obu", "ivf"],
  "libsvtav1": ["obu", "ivf"],
  "libvpx": ["ivf"],
  "libvpx-vp9": ["ivf"],
  "libwebp_anim": ["webp"],
  "libx264": ["h264"],
  "libx265": ["hevc"],
  "mjpeg": ["mjpeg", "swf", "gxf"],
  "mpeg1video": ["m1v", "gxf"],
  "mpeg2video": ["m2v", "gxf"],
  "mpeg4": ["m4v"],
  "rawvideo": ["y4m"],
  "roqvideo": ["roq"],
  "rv10": ["rm"],
  "rv20": ["rm"],
}
# (a, b, c, d) of x' = a x + c y, y' = b x + d y; the filters that do the same.
TURNS = {
  "none": ((1, 0, 0, 1), []),
  "90": ((0, 1, -1, 0), ["transpose=clock"]),
  "180": ((-1, 0, 0, -1), ["hflip", "vflip"]),
  "270": ((0, -1, 1, 0), ["transpose=cclock"]),
  "mirrored": ((-1, 0, 0, 1), ["hflip"]),
  "upside down": ((1, 0, 0, -1), ["vflip"]),
  "transposed": ((0, 1, 1, 0), ["transpose=cclock_flip"]),
  "transversed": ((0, -1, -1, 0), ["transpose=clock_flip"]),
}
# Both keep the matrix in the same place; a codec is turned in one of them.
TURNED_IN = ("mov", "mp4")


@dataclasses.dataclass(frozen=True)
class Case:
  """A file: what ffmpeg is asked to write."""

  codec: str
  pixels: str
  container: str
  fields: str = "progressive"
  turn: str = "none"

  def __str__(self) -> str:
    return ", ".join(dataclasses.astuple(self))


def encoders() -> list[str]:
  """Names of ffmpeg's video encoders, without those of hardware."""
  listed = ffmpeg(["ffmpeg", "-hide_banner", "-encoders"]).decode()
  names = re.findall(r"^ V[.FSXBD]{5} (\w\S+)", listed, re.MULTILINE)
  hardware = re.compile(r".*_(nvenc|omx|qsv|v4l2m2m|vaapi)|wrapped_avframe")
  return [name for name in names if not hardware.fullmatch(name)]


def pixel_formats(codec: str) -> list[str]:
  """Pixel formats that an encoder takes."""
  text = ffmpeg(["ffmpeg", "-hide_banner", "-h", f"encoder={codec}"]).decode()
  found = re.search(r"Supported pixel formats: (.*)", text)
  if found:
    return found[1].split()
  # rawvideo: those that are read, written and not in a card's memory.
  listed = ffmpeg(["ffmpeg", "-hide_banner", "-pix_fmts"]).decode()
  return re.findall(r"^IO\.[.P][.B] (\S+)", listed, re.MULTILINE)


def write(case: Case, path: Path) -> bool:
  """Writes a clip; False where ffmpeg can't."""
  width, height = _SIZES.get(case.codec, (96, 64))
  if case.pixels == "yuv411p" and case.codec == "dvvideo":
    height = 480
  interlaced = case.fields != "progressive"
  filters = [
    f"setfield={case.fields if interlaced else 'prog'}",
    f"scale=interl={int(interlaced)}",
    f"format={case.pixels}",
  ]
  command = [
    *("ffmpeg", "-v", "error", "-y", "-nostdin"),
    *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
    *("-r", "25", "-i", "-", "-vf", ",".join(filters), "-strict", "-2"),
    *("-c:v", case.codec, *_OPTIONS.get(case.codec, _LOSSY)),
  ]
  # For PNG the flag means passes over the image, not fields.
  if interlaced and case.codec not in ("png", "apng"):
    command += ["-flags", "+ilme+ildct", "-top", str(int(case.fields == "tff"))]
    if case.codec == "libx264":
      command += ["-x264-params", f"interlaced=1:{case.fields}=1"]
    if case.codec == "libx265":
      command += ["-x265-params", f"interlace={case.fields}"]
  source = picture(width, height, case.fields)
  done = ffmpeg([*command, str(path)], source.tobytes())
  if done is None or not path.exists() or not path.stat().st_size:
    return False
  return case.turn == "none" or _turned(path, TURNS[case.turn][0])


def _turned(path: Path, matrix: tuple[int, int, int, int]) -> bool:
  """Puts a display matrix into the track header of an MP4 or MOV file."""
  data = bytearray(path.read_bytes())
  at = data.find(b"tkhd")
  if at < 0:
    return False
  at += 4 + (48 if data[at + 4] else 36) + 4
  a, b, c, d = (v << 16 for v in matrix)
  one = 1 << 30
  data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, one], ">i4").tobytes()
  path.write_bytes(data)
  return True


def picture(width: int, height: int, fields: str) -> np.ndarray:
  """A texture that moves by 3 pixels a field: uint8 [t h w 3]."""
  rng = np.random.default_rng(0)
  image = np.full((height, width, 3), 128.0)
  for cell, gray, tint in ((48, 45, 25), (16, 25, 10), (6, 12, 3)):
    shape = (height // cell + 3, width // cell + 3)
    coarse = gray * rng.uniform(-1, 1, (*shape, 1))
    coarse = coarse + tint * rng.uniform(-1, 1, (*shape, 3))
    image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  image = np.clip(image, 16, 240).astype(np.uint8)
  moments = np.stack(
    [np.roll(image, 3 * i, axis=1) for i in range(2 * _FRAMES)]
  )
  frames = moments[::2].copy()
  if fields != "progressive":
    later = 1 if fields == "tff" else 0
    frames[:, later::2] = moments[1::2, later::2]
  return frames


def ffmpeg(command: list[str], data: bytes = b"") -> bytes | None:
  """Standard output of an ffmpeg command; None where it fails."""
  with contextlib.suppress(subprocess.TimeoutExpired):
    done = subprocess.run(
      command, input=data, capture_output=True, timeout=_SECONDS
    )
    if not done.returncode:
      return done.stdout
  return None
