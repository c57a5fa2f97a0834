"""A build by Beam, in a process of its own, that logs each clip it begins.

python -m tests.logged_build VIDEOS OUT LOG [RUNNER_OPTION ...]
"""

import functools
import os
import sys
import time
from pathlib import Path

from twostream_jax.data.build import builder
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.datasets import annotations
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

_SECONDS = 0.3


def process_logged(log, clip, flow_spec, rgb_quality):
  """Logs clip and current folder, and takes its time before the work."""
  with open(log, "a") as file:
    file.write(f"{clip.video_id} {os.getcwd()}\n")
  time.sleep(_SECONDS)
  return process_clip(clip, flow_spec, rgb_quality)


def build(videos, out, **options):
  """Builds "tiny" of small images."""
  return builder.build_dataset(
    out,
    name="tiny",
    clips=annotations.read_folder(videos),
    flow_spec=FlowSpec("dis", default_parameters("dis"), short_side=32),
    num_workers=1,
    progress=False,
    **options,
  )


def main():
  from tests import logged_build  # As workers import it, not as __main__.
  from twostream_jax.data.build.beam import finish_with_beam

  videos, out, log, *options = sys.argv[1:]
  process = functools.partial(logged_build.process_logged, log)
  elsewhere = functools.partial(finish_with_beam, options)
  build(Path(videos), out, process=process, elsewhere=elsewhere)


if __name__ == "__main__":
  main()
