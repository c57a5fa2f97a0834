"""Clips a second of a whole build, against the sum of its parts.

  python benchmarks/build.py --videos=DIR [--flow=dis] [--clips=24]

The parts (decode and resize, JPEG of frames, gray, flow, JPEG of flow) are
timed on the same clips before and after the build, in as many processes at once
as the build has, so that they share memory and caches as the build does. Their
sum, divided by the number of processes, is the limit; what the build adds
(starting processes, compiling, writing records and packing them) is what the
ratio shows.
"""

import collections
import functools
import os
import tempfile
import time
from collections.abc import Sequence

import cv2
from absl import app, flags

from twostream_jax.data.build.builder import build_dataset
from twostream_jax.data.build.check import start_worker
from twostream_jax.data.build.workers import map_in_processes
from twostream_jax.data.dataset import encode_flow, encode_rgb
from twostream_jax.data.datasets.annotations import read_folder
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.data.video.reading import read_resized
from twostream_jax.flow import (
  FLOWS,
  compute_flow,
  default_parameters,
  prepare_process,
)
from twostream_jax.flow.spec import FlowSpec

_RGB_QUALITY = 95


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  text = "Folder with one folder of videos a class."
  flags.DEFINE_string("videos", None, text, required=True, flag_values=values)
  flags.DEFINE_enum("flow", "dis", list(FLOWS), "Algorithm.", values)
  flags.DEFINE_integer("clips", 24, "Clips, of all.", flag_values=values)
  flags.DEFINE_integer("short_side", 256, "Pixels.", flag_values=values)
  flags.DEFINE_integer(
    "workers", os.cpu_count(), "Processes.", flag_values=values
  )


def time_parts(spec: FlowSpec, clip: Clip) -> dict[str, float]:
  """Seconds that each part takes for a clip, frame by frame."""
  seconds = collections.Counter()

  def timed(part, function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    seconds[part] += time.perf_counter() - start
    return result

  frames = read_resized(clip.path, spec.short_side)
  # Kept as a build keeps them: it spares the heap from being cut back and
  # faulted in again for every frame, which costs a fifth of the time.
  kept = []
  before = None
  while (frame := timed("decode, resize", next, frames, None)) is not None:
    kept.append(timed("JPEG of frames", encode_rgb, frame.rgb, _RGB_QUALITY))
    gray = timed("gray", cv2.cvtColor, frame.rgb, cv2.COLOR_RGB2GRAY)
    if before is None:
      compute_flow(spec, gray, gray)  # Compiles, if anything.
    else:
      field = timed("flow", compute_flow, spec, before, gray)
      kept.append(timed("JPEG of flow", encode_flow, field, spec))
    before = gray
  return dict(seconds)


def _start(spec: FlowSpec) -> None:
  start_worker()
  prepare_process(spec)


def sum_of_parts(
  clips: Sequence[Clip], spec: FlowSpec, workers: int
) -> dict[str, float]:
  """Seconds of each part over all clips, in processes at once."""
  total = collections.Counter()
  start = functools.partial(_start, spec)
  work = functools.partial(time_parts, spec)
  for _, seconds in map_in_processes(work, clips, workers, start):
    total.update(seconds)
  return dict(total)


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  values = flags.FLAGS
  spec = FlowSpec(
    values.flow,
    default_parameters(values.flow),
    short_side=values.short_side,
  )
  every = read_folder(values.videos)
  chosen = [every[i * len(every) // values.clips] for i in range(values.clips)]
  before = sum_of_parts(chosen, spec, values.workers)
  with tempfile.TemporaryDirectory() as out:
    summary = build_dataset(
      out,
      name="benchmark",
      clips=chosen,
      flow_spec=spec,
      rgb_quality=_RGB_QUALITY,
      num_workers=values.workers,
      progress=False,
    )
  after = sum_of_parts(chosen, spec, values.workers)
  for part, seconds in before.items():
    print(f"{part:16}{seconds / len(chosen):8.3f} s a clip")
  parts = (sum(before.values()) + sum(after.values())) / 2
  limit = values.workers * len(chosen) / parts
  rate = len(chosen) / summary.seconds
  print(
    f"{values.flow}, {len(chosen)} clips ({summary.video_seconds:.0f} s of"
    f" video), short side {spec.short_side}, {values.workers} processes"
  )
  print(f"sum of the parts allows {limit:.2f} clips/s")
  print(f"the whole build made    {rate:.2f} clips/s: {rate / limit:.0%}")


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
