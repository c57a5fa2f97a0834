"""The folder of an unfinished build: what is done stays done.

  plan.json                what is being built; another plan is refused
  clips/00000012.example   a finished record, serialised
  clips/00000012.json      its outcome, written last: the clip is finished
  shards/00000.data        the records of 256 clips, when all are finished
  shards/00000.index       where everything is in it
  shards/00000.json        their outcomes, by index; written last
  dataset/                 the files of the dataset, in the end
  finished                 says that those are complete

Every file is written under another name and renamed, so that a build that is
killed at any moment can go on.
"""

import collections
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from twostream_jax.data import record_index
from twostream_jax.data.check import Rejection
from twostream_jax.data.clips import (
  Clip,
  class_names,
  is_multi_label,
  labels_of,
)
from twostream_jax.data.dataset import Record, index_path, record_features
from twostream_jax.data.plan import Outcome, Plan, shard_file, write_info

# Images are compressed already; one record a chunk makes each random access.
_RECORD_OPTIONS = "group_size:1,uncompressed"


class UnfinishedBuildError(ValueError):
  """The unfinished build in the folder can't be continued."""


class Store:
  """Writes results of clips; can be sent to another process or machine.

  Attributes:
    folder: of the unfinished build; an absolute path, because another process
      has a current folder of its own.
  """

  def __init__(self, folder: Path, plan: Plan):
    self.folder = folder.absolute()
    self._names = class_names(plan.clips)
    self._multi_label = is_multi_label(plan.clips)

  def write(
    self, index: int, clip: Clip, result: Record | Rejection
  ) -> Outcome:
    """Makes a clip finished."""
    if isinstance(result, Rejection):
      outcome = Outcome(reason=result.reason)
    else:
      data = self._serialise(clip, result)
      _write_atomically(_example_path(self.folder, index), data)
      length = result.num_frames / result.fps
      outcome = Outcome(
        size=len(data), video_seconds=length, damaged=result.num_damaged
      )
    _write_json(_outcome_path(self.folder, index), vars(outcome))
    return outcome

  def is_finished(self, index: int) -> bool:
    """Whether a clip's result was written, and its shard is not packed."""
    return _outcome_path(self.folder, index).exists()

  def pack_shard(self, shard: int, indices: Sequence[int]) -> None:
    """Moves the clips of a shard, all of them finished, into one file."""
    done = _shard_path(self.folder, shard, "json")
    if not done.exists():
      outcomes = {
        i: _read_outcome(_outcome_path(self.folder, i)) for i in indices
      }
      examples = (
        _example_path(self.folder, i).read_bytes()
        for i, outcome in outcomes.items()
        if outcome.reason is None
      )
      data = _shard_path(self.folder, shard, "data")
      _write_records(data, examples)
      # While its bytes are in memory.
      record_index.write_index(
        record_index.index_file(data), _shard_path(self.folder, shard, "index")
      )
      _write_json(done, {str(i): vars(o) for i, o in outcomes.items()})
    for i in indices:
      _outcome_path(self.folder, i).unlink(missing_ok=True)
      _example_path(self.folder, i).unlink(missing_ok=True)

  def _serialise(self, clip: Clip, record: Record) -> bytes:
    indices = [self._names.index(name) for name in labels_of(clip)]
    label = indices if self._multi_label else indices[0]
    features = record_features(self._names, multi_label=self._multi_label)
    encoded = features.encode_example(vars(record) | {"label": label})
    serializer = tfds.core.example_serializer.ExampleSerializer(
      features.get_serialized_info()
    )
    # Fields are a map: by itself its order differs between processes.
    return serializer.get_tf_example(encoded).SerializeToString(
      deterministic=True
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
    self._left = collections.Counter(
      self._shard_of[i] for i in self.unfinished()
    )
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
      found[int(path.stem)] = _read_outcome(path)
    return found

  def unfinished(self) -> list[int]:
    """The clips that are not finished, in their order."""
    finished = self.outcomes()
    return [i for i in range(len(self._plan.clips)) if i not in finished]

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
      if not _shard_path(self.folder, shard, "json").exists()
    }

  def _pack_shard(self, shard: int) -> None:
    _, indices = self._shards[shard]
    self._store.pack_shard(shard, indices)

  def finish(self) -> Path:
    """Makes the files of the dataset from the shards; returns their folder."""
    folder = self.folder / "dataset"
    folder.mkdir(exist_ok=True)
    lengths, sizes = collections.defaultdict(list), collections.Counter()
    indices = collections.defaultdict(list)
    for shard, (split, _) in enumerate(self._shards):
      outcomes = self._shard_outcomes(shard).values()
      used = [outcome for outcome in outcomes if outcome.reason is None]
      if not used:
        continue
      target = shard_file(self._plan, folder, split, len(lengths[split]))
      source = _shard_path(self.folder, shard, "data")
      if source.exists():  # Otherwise it was moved before a kill.
        source.rename(target)
      indices[split].append(
        record_index.read_index(_shard_path(self.folder, shard, "index"))
      )
      lengths[split].append(len(used))
      sizes[split] += sum(outcome.size for outcome in used)
    for split, parts in indices.items():
      path = index_path(folder, self._plan.name, split)
      record_index.write_index(record_index.join(parts), path)
    write_info(self._plan, folder, self.outcomes(), lengths, sizes)
    (self.folder / "finished").touch()
    return folder

  def _shard_outcomes(self, shard: int) -> dict[int, Outcome]:
    path = _shard_path(self.folder, shard, "json")
    if not path.exists():
      return {}
    outcomes = json.loads(path.read_text())
    return {int(i): Outcome(**values) for i, values in outcomes.items()}


@contextlib.contextmanager
def only_build(lock: Path) -> Iterator[None]:
  """Keeps other builds away while it is held, also after a kill of this one.

  Raises:
    UnfinishedBuildError: another build holds it.
  """
  lock.parent.mkdir(parents=True, exist_ok=True)
  with open(lock, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      held = os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except (BlockingIOError, FileNotFoundError):
      held = False
    if not held:
      raise UnfinishedBuildError(
        f"another build of this dataset is running ({lock}); wait for it"
      )
    try:
      yield
    finally:
      lock.unlink()
      with contextlib.suppress(OSError):
        lock.parent.rmdir()  # Where nothing was built.


def open_staging(folder: Path, plan: Plan) -> Staging:
  """Begins a build in a folder, or goes on with the one that is there.

  Raises:
    UnfinishedBuildError: an unfinished build there has another plan.
  """
  if folder.exists() and not (folder / "plan.json").exists():
    shutil.rmtree(folder)  # Killed before it began.
  for name in ("clips", "shards"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  _check_plan(folder, plan)
  for leftover in folder.glob("*/.*"):
    leftover.unlink()
  return Staging(folder, plan)


def remove_if_installed(folder: Path) -> None:
  """Removes what is left of a build whose dataset was moved to its place."""
  if (folder / "finished").exists() and not (folder / "dataset").exists():
    shutil.rmtree(folder)


def _check_plan(folder: Path, plan: Plan) -> None:
  path = folder / "plan.json"
  ours = json.loads(json.dumps(plan.fingerprint()))
  if not path.exists():
    _write_json(path, ours)
    return
  theirs = json.loads(path.read_text())
  changed = [
    f"  {key}: {theirs.get(key)!r} there, {ours.get(key)!r} now"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key)
  ]
  if changed:
    raise UnfinishedBuildError(
      f"{folder} holds an unfinished build with other settings:\n"
      + "\n".join(changed)
      + "\nGo on with the old ones, or remove that folder to start anew."
    )


def _example_path(folder: Path, index: int) -> Path:
  return folder / "clips" / f"{index:08d}.example"


def _outcome_path(folder: Path, index: int) -> Path:
  return folder / "clips" / f"{index:08d}.json"


def _shard_path(folder: Path, shard: int, kind: str) -> Path:
  return folder / "shards" / f"{shard:05d}.{kind}"


def _read_outcome(path: Path) -> Outcome:
  return Outcome(**json.loads(path.read_text()))


def _write_records(path: Path, examples: Iterator[bytes]) -> None:
  temporary = record_index.temporary_name(path)
  writer = ArrayRecordWriter(os.fspath(temporary), _RECORD_OPTIONS)
  for example in examples:
    writer.write(example)
  writer.close()
  with open(temporary, "rb") as file:
    os.fsync(file.fileno())
  temporary.rename(path)


def _write_json(path: Path, value: Any) -> None:
  _write_atomically(path, json.dumps(value, indent=1).encode())


def _write_atomically(path: Path, data: bytes) -> None:
  temporary = record_index.temporary_name(path)
  with open(temporary, "wb") as file:
    file.write(data)
    # Before the rename, or a power cut could leave a name without its bytes.
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)
