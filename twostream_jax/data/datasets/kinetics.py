"""The lists of Kinetics (Kay et al. 2017, 1705.06950), as they are distributed.

CSV files, the same named .txt (Kinetics-600 of CVDF), or JSON (DeepMind).
"""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twostream_jax.data.datasets.clips import AnnotationError, counted, examples
from twostream_jax.data.datasets.lists import (
  Listed,
  existing_annotations,
  refuse_rows,
)
from twostream_jax.data.datasets.texts import read_lines, read_rows, read_text
from twostream_jax.files import json_files

_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
# By preference, where a folder holds a list in several of them.
_FORMS = (".csv", ".txt", ".json")
_LATEST = 10**6  # Seconds; names of files have six digits.
# Names of rows, and their cells by column.
_Rows = Iterator[tuple[str, Mapping[str, Any]]]
_SPLITS = {
  "train": "train",
  "val": "validation",
  "validate": "validation",
  "validation": "validation",
  "test": "test",
}


def list_kinetics(annotations: str | os.PathLike) -> list[Listed]:
  """Lists a Kinetics set (400, 600, 700).

  Test rows without a label are left out. Where no test row is left, results are
  reported on the validation list, and it is the test split here. A group is the
  YouTube video.

  Args:
    annotations: folder of the lists: train.csv, val.txt, test.json and the
      like. CSV and text have the columns label, youtube_id, time_start,
      time_end and split; JSON is {youtube_id: {"annotations": {"label",
      "segment"}, "subset"}}. Of a list in several forms the first of CSV, text
      and JSON is read. Where there are label_map*.txt (a class a row), a label
      must be in one of them.
  """
  folder = existing_annotations(annotations)
  known = {
    line
    for path in folder.glob("label_map*.txt")
    for _, line in read_lines(path)
  }
  listed = [
    row for path, rows in _lists(folder) for row in _listed(path, rows, known)
  ]
  labelled = [row for row in listed if row.label]
  if len(labelled) < len(listed):
    warnings.warn(
      f"{len(listed) - len(labelled)} test rows have no label: left out",
      stacklevel=2,
    )
  if any(row.split == "test" for row in labelled):
    return labelled
  warnings.warn(
    "no test row has a label: the validation list is the test split",
    stacklevel=2,
  )
  return [
    dataclasses.replace(row, split="test" if row.split != "train" else "train")
    for row in labelled
  ]


def _lists(folder: Path) -> list[tuple[Path, _Rows]]:
  """Files and rows, each list once; a warning names the files not read."""
  found, unread = {}, []
  for form in _FORMS:
    for path in sorted(folder.glob(f"*{form}")):
      if path.match("label_map*.txt"):
        continue
      rows = None if path.stem in found else _rows(path)
      if rows is None:
        unread.append(path.name)
      else:
        found[path.stem] = path, rows
  if not found:
    raise AnnotationError(
      f"{folder} holds no list of Kinetics: train.csv, train.txt with the"
      f" columns {', '.join(_COLUMNS)}, or train.json"
    )
  if unread:
    warnings.warn(
      f"{counted(unread, 'file')} in {folder} not read, other than a list or a"
      f" second form of one: {examples(unread)}",
      stacklevel=3,
    )
  return [found[stem] for stem in sorted(found)]


def _rows(path: Path) -> _Rows | None:
  """A name for each row and its cells by the columns of a CSV file.

  None where a text or JSON file is something else; a CSV file must be a list.
  """
  if path.suffix == ".json":
    content = _json(path)
    return None if content is None else _json_rows(content)
  if path.suffix == ".txt" and not _has_columns(path):
    return None
  advice = "Leave only lists of clips in the folder."
  rows = read_rows(path, _COLUMNS, advice)
  return ((f"line {line}", row) for line, row in rows)


def _has_columns(path: Path) -> bool:
  first = next((line for _, line in read_lines(path)), "")
  return set(_COLUMNS) <= {cell.strip(' "') for cell in first.split(",")}


def _json(path: Path) -> dict[str, dict[str, Any]] | None:
  try:
    content = json_files.parse(read_text(path).encode(), grown=json_files.GROWN)
  except json_files.JsonError as error:
    raise AnnotationError(f"{path} is not a JSON file: {error}") from error
  is_list = isinstance(content, dict) and any(
    isinstance(entry, dict) and "subset" in entry for entry in content.values()
  )
  return content if is_list else None


def _json_rows(content: Mapping[str, Any]) -> _Rows:
  for video, entry in content.items():
    entry = entry if isinstance(entry, dict) else {}
    about = entry.get("annotations")
    about = about if isinstance(about, dict) else {}
    segment = about.get("segment")
    start, end = None, None
    if isinstance(segment, list) and len(segment) == 2:
      start, end = segment
    yield (
      repr(video),
      {
        "youtube_id": video,
        "label": about.get("label"),
        "split": entry.get("subset"),
        "time_start": start,
        "time_end": end,
      },
    )


def _listed(path: Path, rows: _Rows, known: set[str]) -> list[Listed]:
  listed, wrong, unknown = [], [], []
  for where, row in rows:
    try:
      listed.append(_listed_row(row))
    except (KeyError, ValueError, TypeError, OverflowError):
      wrong.append(where)
      continue
    label = listed[-1].label
    if known and label and label not in known:
      unknown.append(f"{where} {label!r}")
  refuse_rows(
    path,
    wrong,
    "row",
    "without an id, a label, a split (train, val, test) or whole seconds",
  )
  refuse_rows(
    path,
    unknown,
    "row",
    "with a label that no label_map*.txt has",
    "Use the label map of this set, or remove the maps.",
  )
  return listed


def _listed_row(row: Mapping[str, Any]) -> Listed:
  names = ("label", "split", "youtube_id")
  label, folder, video = (str(row.get(name) or "").strip() for name in names)
  split = _SPLITS[folder]
  if not video or (not label and split != "test"):
    raise ValueError("no video or no label")
  if not label:
    return Listed(video, split, "", video)
  start, end = _seconds(row["time_start"]), _seconds(row["time_end"])
  name = f"{folder}/{label}/{video}_{start:06d}_{end:06d}.mp4"
  return Listed(name, split, label, video)


def _seconds(time: str | float) -> int:
  """Whole seconds; ValueError for a part of one: file names have none."""
  seconds = float(time)
  if not (seconds.is_integer() and 0 <= seconds <= _LATEST):
    raise ValueError(f"not whole seconds: {time}")
  return int(seconds)
