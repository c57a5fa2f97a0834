"""What became of each clip, on the disk; see `staging` for the folder."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from twostream_jax import files
from twostream_jax.data import record_index
from twostream_jax.data.build.check import Rejection
from twostream_jax.data.build.plan import Outcome, Plan
from twostream_jax.data.dataset import Record, record_features
from twostream_jax.data.datasets.clips import (
  Clip,
  class_names,
  is_multi_label,
  labels_of,
)
from twostream_jax.files import json_files

# Images are compressed already; one record a chunk makes each random access.
RECORD_OPTIONS = "group_size:1,uncompressed"


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
      write_atomically(example_path(self.folder, index), data)
      length = result.num_frames / result.fps
      outcome = Outcome(
        size=len(data), video_seconds=length, damaged=result.num_damaged
      )
    write_json(outcome_path(self.folder, index), vars(outcome))
    return outcome

  def write_fault(self, index: int, reason: str) -> None:
    """Writes down why a clip is not finished, for the end of this run."""
    write_json(fault_path(self.folder, index), reason)

  def is_finished(self, index: int) -> bool:
    """Whether a clip's result was written, and its shard is not packed."""
    return outcome_path(self.folder, index).exists()

  def pack_if_finished(self, shard: int, indices: Sequence[int]) -> None:
    """Packs a shard where all of its clips are finished."""
    if shard_path(self.folder, shard, "json").exists() or all(
      map(self.is_finished, indices)
    ):
      self.pack_shard(shard, indices)

  def pack_shard(self, shard: int, indices: Sequence[int]) -> None:
    """Moves the clips of a shard, all of them finished, into one file."""
    done = shard_path(self.folder, shard, "json")
    if not done.exists():
      outcomes = {
        i: read_outcome(outcome_path(self.folder, i)) for i in indices
      }
      used = [i for i, o in outcomes.items() if o.reason is None]
      data = shard_path(self.folder, shard, "data")
      write_records(data, self._examples(used))
      # While its bytes are in memory.
      record_index.write_index(
        record_index.index_file(data, self._examples(used)),
        shard_path(self.folder, shard, "index"),
      )
      write_json(done, {str(i): vars(o) for i, o in outcomes.items()})
    for i in indices:
      outcome_path(self.folder, i).unlink(missing_ok=True)
      example_path(self.folder, i).unlink(missing_ok=True)

  def _examples(self, indices: Sequence[int]) -> Iterator[bytes]:
    return (example_path(self.folder, i).read_bytes() for i in indices)

  def _serialise(self, clip: Clip, record: Record) -> bytes:
    indices = [self._names.index(name) for name in labels_of(clip)]
    label = indices if self._multi_label else indices[0]
    features = record_features(self._names, multi_label=self._multi_label)
    encoded = features.encode_example(vars(record) | {"label": label})
    serializer = tfds.core.ExampleSerializer(
      # TFDS declares the types of nested features apart from each other.
      features.get_serialized_info()  # pyright: ignore[reportArgumentType]
    )
    # Fields are a map: by itself its order differs between processes.
    return serializer.get_tf_example(encoded).SerializeToString(
      deterministic=True
    )


def example_path(folder: Path, index: int) -> Path:
  """The file of a clip's record."""
  return folder / "clips" / f"{index:08d}.example"


def outcome_path(folder: Path, index: int) -> Path:
  """The file that says how a clip ended."""
  return folder / "clips" / f"{index:08d}.json"


def fault_path(folder: Path, index: int) -> Path:
  """The file that says why a clip is not finished."""
  return folder / "clips" / f"{index:08d}.fault"


def shard_path(folder: Path, shard: int, kind: str) -> Path:
  """A file of a shard: data, index or json."""
  return folder / "shards" / f"{shard:05d}.{kind}"


def read_outcome(path: Path) -> Outcome:
  """Reads how a clip ended; JsonError: it can't be read."""
  values = json_files.read_object(path)
  with json_files.told(path):
    return Outcome(**values)


def write_records(path: Path, examples: Iterable[bytes]) -> None:
  """Writes an ArrayRecord file, whole or not at all.

  Raises:
    OSError: it can't be written.
  """
  with files.replaced(path) as temporary:
    try:
      writer = ArrayRecordWriter(os.fspath(temporary), RECORD_OPTIONS)
      for example in examples:
        writer.write(example)
      writer.close()
    except RuntimeError as error:
      # The library has the system's words in the middle of its own.
      numbers = [n for n in errno.errorcode if os.strerror(n) in str(error)]
      number = numbers[0] if numbers else errno.EIO
      raise OSError(number, os.strerror(number), os.fspath(path)) from error


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
  """Writes a JSON file, whole or not at all."""
  write_atomically(path, json.dumps(value, indent=indent).encode())


def write_atomically(path: Path, data: bytes) -> None:
  """Writes a file, whole or not at all; OSError names it."""
  with files.replaced(path) as temporary:
    temporary.write_bytes(data)
