"""Scores of a split, keyed by video id: the one thing that fusion reads."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.special

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
    labels: 0-based true classes, int32 [b]; of a multi-label set bool (or 0.0
      and 1.0) [b, n], True for every class that the video shows, maybe none.
    logits: float32 [b, n]; `probabilities` are their softmax over a row, or
      of a multi-label set the sigmoid of each.
    protocol: in words, how the scores came about.
  """

  ids: tuple[str, ...]
  labels: np.ndarray
  logits: np.ndarray
  protocol: str

  def __post_init__(self):
    b = len(self.ids)
    fits = self.labels.shape in ((b,), self.logits.shape)
    if not fits or self.logits.ndim != 2 or len(self.logits) != b:
      raise ScoresError(
        f"{b} ids, labels of shape {self.labels.shape} and logits of shape"
        f" {self.logits.shape} do not belong together"
      )
    if len(set(self.ids)) != b:
      raise ScoresError(f"{b - len(set(self.ids))} video ids occur twice")
    if self.multi_label and not np.isin(self.labels, (0, 1)).all():
      raise ScoresError(
        "labels with a column for each class must be 0 or 1, found"
        f" {self.labels[~np.isin(self.labels, (0, 1))][0]}"
      )

  @property
  def multi_label(self) -> bool:
    """Whether a video may show several classes, or none."""
    return self.labels.ndim == 2


def softmax(logits: np.ndarray) -> np.ndarray:
  """Class probabilities, float64 [b, n], of logits [b, n]."""
  shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1)[:, None])
  return shifted / shifted.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """1 / (1 + exp(-logits)) of each logit, float64, without overflow."""
  return scipy.special.expit(logits.astype(np.float64))


def probabilities(scores: Scores) -> np.ndarray:
  """Class probabilities, float64 [b, n]: softmax, or sigmoid if multi-label."""
  return (sigmoid if scores.multi_label else softmax)(scores.logits)


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
        labels=scores.labels.astype(bool if scores.multi_label else np.int32),
        logits=scores.logits.astype(np.float32),
        protocol=np.array(scores.protocol, dtype=np.str_),
      )
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def load_scores(path: str | os.PathLike) -> Scores:
  """Reads what `save_scores` wrote; multi-label labels come back as bool.

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
      numbers of classes or the kinds of labels do; the message lists examples.
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
    _check_agreement(first_name, first, name, moved)
    joined[name] = moved
  return joined


def protocols(named: Mapping[str, Scores]) -> str:
  """The protocols of several models' scores, each named once."""
  return "; ".join(dict.fromkeys(s.protocol for s in named.values()))


def _check_agreement(
  first_name: str, first: Scores, name: str, moved: Scores
) -> None:
  """Refuses other classes, kinds of labels or labels of the same videos."""
  if moved.logits.shape != first.logits.shape:
    raise ScoresError(
      f"{first_name!r} has {first.logits.shape[1]} classes,"
      f" {name!r} has {moved.logits.shape[1]}"
    )
  if moved.multi_label != first.multi_label:
    raise ScoresError(
      f"of {first_name!r} and {name!r} only one has multi-label labels"
    )
  differs = moved.labels != first.labels
  differing = np.flatnonzero(
    differs.any(axis=1) if first.multi_label else differs
  )
  if len(differing):
    raise ScoresError(
      f"{first_name!r} and {name!r} disagree on the label of"
      f" {len(differing)} videos, first {first.ids[differing[0]]!r}"
    )
