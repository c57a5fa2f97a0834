"""Features of a trained stream, stored once and read many times.

  workdir/features/<stage>-<feature>/<split>/values.npy  [videos, frames, d]
  workdir/features/<stage>-<feature>/<split>/index.npz   ids, labels, lengths

A later stage reads them instead of decoding the videos in every epoch. Where
a video has several sequences (under the protocol "dense"), they follow each
other, each as if it were a video of the same name.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax import files
from twostream_jax.files import arrays as arrays_lib

# Files of a split.
_OWN = (r"values\.npy", r"index\.npz")


class FeatureError(ValueError):
  """Stored features do not fit each other or what is asked of them."""


@dataclasses.dataclass(frozen=True)
class FeatureSet:
  """The features of one split, in the order of the dataset.

  Attributes:
    ids: video ids of the sequences; mostly there is one of each video.
    labels: int [sequences], or float [sequences classes] where clips have any
      number of classes.
    lengths: int [sequences]: frames that are there; the rest repeats the last.
    values: float16 [sequences frames d], mapped from the disk.
    mean: float32 [d]: over all frames that are there.
    std: float32 [d]: Population standard deviation.
    description: Description of what they are features of.
    weights: Digest of the weights of the stream.
    videos: Digest of the split, see `VideoSource.digest`.
  """

  ids: tuple[str, ...]
  labels: np.ndarray
  lengths: np.ndarray
  values: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  description: str
  weights: str
  videos: str


def write_features(
  folder: Path,
  batches: Iterable[Mapping[str, Any]],
  *,
  num_sequences: int,
  description: str,
  weights: str,
  videos: str,
) -> None:
  """Writes the features of a split; memory holds a batch at a time.

  Args:
    folder: appears when all is written.
    batches: dicts of "video_id" (a list), "label" and "length" [b ...], and
      "values" float [b frames d].
    num_sequences: of the split.
    description: see `FeatureSet`.
    weights: See `FeatureSet`.
    videos: See `FeatureSet`.

  Raises:
    FeatureError: a feature is not finite in half precision.
    ForeignFileError: other files are in the folder, which is to be replaced.
  """
  with files.replaced_folder(folder, _OWN) as temporary:
    facts = {"description": description, "weights": weights, "videos": videos}
    _write(temporary, batches, num_sequences, facts)


def _write(
  folder: Path,
  batches: Iterable[Mapping[str, Any]],
  num_sequences: int,
  facts: Mapping[str, str],
) -> None:
  ids, labels, lengths, stored = [], [], [], None
  count, total, squares = 0, np.float64(0.0), np.float64(0.0)
  for batch in batches:
    with np.errstate(over="ignore"):  # What overflows is told by name below.
      values = np.asarray(batch["values"]).astype(np.float16)
    if not np.isfinite(values).all():
      raise FeatureError(
        f"{facts['description']}: features of {batch['video_id'][0]!r} or a"
        " video after it are not finite in half precision; has the stage"
        " diverged?"
      )
    if stored is None:
      stored = np.lib.format.open_memmap(
        folder / "values.npy",
        mode="w+",
        dtype=np.float16,
        shape=(num_sequences,) + values.shape[1:],
      )
    stored[len(ids) : len(ids) + len(values)] = values
    ids.extend(batch["video_id"])
    frames = np.arange(values.shape[1]) < np.asarray(batch["length"])[:, None]
    there = values[frames].astype(np.float64)
    count += len(there)
    total += there.sum(axis=0)
    squares += (there * there).sum(axis=0)
    labels.append(batch["label"])
    lengths.append(batch["length"])
  assert stored is not None
  stored.flush()
  mean = total / count
  variance = np.maximum(squares / count - mean * mean, 0.0)
  texts: dict[str, Any] = {name: np.array(text) for name, text in facts.items()}
  np.savez(
    folder / "index.npz",
    ids=np.array(ids, str),
    labels=np.concatenate(labels),
    lengths=np.concatenate(lengths),
    mean=mean.astype(np.float32),
    std=np.sqrt(variance).astype(np.float32),
    **texts,
  )


def read_features(folder: str | os.PathLike) -> FeatureSet | None:
  """Opens the features of a split; None where there are none.

  Raises:
    FeatureError: they can't be read.
  """
  folder = Path(folder)
  if not folder.exists():
    return None
  index = _read_index(folder / "index.npz")
  try:
    return FeatureSet(
      ids=tuple(index["ids"].tolist()),
      labels=index["labels"],
      lengths=index["lengths"],
      values=np.load(folder / "values.npy", mmap_mode="r"),
      mean=index["mean"],
      std=index["std"],
      description=str(index["description"]),
      # Those of earlier versions do not say it, and are computed again.
      weights=str(index.get("weights", "")),
      videos=str(index.get("videos", "")),
    )
  except (KeyError, OSError, ValueError) as error:
    raise FeatureError(f"{folder} can't be read: {error}") from error


def _read_index(path: Path) -> dict[str, np.ndarray]:
  try:
    return arrays_lib.read_npz(path)
  except arrays_lib.ArraysError as error:
    raise FeatureError(f"{path} can't be read: {error}") from error


@dataclasses.dataclass(frozen=True)
class FeatureSource:
  """Random access to the features of one or more streams, by sequence.

  Attributes:
    sets: by the name of the stream; of the same videos in the same order.
  """

  sets: Mapping[str, FeatureSet]

  def __post_init__(self):
    (name, first), *others = self.sets.items()
    for other, features in others:
      same = (
        features.ids == first.ids
        and np.array_equal(features.labels, first.labels)
        and np.array_equal(features.lengths, first.lengths)
      )
      if not same:
        raise FeatureError(
          f"features of {name!r} and {other!r} are not of the same videos and"
          " frames; remove the features folder of the run to compute them again"
        )

  def __len__(self) -> int:
    return len(next(iter(self.sets.values())).ids)

  @property
  def labels(self) -> np.ndarray:
    """Of each video, as in `FeatureSet`."""
    return next(iter(self.sets.values())).labels[self._firsts()]

  @property
  def video_ids(self) -> tuple[str, ...]:
    """Names of all videos."""
    ids = next(iter(self.sets.values())).ids
    return tuple(ids[i] for i in self._firsts())

  @property
  def counts(self) -> np.ndarray:
    """Sequences of each video: int [videos]."""
    return np.diff([*self._firsts(), len(self)])

  def _firsts(self) -> list[int]:
    """The first sequence of each video."""
    ids = next(iter(self.sets.values())).ids
    return [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A sequence: {name: float32 [frames d]}, "length", "label", "video_id"."""
    first = next(iter(self.sets.values()))
    values = {
      name: np.asarray(features.values[index], np.float32)
      for name, features in self.sets.items()
    }
    return values | {
      "length": np.int32(first.lengths[index]),
      "label": first.labels[index],
      "mask": np.bool_(True),
      "video_id": first.ids[index],
    }
