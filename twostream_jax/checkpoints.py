"""Checkpoints with Orbax: train state and position in the data, together."""

import contextlib
import copy
import dataclasses
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

# Where checkpoints go that can't be read, beside the folder of the others.
DAMAGED = "damaged_checkpoints"
_PROGRESS_FILE = "progress.json"


class CheckpointError(RuntimeError):
  """A checkpoint can't be written, or does not fit the model that needs it."""


class Restored(NamedTuple):
  """What `restore_newest` found.

  Attributes:
    step: batches seen.
    state: as it was saved, NumPy arrays.
    progress: as it was saved.
  """

  step: int
  state: Any
  progress: dict[str, Any]


def open_manager(
  directory: str | os.PathLike, *, keep: int
) -> ocp.CheckpointManager:
  """Opens a stage's checkpoint folder, made if missing.

  A save that was cut off is not listed: Orbax writes under a temporary name
  and renames. What it left behind is removed here.

  Args:
    directory: `workdir/<stage>/checkpoints`.
    keep: how many of the newest checkpoints stay. The best of those that were
      saved with a score stays as well.
  """
  options = ocp.CheckpointManagerOptions(
    preservation_policy=_NewestAndBest(Path(directory), keep),
    create=True,
    cleanup_tmp_directories=True,
    # The caller decides when; Orbax is not to skip a step it is asked for.
    save_interval_steps=1,
  )
  return ocp.CheckpointManager(
    Path(directory).absolute(),
    options=options,
    item_handlers=_handlers(),
  )


def open_reader(directory: str | os.PathLike) -> ocp.CheckpointManager:
  """Opens a checkpoint folder; nothing is made or removed.

  Another process may be saving there, or the disk may be read-only.
  """
  return ocp.CheckpointManager(
    Path(directory).absolute(),
    options=ocp.CheckpointManagerOptions(read_only=True),
    item_handlers=_handlers(),
  )


def _handlers() -> dict[str, ocp.CheckpointHandler]:
  return {
    "state": ocp.StandardCheckpointHandler(),
    "progress": ocp.JsonCheckpointHandler(filename=_PROGRESS_FILE),
    "metadata": ocp.JsonCheckpointHandler(),
  }


@dataclasses.dataclass(frozen=True)
class _NewestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps some of the newest checkpoints and the best of those with a score."""

  directory: Path
  keep: int

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self.keep :], _best(_ranks(self.directory, steps))}
    return [step in kept for step in steps]


def _ranks(
  directory: Path, steps: Iterable[int]
) -> dict[int, tuple[float, int] | None]:
  """By step: its score, and an earlier one before a later one of the same."""
  ranks = {}
  for step in steps:
    # Not Orbax's own metrics: where one is damaged it opens no checkpoint.
    path = directory / str(step) / "progress" / _PROGRESS_FILE
    with contextlib.suppress(OSError, ValueError, KeyError):
      score = json.loads(path.read_text())["score"]
      ranks[step] = None if score is None else (score, -step)
  return ranks


def _best(ranks: Mapping[int, tuple[float, int] | None]) -> int | None:
  """The step of the highest rank, if any has one."""
  ranked = {step: rank for step, rank in ranks.items() if rank is not None}
  return max(ranked, key=ranked.get) if ranked else None


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  progress: Mapping[str, Any],
  metadata: Mapping[str, Any],
  score: float | None = None,
) -> None:
  """Starts to save; training may go on, for everything is copied first.

  Args:
    manager: of the stage.
    step: batches seen.
    state: tree of arrays of one replica.
    progress: JSON-ready; what else training needs to go on as if it had not
      stopped: position in the data, random key, unfinished sums.
    metadata: JSON-ready facts that give the weights their meaning (FlowSpec,
      class names, settings).
    score: how good the state is; the highest is the best.

  Raises:
    CheckpointError: the disk is full, or this or the save before failed in
      another way.
  """
  # A thread writes it later, when training has changed what it was given.
  progress, metadata = copy.deepcopy((dict(progress), dict(metadata)))
  with _explaining(manager):
    _check_room(manager, state)
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        progress=ocp.args.JsonSave(progress | {"score": score}),
        metadata=ocp.args.JsonSave(metadata),
      ),
    )


def _check_room(manager, state) -> None:
  """Raises OSError before anything is written, where it would not fit."""
  needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
  free = shutil.disk_usage(manager.directory).free
  if free < needed:
    raise OSError(
      errno.ENOSPC,
      f"{os.strerror(errno.ENOSPC)}: {needed >> 20} MiB are needed,"
      f" {free >> 20} MiB free",
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until the last save is on the disk.

  Raises:
    CheckpointError: it failed.
  """
  with _explaining(manager):
    manager.wait_until_finished()


@contextlib.contextmanager
def _explaining(manager: ocp.CheckpointManager) -> Iterator[None]:
  try:
    yield
  except Exception as error:
    # The failed step must not be taken for a good one.
    manager.reload()
    last = manager.latest_step()
    good = "none" if last is None else f"of step {last}"
    raise CheckpointError(
      f"a checkpoint could not be written to {manager.directory}:"
      f" {_first_line(error)}\nThe last good one is {good}. Make room on the"
      " disk or mend its cause, and run again: training goes on from there."
    ) from error


def _first_line(error: BaseException) -> str:
  full = os.strerror(errno.ENOSPC)
  if full in str(error) and not isinstance(error, OSError):
    return full  # The rest is of how the storage library is built.
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0][:300]}" if lines else repr(error)


def restore_newest(
  manager: ocp.CheckpointManager, state: Any
) -> Restored | None:
  """Restores the newest checkpoint that is whole.

  One that can't be read (cut off by a crash of the machine, for example) is
  moved to the folder `DAMAGED`, with a warning, and the one before is taken.

  Args:
    manager: of the stage.
    state: tree of the shapes and types that are expected.

  Returns:
    None where there is no checkpoint, or none that is whole.

  Raises:
    CheckpointError: the saved tree has other keys or shapes.
  """
  template = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state
  )
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      return _restore(manager, step, template)
    except CheckpointError:
      raise
    except Exception as error:
      moved = _set_aside(manager, step)
      warnings.warn(
        f"checkpoint {step} in {manager.directory} can't be read"
        f" ({_first_line(error)}); it is now {moved}, and training goes on"
        " from the one before",
        stacklevel=2,
      )
  return None


def _restore(manager, step: int, template) -> Restored:
  _check_fits(manager, step, template)
  found = manager.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(template),
      progress=ocp.args.JsonRestore(),
      # Not used here, but a checkpoint without it is not whole.
      metadata=ocp.args.JsonRestore(),
    ),
  )
  return Restored(step, jax.device_get(found["state"]), found["progress"])


def _set_aside(manager, step: int) -> Path:
  source = Path(manager.directory) / str(step)
  target = source.parent.parent / DAMAGED / f"{step}"
  if jax.process_index() == 0:
    target.parent.mkdir(exist_ok=True)
    taken = len(list(target.parent.glob(f"{step}*")))
    target = target.with_name(f"{step}-{taken}" if taken else f"{step}")
    source.rename(target)
  if jax.process_count() > 1:
    jax.experimental.multihost_utils.sync_global_devices("set aside")
  manager.reload()
  return target


def chosen_step(manager: ocp.CheckpointManager) -> int | None:
  """The checkpoint whose weights count: the best one, else the newest.

  Only checkpoints that were saved with a score are compared.
  """
  best = _best(_ranks(Path(manager.directory), manager.all_steps()))
  return manager.latest_step() if best is None else best


def restore_variables(
  manager: ocp.CheckpointManager, step: int | None = None
) -> dict[str, Any]:
  """Variables to predict with, of a step or of the checkpoint that counts.

  They are "params" (their average, if one was kept) and "batch_stats", NumPy.

  Raises:
    CheckpointError: there is no checkpoint, or it can't be read.
  """
  step = chosen_step(manager) if step is None else step
  if step is None:
    raise CheckpointError(f"no checkpoint in {manager.directory}")
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  try:
    state = jax.device_get(manager.restore(step, args=args)["state"])
  except Exception as error:
    raise CheckpointError(
      f"checkpoint {step} in {manager.directory} can't be read"
      f" ({_first_line(error)}); remove it and train the stage again"
    ) from error
  return {
    "params": state["ema_params"] or state["params"],
    "batch_stats": state["batch_stats"],
  }


def _check_fits(manager, step, template) -> None:
  # Orbax itself would cut or pad an array to the shape that is asked for.
  saved = _shapes(manager.item_metadata(step)["state"])
  if not saved:
    raise ValueError("the list of its arrays is missing")
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


def read_metadata(
  directory: str | os.PathLike,
) -> tuple[Path, dict[str, Any]] | None:
  """The newest checkpoint's folder and metadata; None where there is none.

  It only reads. A checkpoint whose metadata can't be read is passed over, as it
  will be when training goes on. The directory may be missing.
  """
  if not Path(directory).exists():
    return None
  with open_reader(directory) as manager:
    for step in sorted(manager.all_steps(), reverse=True):
      args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
      with contextlib.suppress(OSError, ValueError, KeyError):
        metadata = manager.restore(step, args=args)["metadata"]
        return Path(manager.directory) / str(step), metadata
  return None
