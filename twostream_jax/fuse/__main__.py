r"""Fuses score files, of this project or of others, and says what it gives.

  python -m twostream_jax.fuse spatial-test.npz temporal-test.npz \
    --rule=weighted --weights=1 --weights=2
  python -m twostream_jax.fuse spatial-test.npz temporal-test.npz \
    --rule=svm --fit=spatial-validation.npz --fit=temporal-validation.npz

Files are joined by video id, and their classes by name. Other programs' scores
are read from .npz, .csv, .json, .npy and mmaction2's .pkl files, in the layouts
that `twostream_jax.fuse.files` documents.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from twostream_jax.files import words

# Rules without parameters, then the keys of `fuse.FITS`.
UNFITTED = ("average", "average_logits", "weighted")
FITTED = ("fitted_weights", "svm", "logistic", "adaptive")


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_enum(
    "rule", "average", [*UNFITTED, *FITTED], "How.", flag_values=values
  )
  flags.DEFINE_multi_float(
    "weights", [], "Of each file, for --rule=weighted.", flag_values=values
  )
  flags.DEFINE_multi_string(
    "fit",
    [],
    "Scores that other rules are fitted on, not of the same videos: a file for"
    " each of the fused ones, in their order.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "ids",
    None,
    "List of the videos of files that do not name them (.npy, most .pkl), in"
    " their order: 'ID', 'ID LABEL' or 'ID FRAMES LABEL' a line.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "fit_ids",
    None,
    "Such a list for the files of --fit.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "common",
    False,
    "Fuse the videos that all files have, and list the others.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "out", None, "Results to write, JSON.", flag_values=values
  )
  flags.DEFINE_string(
    "scores", None, "Fused scores to write, .npz.", flag_values=values
  )


def main(argv: Sequence[str]) -> int:
  """Runs the command of parsed flags; returns the exit code."""
  if len(argv) < 3:
    print("twostream_jax.fuse: name at least two score files", file=sys.stderr)
    return 1
  # Not above: wrong flags are answered without what fuses.
  from twostream_jax.fuse import command

  return command.run(flags.FLAGS, argv[1:])


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  words.warn_as("twostream_jax.fuse")
  app.run(main)
