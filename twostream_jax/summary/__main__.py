"""Says what each recipe is: networks, sizes, operations, published numbers.

  python -m twostream_jax.summary
  python -m twostream_jax.summary --recipe=ucf101_wang15 --nothroughput

It needs no dataset: the numbers of classes are those of `recipes.DATASETS`.
"""

import sys

from absl import app, flags
from absl import logging as absl_logging

from twostream_jax import configs


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_multi_string(
    "recipe",
    [],
    "Name of a config, or its file; may be given several times. Default: all.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "configs",
    str(configs.FOLDER),
    "Folder of the recipes.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_classes",
    10,
    "Classes of the recipes for your own videos.",
    lower_bound=2,
    flag_values=values,
  )
  flags.DEFINE_bool(
    "throughput",
    True,
    "Measure clips a second; seconds to minutes a stage on a CPU.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "batch_size",
    8,
    "Clips a device in a batch of that measurement.",
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_bool(
    "markdown", False, "Print one table in Markdown.", flag_values=values
  )


def main(argv: list[str]) -> None:
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    sys.exit(f"twostream_jax.summary: not a flag: {' '.join(argv[1:])}")
  # Not above: wrong flags are answered without what computes.
  from twostream_jax import launch
  from twostream_jax.summary import tables

  # Which platforms JAX did not find is of no interest here.
  absl_logging.set_verbosity(absl_logging.ERROR)
  launch.cache_compilations("twostream_jax.summary")
  try:
    tables.run(flags.FLAGS)
  except (ValueError, OSError) as error:
    sys.exit(f"twostream_jax.summary: {error}")


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
