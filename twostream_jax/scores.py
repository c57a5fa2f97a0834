"""Scores of a split, keyed by video id: the one thing that fusion reads."""

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np

# What np.load raises for files that are not whole: EOFError for an empty one,
# TypeError for a lone array, RuntimeError for a changed header of the archive.
_UNREADABLE = (
  OSError,
  EOFError,
  KeyError,
  RuntimeError,
  TypeError,
  ValueError,
  zipfile.BadZipFile,
)


class ScoresError(ValueError):
  """A score file can't be used, or two of them do not fit together."""


@dataclasses.dataclass(frozen=True)
class Scores:
  """One model's opinion of every video of a split.

  Attributes:
    ids: video ids, unique.
    labels: int32 [b], 0-based true classes.
    logits: float32 [b, n]; `softmax` of a row gives class probabilities.
    protocol: in words, how the scores came about.
  """

  ids: tuple[str, ...]
  labels: np.ndarray
  logits: np.ndarray
  protocol: str

  def __post_init__(self):
    b = len(self.ids)
    fits = self.labels.shape == (b,) and self.logits.shape[:1] == (b,)
    if not fits or self.logits.ndim != 2:
      raise ScoresError(
        f"{b} ids, labels of shape {self.labels.shape} and logits of shape"
        f" {self.logits.shape} do not belong together"
      )
    if len(set(self.ids)) != b:
      raise ScoresError(f"{b - len(set(self.ids))} video ids occur twice")


def softmax(logits: np.ndarray) -> np.ndarray:
  """Class probabilities, float64 [b, n], of logits [b, n]."""
  shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1)[:, None])
  return shifted / shifted.sum(axis=1, keepdims=True)


def save_scores(path: str | os.PathLike, scores: Scores) -> None:
  """Writes `scores` as .npz (plain arrays, no pickle), atomically."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    with open(temporary, "wb") as file:
      np.savez(
        file,
        ids=np.array(scores.ids, dtype=np.str_),
        labels=scores.labels.astype(np.int32),
        logits=scores.logits.astype(np.float32),
        protocol=np.array(scores.protocol, dtype=np.str_),
      )
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def load_scores(path: str | os.PathLike) -> Scores:
  """Reads what `save_scores` wrote.

  Raises:
    ScoresError: the file is missing, damaged or lacks an array.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return Scores(
        ids=tuple(arrays["ids"].tolist()),
        labels=arrays["labels"],
        logits=arrays["logits"],
        protocol=str(arrays["protocol"]),
      )
  except _UNREADABLE as error:
    raise ScoresError(f"{path} can't be read as scores: {error}") from error


def join(named: dict[str, Scores]) -> dict[str, Scores]:
  """Puts several models' scores in one order of videos.

  Args:
    named: scores by model name; the first gives the order.

  Returns:
    The same names, every value with the ids of the first, in its order.

  Raises:
    ScoresError: the sets of ids differ, or a video's label does, or the
      numbers of classes do; the message lists examples.
  """
  if not named:
    raise ScoresError("no scores to join")
  (first_name, first), *_ = named.items()
  joined = {}
  for name, scores in named.items():
    only_first = set(first.ids) - set(scores.ids)
    only_here = set(scores.ids) - set(first.ids)
    if only_first or only_here:
      raise ScoresError(
        f"{first_name!r} and {name!r} do not score the same videos:"
        f" {len(only_first)} only in {first_name!r}"
        f" {sorted(only_first)[:3]}, {len(only_here)} only in {name!r}"
        f" {sorted(only_here)[:3]}. Evaluate both on the same split."
      )
    row = {video_id: i for i, video_id in enumerate(scores.ids)}
    order = np.array([row[video_id] for video_id in first.ids], np.intp)
    moved = Scores(
      first.ids, scores.labels[order], scores.logits[order], scores.protocol
    )
    if moved.logits.shape != first.logits.shape:
      raise ScoresError(
        f"{first_name!r} has {first.logits.shape[1]} classes,"
        f" {name!r} has {moved.logits.shape[1]}"
      )
    differing = np.flatnonzero(moved.labels != first.labels)
    if len(differing):
      raise ScoresError(
        f"{first_name!r} and {name!r} disagree on the label of"
        f" {len(differing)} videos, first {first.ids[differing[0]]!r}"
      )
    joined[name] = moved
  return joined
