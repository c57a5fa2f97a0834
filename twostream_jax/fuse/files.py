"""Score files of this project and of others, by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.special

from twostream_jax.scores import Scores, ScoresError, load_scores

# Probabilities of others are often rounded to 0 or 1.
_SMALLEST = 1e-12


def named_files(paths: Sequence[str]) -> dict[str, Path]:
  """Names of files: their stems, or as much of their paths as tells them apart.

  Raises:
    ScoresError: a file is named twice.
  """
  paths = [Path(path) for path in paths]
  if len({path.resolve() for path in paths}) != len(paths):
    raise ScoresError(f"a file is named twice: {', '.join(map(str, paths))}")
  stems = [path.stem for path in paths]
  if len(set(stems)) == len(stems):
    return dict(zip(stems, paths, strict=True))
  return {str(path.with_suffix("")): path for path in paths}


def read_files(paths: Sequence[str]) -> dict[str, Scores]:
  """Reads score files; see `read_file`."""
  return {name: read_file(path) for name, path in named_files(paths).items()}


def read_file(path: Path) -> Scores:
  """Reads scores that this project wrote, or plain arrays of another.

  Args:
    path: .npz with "ids", "labels" and "logits" or "probabilities"; "protocol"
      may be missing. Nothing in it is run.

  Raises:
    ScoresError: the file can't be read or lacks an array; or probabilities are
      not in 0..1, or of one label and do not add up to 1.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      names = set(arrays.files)
  except Exception:
    return load_scores(path)  # It says what is wrong.
  if {"logits", "protocol"} <= names:
    return load_scores(path)
  missing = {"ids", "labels"} - names
  if missing or not names & {"logits", "probabilities"}:
    raise ScoresError(
      f"{path} has the arrays {sorted(names)}, but needs 'ids', 'labels' and"
      " 'logits' or 'probabilities'"
    )
  return _read_plain(path, names)


def _read_plain(path: Path, names: set[str]) -> Scores:
  with np.load(path, allow_pickle=False) as arrays:
    ids = [
      x.decode() if isinstance(x, bytes) else str(x)
      for x in arrays["ids"].tolist()
    ]
    labels = arrays["labels"]
    protocol = str(arrays["protocol"]) if "protocol" in names else "not stated"
    if "logits" in names:
      logits = arrays["logits"]
    else:
      logits = _logits(path, arrays["probabilities"], labels.ndim == 2)
  labels = labels.astype(bool if labels.ndim == 2 else np.int32)
  return Scores(tuple(ids), labels, logits.astype(np.float32), protocol)


def _logits(path, probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
  values = probabilities.astype(np.float64)
  if not ((values >= 0) & (values <= 1)).all():
    raise ScoresError(f"{path}: probabilities must be in 0..1; else 'logits'")
  if multi_label:
    return scipy.special.logit(np.clip(values, _SMALLEST, 1 - _SMALLEST))
  off = np.abs(values.sum(axis=1) - 1).max()
  if off > 1e-3:
    raise ScoresError(
      f"{path}: probabilities of a video add up to 1 but for {off:.3g}; call"
      " the array 'logits' if it holds other scores"
    )
  return np.log(np.maximum(values, _SMALLEST))


def common_videos(
  named: Mapping[str, Scores],
) -> tuple[dict[str, Scores], dict[str, list[str]]]:
  """The videos that all have, and the ids that each has beside them.

  Raises:
    ScoresError: there is no common video.
  """
  common = set.intersection(*(set(scores.ids) for scores in named.values()))
  if not common:
    raise ScoresError(f"{list(named)} have no video in common")
  kept, left_out = {}, {}
  for name, scores in named.items():
    here = np.array([video_id in common for video_id in scores.ids])
    others = [i for i, k in zip(scores.ids, here, strict=True) if not k]
    if others:
      left_out[name] = others
    kept[name] = dataclasses.replace(
      scores,
      ids=tuple(i for i, k in zip(scores.ids, here, strict=True) if k),
      labels=scores.labels[here],
      logits=scores.logits[here],
    )
  return kept, left_out
