"""A run of the command line: opens or builds its dataset, runs, concludes."""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags

from twostream_jax import (
  checkpoints,
  interrupts,
  launch,
  parallel,
  results,
  train,
)
from twostream_jax.data import dataset, synthetic
from twostream_jax.data.build import builder
from twostream_jax.data.build.workers import WorkerStartError
from twostream_jax.data.datasets import annotations
from twostream_jax.data_prep import runnable
from twostream_jax.experiment import rescore, run
from twostream_jax.files import words, workdir
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

# What a user can mend; anything else is a defect and keeps its traceback.
_USER_ERRORS = (
  ValueError,
  OSError,
  FloatingPointError,
  checkpoints.CheckpointError,
  WorkerStartError,
)
_OUT_OF_MEMORY = (
  "not enough memory; lower the batch_size of the stage, or pass its batches in"
  " parts with --config.train.micro_batches"
)


def execute(
  program: str,
  config: ml_collections.ConfigDict,
  folder: Path,
  values: flags.FlagValues,
) -> None:
  """Runs a config as the flags ask for, and prints how it ended.

  Args:
    program: Name of the command, for messages.
    config: Checked settings of the run.
    folder: Its workdir.
    values: Parsed flags of `twostream_jax.main`.

  Raises:
    SystemExit: The run did not end well; with the message or the exit code.
  """
  which = {"only_stage": values.stage, "step": values.checkpoint}
  try:
    launch.cache_compilations(program, values.compilation_cache)
    if values.distributed or values.coordinator:
      launch.join_processes(
        values.coordinator, values.num_processes, values.process_id
      )
    # Nothing is begun that would have to be saved. Not around what is above:
    # who waits for other processes would not see the signal.
    with interrupts.exit_at_signals(program, interrupts.EXIT_CODE):
      if values.mode == "evaluate":
        # Before a dataset is built for a run that is not there.
        rescore.checkpoint_steps(config, folder, **which)
      data = open_or_build(config)
    with interrupts.catch_signals() as should_stop:
      watch = train.Watch(should_stop, values.profile)
      if values.mode == "evaluate":
        folder, outcome = rescore.rescore(
          config, folder, data, watch=watch, **which
        )
      else:
        outcome = run.train_and_evaluate(
          config, folder, data, values.stage, watch
        )
  except _USER_ERRORS as error:
    sys.exit(f"{program}: {words.lines(str(error))}")
  except MemoryError as error:
    sys.exit(f"{program}: {_OUT_OF_MEMORY}: {error}")
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    sys.exit(f"{program}: {_OUT_OF_MEMORY}: {str(error).splitlines()[0]}")
  except interrupts.Interrupted as stop:
    print(f"{program}: ended by a signal: {stop}", file=sys.stderr)
    sys.exit(interrupts.EXIT_CODE)
  if parallel.is_primary():
    conclude(config, folder, outcome, values.stage)


def open_or_build(config: ml_collections.ConfigDict) -> dataset.VideoDataset:
  """Opens the run's dataset; renders and builds it where it is synthetic.

  Raises:
    DatasetNotFoundError: there is none; the message says what builds it.
    ValueError: the dataset found is not the one that the config describes.
  """
  counts = config.data.synthetic.to_dict()
  try:
    data = dataset.open_dataset(config.data.dir)
  except dataset.DatasetNotFoundError as error:
    if not any(counts.values()):
      raise dataset.DatasetNotFoundError(
        f"{error}\nBuild the dataset first, for example with\n"
        f"  {runnable(config.data.build_command)}\n"
        "or name its folder with --config.data.dir=DIR"
      ) from error
    if jax.process_count() > 1:
      raise dataset.DatasetNotFoundError(
        f"{error}\nOne process has to build the synthetic dataset: run the"
        " command without the other processes once, until the first stage"
        " begins"
      ) from error
    workdir.require_writable(Path(config.data.dir), "config.data.dir")
    build_synthetic(config)
    data = dataset.open_dataset(config.data.dir)
  if any(counts.values()):
    _check_synthetic(config, data)
  return data


def build_synthetic(config: ml_collections.ConfigDict) -> None:
  """Renders the synthetic videos and builds their dataset."""
  directory = Path(config.data.dir)
  videos = directory / "videos"
  counts = config.data.synthetic.to_dict()
  if not videos.exists():
    print(f"Rendering synthetic videos into {videos}", flush=True)
    synthetic.write_videos(
      videos, counts, seed=0, num_workers=os.cpu_count() or 1
    )
  builder.build_dataset(
    directory,
    name="synthetic_videos",
    clips=annotations.read_folder(videos),
    flow_spec=FlowSpec(
      algorithm="dis",
      parameters=default_parameters("dis"),
      short_side=config.data.synthetic_short_side,
    ),
  )


def _check_synthetic(config, data) -> None:
  classes = len(data.class_names)
  found = {
    name: len(source) // classes for name, source in data.sources.items()
  }
  expected = {k: v for k, v in config.data.synthetic.to_dict().items() if v}
  side = data.flow_spec.short_side
  if found != expected or side != config.data.synthetic_short_side:
    raise ValueError(
      f"{config.data.dir} holds a synthetic dataset of {found} clips a class at"
      f" {side} px, but config.data.synthetic asks for {expected} at"
      f" {config.data.synthetic_short_side} px: delete that folder, or name"
      " another with --config.data.dir=DIR"
    )


def conclude(
  config: ml_collections.ConfigDict,
  folder: Path,
  outcome: dict[str, Any] | None,
  only_stage: str,
) -> None:
  """Prints how the run ended."""
  if outcome is None:
    print(f"Stage {only_stage!r} is done; other stages are still to be run.")
    return
  print(results.table(outcome))
  if config.report.note:
    print(f"\n{config.report.note}")
  print(f"\nReport: {folder / results.REPORT_FILE}")
