"""Scores in text files: .csv and .json, and lists of videos.

The layouts are those that `twostream_jax.fuse.files` documents.
"""

import array
import csv
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax.files import json_files, limits
from twostream_jax.files.words import csv_text
from twostream_jax.fuse.plain import create_scores
from twostream_jax.scores import Scores, ScoresError

CSV_LAYOUT = (
  "a header line 'id,label,CLASS,CLASS,...', then a line for each video: its"
  " id, the index of its class from 0, a score for each class"
)
JSON_LAYOUT = (
  '{"class_names": [...], "videos": {ID: {"label": INDEX, "scores": [...]}}},'
  " of which class_names may be missing"
)
LIST_LAYOUT = "a line for each video: 'ID', 'ID LABEL' or 'ID FRAMES LABEL'"

# Classes; the largest sets of videos have some thousands.
_MOST_CLASSES = 100_000
# Bytes of memory for a video, of its id mostly, and for a score. Of a million
# videos and two classes any file is read, and of 250,000 and 700 classes those
# whose scores have six characters or more.
_VIDEO = 200
_SCORE = 26
# Characters of a line of a list.
_LONGEST_LINE = 10_000

_LISTED = re.compile(r"(?P<id>.*?\S)(?:\s+\d+)??(?:\s+(?P<label>\d+))?")


@dataclasses.dataclass(frozen=True)
class Listing:
  """The videos of a file that does not name them, in its order.

  Attributes:
    path: of the list.
    ids: video ids.
    labels: class indices, int [b]; None where the list has none.
  """

  path: Path
  ids: tuple[str, ...]
  labels: np.ndarray | None


def read_csv(path: Path) -> Scores:
  """Reads the scores of a .csv file.

  Raises:
    ScoresError: it has another layout; the message names the line.
  """
  try:
    # The mark of Excel is not part of the first name.
    with path.open(encoding="utf-8-sig", newline="") as file:
      lines = _Lines(file)
      reader = csv.reader(lines, strict=True)
      size = os.fstat(file.fileno()).st_size
      header, ids, labels, values = _read_rows(reader, lines, size)
  except UnicodeDecodeError as error:
    raise ScoresError(f"not text in UTF-8: {error.reason}") from error
  except csv.Error as error:
    raise ScoresError(f"line {reader.line_num}: {error}") from error
  _check_ids(ids)
  return create_scores(
    ids,
    # Not copies: of many videos these are most of the memory.
    np.asarray(labels),
    np.asarray(values).reshape(len(ids), len(header)),
    class_names=header,
  )


class _Lines:
  """Lines of a file, of which one row has no more cells than classes.

  A row may have several lines, and each cell is an object.
  """

  def __init__(self, file: Iterable[str]):
    self._file = iter(file)
    self._cells = 0

  def begin_row(self) -> None:
    """Says that the lines so far are of rows that were read."""
    self._cells = 0

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    line = next(self._file)
    self._cells += 1 + line.count(",")
    if self._cells > _MOST_CLASSES:
      raise ScoresError(f"a row has more than {_MOST_CLASSES} cells or lines")
    return line


def _require_bounded(videos: int, scores: int, size: int) -> None:
  """Refuses a file of `size` bytes that is too large for its content."""
  if _VIDEO * videos + _SCORE * scores > limits.most_memory(size):
    raise ScoresError(
      f"{videos} videos or more in {size} bytes, which are not ids and scores"
    )


def _read_rows(
  reader, lines: _Lines, size: int
) -> tuple[list[str], list[str], array.array, array.array]:
  """Names of classes, ids, labels and scores; numbers take 8 bytes each."""
  rows = filter(None, reader)
  header = [csv_text(name.strip()) for name in next(rows, ())]
  if header[:2] != ["id", "label"] or len(header) < 3:
    raise ScoresError(f"a .csv file of scores has {CSV_LAYOUT}")
  lines.begin_row()
  ids, labels, values = [], array.array("d"), array.array("d")
  for row in rows:
    line = reader.line_num
    if len(row) != len(header):
      raise ScoresError(
        f"line {line} has {len(row)} columns, the header has {len(header)}"
      )
    ids.append(csv_text(row[0].strip()))
    labels.append(_number(row[1], line, "a class index from 0"))
    values.extend(_number(x, line, "a score") for x in row[2:])
    lines.begin_row()
    if not len(ids) % 1000:
      _require_bounded(len(ids), len(values), size)
  return header[2:], ids, labels, values


def _number(text: str, line: int, what: str) -> float:
  try:
    return float(text)
  except ValueError as error:
    raise ScoresError(f"line {line}: {text[:40]!r} is not {what}") from error


def _check_ids(ids: Sequence[str]) -> None:
  if not all(ids):
    raise ScoresError(f"video {ids.index('') + 1} of {len(ids)} has no id")


def read_json(path: Path) -> Scores:
  """Reads the scores of a .json file.

  Raises:
    ScoresError: it has another layout.
  """
  try:
    content = json_files.parse(
      path.read_bytes(), pairs_hook=_without_repetition
    )
  except json_files.JsonError as error:
    raise ScoresError(str(error)) from error
  layout = f"a .json file of scores is {JSON_LAYOUT}"
  videos = content.get("videos") if isinstance(content, Mapping) else None
  names = content.get("class_names", []) if videos is not None else []
  if not isinstance(videos, Mapping) or not _are_texts(names):
    raise ScoresError(layout)
  for video_id, video in videos.items():
    if not isinstance(video, Mapping) or {"label", "scores"} - set(video):
      raise ScoresError(f"{video_id!r} has no label and scores: {layout}")
    if not _are_numbers(video["scores"]):
      raise ScoresError(f"scores of {video_id!r} are not a list of numbers")
  values = _rows({k: video["scores"] for k, video in videos.items()})
  labels = {video_id: video["label"] for video_id, video in videos.items()}
  _check_ids(list(videos))
  return create_scores(
    list(videos),
    _labels(labels, values.shape[1]),
    values,
    class_names=names,
    protocol=str(content.get("protocol", "not stated")),
  )


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  made = {}
  for name, value in pairs:
    if name in made:
      raise ScoresError(f"{name!r} occurs twice")
    made[name] = value
  return made


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _are_numbers(value: Any) -> bool:
  return isinstance(value, list) and all(
    isinstance(x, int | float) and not isinstance(x, bool) for x in value
  )


def _rows(scores: Mapping[str, Sequence[float]]) -> np.ndarray:
  """Stacks scores by video, float64 [b, n]."""
  n = len(next(iter(scores.values()), ()))
  for video_id, row in scores.items():
    if len(row) != n:
      raise ScoresError(
        f"{video_id!r} has {len(row)} scores, the first video has {n}"
      )
  try:
    return np.array(list(scores.values()), float).reshape(len(scores), n)
  except OverflowError as error:
    raise ScoresError("a score is too large for a number") from error


def _labels(labels: Mapping[str, Any], n: int) -> np.ndarray:
  """Collects class indices [b]; or, of lists of them, 0 and 1 [b, n]."""
  several = [isinstance(label, list) for label in labels.values()]
  if not any(several):
    for video_id, label in labels.items():
      _check_label(label, video_id, n)
    return np.array(list(labels.values()))
  if not all(several):
    raise ScoresError(
      f"{list(labels)[several.index(False)]!r} has one label, others have"
      " lists of them"
    )
  matrix = np.zeros((len(labels), n), bool)
  for row, (video_id, classes) in zip(matrix, labels.items(), strict=True):
    for label in classes:
      _check_label(label, video_id, n)
      row[int(label)] = True
  return matrix


def _check_label(label: Any, video_id: str, n: int) -> None:
  is_whole = _are_numbers([label]) and label in range(n)
  if not is_whole:
    raise ScoresError(
      f"labels must be class indices from 0 to {n - 1}, found"
      f" {str(label)[:40]!r} for {video_id!r}"
    )


def read_listing(path: Path) -> Listing:
  """Reads a list of videos, such as an annotation file of mmaction2.

  Raises:
    ScoresError: it can't be read, a line is empty, or only some have a label.
  """
  ids, labels = [], array.array("d")
  try:
    with path.open(encoding="utf-8-sig") as file:
      size = os.fstat(file.fileno()).st_size
      for line in iter(lambda: file.readline(_LONGEST_LINE), ""):
        match = _LISTED.fullmatch(line.strip())
        where = f"{path}, line {len(ids) + 1}"
        if match is None or len(line) == _LONGEST_LINE:
          raise ScoresError(f"{where}: a list of videos has {LIST_LAYOUT}")
        label = match["label"]
        if ids and (label is None) == bool(labels):
          where = where if labels else f"{path}, line 1"
          raise ScoresError(f"{where}: no label, but other lines have")
        ids.append(match["id"])
        if label is not None:
          labels.append(float(label))
        if not len(ids) % 1000:
          _require_bounded(len(ids), 0, size)
  except OSError as error:
    raise ScoresError(f"{path}: {error.strerror or error}") from error
  except UnicodeDecodeError as error:
    raise ScoresError(f"{path}: not text in UTF-8: {error.reason}") from error
  except ScoresError as error:
    said = str(error)
    raise ScoresError(
      said if str(path) in said else f"{path}: {said}"
    ) from error
  if not ids:
    raise ScoresError(f"{path}: a list of videos has {LIST_LAYOUT}")
  return Listing(path, tuple(ids), np.array(labels) if labels else None)
