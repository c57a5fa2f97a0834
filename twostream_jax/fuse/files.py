"""Score files of this project and of others, by name.

The content of a file, not its name, tells an .npz, .npy or pickle file; .csv
and .json go by their names. Nothing in a file is run.

.npz, as this project writes it:

  ids            texts [b], one for each video, as in the other files
  labels         int [b] from 0, or 0 and 1 [b n] of a multi-label set
  logits         float [b n]; or
  probabilities  float [b n] in 0..1
  protocol       a text, may be missing: how the scores came about
  class_names    texts [n] in the order of the columns, may be missing
  weights        digest of the network, may be missing
  videos         digest of the videos and their labels, may be missing

.csv, of one label a video; the header names the classes:

  id,label,jump,wave
  jump/a.mp4,0,0.9,0.1
  wave/b.mp4,1,0.2,0.8

.json; a label is a class index, of a multi-label set a list of them:

  {"class_names": ["jump", "wave"],
   "videos": {"jump/a.mp4": {"label": 0, "scores": [0.9, 0.1]},
              "wave/b.mp4": {"label": 1, "scores": [0.2, 0.8]}}}

.pkl: results of mmaction2 (`tools/test.py --dump`), of tensors or arrays. A
list with "pred_score" and "gt_label" for each video; or, of versions before
1.0, a list of arrays without labels.

.npy: an array of numbers [b n].

The last two do not name their videos (some dumps do: "video_id", "filename" or
"frame_dir"): a list does, which has a line for each video in the order of the
scores, 'ID', 'ID LABEL' or 'ID FRAMES LABEL', as mmaction2's annotation files.

Where a file does not say what its scores are (.csv, .json, .pkl, .npy), they
are probabilities if all are within 0..1, and logits otherwise. Probabilities
of one label a video must add up to 1. Labels are whole numbers, also as floats
(2.0). Columns with class names are put in one order by them; files without
names must have that order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from twostream_jax.files import arrays as arrays_lib
from twostream_jax.files.arrays import ArraysError
from twostream_jax.files.words import printable
from twostream_jax.fuse.dumps import read_dump
from twostream_jax.fuse.plain import create_scores
from twostream_jax.fuse.tables import Listing, read_csv, read_json
from twostream_jax.scores import Scores, ScoresError

# Of what an error says: it may repeat a text of the file.
_LONGEST = 1000


def named_files(paths: Sequence[str]) -> dict[str, Path]:
  """Names of files: their stems, or as much of their paths as tells them apart.

  Raises:
    ScoresError: a file is named twice.
  """
  files = [Path(path) for path in paths]
  if len({file.resolve() for file in files}) != len(files):
    raise ScoresError(f"a file is named twice: {', '.join(map(str, files))}")
  for name in (lambda path: path.stem, lambda path: str(path.with_suffix(""))):
    named = {name(file): file for file in files}
    if len(named) == len(files):
      return named
  return {str(file): file for file in files}


def read_files(
  paths: Sequence[str], listing: Listing | None = None
) -> dict[str, Scores]:
  """Reads score files; see `read_file`."""
  return {
    name: read_file(path, listing) for name, path in named_files(paths).items()
  }


def read_file(path: Path, listing: Listing | None = None) -> Scores:
  """Reads the scores of a file in one of the layouts above.

  Args:
    path: of the file.
    listing: the videos of a file that does not name them.

  Raises:
    ScoresError: the file can't be read or its content can't be scores.
  """
  path = Path(path)
  try:
    with path.open("rb") as file:
      head = file.read(8)
    if head.startswith(b"PK"):
      return _read_npz(path)
    if head.startswith(b"\x93NUMPY"):
      return listed(arrays_lib.read_npy(path), None, listing)
    if head.startswith(b"\x80"):
      ids, labels, values = read_dump(path)
      if ids is None:
        return listed(values, labels, listing)
      return create_scores(ids, labels, values)
    if path.suffix.lower() == ".csv":
      return read_csv(path)
    if path.suffix.lower() == ".json":
      return read_json(path)
  except OSError as error:
    raise ScoresError(f"{path}: {error.strerror or error}") from error
  # NumPy's error for text of characters that there are not is the last one.
  except (ScoresError, ArraysError, SystemError) as error:
    said = printable(str(error))
    raise ScoresError(f"{path}: {said[:_LONGEST]}") from error
  raise ScoresError(
    f"{path}: no score file of a known kind (.npz, .csv, .json, .npy, or .pkl"
    " of mmaction2)"
  )


def _read_npz(path: Path) -> Scores:
  arrays = arrays_lib.read_npz(path)
  kind = "logits" if "logits" in arrays else "probabilities"
  if {"ids", "labels", kind} - set(arrays):
    raise ScoresError(
      f"it has the arrays {sorted(arrays)}, but needs 'ids', 'labels' and"
      " 'logits' or 'probabilities'"
    )
  found = create_scores(
    arrays["ids"].ravel().tolist(),
    arrays["labels"],
    arrays[kind],
    kind=kind,
    class_names=[str(x) for x in arrays.get("class_names", np.empty(0)).flat],
    protocol=str(arrays.get("protocol", "not stated")),
  )
  return dataclasses.replace(
    found, **{key: str(arrays.get(key, "")) for key in ("weights", "videos")}
  )


def listed(
  values: np.ndarray, labels: np.ndarray | None, listing: Listing | None
) -> Scores:
  """Creates scores of a file that does not name its videos.

  Args:
    values: [b, n].
    labels: of the file; None where it has none.
    listing: the videos, in the order of the file.

  Raises:
    ScoresError: there is no list, or it is not that of these scores.
  """
  if values.ndim != 2:
    raise ScoresError(
      f"an array of shape {values.shape}; scores are [videos, classes]"
    )
  if listing is None:
    raise ScoresError(
      "it does not name its videos; give the list that it was made from, in"
      " its order, by --ids=LIST (of files to fit on --fit_ids=LIST)"
    )
  if len(listing.ids) != len(values):
    raise ScoresError(
      f"scores of {len(values)} videos, but {listing.path} lists"
      f" {len(listing.ids)}"
    )
  if labels is None:
    labels = listing.labels
    if labels is None:
      raise ScoresError(f"it has no labels, and {listing.path} has none either")
  elif listing.labels is not None and labels.shape == listing.labels.shape:
    differ = np.flatnonzero(labels != listing.labels)
    if len(differ):
      raise ScoresError(
        f"{len(differ)} labels are not those of {listing.path}, first in line"
        f" {differ[0] + 1}: it is another list, or in another order"
      )
  return create_scores(listing.ids, labels, values)


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
      videos="" if others else scores.videos,
    )
  return kept, left_out
