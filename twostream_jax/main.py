"""Command line: trains, evaluates, fuses and reports one config.

  python -m twostream_jax.main --config=configs/quickstart.py

Run it again to resume. Any setting can be changed on the command line, as in
--config.temporal.optim.learning_rate=0.001.

A trained run is scored again, without training, with

  python -m twostream_jax.main --config=configs/quickstart.py --mode=evaluate

and optionally --split=, --protocol=, --checkpoint= and --stage=; what it writes
goes to WORKDIR/evaluations. The recipes of this project are found from any
folder, also by name alone (--config=quickstart).

Ends with 0 when all is done, 75 when a signal ended it and the same command
will resume, and 1 for errors.
"""

import sys
import traceback
from pathlib import Path

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from twostream_jax import interrupts
from twostream_jax.configs import find_recipe
from twostream_jax.files import words, workdir

# What computes is imported by `main`: wrong flags are answered without it, and
# processes that decode import this file again.
from twostream_jax.stages import settings

NAME = "twostream_jax.main"


class _RecipeParser(flags.ArgumentParser):
  """Reads the config of a file, or of a recipe by its name."""

  def __init__(self, of_files: flags.ArgumentParser[ml_collections.ConfigDict]):
    """Takes what reads the config of a file."""
    self._of_files = of_files

  def parse(self, path: str) -> ml_collections.ConfigDict:
    """Returns the config; "FILE:ARGUMENT" is of get_config("ARGUMENT")."""
    name, *argument = path.split(":", 1)
    try:
      found = find_recipe(name)
      if found != Path(name):
        print(f"{NAME}: --config={name} is {found}", file=sys.stderr)
      config = self._of_files.parse(":".join([str(found), *argument]))
      assert config is not None
      return config
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
flags.DEFINE_string("stage", "", "Train and evaluate this stage only.")
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
flags.DEFINE_integer(
  "profile",
  0,
  "Steps of each stage to trace into WORKDIR/STAGE/profile.",
  lower_bound=0,
)
flags.DEFINE_string(
  "compilation_cache",
  None,
  "Folder of compiled programs; default: of the user.",
)
flags.DEFINE_bool(
  "distributed", False, "Join the other processes of a SLURM job or TPU pod."
)
flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, to join processes by hand."
)
flags.DEFINE_integer(
  "num_processes", None, "Processes of the run, to join them by hand."
)
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


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
    said = error.args[0] if error.args else error
    sys.exit(f"{NAME}: there is no such setting: {said}")


def main(argv) -> None:
  """Runs the config given by the flags."""
  # Libraries also raise what they log as an error, and our message is clearer.
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
  except (ValueError, OSError) as error:
    sys.exit(f"{NAME}: {words.lines(str(error))}")
  with interrupts.exit_at_once(NAME, interrupts.EXIT_CODE):
    from twostream_jax import experiment

  experiment.execute(NAME, config, folder, flags.FLAGS)


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


if __name__ == "__main__":
  words.warn_as(NAME)
  app.run(main, flags_parser=parse_flags)
