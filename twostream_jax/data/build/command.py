"""Builds or checks the dataset that `data_prep/build_tfds.py` is asked for."""

import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from absl import flags

from twostream_jax.data.build.builder import Elsewhere, build_dataset
from twostream_jax.data.build.check import check_clips_decode
from twostream_jax.data.build.summary import (
  describe,
  describe_check,
  describe_forecast,
  untrained,
)
from twostream_jax.data.build.workers import WorkerStartError
from twostream_jax.data.datasets.clips import SHARED_GROUP, Clip, is_multi_label
from twostream_jax.data.datasets.official import DATASETS
from twostream_jax.data.video.faults import FILE_NOT_FOUND
from twostream_jax.files import words
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import EXTRACTED, FlowSpec


class UsageError(ValueError):
  """The flags do not go together."""


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
    from twostream_jax.data.build.beam import finish_with_beam
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
      " stored values 0 and 255 represent (denseflow and dense_flow write 20"
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
