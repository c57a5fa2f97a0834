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

import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from twostream_jax import words
from twostream_jax.data.builder import (
  Elsewhere,
  build_dataset,
)
from twostream_jax.data.check import (
  TIME_LIMIT,
  check_clips_decode,
)
from twostream_jax.data.clips import (
  SHARED_GROUP,
  Clip,
  is_multi_label,
)
from twostream_jax.data.faults import FILE_NOT_FOUND
from twostream_jax.data.official import DATASETS
from twostream_jax.data.summary import (
  describe,
  describe_check,
  describe_forecast,
  untrained,
)
from twostream_jax.data.workers import WorkerStartError
from twostream_jax.flow import FLOWS, default_parameters
from twostream_jax.flow.spec import DIRECTIONS, EXTRACTED, FlowSpec


class _PathParser(flags.ArgumentParser):
  """A path; '~' is the home folder, also where the shell leaves it."""

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)


class UsageError(ValueError):
  """The flags do not go together."""


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
    [*FLOWS, EXTRACTED],
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
    list(DIRECTIONS),
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
  """Builds, or checks, what the flags ask for and prints a summary.

  Returns:
    The exit code: 0; 1 after an error that is explained on stderr, or where a
    check found something wrong; 130 after Ctrl-C.
  """
  try:
    clips = _read_clips(values)
    return _check(values, clips) if values.check else _build(values, clips)
  except (ValueError, OSError, WorkerStartError) as error:
    print(f"error: {words.lines(str(error))}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("interrupted; the same command resumes the build", file=sys.stderr)
    return 130


def _build(values: flags.FlagValues, clips: Sequence[Clip]) -> int:
  summary = build_dataset(
    values.out,
    name=values.name or name_from_folder(values.out),
    clips=clips,
    flow_spec=_flow_spec(values),
    rgb_quality=values.rgb_quality,
    num_workers=values.workers,
    time_limit=values.time_limit,
    overwrite=values.overwrite,
    allow_failed=values.allow_failed,
    announce=lambda f: print(describe_forecast(f), file=sys.stderr),
    elsewhere=_beam(values),
  )
  print(words.lines(describe(summary, is_multi_label(clips))))
  return 0


def _check(values: flags.FlagValues, clips: Sequence[Clip]) -> int:
  spec = _flow_spec(values)
  rejections = check_clips_decode(
    clips,
    flow_spec=spec,
    num_workers=values.workers,
    time_limit=values.time_limit,
  )
  print(words.lines(describe_check(clips, rejections)))
  tolerated = set(SHARED_GROUP.values())
  tolerated |= {FILE_NOT_FOUND} if values.allow_missing else set()
  wrong = any(r and r.reason not in tolerated for r in rejections)
  return int(wrong or bool(untrained(clips, rejections)))


def _beam(values: flags.FlagValues) -> Elsewhere | None:
  """Returns what finishes clips by Beam, if it is asked for."""
  if not values.beam_runner:
    if values.beam_option:
      raise UsageError("--beam_option needs --beam_runner")
    return None
  try:
    from twostream_jax.data.beam import finish_with_beam
  except ModuleNotFoundError as error:
    if error.name != "apache_beam":
      raise
    raise UsageError(
      "--beam_runner needs Apache Beam, an extra: pip install -e '.[beam]'"
    ) from error

  options = [f"--{option}" for option in values.beam_option]
  return functools.partial(
    finish_with_beam, [f"--runner={values.beam_runner}", *options]
  )


def _flow_spec(values: flags.FlagValues) -> FlowSpec:
  extracted = values.flow == EXTRACTED
  if extracted and not values["bound"].present:
    raise UsageError(
      f"--flow={EXTRACTED} needs --bound: the motion, in pixels, that the"
      " stored values 0 and 255 stand for (denseflow and dense_flow write 20"
      " or 32 by default)"
    )
  parameters = {} if extracted else default_parameters(values.flow)
  if not values.tvl1_texture:
    if values.flow != "tvl1":
      raise UsageError("--notvl1_texture is for --flow=tvl1")
    # Not 0: so the parameters are those that earlier datasets have.
    del parameters["texture"]
  return FlowSpec(
    algorithm=values.flow,
    parameters=parameters,
    step=values.flow_step,
    direction=values.flow_direction,
    short_side=values.short_side,
    bound=values.bound,
    quality=values.flow_quality,
    fps=values.fps,
  )


def name_from_folder(out: str) -> str:
  """Returns a dataset name (a-z, 0-9, _) made of a folder's name."""
  last = os.path.basename(os.path.abspath(out)).lower()
  name = re.sub("[^a-z0-9]+", "_", last).strip("_")
  return name if name[:1].isalpha() else f"videos_{name}".strip("_")


def _read_clips(values: flags.FlagValues) -> list[Clip]:
  options = _dataset_options(values)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
      return DATASETS[values.dataset](values.videos, **options)
    finally:
      # What leads to an error as well.
      for warning in caught:
        said = words.lines(str(warning.message))
        print(f"warning: {said}", file=sys.stderr)


def _dataset_options(values: flags.FlagValues) -> dict[str, Any]:
  """Returns the flags that the dataset's function takes, by their names.

  Raises:
    UsageError: a flag is given that it does not take, or one lacks.
  """
  takes = _parameters(values.dataset)
  known = {name for dataset in DATASETS for name in _parameters(dataset)}
  strange = [f"--{n}" for n in sorted(known - set(takes)) if values[n].present]
  if strange:
    raise UsageError(
      f"{', '.join(strange)} can't be used with --dataset={values.dataset}"
    )
  for name, parameter in takes.items():
    if parameter.default is parameter.empty and not values[name].value:
      what = "DIR" if name == "annotations" else "FILE.csv"
      raise UsageError(f"--dataset={values.dataset} needs --{name}={what}")
  options = {name: values[name].value for name in takes}
  if "allow_missing" in takes:
    # A check reports files that are missing like those that do not decode.
    options["allow_missing"] = values.allow_missing or values.check
  return options


def _parameters(dataset: str) -> dict[str, inspect.Parameter]:
  parameters = dict(inspect.signature(DATASETS[dataset]).parameters)
  del parameters["videos"]
  return parameters


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    print(f"error: not a flag: {' '.join(argv[1:])}", file=sys.stderr)
    return 1
  return run(flags.FLAGS)


if __name__ == "__main__":
  # Not at import: worker processes import this file again.
  define_flags(flags.FLAGS)
  app.run(main)
