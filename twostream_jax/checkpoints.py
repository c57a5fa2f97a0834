"""Checkpoints with Orbax: train state and data iterator, together."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp


class CheckpointError(RuntimeError):
  """A checkpoint does not fit the model that is to go on from it."""


def open_manager(
  directory: str | os.PathLike, *, keep: int
) -> ocp.CheckpointManager:
  """Opens a stage's checkpoint folder, made if missing.

  A save that was cut off is not listed: Orbax writes under a temporary name
  and renames. What it left behind is removed here.

  Args:
    directory: `workdir/<stage>/checkpoints`.
    keep: how many of the newest checkpoints stay.
  """
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    create=True,
    cleanup_tmp_directories=True,
    # The caller decides when; Orbax is not to skip a step it is asked for.
    save_interval_steps=1,
  )
  return ocp.CheckpointManager(
    Path(directory).absolute(),
    options=options,
    item_handlers={
      "state": ocp.StandardCheckpointHandler(),
      "data": grain.checkpoint.CheckpointHandler(),
      "metadata": ocp.JsonCheckpointHandler(),
    },
  )


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  iterator: grain.DatasetIterator,
  metadata: Mapping[str, Any],
) -> None:
  """Starts to save; training may go on, for everything is copied first.

  Args:
    manager: of the stage.
    step: optimiser updates done.
    state: tree of arrays of one replica.
    iterator: position in the data, after the batch of this step.
    metadata: JSON-ready facts that give the weights their meaning (FlowSpec,
      class names).
  """
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=grain.checkpoint.CheckpointSave(iterator),
      metadata=ocp.args.JsonSave(dict(metadata)),
    ),
  )


def restore(
  manager: ocp.CheckpointManager,
  state: Any,
  iterator: grain.DatasetIterator | None,
) -> Any:
  """Restores the newest checkpoint.

  Args:
    manager: of the stage; it must have a checkpoint.
    state: tree of the shapes and types that are expected.
    iterator: set to the saved position; None leaves the data alone.

  Returns:
    The saved state, as NumPy arrays.

  Raises:
    CheckpointError: the saved tree has other keys or shapes.
  """
  step = manager.latest_step()
  template = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state
  )
  _check_fits(manager, step, template)
  items = {"state": ocp.args.StandardRestore(template)}
  if iterator is not None:
    items["data"] = grain.checkpoint.CheckpointRestore(iterator)
  restored = manager.restore(step, args=ocp.args.Composite(**items))
  return jax.device_get(restored["state"])


def restore_variables(manager: ocp.CheckpointManager) -> dict[str, Any]:
  """Params and batch statistics of the newest checkpoint, as NumPy arrays.

  Raises:
    CheckpointError: there is no checkpoint.
  """
  step = manager.latest_step()
  if step is None:
    raise CheckpointError(f"no checkpoint in {manager.directory}")
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  state = jax.device_get(manager.restore(step, args=args)["state"])
  return {"params": state["params"], "batch_stats": state["batch_stats"]}


def _check_fits(manager, step, template) -> None:
  # Orbax itself would cut or pad an array to the shape that is asked for.
  saved = _shapes(manager.item_metadata(step)["state"])
  expected = _shapes(template)
  differing = [
    f"  {key}: {saved.get(key, 'not there')} in the checkpoint,"
    f" {expected.get(key, 'not there')} in the model"
    for key in sorted(saved.keys() | expected.keys())
    if saved.get(key) != expected.get(key)
  ]
  if differing:
    shown = differing[:10] + ["  ..."] * (len(differing) > 10)
    raise CheckpointError(
      f"checkpoint {step} in {manager.directory} does not fit this model:"
      f" {len(differing)} arrays differ\n" + "\n".join(shown)
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }


def restore_metadata(manager: ocp.CheckpointManager) -> dict[str, Any]:
  """The metadata saved with the newest checkpoint."""
  args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
  return manager.restore(manager.latest_step(), args=args)["metadata"]


def read_metadata(
  directory: str | os.PathLike,
) -> tuple[Path, dict[str, Any]] | None:
  """The newest checkpoint's folder and metadata; None where there is none.

  It only reads: nothing is made or removed, so that another process may be
  saving in the folder.

  Args:
    directory: `workdir/<stage>/checkpoints`, which may be missing.
  """
  if not Path(directory).exists():
    return None
  with ocp.CheckpointManager(
    Path(directory).absolute(),
    options=ocp.CheckpointManagerOptions(read_only=True),
    item_handlers={"metadata": ocp.JsonCheckpointHandler()},
  ) as manager:
    step = manager.latest_step()
    if step is None:
      return None
    return Path(manager.directory) / str(step), restore_metadata(manager)
