"""Scores the videos that the command names; see `__main__`."""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging as absl_logging

from twostream_jax import checkpoints, launch
from twostream_jax.data.build.check import lost_rejection
from twostream_jax.data.build.workers import (
  Lost,
  WorkerStartError,
  map_in_processes,
)
from twostream_jax.files import words
from twostream_jax.predict import (
  answers,
  guards,
  kept,
  long_videos,
  outputs,
  predictor,
  reading,
  timeline,
  video_file,
)
from twostream_jax.stages.trained import TrainedRun

SOME_FAILED = 2


def main(argv: Sequence[str], values: flags.FlagValues) -> int:
  """Runs the command of parsed flags; returns the exit code."""
  # Libraries also raise what they log as an error, and our message is clearer.
  absl_logging.set_verbosity(absl_logging.FATAL)
  try:
    launch.cache_compilations("twostream_jax.predict", values.compilation_cache)
    return score(values, argv[1:])
  except (
    ValueError,
    OSError,
    checkpoints.CheckpointError,
    WorkerStartError,
  ) as error:
    said = "; ".join([str(error), *getattr(error, "__notes__", [])])
    print(f"twostream_jax.predict: {words.lines(said)}", file=sys.stderr)
    return 1


def score(values: flags.FlagValues, arguments: Sequence[str]) -> int:
  """Scores the videos that arguments name; returns the exit code.

  Raises:
    ValueError: flags do not fit each other or the run, or it is not a run.
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
  chosen = options(values, ready) if long else None
  with contextlib.ExitStack() as stack:
    paths = [source.path for source in sources]
    done, write = _lines(values, ready.run, paths, stack)
    left = kept.unanswered(paths, done)
    if done:
      _say(f"videos answered already: {len(done)}; left: {len(left)}")
    if chosen is not None:
      named = list(zip(sources, long_videos.file_names(sources), strict=True))
      found = long_videos.follow_all(ready, [named[i] for i in left], chosen)
    else:
      spec, quality = ready.run.flow_spec, ready.rgb_quality
      reader = reading.Reader(spec, quality, values.seconds)
      todo = [sources[i] for i in left]
      found = answer_all(ready, todo, values, reader=reader)
    stack.enter_context(contextlib.closing(found))
    failed = 0
    for answer in found:
      failed += "error" in answer
      write(answer)
      if values.json != "-":
        _say(answers.table(answer))
  return SOME_FAILED if failed else 0


def _check_outputs(
  values: flags.FlagValues, sources: Sequence[reading.Source]
) -> None:
  """Refuses, before any work, what could not be written or would overwrite.

  Raises:
    ValueError: The message names the flag.
  """
  inputs = [Path(values.list)] if values.list else []
  if values.json and values.json != "-":
    for path in (Path(values.json), kept.partial_path(Path(values.json))):
      outputs.check_file("json", path, sources, inputs)
  if values.overlay:
    path = Path(values.overlay)
    video_file.check_format(path)
    outputs.check_file("overlay", path, sources, inputs)
  if values.timeline:
    outputs.check_folder("timeline", Path(values.timeline), sources)


def _say(text: str) -> None:
  """Prints to standard output, whatever its encoding is."""
  try:
    print(answers.printable(text, sys.stdout.encoding), flush=True)
  except OSError as error:
    raise outputs.WriteError("to standard output", error) from error


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
    threshold=timeline.threshold_of(values.threshold, ready.run.multi_label),
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
) -> Generator[dict[str, Any], None, None]:
  """Yields an answer a video, JSON-ready, in the order they are done."""
  with contextlib.closing(
    map_in_processes(
      reading.Timed(guards.Guarded(reader)),
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
        record, spent = result
        found = ready.answer(source.path, record, spent)
      except predictor.PredictionError as error:
        yield answers.failure(source.path, error.reason)
      except Exception as error:
        # One odd video must not end hours of others.
        yield answers.failure(source.path, guards.unexpected(error))
      else:
        yield answers.answer(found, ready.run, values.top)


def _lines(
  values: flags.FlagValues,
  run: TrainedRun,
  videos: Sequence[str],
  stack: contextlib.ExitStack,
) -> tuple[list[kept.Answer], Callable[[kept.Answer], None]]:
  """Returns answers of the same command so far, and what writes others."""
  if not values.json:
    return [], lambda answer: None
  if values.json == "-":
    return [], lambda answer: _say(json.dumps(answer, allow_nan=False))
  path, facts = Path(values.json), kept.facts_of(run, _settings(values))
  done = kept.find(path, facts)
  return done, stack.enter_context(kept.opened(path, facts, done, videos))


def _settings(values: flags.FlagValues) -> dict[str, Any]:
  """Collects the settings that answers depend on."""
  names = ["top", "seconds"]
  if values.timeline or values.overlay:
    names += ["by", "window", "stride", "smooth", "threshold"]
  settings = {name: getattr(values, name) for name in names}
  settings["folder"] = os.getcwd()  # Paths of videos may be relative to it.
  for name in ("workdir", "timeline", "overlay"):
    path = getattr(values, name)
    settings[name] = path and os.path.abspath(path)
  return settings
