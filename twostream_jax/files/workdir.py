"""The folder of a run: where files are, and how they are written."""

import errno
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twostream_jax import files
from twostream_jax.files import json_files
from twostream_jax.files.words import printable

CONFIG_FILE = "config.json"
# A change of these does not change what is trained; all else is refused when a
# run is resumed.
FREE_KEYS = (
  "config.data.dir",
  "config.data.build_command",
  "config.data.threads",
  "config.data.processes",
  "config.data.validation_split",
  "config.data.test_split",
  "config.train.log_every",
  "config.train.validate_every",
  "config.train.checkpoint_every",
  "config.train.keep_checkpoints",
  "config.train.max_skipped_steps",
  "config.eval",
  "config.fusion",
  "config.report",
  # Of the splits that are trained on, see `_decides`.
  "dataset.clips",
  "dataset.digest",
  "second_dataset.clips",
  "second_dataset.digest",
)
# What the choice of a checkpoint depends on, where the config has one.
_OF_SELECTION = (
  "config.data.validation_split",
  "config.train.validate_every",
  "config.eval.crop_fraction",
)

_DIGEST_HINT = (
  " The dataset was built again: a split whose digest differs has other ids,"
  " labels or images than those that were trained on."
)


class ConfigMismatchError(ValueError):
  """The workdir was begun with other settings."""


def require_writable(folder: Path, flag: str) -> None:
  """Raises OSError where a folder can't be made or written to.

  It is found out before hours of work, and nothing is made.

  Args:
    folder: Folder that is written to later.
    flag: Name of the flag that names it, for the message.
  """
  found = folder.absolute()
  try:
    while not found.exists():
      if found.is_symlink():
        raise FileNotFoundError(errno.ENOENT, "a link to nothing")
      found = found.parent
    with tempfile.TemporaryFile(dir=found):
      return
  except OSError as error:
    raise OSError(
      f"--{flag}={folder}: can't write to {found} ({error.strerror}); name"
      f" another folder with --{flag}=DIR"
    ) from error


def check_config_file(
  workdir: Path, settings: Mapping[str, Any], *, to_train: bool = True
) -> None:
  """Compares the settings with those that the run was begun with, if it was.

  Args:
    workdir: folder of the run.
    settings: {"config": the resolved config, "dataset": what it is trained on,
      "second_dataset": the same of a second head, if there is one}.
    to_train: Whether what the choice of checkpoints depends on counts as well.

  Raises:
    ConfigMismatchError: a setting that training depends on differs; the message
      names every such key with both values.
    JsonError: the file can't be read.
  """
  path = workdir / CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples compare equal to what a file gives back.
  ours = flatten(json.loads(json.dumps(settings)))
  theirs = flatten(json_files.read_object(path))
  decisive = _decisive(settings["config"], to_train)
  changed = [
    f"  {printable(key)}: {theirs.get(key)!r} in the workdir,"
    f" {ours.get(key)!r} now"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key)
    and (key in decisive or not _is_free(key))
    # Earlier versions wrote fewer facts of the datasets.
    and (key in theirs or not key.startswith(("dataset.", "second_dataset.")))
  ]
  if changed:
    raise ConfigMismatchError(
      f"{workdir} was begun with other settings:\n"
      + "\n".join(changed)
      + "\nUse the old settings, or another --workdir."
      + _DIGEST_HINT * any("dataset.digest" in line for line in changed)
    )


def _decisive(config: Mapping[str, Any], to_train: bool) -> set[str]:
  """Keys below `FREE_KEYS` that this run depends on after all."""
  data = config["data"]
  splits, keys = {data["train_split"]}, set()
  if to_train and config["selection"]["metric"]:
    splits.add(data["validation_split"])
    keys.update(_OF_SELECTION)
  for split in splits:
    keys |= {f"dataset.clips.{split}", f"dataset.digest.{split}"}
  for fact in ("clips", "digest"):  # Other splits of it are not read.
    keys.add(f"second_dataset.{fact}.{data['train_split']}")
  return keys


def write_config(workdir: Path, settings: Mapping[str, Any]) -> None:
  """Writes config.json; the settings are those of `check_config_file`."""
  write_text(workdir / CONFIG_FILE, _config_text(settings))


def is_written(workdir: Path, settings: Mapping[str, Any]) -> bool:
  """Whether config.json is what `write_config` would write."""
  path = workdir / CONFIG_FILE
  return path.exists() and path.read_text() == _config_text(settings)


def _config_text(settings: Mapping[str, Any]) -> str:
  return json.dumps(settings, indent=2) + "\n"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Settings by their whole names, such as "optim.learning_rate"."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _is_free(key: str) -> bool:
  return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def write_text(path: Path, text: str) -> None:
  """Writes a file as a whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replaced(path) as temporary:
    temporary.write_text(text)


def features_path(
  workdir: Path, stage: str, feature: str, split: str, dense: bool = False
) -> Path:
  """Where the features of a stream are, for the stages that read them.

  Args:
    workdir: folder of the run.
    stage: name of the stream.
    feature: its name.
    split: of the dataset.
    dense: whether of every window, for the protocol "dense".
  """
  name = f"{stage}-{feature}-dense" if dense else f"{stage}-{feature}"
  name, split = files.name_from_file(name), files.name_from_file(split)
  return workdir / "features" / name / split


def scores_path(workdir: Path, name: str, split: str) -> Path:
  """Where the scores of a stage or a fusion rule are."""
  return workdir / "scores" / files.name_from_file(f"{name}-{split}.npz")
