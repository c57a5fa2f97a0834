r"""Scores videos with a finished run: the dataset is not needed.

  python -m twostream_jax.predict --workdir=runs/my_videos clip.mp4 more/
  python -m twostream_jax.predict --workdir=runs/my_videos --list=paths.txt \
    --json=answers.jsonl
  python -m twostream_jax.predict --workdir=runs/my_videos long.mp4 \
    --timeline=segments
  python -m twostream_jax.predict --workdir=runs/my_videos clip.mp4 \
    --overlay=shown.mp4

Videos are files, folders of them, folders of numbered images, the number of a
camera, or a URL of the network. Each is decoded in another process: a
file that crashes a decoder is told like any other that can't be read.

Answers of --json=FILE are in FILE.partial until all are there. If the command
is interrupted or fails, they stay, and the same command resumes.

Exit codes: 0 every video has an answer; 2 some have none, each with a reason;
1 the command, the run or a file to write can't be used; 130 and 143 ended by
SIGINT or SIGTERM.
"""

import os
import sys
from collections.abc import Sequence

from absl import app, flags

from twostream_jax import interrupts
from twostream_jax.data.datasets.clips import TIME_LIMIT
from twostream_jax.files import words

NAME = "twostream_jax.predict"


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
    (
      "overlay",
      "Video to write: the one that is named, its flow and scores; H.264 in"
      " .mp4, .m4v, .mov and .mkv, VP9 in .webm.",
    ),
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
    (
      "threshold",
      None,
      "Classes with a smaller probability give no segment, 0..1; default: 0, or"
      " 0.5 where a video has any number of classes.",
    ),
    ("time_limit", TIME_LIMIT, "Seconds that decoding a video may take."),
  ]:
    flags.DEFINE_float(name, default, text, lower_bound=0, flag_values=values)
  for name, default, text in [
    ("top", 5, "Classes that are told of each stage and fusion."),
    ("smooth", 1, "Windows of --timeline that are averaged; odd."),
    ("workers", os.cpu_count() or 1, "Processes that decode."),
  ]:
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def main(argv: Sequence[str]) -> int:
  """Runs the command of parsed flags; returns the exit code."""
  values = flags.FLAGS
  if not values.workdir:
    print(
      f"{NAME}: --workdir=RUN is missing, the folder of a finished run",
      file=sys.stderr,
    )
    return 1
  if not argv[1:] and not values.list:
    print(
      f"{NAME}: name a video, a folder of videos or --list=FILE",
      file=sys.stderr,
    )
    return 1
  # Not above: wrong flags are answered without what scores, and processes that
  # decode import this file, and need none of it.
  from twostream_jax.predict import command

  with interrupts.exit_at_signals(NAME):
    return command.main(argv, values)


if __name__ == "__main__":
  with interrupts.exit_at_once(NAME):
    define_flags(flags.FLAGS)
    words.warn_as(NAME)
    app.run(main)
