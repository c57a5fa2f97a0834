"""The folder of a run: where files are, and how they are written."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twostream_jax import files, json_files

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
  "config.train",
  "config.eval",
  "config.fusion",
  "config.report",
  # Runs of earlier versions do not state it.
  "dataset.rgb_quality",
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
      found = found.parent
    with tempfile.TemporaryFile(dir=found):
      return
  except OSError as error:
    raise OSError(
      f"--{flag}={folder}: can't write to {found} ({error.strerror}); name"
      f" another folder with --{flag}=DIR"
    ) from error


def check_config_file(workdir: Path, settings: Mapping[str, Any]) -> None:
  """Compares the settings with those that the run was begun with, if it was.

  Args:
    workdir: folder of the run.
    settings: {"config": the resolved config, "dataset": what it is trained on}.

  Raises:
    ConfigMismatchError: a setting outside `FREE_KEYS` differs; the message
      names every such key with both values.
    JsonError: the file can't be read.
  """
  path = workdir / CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples compare equal to what a file gives back.
  ours = _flatten(json.loads(json.dumps(settings)))
  theirs = json_files.read(path)
  if not isinstance(theirs, dict):
    raise json_files.JsonError(f"{path} can't be read: it holds no settings")
  theirs = _flatten(theirs)
  changed = [
    f"  {key}: {theirs.get(key)!r} in the workdir, {ours.get(key)!r} now"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and not _is_free(key)
  ]
  if changed:
    raise ConfigMismatchError(
      f"{workdir} was begun with other settings:\n"
      + "\n".join(changed)
      + "\nUse the old settings, or another --workdir."
    )


def write_config(workdir: Path, settings: Mapping[str, Any]) -> None:
  """Writes config.json: {"config": the resolved config, "dataset": ...}."""
  write_text(workdir / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}.")
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
  return workdir / "features" / name / split


def scores_path(workdir: Path, name: str, split: str) -> Path:
  """Where the scores of a stage or a fusion rule are."""
  return workdir / "scores" / f"{name}-{split}.npz"
