"""Checkpoints with Orbax: train state and position in the data, together."""

import contextlib
import copy
import dataclasses
import errno
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from twostream_jax.files import json_files, orbax_trees, words

# Where checkpoints go that can't be read, beside the folder of the others.
DAMAGED = "damaged_checkpoints"
_PROGRESS_FILE = "progress.json"
_METADATA_FILE = "metadata/metadata"
# Of what is saved of a state, all that is needed to predict.
_TREES = {"params", "batch_stats", "ema_params"}
# Runs of earlier versions lack this one.
_AVERAGED = "ema_batch_stats"
# Bytes of Orbax's facts of a checkpoint, which has some hundred of them.
_LONGEST_LIST = 2**20
# Times that a reader lists a folder in which another process saves.
_LISTINGS = 10


class CheckpointError(RuntimeError):
  """A checkpoint can't be written, or does not fit the model that needs it."""


class Restored(NamedTuple):
  """What `restore_newest` found.

  Attributes:
    step: batches seen.
    state: as it was saved, NumPy arrays.
    progress: as it was saved.
    metadata: as it was saved.
  """

  step: int
  state: Any
  progress: dict[str, Any]
  metadata: dict[str, Any]


def open_manager(
  directory: str | os.PathLike, *, keep: int
) -> ocp.CheckpointManager:
  """Opens a stage's checkpoint folder, made if missing.

  For the one process (or processes of one run) that trains the stage; all
  others take `open_reader`. A save that was cut off is not listed: Orbax writes
  under a temporary name and renames. What it left behind is removed here, and
  so are old checkpoints that it had still to remove.

  Args:
    directory: `workdir/<stage>/checkpoints`.
    keep: Number of the newest scheduled checkpoints that stay. The best of
      those with a score stays as well, and so does the newest of all.
  """
  policy = _NewestAndBest(Path(directory), keep)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy,
    create=True,
    cleanup_tmp_directories=True,
    # The caller decides when; Orbax is not to skip a step it is asked for.
    save_interval_steps=1,
  )
  manager = ocp.CheckpointManager(
    Path(directory).absolute(),
    options=options,
    item_handlers=_handlers(),
  )
  # All processes have listed the same before the first one removes anything.
  _wait_for_processes("opened checkpoints")
  for step in _displaced(manager, keep):
    manager.delete(step)
  return manager


def finish_removals(directory: str | os.PathLike, *, keep: int) -> None:
  """Removes what training would have removed, had it not been ended just then.

  For a stage that is trained to its end, which is not opened to train again.
  Where nothing is left to remove, nothing is written.

  Args:
    directory: `workdir/<stage>/checkpoints`.
    keep: as for `open_manager`.

  Raises:
    CheckpointError: the folder can't be read.
  """
  with open_reader(directory) as reader:
    displaced = _displaced(reader, keep)
  if displaced:
    open_manager(directory, keep=keep).close()


def _displaced(manager: ocp.CheckpointManager, keep: int) -> list[int]:
  """The steps that newer or better ones have displaced."""
  steps = manager.all_steps()
  kept = _kept(_read_facts(Path(manager.directory), steps), keep)
  return sorted(set(steps) - kept)


def _wait_for_processes(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def open_reader(directory: str | os.PathLike) -> ocp.CheckpointManager:
  """Opens a checkpoint folder to read; nothing is made or removed.

  Another process may be saving there, or the disk may be read-only. The folder
  may be missing: it then has no checkpoints.

  Raises:
    CheckpointError: What lies there is not a list of checkpoints, or one of
      them has links: whoever wrote it would choose what else is read.
  """
  directory = Path(directory)
  names = os.listdir(directory) if directory.is_dir() else ()
  for name in filter(str.isdigit, names):
    _check_files(directory / name)
  return _open_to_read(directory)


def _open_to_read(directory: Path) -> ocp.CheckpointManager:
  failure: Exception | None = None
  for _ in range(_LISTINGS):
    try:
      return ocp.CheckpointManager(
        directory.absolute(),
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers=_handlers(),
      )
    # One was removed between its name and its time: list again.
    except FileNotFoundError as error:
      failure = error
    # Orbax has errors of any kind for damaged files.
    except Exception as error:
      failure = error
      break
  assert failure is not None
  raise CheckpointError(
    f"checkpoints in {directory} can't be read ({_first_line(failure)})"
  ) from failure


def _check_files(folder: Path) -> None:
  paths = [folder]
  for parent, folders, names in os.walk(folder):
    paths += [Path(parent, name) for name in (*folders, *names)]
  for path in paths:
    if path.is_symlink():
      raise CheckpointError(
        f"{words.printable(str(path))} is a link, and what it leads to is not"
        " read: copy that to its place"
      )
  # Orbax reads it as soon as the folder is opened.
  with contextlib.suppress(FileNotFoundError):
    path = folder / "_CHECKPOINT_METADATA"
    if path.stat().st_size > _LONGEST_LIST:
      raise CheckpointError(f"{words.printable(str(path))} can't be read")


def _handlers() -> dict[str, ocp.CheckpointHandler]:
  return {
    "state": ocp.StandardCheckpointHandler(),
    "progress": ocp.JsonCheckpointHandler(filename=_PROGRESS_FILE),
    "metadata": ocp.JsonCheckpointHandler(),
  }


class _Facts(NamedTuple):
  """What decides whether a checkpoint stays.

  Attributes:
    score: None without one.
    scheduled: whether a run saves it that nothing interrupts.
  """

  score: float | None = None
  scheduled: bool = True


@dataclasses.dataclass(frozen=True)
class _NewestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps some of the newest checkpoints and the best of those with a score."""

  directory: Path
  keep: int

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    facts = _read_facts(self.directory, steps)
    for checkpoint in checkpoints:
      # The one that is being saved may have no file yet.
      if checkpoint.metrics is not None:
        facts[checkpoint.step] = _Facts(**checkpoint.metrics)
    kept = _kept(facts, self.keep)
    return [step in kept for step in steps]


def _kept(facts: Mapping[int, _Facts], keep: int) -> set[int]:
  """The steps that stay.

  A checkpoint that only an interruption made stays while it is the newest. It
  displaces no other, so that those that stay in the end are those of a run that
  was never interrupted.
  """
  scheduled = sorted(step for step in facts if facts[step].scheduled)
  kept = {*scheduled[-keep:], max(facts, default=None), _best(facts)}
  return kept - {None}


def _read_facts(directory: Path, steps: Iterable[int]) -> dict[int, _Facts]:
  """The facts of checkpoints by step."""
  facts = {}
  for step in steps:
    # One that is damaged, or whose removal was cut off, displaces no other.
    facts[step] = _Facts(scheduled=False)
    # Not Orbax's own metrics: where one is damaged it opens no checkpoint.
    path = directory / str(step) / "progress" / _PROGRESS_FILE
    with contextlib.suppress(json_files.JsonError):
      progress = json_files.read_object(path)
      with json_files.told(path):
        score = progress["score"]
        # Runs of earlier versions do not state the second.
        scheduled = progress.get("scheduled", True)
        score = None if score is None else float(score)
        facts[step] = _Facts(score, bool(scheduled))
  return facts


def _best(facts: Mapping[int, _Facts]) -> int | None:
  """The step of the highest score, the first of equals; None without any."""
  # A NaN compares with nothing: it would win or lose by its place.
  scores = {
    step: fact.score
    for step, fact in facts.items()
    if fact.score is not None and not math.isnan(fact.score)
  }
  return max(scores, key=lambda step: (scores[step], -step), default=None)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  progress: Mapping[str, Any],
  metadata: Mapping[str, Any],
  score: float | None = None,
  scheduled: bool = True,
) -> None:
  """Starts to save; training may continue, as everything is copied first.

  Args:
    manager: of the stage.
    step: batches seen.
    state: tree of arrays of one replica.
    progress: JSON-ready; what else training needs to continue as if it had not
      stopped: position in the data, random key, unfinished sums.
    metadata: JSON-ready facts that give the weights their meaning (FlowSpec,
      class names, settings).
    score: Score of the state, of which more is better; None without one.
    scheduled: Whether a run saves here that nothing interrupts. See `_kept`.

  Raises:
    CheckpointError: the disk is full, or this or the save before failed in
      another way.
  """
  # A thread writes it later, when training has changed what it was given.
  progress, metadata = copy.deepcopy((dict(progress), dict(metadata)))
  facts = _Facts(score, scheduled)._asdict()
  with _explaining(manager):
    _check_room(manager, state)
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        progress=ocp.args.JsonSave(progress | facts),
        metadata=ocp.args.JsonSave(metadata),
      ),
      # Kept in memory only, for the policy.
      metrics=facts,
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
      " disk or mend its cause, and run again: training resumes from there."
    ) from error


def _first_line(error: BaseException) -> str:
  full = os.strerror(errno.ENOSPC)
  if full in str(error) and not isinstance(error, OSError):
    return full  # The rest is of how the storage library is built.
  lines = str(error).strip().splitlines()
  said = f"{type(error).__name__}: {lines[0][:300]}" if lines else repr(error)
  return words.printable(said)


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
        f" ({_first_line(error)}); it is now {moved}, and training resumes"
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
      # A checkpoint without it is not whole.
      metadata=ocp.args.JsonRestore(),
    ),
  )
  state = jax.device_get(found["state"])
  return Restored(step, state, found["progress"], found["metadata"])


def _set_aside(manager, step: int) -> Path:
  source = Path(manager.directory) / str(step)
  target = source.parent.parent / DAMAGED / f"{step}"
  if jax.process_index() == 0:
    target.parent.mkdir(exist_ok=True)
    taken = len(list(target.parent.glob(f"{step}*")))
    target = target.with_name(f"{step}-{taken}" if taken else f"{step}")
    source.rename(target)
  _wait_for_processes("set aside")
  manager.reload()
  return target


def chosen_step(manager: ocp.CheckpointManager) -> int | None:
  """The checkpoint whose weights count: the best one, else the newest.

  Only checkpoints that were saved with a score are compared.
  """
  best = _best(_read_facts(Path(manager.directory), manager.all_steps()))
  return manager.latest_step() if best is None else best


def restore_variables(
  manager: ocp.CheckpointManager, step: int | None = None
) -> dict[str, Any]:
  """Variables to predict with, of a step or of the checkpoint that counts.

  They are "params" and "batch_stats", NumPy arrays: the averages of both, if
  they were kept.

  Raises:
    CheckpointError: there is no checkpoint, it can't be read, or it lacks the
      statistics of averaged parameters.
  """
  chosen = chosen_step(manager) if step is None else step
  if chosen is None:
    raise CheckpointError(f"no checkpoint in {manager.directory}")
  folder = Path(manager.directory) / str(chosen) / "state"
  try:
    state = orbax_trees.read(folder, _TREES | {_AVERAGED})
  except Exception as error:
    with open_reader(manager.directory) as again:
      if step is None and chosen_step(again) not in (None, chosen):
        # Whoever trains has removed it after saving the next one.
        return restore_variables(again)
    raise CheckpointError(
      f"checkpoint {chosen} in {manager.directory} can't be read"
      f" ({_first_line(error)}); remove it and train the stage again"
    ) from error
  if not set(state) >= _TREES:
    raise CheckpointError(
      f"checkpoint {chosen} in {manager.directory} lacks arrays that every"
      " checkpoint has; remove it and train the stage again"
    )
  if not state["ema_params"]:
    return {"params": state["params"], "batch_stats": state["batch_stats"]}
  averaged = state.get(_AVERAGED)
  if state["batch_stats"] and not averaged:
    raise CheckpointError(
      f"checkpoint {chosen} in {manager.directory} is of an earlier version: it"
      " has an average of the parameters, but not of the batch statistics that"
      " belong to it; train the stage again"
    )
  return {"params": state["ema_params"], "batch_stats": averaged}


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
      f"checkpoint {step} in {manager.directory} does not fit this model, or is"
      f" of another version of twostream_jax: {len(differing)} arrays differ\n"
      + "\n".join(shown)
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
  will be when training resumes. The directory may be missing.
  """
  if not Path(directory).exists():
    return None
  with open_reader(directory) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
      folder = Path(manager.directory) / str(step)
      with contextlib.suppress(json_files.JsonError):
        return folder, json_files.read_object(folder / _METADATA_FILE)
  with open_reader(directory) as again:
    if sorted(again.all_steps(), reverse=True) == steps:
      return None
  # Whoever trains has saved the next ones and removed these.
  return read_metadata(directory)
