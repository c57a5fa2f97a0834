"""The weights of a trained stage, with what gives them their meaning."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from twostream_jax import checkpoints, metric_logger
from twostream_jax.data.dataset import check_facts
from twostream_jax.files import json_files
from twostream_jax.selection import Selection


class TrainedRunError(ValueError):
  """A folder is not a finished run, or not a whole one."""


class TrainedWeights(NamedTuple):
  """Weights of one checkpoint.

  Attributes:
    step: Step of the checkpoint.
    variables: "params" and "batch_stats", NumPy arrays.
    metadata: JSON facts that were saved with them.
    digest: Identity of the arrays; see `digest`.
  """

  step: int
  variables: dict[str, Any]
  metadata: dict[str, Any]
  digest: str


def folder(workdir: Path, name: str) -> Path:
  """Folder of the checkpoints of a stage."""
  return workdir / name / "checkpoints"


def is_begun(name: str, workdir: Path) -> bool:
  """Whether a stage has a checkpoint."""
  return checkpoints.read_metadata(folder(workdir, name)) is not None


def is_finished(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> bool:
  """Whether a stage is trained to its end; False where it is not begun."""
  try:
    read_facts(config, name, workdir)
  except TrainedRunError:
    return False
  return True


def read(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  *,
  step: int | None = None,
  finished: bool = True,
) -> TrainedWeights:
  """Reads the selected checkpoint of a stage; nothing is written.

  Args:
    config: Settings of the run.
    name: Name of the stage.
    workdir: Folder of the run.
    step: Step of another checkpoint than the selected one.
    finished: Whether a half-trained stage is refused.

  Raises:
    TrainedRunError: The stage is not trained, or not to its end.
    CheckpointError: The checkpoint can't be read.
  """
  metadata = read_facts(config, name, workdir, finished=finished)
  with checkpoints.open_reader(folder(workdir, name)) as manager:
    variables = checkpoints.restore_variables(manager, step)
    # After: whoever trains may have removed the one that was selected before.
    step = checkpoints.chosen_step(manager) if step is None else step
  assert step is not None  # Something was restored.
  # Orbax gives back an empty tree as None.
  variables = {key: tree or {} for key, tree in variables.items()}
  return TrainedWeights(step, variables, metadata, digest(variables))


def read_facts(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  *,
  finished: bool = True,
) -> dict[str, Any]:
  """Metadata of a trained stage.

  Raises:
    TrainedRunError: It is not trained, or it is not finished and has to be, or
      its metadata states something else than facts of a dataset.
    JsonError: Its metrics can't be read.
  """
  directory = folder(workdir, name)
  found = checkpoints.read_metadata(directory)
  if found is None:
    raise TrainedRunError(
      f"stage {name!r} of {workdir} is not trained: nothing in {directory}"
    )
  path, metadata = found
  try:
    check_facts(metadata, path)
  except ValueError as error:
    raise TrainedRunError(str(error)) from error
  if not finished:
    return metadata
  with checkpoints.open_reader(directory) as manager:
    newest = manager.latest_step()
  records = metric_logger.read_metrics(workdir / name)
  with json_files.told(workdir / name / metric_logger.FILENAME):
    selection = Selection(
      config.selection.metric,
      config.selection.patience,
      records,
      last_step=newest,
    )
  total = config[name].total_steps
  if newest < total and not selection.is_over():
    raise TrainedRunError(
      f"stage {name!r} of {workdir} is trained to step {newest} of {total};"
      " give the command of the run again to finish it"
    )
  return found[1]


def combined(digests: Iterable[str]) -> str:
  """Identity of a stage by the digests of all weights that it rests on."""
  return hashlib.sha256("".join(digests).encode()).hexdigest()


def digest(variables: Mapping[str, Any]) -> str:
  """SHA-256 of the paths, shapes, dtypes and values of a tree of arrays."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    array = np.ascontiguousarray(leaf)
    key = jax.tree_util.keystr(path, simple=True, separator="/")
    found.update(f"{key} {array.shape} {array.dtype}\n".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
  return found.hexdigest()
