"""Builds a dataset of frames and optical flow from video files.

One folder a class:

  python data_prep/build_tfds.py --dataset=folder --videos=DIR --out=DIR

Lists, with a header row and the columns path,label[,group]:

  python data_prep/build_tfds.py --dataset=csv --videos=DIR --out=DIR \
      --train=train.csv --test=test.csv [--validation=validation.csv]

A known set, from its official lists:

  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 --out=DIR \
      --annotations=ucfTrainTestlist --split=1

With --check files are only read and decoded, and nothing is written.
"""

import os
import sys
from collections.abc import Sequence

from absl import app, flags

from twostream_jax.data.datasets.clips import TIME_LIMIT
from twostream_jax.data.datasets.official import DATASETS

# Names of `flow.FLOWS` and `flow.spec.EXTRACTED`, and `flow.spec.DIRECTIONS`:
# these modules would import what computes.
FLOWS = ("dis", "farneback", "tvl1", "extracted")
DIRECTIONS = ("forward", "bidirectional")


class _PathParser(flags.ArgumentParser):
  """A path; '~' is the home folder, also where the shell leaves it."""

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""

  def string(name: str, help_text: str) -> None:
    flags.DEFINE_string(name, None, help_text, flag_values=values)

  def path(name: str, help_text: str) -> None:
    flags.DEFINE(
      _PathParser(),
      name,
      None,
      help_text,
      flag_values=values,
      serializer=flags.ArgumentSerializer(),
    )

  def boolean(name: str, help_text: str) -> None:
    flags.DEFINE_bool(name, False, help_text, flag_values=values)

  def integer(name: str, default: int | None, help_text: str, **limits) -> None:
    flags.DEFINE_integer(name, default, help_text, flag_values=values, **limits)

  flags.DEFINE_enum(
    "dataset",
    None,
    list(DATASETS),
    "folder: one folder a class. csv: lists of path,label[,group]. The others:"
    " official lists (--annotations).",
    flag_values=values,
  )
  path("videos", "Folder of the videos.")
  path("out", "Folder to build the dataset in.")
  string("name", "Name of the dataset; by default from the last part of --out.")
  path("train", "List of the train clips (csv).")
  path("test", "List of the test clips (csv).")
  path("validation", "List of the validation clips (csv), optional.")
  path("annotations", "Folder of the official lists of a known set.")
  flags.DEFINE_float(
    "test_fraction",
    0.25,
    "Share of each class for the test split (folder), unless the top folders"
    " are train and test.",
    flag_values=values,
  )
  integer("seed", 0, "Of the draw of the test split (folder).", lower_bound=0)
  one_to_three = {"lower_bound": 1, "upper_bound": 3}
  integer("split", 1, "Official split (ucf101, hmdb51).", **one_to_three)
  integer("mini_train", 20, "Train clips a class (ssv2_mini).", lower_bound=1)
  integer("mini_test", 3, "Test clips a class (ssv2_mini).", lower_bound=1)
  boolean("keep_unlabelled", "Keep clips without any label (ccv).")
  boolean("allow_missing", "Build without videos that are listed but missing.")
  boolean(
    "drop_shared_groups",
    "Leave out train and validation clips of groups that are also in test, and"
    " train clips of groups in validation (csv, kinetics, ucf101); they are"
    " listed as rejected.",
  )
  boolean(
    "allow_failed",
    "Build without clips that this machine could not finish (out of memory, an"
    " unreadable folder); otherwise they end the build, and the same command"
    " tries them again.",
  )
  integer("short_side", 256, "Short side to store, in pixels: 8, 16, 24 ...")
  flags.DEFINE_enum(
    "flow",
    "dis",
    FLOWS,
    "Optical flow algorithm; extracted: --videos holds folders of frames"
    " (img_00001.jpg) and flow (flow_x_00001.jpg, flow_y_00001.jpg), whose"
    " bound, step and quality the flags state.",
    flag_values=values,
  )
  flags.DEFINE_float(
    "fps",
    None,
    "Constant frame rate to resample videos to. Default: all frames of a file,"
    " at the times that they have.",
    flag_values=values,
  )
  integer("flow_step", 1, "Frames between the two images of a flow field.")
  flags.DEFINE_enum(
    "flow_direction",
    "forward",
    DIRECTIONS,
    "bidirectional: store fields back too, for bidirectional stacks.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "tvl1_texture",
    True,
    "Whether --flow=tvl1 matches texture where brightness changes. Without, its"
    " flow is that of datasets from before there was this setting.",
    flag_values=values,
  )
  flags.DEFINE_float(
    "bound", 20.0, "Largest stored motion, in pixels.", flag_values=values
  )
  integer("flow_quality", 95, "JPEG quality of the flow, 1 to 100.")
  integer("rgb_quality", 95, "JPEG quality of the frames, 1 to 100.")
  integer("workers", None, "Processes; by default one for each CPU.")
  flags.DEFINE_float(
    "time_limit",
    TIME_LIMIT,
    "Seconds that a clip may take before it is rejected.",
    flag_values=values,
  )
  string(
    "beam_runner",
    "Finish the clips by Apache Beam, with this runner: a name that Beam knows"
    " (DirectRunner, FlinkRunner ...), or module and class, as"
    " apache_beam.runners.dask.dask_runner.DaskRunner. Its workers need the"
    " folders of --videos and --out under the same paths, and the same versions"
    " of this package, PyAV, OpenCV and JAX.",
  )
  flags.DEFINE_multi_string(
    "beam_option",
    [],
    "Option for the runner, NAME=VALUE; may be given again.",
    flag_values=values,
  )
  boolean("overwrite", "Replace the dataset if it exists.")
  boolean("check", "Only read the lists and decode every file.")
  flags.mark_flags_as_required(["dataset", "videos"], values)
  flags.register_multi_flags_validator(
    ["out", "check"],
    lambda given: given["out"] or given["check"],
    "--out is needed to build; only --check does without",
    values,
  )


def run(values: flags.FlagValues) -> int:
  """Runs the command of parsed flags; returns the exit code."""
  # Not above: wrong flags are answered without what builds.
  from twostream_jax.data.build import command

  return command.run(values)


def main(argv: Sequence[str]) -> int:
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    print(f"error: not a flag: {' '.join(argv[1:])}", file=sys.stderr)
    return 1
  return run(flags.FLAGS)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
