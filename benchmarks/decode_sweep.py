"""Compares the decoder with the ffmpeg command, codec by codec.

  python benchmarks/decode_sweep.py [--codec=libx264 ...] [--processes=2]
    [--keep=DIR]

ffmpeg writes short clips of every codec that it has: in every pixel format,
progressive and with either field first, upright and turned by a display matrix,
and in every container that takes them. Each is decoded by
`twostream_jax.data.decode` and by ffmpeg to raw video, de-interlaced and turned
as the decoder documents. A miss is another number or size of frames, a frame
whose mean difference is 2 gray levels or more, or a picture without contrast.
The exit code is then 1. Needs ffmpeg; its FFmpeg and PyAV's may be of different
versions, which is the point.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from absl import app, flags

from twostream_jax.data import decode
from twostream_jax.data.frames import VideoError

_FRAMES = 8
_LIMIT = 2.0
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
  "libvpx": ["-b:v", "2M", "-deadline", "realtime"],
  "libvpx-vp9": ["-b:v", "2M", "-deadline", "realtime"],
  "libx264": ["-crf", "12", "-preset", "veryfast"],
  "libx265": ["-crf", "12", "-preset", "ultrafast"],
  "prores_ks": ["-profile:v", "4"],
}
_LOSSY = ["-q:v", "3", "-g", "6"]
# The first one that takes a codec is its own, and holds all pixel formats.
_CONTAINERS = (
  *("mkv", "mov", "avi", "nut", "mp4", "webm", "ts", "mpg", "asf", "flv"),
  *("mxf", "ogg", "3gp", "wtv"),
)
_CONTAINERS_OF = {
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
_TURNS = {
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
_TURNED_IN = ("mov", "mp4")
_NO_FILE = ("not written", "not read")
_FIELDS = ("progressive", "tff", "bff")


@dataclasses.dataclass(frozen=True)
class Case:
  codec: str
  pixels: str
  container: str
  fields: str = "progressive"
  turn: str = "none"

  def __str__(self) -> str:
    return ", ".join(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Result:
  """Outcome of a case.

  Attributes:
    outcome: "same", "miss", "not written" or "not read" (by either).
    difference: Largest mean difference of a frame, gray levels.
    words: Reason of a miss.
    interlaced: Whether a frame is marked so.
  """

  case: Case
  outcome: str
  difference: float = 0.0
  words: str = ""
  interlaced: bool = False


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  if shutil.which("ffmpeg") is None:
    sys.exit("ffmpeg is not installed; this compares the decoder with it")
  codecs = flags.FLAGS.codec or _encoders()
  with tempfile.TemporaryDirectory() as own:
    folder = Path(flags.FLAGS.keep or own)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("codec", "same", "miss", "interlaced", *_NO_FILE, "difference")
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)
    results = list(_run_all(codecs, folder))
  _report(results)
  sys.exit(any(result.outcome == "miss" for result in results))


def _run_all(codecs, folder) -> Iterator[Result]:
  """Results of all codecs, each of which is one task."""
  with concurrent.futures.ProcessPoolExecutor(
    flags.FLAGS.processes, multiprocessing.get_context("spawn")
  ) as pool:
    keep = flags.FLAGS.keep is not None
    tasks = {pool.submit(_sweep, name, folder, keep): name for name in codecs}
    for task in concurrent.futures.as_completed(tasks):
      results = task.result()
      print(_row(tasks[task], results), flush=True)
      yield from results


def _sweep(codec: str, folder: Path, keep: bool) -> list[Result]:
  """All cases of a codec: formats, containers, fields and turns."""
  decode.silence()
  run = functools.partial(_run, folder=folder, keep=keep)
  results, home, fields = [], None, _FIELDS
  for pixels in _pixel_formats(codec):
    for container in [home.container] if home else _CONTAINERS:
      first = run(Case(codec, pixels, container))
      if first.outcome not in _NO_FILE:
        break
    results.append(first)
    if first.outcome in _NO_FILE:
      continue
    more = [run(dataclasses.replace(first.case, fields=f)) for f in fields[1:]]
    results += more
    if home is None:
      home = first.case
    if not any(result.interlaced for result in results):
      # The codec does not know of fields.
      fields = _FIELDS[:1]
  if home is None:
    return results
  turned = False
  for container in (*_CONTAINERS, *_CONTAINERS_OF.get(codec, [])):
    case = dataclasses.replace(home, container=container)
    result = run(case)
    if container != home.container:
      results.append(result)
    if result.outcome in _NO_FILE:
      continue
    cases = [dataclasses.replace(case, fields=f) for f in fields[:2]]
    if container != home.container:
      results += [run(case) for case in cases[1:]]
    if container in _TURNED_IN and not turned:
      turned = True
      results += [
        run(dataclasses.replace(case, turn=turn))
        for case in cases
        for turn in _TURNS
        if turn != "none"
      ]
  return results


def _run(case: Case, folder: Path, keep: bool = False) -> Result:
  """Writes, decodes twice and compares."""
  path = folder / (re.sub(r"\W+", "_", str(case)) + f".{case.container}")
  try:
    if not _written(case, path):
      return Result(case, "not written")
    interlaced = _interlaced(path)
    expected = _by_ffmpeg(case, path, interlaced)
    try:
      found = _images(path)
    except VideoError as error:
      if not expected:
        return Result(case, "not read")
      return Result(case, "miss", words=error.reason)
    except Exception as error:
      return Result(case, "miss", words=repr(error))
    result = _compare(case, found, expected)
    return dataclasses.replace(result, interlaced=interlaced)
  finally:
    if not keep:
      path.unlink(missing_ok=True)


def _compare(case, found, expected) -> Result:
  count = sum(image.size for image in found)
  if not expected:
    return Result(case, "miss", words="ffmpeg can't decode it")
  if count != len(expected):
    size = found[0].size
    words = f"{len(found)} frames, ffmpeg {len(expected) / size:g}"
    return Result(case, "miss", words=words)
  reference = np.frombuffer(expected, np.uint8)
  differences, start = [], 0
  for image in found:
    other = reference[start : start + image.size].reshape(image.shape)
    differences.append(float(np.abs(image.astype(np.int16) - other).mean()))
    start += image.size
  worst = max(differences)
  if worst >= _LIMIT:
    where = int(np.argmax(differences))
    return Result(case, "miss", worst, f"frame {where} of {len(found)}")
  if min(image.std() for image in found) < 5:
    return Result(case, "miss", worst, "a frame without contrast")
  return Result(case, "same", worst)


def _written(case: Case, path: Path) -> bool:
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
  if interlaced:
    command += ["-flags", "+ilme+ildct", "-top", str(int(case.fields == "tff"))]
    if case.codec == "libx264":
      command += ["-x264-params", f"interlaced=1:{case.fields}=1"]
    if case.codec == "libx265":
      command += ["-x265-params", f"interlace={case.fields}"]
  source = picture(width, height, case.fields)
  done = _ffmpeg([*command, str(path)], source.tobytes())
  if done is None or not path.exists() or not path.stat().st_size:
    return False
  return case.turn == "none" or _turned(path, _TURNS[case.turn][0])


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


def _images(path: Path) -> list[np.ndarray]:
  return [getattr(frame, "rgb", frame) for frame in decode.read_frames(path)]


def _by_ffmpeg(case: Case, path: Path, interlaced: bool) -> bytes:
  """RGB of all frames, as ffmpeg shows them; empty where it can't."""
  # The filter converts pixel formats that it does not know.
  deinterlace = ["bwdif=mode=send_frame:deint=interlaced"] if interlaced else []
  filters = [*deinterlace, *_TURNS[case.turn][1]] or ["null"]
  return (
    _ffmpeg(
      [
        *("ffmpeg", "-v", "error", "-nostdin", "-noautorotate"),
        *("-i", str(path), "-map", "0:v:0", "-vf", ",".join(filters)),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-vsync", "passthrough", "-"),
      ]
    )
    or b""
  )


def _interlaced(path: Path) -> bool:
  """Whether a frame is marked as interlaced."""
  with (
    contextlib.suppress(av.error.FFmpegError, IndexError),
    av.open(str(path)) as container,
  ):
    return any(frame.interlaced_frame for frame in container.decode(video=0))
  return False


def _ffmpeg(command: list[str], data: bytes = b"") -> bytes | None:
  with contextlib.suppress(subprocess.TimeoutExpired):
    done = subprocess.run(
      command, input=data, capture_output=True, timeout=_SECONDS
    )
    if not done.returncode:
      return done.stdout
  return None


def picture(width: int, height: int, fields: str) -> np.ndarray:
  """A texture that moves by 2 pixels a frame, 1 a field: uint8 [t h w 3]."""
  rng = np.random.default_rng(0)
  image = np.full((height, width, 3), 128.0)
  for cell, gray, tint in ((48, 45, 25), (16, 25, 10), (6, 12, 3)):
    shape = (height // cell + 3, width // cell + 3)
    coarse = gray * rng.uniform(-1, 1, (*shape, 1))
    coarse = coarse + tint * rng.uniform(-1, 1, (*shape, 3))
    image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  image = np.clip(image, 16, 240).astype(np.uint8)
  moments = np.stack([np.roll(image, i, axis=1) for i in range(2 * _FRAMES)])
  frames = moments[::2].copy()
  if fields != "progressive":
    later = 1 if fields == "tff" else 0
    frames[:, later::2] = moments[1::2, later::2]
  return frames


def _encoders() -> list[str]:
  """Names of ffmpeg's video encoders, without those of hardware."""
  listed = _ffmpeg(["ffmpeg", "-hide_banner", "-encoders"]).decode()
  names = re.findall(r"^ V[.FSXBD]{5} (\w\S+)", listed, re.MULTILINE)
  hardware = re.compile(r".*_(nvenc|omx|qsv|v4l2m2m|vaapi)|wrapped_avframe")
  return [name for name in names if not hardware.fullmatch(name)]


def _pixel_formats(codec: str) -> list[str]:
  text = _ffmpeg(["ffmpeg", "-hide_banner", "-h", f"encoder={codec}"]).decode()
  found = re.search(r"Supported pixel formats: (.*)", text)
  if found:
    return found[1].split()
  # rawvideo: those that are read, written and not in a card's memory.
  listed = _ffmpeg(["ffmpeg", "-hide_banner", "-pix_fmts"]).decode()
  return re.findall(r"^IO\.[.P][.B] (\S+)", listed, re.MULTILINE)


def _row(name: str, results: Sequence[Result]) -> str:
  counts = collections.Counter(result.outcome for result in results)
  cells = [counts[outcome] for outcome in ("same", "miss", *_NO_FILE)]
  cells.insert(2, sum(result.interlaced for result in results))
  worst = max((r.difference for r in results), default=0)
  return f"| {name} | {' | '.join(map(str, cells))} | {worst:.2f} |"


def _report(results: Sequence[Result]) -> None:
  """Prints what has no file, a line per codec, and every miss."""
  print(_row("all", results))
  for outcome in _NO_FILE:
    print(f"\n{outcome}:")
    cases = collections.defaultdict(set)
    for result in results:
      if result.outcome == outcome:
        case = result.case
        cases[case.codec].add(f"{case.pixels} {case.container}")
    for codec, some in sorted(cases.items()):
      print(f"  {codec}: {', '.join(sorted(some))}")
  print("\nmiss:")
  for result in results:
    if result.outcome == "miss":
      print(f"  {result.case}: {result.difference:.2f} {result.words}")


if __name__ == "__main__":
  flags.DEFINE_multi_string("codec", [], "Encoders of ffmpeg; default: all.")
  flags.DEFINE_integer("processes", 2, "Processes at once.", lower_bound=1)
  flags.DEFINE_string("keep", None, "Folder that keeps the files.")
  app.run(main)
