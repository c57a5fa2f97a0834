"""Builds a dataset of frames and optical flow from video files.

One folder a class:

  python data_prep/build_tfds.py --dataset=folder --videos=DIR --out=DIR

Lists, with a header row and the columns path,label[,group]:

  python data_prep/build_tfds.py --dataset=csv --videos=DIR --out=DIR \
      --train=train.csv --test=test.csv [--validation=validation.csv]
"""

import os
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Sequence

from absl import app, flags

from twostream_jax.data.annotations import Clip, read_csv, read_folder
from twostream_jax.data.builder import BuildSummary, build_dataset
from twostream_jax.data.dataset import METADATA_FILE
from twostream_jax.flow import FLOWS, default_parameters
from twostream_jax.flow.spec import FlowSpec

_CSV_ONLY = ("train", "test", "validation")
_FOLDER_ONLY = ("test_fraction", "seed")


class UsageError(ValueError):
  """The flags do not go together."""


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""

  def string(name: str, help_text: str) -> None:
    flags.DEFINE_string(name, None, help_text, flag_values=values)

  def integer(name: str, default: int | None, help_text: str, **limits) -> None:
    flags.DEFINE_integer(name, default, help_text, flag_values=values, **limits)

  flags.DEFINE_enum(
    "dataset",
    None,
    ["folder", "csv"],
    "folder: one folder a class. csv: lists of path,label[,group].",
    flag_values=values,
  )
  string("videos", "Folder of the videos.")
  string("out", "Folder to build the dataset in.")
  string("name", "Name of the dataset; by default from the last part of --out.")
  string("train", "List of the train clips (csv).")
  string("test", "List of the test clips (csv).")
  string("validation", "List of the validation clips (csv), optional.")
  flags.DEFINE_float(
    "test_fraction",
    0.25,
    "Share of each class for the test split (folder), unless the top folders"
    " are train and test.",
    flag_values=values,
  )
  integer("seed", 0, "Of the draw of the test split (folder).", lower_bound=0)
  integer("short_side", 256, "Short side to store, in pixels: 8, 16, 24 ...")
  flags.DEFINE_enum(
    "flow", "dis", list(FLOWS), "Optical flow algorithm.", flag_values=values
  )
  integer("flow_step", 1, "Frames between the two images of a flow field.")
  flags.DEFINE_float(
    "bound", 20.0, "Largest stored motion, in pixels.", flag_values=values
  )
  integer("flow_quality", 95, "JPEG quality of the flow, 1 to 100.")
  integer("rgb_quality", 95, "JPEG quality of the frames, 1 to 100.")
  integer("workers", None, "Processes; by default one for each CPU.")
  flags.DEFINE_bool(
    "overwrite", False, "Replace the dataset if it exists.", flag_values=values
  )
  flags.mark_flags_as_required(["dataset", "videos", "out"], values)


def run(values: flags.FlagValues) -> int:
  """Builds what the flags ask for and prints a summary.

  Returns:
    The exit code: 0, or 1 after an error that is explained on stderr.
  """
  try:
    clips = _read_clips(values)
    summary = build_dataset(
      values.out,
      name=values.name or name_from_folder(values.out),
      clips=clips,
      flow_spec=FlowSpec(
        algorithm=values.flow,
        parameters=default_parameters(values.flow),
        step=values.flow_step,
        short_side=values.short_side,
        bound=values.bound,
        quality=values.flow_quality,
      ),
      rgb_quality=values.rgb_quality,
      num_workers=values.workers,
      overwrite=values.overwrite,
    )
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("interrupted; no dataset was written", file=sys.stderr)
    return 130
  print(describe(summary))
  return 0


def name_from_folder(out: str) -> str:
  """Returns a dataset name (a-z, 0-9, _) made of a folder's name."""
  last = os.path.basename(os.path.abspath(out)).lower()
  name = re.sub("[^a-z0-9]+", "_", last).strip("_")
  return name if name[:1].isalpha() else f"videos_{name}".strip("_")


def describe(summary: BuildSummary) -> str:
  """Returns what the build did and what to do next, for a reader."""
  counts = ", ".join(f"{split} {n}" for split, n in summary.counts.items())
  lines = [
    f"dataset   {summary.path}",
    f"clips     {counts}",
    f"size      {summary.size / 2**20:.1f} MiB in {summary.seconds:.0f} s",
  ]
  if summary.rejected:
    total = sum(summary.counts.values()) + len(summary.rejected)
    lines.append(f"rejected  {len(summary.rejected)} of {total} files")
    reasons = Counter(r["reason"] for r in summary.rejected)
    lines += [f"  {n:6d}  {reason}" for reason, n in reasons.most_common()]
    lines.append(
      f'  each listed under "rejected" in {summary.path / METADATA_FILE}'
    )
  if summary.untrained:
    lines.append(
      "warning: no train clip could be used of: " + ", ".join(summary.untrained)
    )
  lines += [
    "next",
    "  python -m twostream_jax.main --config=configs/folder_two_stream.py"
    f" --config.data.dir={shlex.quote(os.fspath(summary.path.parent))}",
  ]
  return "\n".join(lines)


def _read_clips(values: flags.FlagValues) -> list[Clip]:
  is_csv = values.dataset == "csv"
  _refuse_present(values, _FOLDER_ONLY if is_csv else _CSV_ONLY)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if is_csv:
      clips = _read_csv_clips(values)
    else:
      clips = read_folder(
        values.videos, test_fraction=values.test_fraction, seed=values.seed
      )
  for warning in caught:
    print(f"warning: {warning.message}", file=sys.stderr)
  return clips


def _read_csv_clips(values: flags.FlagValues) -> list[Clip]:
  for name in ("train", "test"):
    if not values[name].value:
      raise UsageError(f"--dataset=csv needs --{name}=FILE.csv")
  return read_csv(
    values.videos,
    train=values.train,
    test=values.test,
    validation=values.validation or None,
  )


def _refuse_present(values: flags.FlagValues, names: Sequence[str]) -> None:
  present = [f"--{name}" for name in names if values[name].present]
  if present:
    raise UsageError(
      f"{', '.join(present)} can't be used with --dataset={values.dataset}"
    )


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    print(f"error: not a flag: {' '.join(argv[1:])}", file=sys.stderr)
    return 1
  return run(flags.FLAGS)


if __name__ == "__main__":
  # Not at import: worker processes import this file again.
  define_flags(flags.FLAGS)
  app.run(main)
