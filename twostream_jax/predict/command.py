"""Scores videos with a finished run: the dataset is not needed.

  python -m twostream_jax.predict --workdir=runs/my_videos clip.mp4 more/
  python -m twostream_jax.predict --workdir=runs/my_videos --list=paths.txt \\
    --json=answers.jsonl
  python -m twostream_jax.predict --workdir=runs/my_videos long.mp4 \\
    --timeline=segments
  python -m twostream_jax.predict --workdir=runs/my_videos clip.mp4 \\
    --overlay=shown.mp4

Videos are files, folders of them, folders of numbered images, the number of a
camera, or a URL that OpenCV can open. Each is decoded in another process: a
file that crashes a decoder is told like any other that can't be read.

Exit codes: 0 every video has an answer; 2 some have none, each with a reason;
1 the command or the run can't be used.
"""

import contextlib
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import app, flags
from absl import logging as absl_logging

from twostream_jax import checkpoints, launch
from twostream_jax.data.check import TIME_LIMIT, lost_rejection
from twostream_jax.data.workers import Lost, map_in_processes
from twostream_jax.predict import answers, long_videos, predictor, reading

SOME_FAILED = 2


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  for name, text in [
    ("workdir", "Folder of a finished run."),
    ("list", "File of paths, one a line, to score as well."),
    ("json", "File of answers, a line of JSON a video; - is standard output."),
    (
      "protocol",
      "Which views of a video are scored: single, KxM or dense; default: those"
      " that the run was tested with, and single for windows of a long video.",
    ),
    ("overlay", "Video to write: the one that is named, its flow and scores."),
    (
      "timeline",
      "Folder for a table and a picture of what a video shows when.",
    ),
    ("by", "Stage or fusion rule that --timeline and --overlay show."),
    ("compilation_cache", "Folder of compiled programs; default: the user's."),
  ]:
    flags.DEFINE_string(name, None, text, flag_values=values)
  for name, default, text in [
    ("seconds", 10.0, "Seconds of a camera or stream that are scored."),
    ("window", 2.0, "Seconds that --timeline and --overlay look at at once."),
    ("stride", 1.0, "Seconds from one window to the next."),
    ("threshold", 0.0, "Classes with a smaller probability are no segment."),
    ("time_limit", TIME_LIMIT, "Seconds that decoding a video may take."),
  ]:
    flags.DEFINE_float(name, default, text, lower_bound=0, flag_values=values)
  for name, default, text in [
    ("top", 5, "Classes that are told of each stage and fusion."),
    ("smooth", 1, "Windows of --timeline that are averaged; odd."),
    ("workers", os.cpu_count() or 1, "Processes that decode."),
  ]:
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def run() -> None:
  """Runs the command."""
  define_flags(flags.FLAGS)
  warnings.formatwarning = _one_line
  app.run(main)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
  """Runs the command of parsed flags; returns the exit code."""
  # What libraries log as an error they raise as well, and we put it in words.
  absl_logging.set_verbosity(absl_logging.FATAL)
  try:
    launch.cache_compilations("twostream_jax.predict", values.compilation_cache)
    return score(values, argv[1:])
  except (ValueError, OSError, checkpoints.CheckpointError) as error:
    print(f"twostream_jax.predict: {error}", file=sys.stderr)
    return 1


def _one_line(message, *_, **__) -> str:
  return f"twostream_jax.predict: {message}\n"


def score(values: flags.FlagValues, arguments: Sequence[str]) -> int:
  """Scores the videos that arguments name; returns the exit code.

  Raises:
    ValueError: flags do not fit each other or the run, or that is no run.
    OSError: a file can't be read or written.
    CheckpointError: a checkpoint can't be read.
  """
  if not values.workdir:
    raise ValueError("--workdir=RUN is missing, the folder of a finished run")
  listed = reading.read_list(values.list) if values.list else []
  sources = reading.find_sources([*arguments, *listed])
  if not sources:
    raise ValueError("name a video, a folder of videos or --list=FILE")
  long = bool(values.timeline or values.overlay)
  if values.overlay and len(sources) > 1:
    raise ValueError(f"--overlay shows one video, but {len(sources)} are named")
  _check_outputs(values, sources)
  protocol = values.protocol or ("single" if long else None)
  ready = predictor.load(values.workdir, protocol)
  if long:
    found = long_videos.follow_all(ready, sources, options(values, ready))
  else:
    spec, quality = ready.run.flow_spec, ready.rgb_quality
    reader = reading.Reader(spec, quality, values.seconds)
    found = answer_all(ready, sources, values, reader=reader)
  failed = 0
  with contextlib.ExitStack() as stack:
    lines = stack.enter_context(_lines(values.json))
    for answer in found:
      failed += "error" in answer
      if lines is not None:
        print(json.dumps(answer, allow_nan=False), file=lines, flush=True)
      if lines is not sys.stdout:
        print(answers.table(answer), flush=True)
  return SOME_FAILED if failed else 0


def _check_outputs(
  values: flags.FlagValues, sources: Sequence[reading.Source]
) -> None:
  """Refuses, before any work, what could not be written or would overwrite.

  Raises:
    ValueError: The message names the flag.
  """
  for name in ("json", "overlay"):
    path = getattr(values, name)
    if not path or path == "-":
      continue
    folder = Path(path).absolute().parent
    if not folder.is_dir():
      raise ValueError(f"--{name}={path}: there is no folder {folder}")
    for source in sources:
      if (
        source.kind == "file"
        and os.path.exists(path)
        and os.path.exists(source.path)
        and os.path.samefile(path, source.path)
      ):
        raise ValueError(
          f"--{name}={path} is the video itself: name another file"
        )


def options(
  values: flags.FlagValues, ready: predictor.Predictor
) -> long_videos.Options:
  """What the flags say of long videos."""
  names = [*ready.run.rules, *ready.run.stages]
  by = values.by or predictor.main_name(ready.run)
  if by not in names:
    raise ValueError(f"--by={by} is not one of {names}")
  return long_videos.Options(
    by=by,
    window=values.window,
    stride=values.stride,
    smooth=values.smooth,
    threshold=values.threshold,
    top=values.top,
    seconds=values.seconds,
    time_limit=values.time_limit,
    timeline=Path(values.timeline) if values.timeline else None,
    overlay=Path(values.overlay) if values.overlay else None,
    start=functools.partial(reading.start, ready.run.flow_spec),
  )


def answer_all(
  ready: predictor.Predictor,
  sources: Sequence[reading.Source],
  values: flags.FlagValues,
  *,
  reader: Callable[[reading.Source], reading.Record | reading.Rejection],
) -> Iterator[dict[str, Any]]:
  """Yields an answer a video, JSON-ready, in the order they are done."""
  with contextlib.closing(
    map_in_processes(
      reading.Timed(reader),
      sources,
      min(values.workers, len(sources)),
      functools.partial(reading.start, ready.run.flow_spec),
      time_limit=values.time_limit,
    )
  ) as results:
    for source, result in results:
      if isinstance(result, Lost):
        result = lost_rejection(result, values.time_limit), 0.0
      try:
        found = ready.answer(source.path, *result)
      except predictor.PredictionError as error:
        yield answers.failure(source.path, error.reason)
      else:
        yield answers.answer(found, ready.run, values.top)


@contextlib.contextmanager
def _lines(path: str | None) -> Iterator[TextIO | None]:
  """Where lines of JSON go; a file appears when all are written."""
  if path is None:
    yield None
  elif path == "-":
    yield sys.stdout
  else:
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
      with open(temporary, "w", encoding="utf-8") as file:
        yield file
      os.replace(temporary, target)
    finally:
      temporary.unlink(missing_ok=True)
