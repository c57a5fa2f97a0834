"""Command line: trains, evaluates, fuses and reports one config.

  python -m twostream_jax.main --config=configs/quickstart.py

Run it again to resume. Any setting can be changed on the command line, as in
--config.temporal.optim.learning_rate=0.001.

A trained run is scored anew, without training, with

  python -m twostream_jax.main --config=configs/quickstart.py --mode=evaluate

and optionally --split=, --protocol=, --checkpoint= and --stage=; what it writes
goes to WORKDIR/evaluations. The recipes of this project are found from any
folder, also by name alone (--config=quickstart).

Ends with 0 when all is done, 75 when a signal ended it and the same command
will go on, and 1 for errors.
"""

import sys
import traceback
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from twostream_jax import (
  checkpoints,
  interrupts,
  launch,
  parallel,
  rescore,
  results,
  run,
  settings,
  train,
  words,
  workdir,
)
from twostream_jax.configs import find_recipe
from twostream_jax.data import annotations, builder, dataset, synthetic
from twostream_jax.data.workers import WorkerStartError
from twostream_jax.data_prep import runnable
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

NAME = "twostream_jax.main"


class _RecipeParser(flags.ArgumentParser):
  """Reads the config of a file, or of a recipe by its name."""

  def __init__(self, of_files: flags.ArgumentParser):
    """Takes what reads the config of a file."""
    self._of_files = of_files

  def parse(self, path: str) -> ml_collections.ConfigDict:
    """Returns the config; "FILE:ARGUMENT" is of get_config("ARGUMENT")."""
    name, *argument = path.split(":", 1)
    try:
      found = find_recipe(name)
      if found != Path(name):
        print(f"{NAME}: --config={name} is {found}", file=sys.stderr)
      return self._of_files.parse(":".join([str(found), *argument]))
    except OSError as error:
      raise ValueError(error) from error
    except AttributeError as error:
      if error.name != "get_config":
        raise
      raise ValueError(f"{found} defines no get_config()") from error
    except ModuleNotFoundError as error:
      if error.name != "configs":
        raise
      raise ValueError(
        "it imports from configs, which is not in this folder: write `from"
        " twostream_jax.configs import default`"
      ) from error


_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, such as configs/quickstart.py, or the name of a recipe.",
)
flags.FLAGS["config"].parser = _RecipeParser(flags.FLAGS["config"].parser)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; default: runs/<name of the config>."
)
_STAGE = flags.DEFINE_string("stage", "", "Train and evaluate this stage only.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "evaluate"],
  "Train and evaluate, or evaluate what is trained.",
)
_SPLIT = flags.DEFINE_string(
  "split", None, "Split to evaluate; default: the test split."
)
_PROTOCOL = flags.DEFINE_string(
  "protocol", None, "Test protocol; default: config.eval.protocol."
)
_CHECKPOINT = flags.DEFINE_integer(
  "checkpoint", None, "Step of the checkpoint; default: the one that counts."
)
_PROFILE = flags.DEFINE_integer(
  "profile",
  0,
  "Steps of each stage to trace into WORKDIR/STAGE/profile.",
  lower_bound=0,
)
_CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Folder of compiled programs; default: of the user.",
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join the other processes of a SLURM job or TPU pod."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, to join processes by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Processes of the run, to join them by hand."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this is, from 0."
)

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
    synthetic.write_videos(videos, counts, seed=0)
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


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a setting that does not exist ends in one clear message."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f"{NAME}: {error}")
  except (AttributeError, KeyError, TypeError) as error:
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "get_config" for frame in frames):
      raise  # A defect of the config file: its lines are what helps.
    # ml_collections wraps the error that has the words in another one.
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    words = error.args[0] if error.args else error
    sys.exit(f"{NAME}: there is no such setting: {words}")


def main(argv) -> None:
  """Runs the config given by the flags."""
  # What libraries log as an error they raise as well, and we put it in words.
  absl_logging.set_verbosity(absl_logging.FATAL)
  if len(argv) > 1:
    sys.exit(f"{NAME}: not a flag: {' '.join(argv[1:])}")
  config = _CONFIG.value
  if config is None:
    sys.exit(f"{NAME}: --config=FILE is missing, such as --config=quickstart")
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  folder = Path(_WORKDIR.value or Path("runs") / name)
  try:
    config = with_evaluation(config)
    settings.check_numbers(config)
    workdir.require_writable(folder, "workdir")
    launch.cache_compilations(NAME, _CACHE.value)
    if _DISTRIBUTED.value or _COORDINATOR.value:
      launch.join_processes(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
      )
    if _MODE.value == "evaluate":
      # Before a dataset is built for a run that is not there.
      rescore.checkpoint_steps(config, folder, **which_checkpoints())
    data = open_or_build(config)
    with interrupts.catch_signals() as should_stop:
      watch = train.Watch(should_stop, _PROFILE.value)
      if _MODE.value == "evaluate":
        folder, outcome = rescore.rescore(
          config, folder, data, watch=watch, **which_checkpoints()
        )
      else:
        outcome = run.train_and_evaluate(
          config, folder, data, _STAGE.value, watch
        )
  except _USER_ERRORS as error:
    sys.exit(f"{NAME}: {words.lines(str(error))}")
  except MemoryError as error:
    sys.exit(f"{NAME}: {_OUT_OF_MEMORY}: {error}")
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    sys.exit(f"{NAME}: {_OUT_OF_MEMORY}: {str(error).splitlines()[0]}")
  except interrupts.Interrupted as stop:
    print(f"{NAME}: ended by a signal: {stop}", file=sys.stderr)
    sys.exit(interrupts.EXIT_CODE)
  if parallel.is_primary():
    conclude(config, folder, outcome)


def with_evaluation(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The config with what --mode=evaluate is to score.

  Raises:
    ValueError: a flag of it is there without the mode.
  """
  wanted = {
    "split": _SPLIT.value,
    "protocol": _PROTOCOL.value,
    "checkpoint": _CHECKPOINT.value,
  }
  given = [name for name, value in wanted.items() if value is not None]
  if given and _MODE.value != "evaluate":
    raise ValueError(f"--{given[0]} is for --mode=evaluate")
  config = config.copy_and_resolve_references()
  if wanted["split"] is not None:
    config.data.test_split = wanted["split"]
  if wanted["protocol"] is not None:
    config.eval.protocol = wanted["protocol"]
  return config


def which_checkpoints() -> dict[str, Any]:
  """What the flags say of it; see `rescore.checkpoint_steps`."""
  return {"only_stage": _STAGE.value, "step": _CHECKPOINT.value}


def conclude(
  config: ml_collections.ConfigDict,
  folder: Path,
  outcome: dict[str, Any] | None,
) -> None:
  """Prints how the run ended."""
  if outcome is None:
    print(f"Stage {_STAGE.value!r} is done; other stages are still to be run.")
    return
  print(results.table(outcome))
  if config.report.note:
    print(f"\n{config.report.note}")
  print(f"\nReport: {folder / results.REPORT_FILE}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
