"""Compares the decoder with the ffmpeg command, codec by codec.

  python benchmarks/decode_sweep.py [--codec=libx264 ...] [--processes=2]
    [--keep=DIR]

ffmpeg writes short clips of every codec that it has: in every pixel format,
progressive and with either field first, upright and turned by a display matrix,
and in every container that takes them. Each is decoded by
`twostream_jax.data.video.decode` and by ffmpeg to raw video, de-interlaced and
turned as the decoder documents. A miss is another number or size of frames, or
a frame
whose mean difference is 2 gray levels or more. The exit code is then 1. Needs
ffmpeg; its FFmpeg and PyAV's may be of different versions, which is the point.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import decode_sweep_files as files
import numpy as np
from absl import app, flags

from twostream_jax.data.video import decode
from twostream_jax.data.video.frames import VideoError
from twostream_jax.files import tables

# Gray levels: a difference, and the deviation of a picture that shows anything.
_LIMIT, _CONTRAST = 2.0, 5.0
_NO_FILE = ("not written", "not read")
# FFmpeg 8 looks for their field order in the container, FFmpeg 5 does not.
_NOT_MARKED = ("ayuv", "v308", "v408", "v410")
# Noise, of which the versions' filters make other first frames.
_DITHERED = ("monob", "monow", "bgr4_byte", "rgb4_byte")
# Codec, pixel format, container.
_NOT_READ = {
  ("gif", "pal8", "mkv"),  # FFmpeg 5 gives one frame.
  ("smc", "pal8", "avi"),  # FFmpeg 8 leaves pixels unset: others in each run.
}


@dataclasses.dataclass(frozen=True)
class Result:
  """Outcome of a case.

  Attributes:
    outcome: "same", "miss", "not written", or "not read" by either (or blank by
      both, as a palette that its container can't hold).
    difference: Largest mean difference of a frame, gray levels.
    words: Reason of a miss.
    interlaced: Whether a frame is marked so.
  """

  case: files.Case
  outcome: str
  difference: float = 0.0
  words: str = ""
  interlaced: bool = False


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  if shutil.which("ffmpeg") is None:
    sys.exit("ffmpeg is not installed; this compares the decoder with it")
  codecs = flags.FLAGS.codec or files.encoders()
  with tempfile.TemporaryDirectory() as own:
    folder = Path(flags.FLAGS.keep or own)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("codec", "same", "miss", "interlaced", *_NO_FILE, "difference")
    print(tables.markdown_head(names), flush=True)
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
  results, home, fields = [], None, files.FIELDS
  for pixels in files.pixel_formats(codec):
    for container in [home.container] if home else files.CONTAINERS:
      first = run(files.Case(codec, pixels, container))
      if first.outcome not in _NO_FILE:
        break
    results.append(first)
    if first.outcome in _NO_FILE:
      continue
    if pixels not in _DITHERED:
      results += [
        run(dataclasses.replace(first.case, fields=f)) for f in fields[1:]
      ]
    if home is None:
      home = first.case
    if not any(result.interlaced for result in results):
      # The codec does not know of fields.
      fields = files.FIELDS[:1]
  if home is None:
    return results
  turned = False
  for container in (*files.CONTAINERS, *files.CONTAINERS_OF.get(codec, [])):
    case = dataclasses.replace(home, container=container)
    result = run(case)
    if container != home.container:
      results.append(result)
    if result.outcome in _NO_FILE:
      continue
    cases = [dataclasses.replace(case, fields=f) for f in fields[:2]]
    if container != home.container:
      results += [run(case) for case in cases[1:]]
    if container in files.TURNED_IN and not turned:
      turned = True
      results += [
        run(dataclasses.replace(case, turn=turn))
        for case in cases
        for turn in files.TURNS
        if turn != "none"
      ]
  return results


def _run(case: files.Case, folder: Path, keep: bool = False) -> Result:
  """Writes, decodes twice and compares."""
  path = folder / (re.sub(r"\W+", "_", str(case)) + f".{case.container}")
  try:
    if not files.write(case, path):
      return Result(case, "not written")
    if (case.codec, case.pixels, case.container) in _NOT_READ:
      return Result(case, "not read")
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
  blank = min(image.std() for image in found) < _CONTRAST
  return Result(case, "not read" if blank else "same", worst)


def _images(path: Path) -> list[np.ndarray]:
  return [frame.rgb for frame in decode.read_frames(path)]


def _by_ffmpeg(case: files.Case, path: Path, interlaced: bool) -> bytes:
  """RGB of all frames, as ffmpeg shows them; empty where it can't."""
  # The filter converts pixel formats that it does not know.
  deinterlace = ["bwdif=mode=send_frame:deint=interlaced"] if interlaced else []
  if interlaced and case.codec in _NOT_MARKED:
    deinterlace.insert(0, f"setfield={case.fields}")
  filters = [*deinterlace, *files.TURNS[case.turn][1]] or ["null"]
  return (
    files.ffmpeg(
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


def _row(name: str, results: Sequence[Result]) -> str:
  counts = collections.Counter(result.outcome for result in results)
  cells = [counts[outcome] for outcome in ("same", "miss", *_NO_FILE)]
  cells.insert(2, sum(result.interlaced for result in results))
  worst = max((r.difference for r in results), default=0)
  return tables.markdown_row((name, *cells, f"{worst:.2f}"))


def _report(results: Sequence[Result]) -> None:
  """Prints what has no file, a line per codec, and every miss."""
  print(_row("all", results))
  for outcome in _NO_FILE:
    print(f"\n{outcome}:")
    cases = collections.defaultdict(set)
    for result in results:
      if result.outcome == outcome:
        case = result.case
        fields = "" if case.fields == "progressive" else f" {case.fields}"
        cases[case.codec].add(f"{case.pixels} {case.container}{fields}")
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
