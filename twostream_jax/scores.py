"""Scores of a split, keyed by video id: the one thing that fusion reads."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special

from twostream_jax import files
from twostream_jax.files import arrays as arrays_lib
from twostream_jax.files.words import printable


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
      Finite.
    protocol: Description of how the scores came about.
    class_names: of the columns, in their order; () where they are not known.
    weights: Digest of the weights that scored; "" where it is not known.
    videos: Digest of the split, see `VideoSource.digest`; "" where it is not
      known.
  """

  ids: tuple[str, ...]
  labels: np.ndarray
  logits: np.ndarray
  protocol: str
  class_names: tuple[str, ...] = ()
  weights: str = ""
  videos: str = ""

  def __post_init__(self):
    b = len(self.ids)
    fits = self.labels.shape in ((b,), self.logits.shape)
    if not fits or self.logits.ndim != 2 or len(self.logits) != b:
      raise ScoresError(
        f"{b} ids, labels of shape {self.labels.shape} and logits of shape"
        f" {self.logits.shape} do not belong together"
      )
    if len(set(self.ids)) != b:
      (first, _), *_ = collections.Counter(self.ids).most_common(1)
      raise ScoresError(
        f"{b - len(set(self.ids))} video ids occur twice, such as {first!r}"
      )
    if len(self.class_names) not in (0, self.logits.shape[1]):
      raise ScoresError(
        f"{len(self.class_names)} names for {self.logits.shape[1]} classes"
      )
    self._check_values()

  def _check_values(self):
    kinds = self.logits.dtype.kind, self.labels.dtype.kind
    if kinds[0] not in "iuf" or kinds[1] not in "biuf":
      raise ScoresError(
        f"logits and labels must be numbers, found {self.logits.dtype} and"
        f" {self.labels.dtype}"
      )
    if not all(
      isinstance(text, str)
      for text in (*self.ids, *self.class_names, self.protocol)
    ):
      raise ScoresError("ids and names of classes must be texts")
    finite = np.isfinite(self.logits).all(axis=1)
    if not finite.all():
      raise ScoresError(
        f"scores of {(~finite).sum()} videos are not finite, such as those of"
        f" {self.ids[finite.argmin()]!r}"
      )
    if self.multi_label:
      if not np.isin(self.labels, (0, 1)).all():
        raise ScoresError(
          "labels with a column for each class must be 0 or 1, found"
          f" {self.labels[~np.isin(self.labels, (0, 1))][0]}"
        )
      return
    n = self.logits.shape[1]
    # A comparison of its own: NaN is neither below nor above.
    known = np.isin(self.labels, np.arange(n))
    if not known.all():
      raise ScoresError(
        f"labels must be class indices from 0 to {n - 1}, found"
        f" {self.labels[known.argmin()]!s:.40} for"
        f" {self.ids[known.argmin()]!r}"
      )

  @property
  def multi_label(self) -> bool:
    """Whether a video may show several classes, or none."""
    return self.labels.ndim == 2


class Origin(NamedTuple):
  """What scores came from: the fields of `Scores` of these names."""

  protocol: str
  weights: str = ""
  videos: str = ""


def difference(found: Scores, expected: Origin) -> str:
  """How the origin of scores differs from the expected one, as a phrase.

  Returns:
    "" where they agree. A digest that is not expected ("") is not compared.
  """
  if found.protocol != expected.protocol:
    return f"under the protocol {found.protocol!r}, not {expected.protocol!r}"
  if expected.weights and found.weights != expected.weights:
    return "of other weights than those of the checkpoint"
  if expected.videos and found.videos != expected.videos:
    return "of other videos, labels or images than those of the dataset"
  return ""


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
  names = {}
  if scores.class_names:
    names["class_names"] = np.array(scores.class_names, dtype=np.str_)
  with files.replaced(path) as temporary, open(temporary, "wb") as file:
    np.savez(
      file,
      ids=np.array(scores.ids, dtype=np.str_),
      labels=scores.labels.astype(bool if scores.multi_label else np.int32),
      logits=scores.logits.astype(np.float32),
      protocol=np.array(scores.protocol, dtype=np.str_),
      weights=np.array(scores.weights, dtype=np.str_),
      videos=np.array(scores.videos, dtype=np.str_),
      **names,
    )


def load_scores(path: str | os.PathLike) -> Scores:
  """Reads what `save_scores` wrote; multi-label labels come back as bool.

  Raises:
    ScoresError: the file is missing, damaged or lacks an array.
  """
  try:
    arrays = arrays_lib.read_npz(path)
    return Scores(
      ids=tuple(arrays["ids"].tolist()),
      labels=arrays["labels"],
      logits=arrays["logits"],
      protocol=str(arrays["protocol"]),
      class_names=tuple(arrays.get("class_names", np.empty(0)).tolist()),
      weights=str(arrays.get("weights", "")),
      videos=str(arrays.get("videos", "")),
    )
  except KeyError as error:
    raise ScoresError(
      f"{path} can't be read as scores: there is no array {error}"
    ) from error
  # What the arrays are may be anything; NumPy's error for text of characters
  # that there are not is a SystemError.
  except (
    AttributeError,
    IndexError,
    SystemError,
    TypeError,
    ValueError,
  ) as error:
    raise ScoresError(
      f"{path} can't be read as scores: {printable(str(error))}"
    ) from error


def join(named: dict[str, Scores]) -> dict[str, Scores]:
  """Puts several models' scores in one order of videos and of classes.

  Args:
    named: scores by model name; the first gives the order of videos, and the
      first with class names that of classes. Scores without names are taken to
      be in this order.

  Returns:
    The same names, every value with the ids of the first, in its order.

  Raises:
    ScoresError: the sets of ids differ, or a video's label does, or the
      classes or the kinds of labels do; the message lists examples.
  """
  if not named:
    raise ScoresError("no scores to join")
  named = align_classes(named)
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
    moved = dataclasses.replace(
      scores,
      ids=first.ids,
      labels=scores.labels[order],
      logits=scores.logits[order],
    )
    _check_agreement(first_name, first, name, moved)
    joined[name] = moved
  return joined


def align_classes(named: Mapping[str, Scores]) -> dict[str, Scores]:
  """Puts the classes of several models' scores in one order, by their names.

  Args:
    named: scores by model name, of any videos. The first with class names
      gives the order; those without are taken to be in it.

  Raises:
    ScoresError: the classes differ; the message lists examples.
  """
  reference = next((k for k, s in named.items() if s.class_names), None)
  if reference is None:
    return dict(named)
  wanted = named[reference].class_names
  aligned = {}
  for name, scores in named.items():
    n = scores.logits.shape[1]
    if n != len(wanted):
      raise ScoresError(
        f"{reference!r} has {len(wanted)} classes, {name!r} has {n}"
      )
    if scores.class_names not in ((), wanted):
      scores = _reorder(scores, _class_order(reference, wanted, name, scores))
    aligned[name] = dataclasses.replace(scores, class_names=wanted)
  return aligned


def _class_order(
  reference: str, wanted: Sequence[str], name: str, scores: Scores
) -> np.ndarray:
  """The columns of scores in the order of the class names `wanted`."""
  column = {label: i for i, label in enumerate(scores.class_names)}
  only_first = sorted(set(wanted) - set(column))
  only_here = sorted(set(column) - set(wanted))
  if only_first or only_here or len(column) != len(wanted):
    raise ScoresError(
      f"{reference!r} and {name!r} do not have the same classes:"
      f" {len(only_first)} only in {reference!r} {only_first[:3]},"
      f" {len(only_here)} only in {name!r} {only_here[:3]}"
    )
  return np.array([column[label] for label in wanted], np.intp)


def _reorder(scores: Scores, order: np.ndarray) -> Scores:
  """Scores with column order[i] as class i."""
  labels = (
    scores.labels[:, order]
    if scores.multi_label
    else np.argsort(order).astype(np.int32)[scores.labels]
  )
  return dataclasses.replace(
    scores,
    labels=labels,
    logits=scores.logits[:, order],
    class_names=tuple(scores.class_names[i] for i in order),
  )


def digests(named: Mapping[str, Scores]) -> dict[str, str]:
  """What scores that are made from those of several models come from.

  Returns:
    "weights": Digest of the digests of all models; "videos": the digest that
    all agree on. "" where that is not known.
  """
  weights = [scores.weights for scores in named.values()]
  videos = {scores.videos for scores in named.values()}
  together = hashlib.sha256("".join(weights).encode()).hexdigest()
  return {
    "weights": together if all(weights) else "",
    "videos": videos.pop() if len(videos) == 1 else "",
  }


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
