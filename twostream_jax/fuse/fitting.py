"""What all fitted rules share: the fitting set, its folds, cross-validation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from twostream_jax import metrics
from twostream_jax import scores as scores_lib
from twostream_jax.fuse import calibration
from twostream_jax.fuse.calibration import Calibration
from twostream_jax.scores import Scores, ScoresError

FOLDS = 5

Candidate = TypeVar("Candidate")


@dataclasses.dataclass(frozen=True)
class FittingSet:
  """Joined scores that a rule is fitted on, in the order of their ids.

  Attributes:
    streams: the names of the m streams.
    probabilities: float64 [m, b, n].
    labels: as in `Scores`.
    targets: float64 [b, n], 1 for the class or classes of a video, else 0.
    fitted_on: Description of the split, its size and the scores' protocols.
  """

  streams: tuple[str, ...]
  probabilities: np.ndarray
  labels: np.ndarray
  targets: np.ndarray
  fitted_on: str

  @property
  def multi_label(self) -> bool:
    """Whether a video may have several classes or none."""
    return self.labels.ndim == 2


def fitting_set(named: Mapping[str, Scores], split: str) -> FittingSet:
  """Joins scores to fit on; the order of videos in the files plays no part.

  Raises:
    ScoresError: the scores do not fit together, there are fewer than two
      videos, or no video has a class.
  """
  joined = scores_lib.join(dict(named))
  first = next(iter(joined.values()))
  if len(first.ids) < 2:
    raise ScoresError(
      f"{len(first.ids)} videos in {split!r} to fit a fusion rule on; it needs"
      " at least 2"
    )
  order = np.argsort(np.array(first.ids), kind="stable")
  labels = first.labels[order]
  num_classes = first.logits.shape[1]
  if first.multi_label:
    targets = labels.astype(np.float64)
  else:
    targets = np.eye(num_classes)[labels]
  if not targets.any():
    raise ScoresError(f"no video of {split!r} shows a class to fit on")
  return FittingSet(
    streams=tuple(joined),
    probabilities=np.stack(
      [scores_lib.probabilities(s)[order] for s in joined.values()]
    ),
    labels=labels,
    targets=targets,
    fitted_on=(
      f"{split!r} ({len(labels)} videos, {scores_lib.protocols(joined)})"
    ),
  )


def assign_folds(targets: np.ndarray, k: int = FOLDS) -> np.ndarray:
  """Deterministic stratified folds.

  The videos of a class (a multi-label video counts for its first) are cut
  into k runs in the order given. Ordered by id, clips of one source are
  neighbours (UCF101's groups), so most stay in one fold; dealt out one by one
  they would make held-out clips look easier than they are.

  Args:
    targets: [b, n], 1 or 0.
    k: how many folds; one may be empty where there are few videos.

  Returns:
    int [b], 0..k-1.
  """
  n = targets.shape[1]
  group = np.where(targets.any(axis=1), targets.argmax(axis=1), n)
  fold = np.zeros(len(targets), np.intp)
  for c in range(n + 1):
    (members,) = np.nonzero(group == c)
    # Shifted by the class, or all small classes would share the first fold.
    fold[members] = (
      np.arange(len(members)) * k // max(len(members), 1) + c
    ) % k
  return fold


@dataclasses.dataclass(frozen=True)
class Choice(Generic[Candidate]):
  """A candidate, and what makes its scores probabilities.

  Attributes:
    candidate: the chosen one.
    words: how it was chosen.
    calibration: of its scores.
  """

  candidate: Candidate
  words: str
  calibration: Calibration


def choose(
  candidates: Sequence[Candidate],
  predict: Callable[[Candidate, np.ndarray, np.ndarray], np.ndarray],
  data: FittingSet,
) -> Choice[Candidate]:
  """The candidate with the least cross-validated log loss, once calibrated.

  Top-1 would not do: it can be best with probabilities that are all alike. Few
  videos tell candidates apart by chance, so it is the most regularised one
  that is within a standard error of the best (Breiman et al. 1984, section
  3.4.3). The out-of-fold scores are those that the calibration is fitted on.

  Args:
    candidates: from the most to the least regularised.
    predict: of a candidate and boolean masks [b] of the videos to fit on and
      of those held out; gives scores [held out, n].
    data: the fitting set.
  """
  fold = assign_folds(data.targets)
  used = np.unique(fold)
  if len(used) < 2:  # Leave one out.
    fold = used = np.arange(len(data.targets))
  rated = _have_company(data, fold)

  def calibrated(candidate):
    scores = np.zeros(data.targets.shape)
    for f in used:
      scores[fold == f] = predict(candidate, fold != f, fold == f)
    return calibration.fit(scores[rated], data.targets[rated], data.multi_label)

  found = [calibrated(candidate) for candidate in candidates]
  best = _most_regularised([one.losses for one in found])
  words = f"by {len(used)}-fold cross-validation"
  return Choice(
    candidates[best], words if len(found) > 1 else "as given", found[best]
  )


def _most_regularised(losses: Sequence[np.ndarray]) -> int:
  """The first of candidates that is not clearly worse than the best.

  Args:
    losses: of each candidate's videos, float [b].
  """
  best = min(losses, key=np.mean)
  for i, own in enumerate(losses):
    worse = own - best  # Video by video: how hard it is plays no part.
    error = worse.std() / np.sqrt(len(worse))
    if worse.mean() <= error:
      return i
  raise AssertionError  # The best is at least as good as itself.


def _have_company(data: FittingSet, fold: np.ndarray) -> np.ndarray:
  """Which videos tell how sure a rule may be, bool [b].

  Not the only video of its class: held out, the class is unknown, as it is not
  to the rule that is fitted on all. Where all are the only ones, all do.
  """
  if data.multi_label:
    return np.ones(len(fold), bool)
  classes = data.labels
  rated = np.array(
    [
      ((classes == c) & (fold != f)).any()
      for c, f in zip(classes, fold, strict=True)
    ]
  )
  return rated if rated.any() else ~rated


def quality(scores: np.ndarray, labels: np.ndarray) -> float:
  """What fitting maximises: top-1, or mAP where labels are [b, n]; 0..1."""
  if labels.ndim == 2:
    return metrics.mean_average_precision(scores, labels).mean
  return metrics.top_k_accuracy(scores, labels, 1)
