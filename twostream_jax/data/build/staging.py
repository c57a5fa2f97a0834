"""The folder of an unfinished build: what is done stays done.

  plan.json                what is being built; another plan is refused
  sources.json             sizes of the files that it is built from
  clips/00000012.example   a finished record, serialised
  clips/00000012.json      its outcome, written last: the clip is finished
  clips/00000013.fault     why it could not be finished; for the end of a run
  shards/00000.data        the records of 256 clips, when all are finished
  shards/00000.index       where everything is in it
  shards/00000.json        their outcomes, by index; written last
  dataset/                 the files of the dataset, in the end
  finished                 says that those are complete

Every file is written under another name and renamed, so that a build that is
killed at any moment can be resumed. A clip that failed because of the
machine has no outcome, so that the next run tries it again.
"""

import collections
import contextlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from twostream_jax import files
from twostream_jax.data import record_index
from twostream_jax.data.build.plan import (
  Outcome,
  Plan,
  Source,
  has_changed,
  shard_file,
  write_info,
)
from twostream_jax.data.build.store import (
  Store,
  example_path,
  fault_path,
  outcome_path,
  read_outcome,
  shard_path,
  write_atomically,
  write_json,
)
from twostream_jax.data.dataset import dataset_files, index_path
from twostream_jax.files import json_files


class UnfinishedBuildError(ValueError):
  """The unfinished build in the folder can't be continued."""


def staging_files(name: str) -> tuple[str, ...]:
  """All that an unfinished build's folder holds, as regular expressions.

  Args:
    name: Name of the dataset.
  """
  return (
    r"(plan|sources)\.json|finished",
    r"clips/\d{8}\.(example|json|fault)",
    r"shards/\d{5}\.(data|index|json)",
    *(f"dataset/(?:{one})" for one in dataset_files(name)),
  )


class Staging:
  """The folder of an unfinished build; see `open_staging`.

  Attributes:
    folder: its path.
  """

  def __init__(self, folder: Path, plan: Plan):
    self.folder = folder
    self._plan = plan
    self._store = Store(folder, plan)
    self._shards = plan.shards()
    self._shard_of = {
      i: shard
      for shard, (_, indices) in enumerate(self._shards)
      for i in indices
    }
    self._take_back()
    self._count_left()
    for shard in range(len(self._shards)):
      if not self._left[shard]:
        self._pack_shard(shard)

  def store(self) -> Store:
    """Where results of clips are written."""
    return self._store

  def outcomes(self) -> dict[int, Outcome]:
    """How clips ended, by index; of the finished ones."""
    found = {}
    for shard in range(len(self._shards)):
      found |= self._shard_outcomes(shard)
    for path in (self.folder / "clips").glob("*.json"):
      found[int(path.stem)] = read_outcome(path)
    return found

  def unfinished(self) -> list[int]:
    """The clips that are not finished, in their order."""
    finished = self.outcomes()
    return [i for i in range(len(self._plan.clips)) if i not in finished]

  def faults(self) -> dict[int, str]:
    """Why clips are not finished, by index."""
    found = {}
    for i in self.unfinished():
      path = fault_path(self.folder, i)
      known = path.exists()
      found[i] = json_files.read(path) if known else "not tried"
    return found

  def forget(self, indices: Collection[int]) -> None:
    """Makes clips unfinished; the others of their shards stay finished."""
    for shard in sorted({self._shard_of[i] for i in indices}):
      self._unpack_shard(shard)
    for i in indices:
      outcome_path(self.folder, i).unlink(missing_ok=True)
      example_path(self.folder, i).unlink(missing_ok=True)
    self._count_left()

  def mark_finished(self, index: int) -> None:
    """Packs the shard of a finished clip when it was the last one there."""
    shard = self._shard_of[index]
    self._left[shard] -= 1
    if not self._left[shard]:
      self._pack_shard(shard)

  def unpacked(self) -> dict[int, list[int]]:
    """The clips of each shard that is not packed; some may be finished."""
    return {
      shard: indices
      for shard, (_, indices) in enumerate(self._shards)
      if not shard_path(self.folder, shard, "json").exists()
    }

  def _pack_shard(self, shard: int) -> None:
    _, indices = self._shards[shard]
    self._store.pack_shard(shard, indices)

  def _unpack_shard(self, shard: int) -> None:
    """Undoes `Store.pack_shard`; a kill before its end changes nothing."""
    done = shard_path(self.folder, shard, "json")
    if not done.exists():
      return
    found = record_index.read_records(shard_path(self.folder, shard, "data"))
    # In the order of the records.
    for i, outcome in self._shard_outcomes(shard).items():
      if outcome.reason is None:
        write_atomically(example_path(self.folder, i), next(found))
      write_json(outcome_path(self.folder, i), vars(outcome))
    found.close()
    done.unlink()

  def finish(self) -> Path:
    """Makes the files of the dataset from the shards; returns their folder."""
    folder = self.folder / "dataset"
    folder.mkdir(exist_ok=True)
    lengths, sizes = collections.defaultdict(list), collections.Counter()
    indices = collections.defaultdict(list)
    for shard, split, used, target in self._targets():
      shard_path(self.folder, shard, "data").rename(target)
      indices[split].append(
        record_index.read_index(shard_path(self.folder, shard, "index"))
      )
      lengths[split].append(len(used))
      sizes[split] += sum(outcome.size for outcome in used)
    for split, parts in indices.items():
      path = index_path(folder, self._plan.name, split)
      record_index.write_index(record_index.join(parts), path)
    write_info(self._plan, folder, self.outcomes(), lengths, sizes)
    write_json(self.folder / "finished", True)
    return folder

  def _targets(self) -> Iterator[tuple[int, str, list[Outcome], Path]]:
    """Shards with records: split, their outcomes, their file's last place."""
    numbers = collections.Counter()
    for shard, (split, _) in enumerate(self._shards):
      outcomes = self._shard_outcomes(shard).values()
      if used := [o for o in outcomes if o.reason is None]:
        number = numbers[split]
        folder = self.folder / "dataset"
        yield shard, split, used, shard_file(self._plan, folder, split, number)
        numbers[split] += 1

  def _take_back(self) -> None:
    """Undoes a `finish` that was cut off."""
    folder = self.folder / "dataset"
    if folder.exists():
      # First: it says that the folder may be removed.
      (self.folder / "finished").unlink(missing_ok=True)
      for shard, _, _, target in self._targets():
        if target.exists():
          target.rename(shard_path(self.folder, shard, "data"))
      files.remove_folder(folder, dataset_files(self._plan.name))

  def _count_left(self) -> None:
    self._left = collections.Counter(
      self._shard_of[i] for i in self.unfinished()
    )

  def _shard_outcomes(self, shard: int) -> dict[int, Outcome]:
    path = shard_path(self.folder, shard, "json")
    if not path.exists():
      return {}
    outcomes = json_files.read_object(path)
    with json_files.told(path):
      return {int(i): Outcome(**values) for i, values in outcomes.items()}


@contextlib.contextmanager
def only_build(lock: Path) -> Iterator[None]:
  """Keeps other builds away while it is held, also after a kill of this one.

  Raises:
    UnfinishedBuildError: another build holds it.
  """
  was_there = lock.parent.exists()
  lock.parent.mkdir(parents=True, exist_ok=True)
  try:
    with files.locked(lock) as held:
      if not held:
        raise UnfinishedBuildError(
          f"another build of this dataset is running ({lock}); wait for it"
        )
      yield
  finally:
    if not was_there:
      with contextlib.suppress(OSError):
        lock.parent.rmdir()  # Where nothing was built.


def open_staging(
  folder: Path, plan: Plan, sources: Sequence[Source]
) -> Staging:
  """Begins a build in a folder, or resumes the one that is there.

  Clips whose files have changed since, or are there now and were not, are
  unfinished again.

  Args:
    folder: for the unfinished build.
    plan: of the build.
    sources: of its clips.

  Raises:
    UnfinishedBuildError: an unfinished build there has another plan.
    ForeignFileError: there is a file that no build wrote; in the end the folder
      is removed.
  """
  path = folder / "sources.json"
  if os.path.lexists(folder):
    files.require_own(folder, staging_files(plan.name))
    begun = (folder / "plan.json").exists()
    changed = _changed_settings(folder, plan) if begun else []
    if changed and _holds_work(folder):
      raise UnfinishedBuildError(
        f"{folder} holds an unfinished build with other settings:\n"
        + "\n".join(changed)
        + "\nGive the old ones again to resume it, or remove that folder."
      )
    if changed or not begun:
      # Nothing is lost.
      files.remove_folder(folder, staging_files(plan.name))
  for name in ("clips", "shards"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  if not (folder / "plan.json").exists():
    write_json(path, sources, indent=None)
    write_json(folder / "plan.json", plan.fingerprint())
  for pattern in (".*", "*/.*", "clips/*.fault"):
    for leftover in folder.glob(pattern):
      if not leftover.is_dir():
        leftover.unlink()
  staging = Staging(folder, plan)
  before = json_files.read(path)
  with json_files.told(path):
    pairs = list(zip(before, sources, strict=True))
  staging.forget([i for i, pair in enumerate(pairs) if has_changed(*pair)])
  todo = set(staging.unfinished())
  # What a finished clip was made from stays, also while its file is away.
  merged = [new if i in todo else old for i, (old, new) in enumerate(pairs)]
  if merged != before:
    write_json(path, merged, indent=None)
  return staging


def remove_if_installed(folder: Path, name: str) -> None:
  """Removes what is left of a build whose dataset was moved to its place."""
  if (folder / "finished").exists() and not (folder / "dataset").exists():
    files.remove_folder(folder, staging_files(name))


def _changed_settings(folder: Path, plan: Plan) -> list[str]:
  ours = json.loads(json.dumps(plan.fingerprint()))
  theirs = json_files.read_object(folder / "plan.json")
  return [
    f"  {key}: {theirs.get(key)!r} there, {ours.get(key)!r} now"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key)
  ]


def _holds_work(folder: Path) -> bool:
  return any(folder.glob("clips/*.example")) or any(
    folder.glob("shards/*.json")
  )
