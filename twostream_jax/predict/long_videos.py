"""Videos that are followed with a sliding window: timelines and overlays."""

import collections
import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twostream_jax.data.build.check import lost_rejection
from twostream_jax.data.build.workers import LostError, iterate_in_process
from twostream_jax.data.video.frames import VideoError
from twostream_jax.flow.spec import to_dict
from twostream_jax.predict import (
  answers,
  guards,
  outputs,
  overlay,
  timeline,
)
from twostream_jax.predict.following import Seen, Window, follow
from twostream_jax.predict.predictor import PredictionError, Predictor
from twostream_jax.predict.reading import Chunks, Source, Streamer

# Bytes of a file's name, without extension.
_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class Options:
  """How long videos are followed, and what is written of them.

  Attributes:
    by: Stage or fusion rule of the answer.
    window: seconds that are seen at once.
    stride: seconds from one window to the next.
    smooth: windows that are averaged.
    threshold: of a segment's probability.
    top: classes that an overlay shows.
    seconds: of a camera or stream that are followed.
    time_limit: seconds until the next frames have to be there.
    timeline: folder for tables and pictures, or None.
    overlay: video to write, or None.
    start: what prepares a process that decodes; can be pickled.
  """

  by: str
  window: float
  stride: float
  smooth: int
  threshold: float
  top: int
  seconds: float
  time_limit: float
  timeline: Path | None
  overlay: Path | None
  start: Callable[[], None]


def follow_all(
  predictor: Predictor,
  named: Iterable[tuple[Source, str]],
  options: Options,
) -> Generator[dict[str, Any], None, None]:
  """Yields an answer a video, JSON-ready; one with "error" has a reason only.

  Args:
    predictor: of the run.
    named: videos, and the names of their files, see `file_names`.
    options: of the command.

  Raises:
    ValueError: an option is out of range.
    WriteError: no file can be written, whatever its name is: the disk is full,
      for example.
  """
  # Refused before any work.
  Window(options.window, options.stride)
  timeline.check_smooth(options.smooth)
  if options.timeline:
    options.timeline.mkdir(parents=True, exist_ok=True)
  for source, name in named:
    try:
      found = _follow_one(predictor, source, name, options)
    except outputs.WriteError as error:
      if error.of_the_machine:
        raise
      found = answers.failure(source.path, error.reason)
    except (VideoError, PredictionError) as error:
      found = answers.failure(source.path, error.reason)
    except LostError as error:
      rejection = lost_rejection(error.lost, options.time_limit)
      found = answers.failure(source.path, rejection.reason)
    except Exception as error:
      # One odd video must not end hours of others.
      found = answers.failure(source.path, guards.unexpected(error))
    yield found


def file_names(sources: Sequence[Source]) -> list[str]:
  """Returns a distinct file name stem per video.

  It is the video's own name, or its path where names are shared, without
  characters that file systems refuse.
  """
  stems = [
    _shortened(re.sub(r"\W+", "_", Path(s.path).stem).strip("_"))
    for s in sources
  ]
  counts = collections.Counter(stems)
  whole = [_shortened(re.sub(r"\W+", "_", s.path).strip("_")) for s in sources]
  names = [
    stem if stem and counts[stem] == 1 else full or "video"
    for stem, full in zip(stems, whole, strict=True)
  ]
  seen = collections.Counter()
  for i, name in enumerate(names):
    seen[name] += 1
    if seen[name] > 1:
      names[i] = f"{name}_{seen[name]}"
  return names


def _shortened(name: str) -> str:
  """A name that leaves room for an extension and a number: 200 bytes at most.

  File systems allow 255 bytes, which are 85 Chinese characters.
  """
  return name.encode()[:_LONGEST_NAME].decode(errors="ignore")


def _follow_one(
  predictor: Predictor, source: Source, name: str, options: Options
) -> dict[str, Any]:
  began = time.perf_counter()
  run = predictor.run
  stream = Streamer(run.flow_spec, predictor.rgb_quality, options.seconds)
  recorder, files = timeline.Recorder(), {}
  with contextlib.closing(
    iterate_in_process(
      guards.GuardedStream(Chunks(stream)),
      source,
      options.start,
      time_limit=options.time_limit,
    )
  ) as chunks:
    frames = itertools.chain.from_iterable(chunks)
    window = Window(options.window, options.stride)
    windows = recorder(follow(predictor, frames, window, by=options.by))
    if options.overlay:
      _overlay(predictor, windows, options.overlay, options.top)
      files["overlay"] = str(options.overlay)
    else:
      collections.deque(windows, maxlen=0)
  found = recorder.track()
  segments = timeline.find_segments(
    found,
    run.class_names,
    smooth=options.smooth,
    threshold=options.threshold,
    multi_label=run.multi_label,
  )
  if options.timeline:
    files["table"] = str(options.timeline / f"{name}.csv")
    files["picture"] = str(options.timeline / f"{name}.png")
    with outputs.written(Path(files["table"])) as temporary:
      timeline.write_csv(temporary, segments)
    with outputs.written(Path(files["picture"])) as temporary:
      timeline.draw(
        temporary,
        found,
        segments,
        run.class_names,
        title=answers.printable(f"{source.path}, by {options.by}"),
        smooth=options.smooth,
      )
  seconds = float(found.edges[-1])
  return {
    "path": source.path,
    "segments": [list(segment) for segment in segments],
    "by": options.by,
    "window": options.window,
    "stride": options.stride,
    "protocol": {k: stage.protocol for k, stage in run.stages.items()},
    "flow": to_dict(run.flow_spec),
    "frames": recorder.frames,
    "seconds": seconds,
    "elapsed": round(time.perf_counter() - began, 3),
    "files": files,
  }


def _overlay(
  predictor: Predictor, windows: Iterator[Seen], path: Path, top: int
) -> None:
  run = predictor.run
  overlay.write(
    path,
    windows,
    run.class_names,
    spec=run.flow_spec,
    top=min(top, len(run.class_names)),
  )
