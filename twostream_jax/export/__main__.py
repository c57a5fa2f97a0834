r"""Writes a finished run as a folder that runs without flax and this package.

  python -m twostream_jax.export --workdir=runs/quickstart --out=model \
    --licence=CC-BY-4.0

The folder has a program for each stage and platform, the weights, a runner and
a model card.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from twostream_jax.export import PLATFORMS
from twostream_jax.files import words


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_string(
    "workdir", None, "Folder of the finished run.", flag_values=values
  )
  flags.DEFINE_string(
    "out",
    None,
    "Folder to write; an earlier export there is replaced.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "licence", "", "Of the weights, for the model card.", flag_values=values
  )
  flags.DEFINE_list(
    "platforms",
    list(PLATFORMS),
    "What to write programs for.",
    flag_values=values,
  )


def run(values: flags.FlagValues) -> int:
  """Runs the command; 0, or 1 after an error that stderr explains."""
  for name in ("workdir", "out"):
    if not values[name].value:
      print(f"twostream_jax.export: --{name} is not given", file=sys.stderr)
      return 1
  # Not above: wrong flags are answered without what exports.
  from twostream_jax import checkpoints, launch
  from twostream_jax.export import write
  from twostream_jax.stages import trained

  # Libraries also raise what they log as an error, and our message is clearer.
  absl_logging.set_verbosity(absl_logging.FATAL)
  launch.cache_compilations("twostream_jax.export")
  try:
    found = write.export_run(
      trained.open_run(values.workdir),
      Path(values.out),
      licence=values.licence,
      platforms=values.platforms,
    )
  except (ValueError, OSError, checkpoints.CheckpointError) as error:
    print(f"twostream_jax.export: {words.lines(str(error))}", file=sys.stderr)
    return 1
  for name, (difference, _) in found.items():
    print(f"{name}: read back, largest relative difference {difference:.1e}")
  if not found:
    print("Not read back: this machine has none of the platforms.")
  print(f"Exported to {values.out}; see model_card.md there.")
  return 0


def main(argv: Sequence[str]) -> int:
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    print(f"twostream_jax.export: not a flag: {argv[1:]}", file=sys.stderr)
    return 1
  return run(flags.FLAGS)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  words.warn_as("twostream_jax.export")
  app.run(main)
