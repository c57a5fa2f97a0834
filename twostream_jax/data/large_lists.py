"""The official lists of large video datasets; see `lists`."""

import csv
import dataclasses
import json
import os
import re
import warnings
from collections import Counter
from pathlib import Path

from twostream_jax.data.clips import AnnotationError
from twostream_jax.data.lists import (
  Listed,
  existing_annotations,
  read_lines,
  read_text,
  refuse_rows,
)

_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
_KINETICS_SPLITS = {
  "train": "train",
  "val": "validation",
  "validate": "validation",
  "validation": "validation",
  "test": "test",
}


def list_ssv2(annotations: str | os.PathLike) -> list[Listed]:
  """Lists Something-Something v2 (Goyal et al. 2017, 1706.04261).

  Its test list has no labels, so results are reported on its validation list:
  that one is the test split here, and there is no validation split.

  Args:
    annotations: folder with labels.json, train.json and validation.json, with
      or without 'something-something-v2-' before their names.
  """
  return [
    *list_ssv2_part(annotations, "train", "train"),
    *list_ssv2_part(annotations, "validation", "test"),
  ]


def list_ssv2_mini(
  annotations: str | os.PathLike, mini_train: int = 20, mini_test: int = 3
) -> list[Listed]:
  """Lists the first clips of each class of Something-Something v2.

  Args:
    annotations: see `list_ssv2`.
    mini_train: clips of each class, in the order of the train list.
    mini_test: likewise, of the validation list.
  """
  most = {"train": mini_train, "test": mini_test}
  seen, kept = Counter(), []
  for row in list_ssv2(annotations):
    seen[row.split, row.label] += 1
    if seen[row.split, row.label] <= most[row.split]:
      kept.append(row)
  return kept


def list_ssv2_part(
  annotations: str | os.PathLike, part: str, split: str
) -> list[Listed]:
  """Lists one file of Something-Something v2, as clips of a split.

  The class is the template without the brackets around its placeholders.
  """
  classes = set(_ssv2_json(annotations, "labels"))
  rows = _ssv2_json(annotations, part)
  if not all(isinstance(row, dict) and "id" in row for row in rows):
    raise AnnotationError(
      f"the {part} list in {annotations} has clips without an id; it is not an"
      " official list"
    )
  listed = [
    Listed(f"{row['id']}.webm", split, _without_brackets(row)) for row in rows
  ]
  refuse_rows(
    f"the {part} list in {annotations}",
    [row.name for row in listed if row.label not in classes],
    "clip",
    "with a template that is not in the labels file",
    "Take all lists from one release; the test list has no templates.",
  )
  return listed


def list_kinetics(annotations: str | os.PathLike) -> list[Listed]:
  """Lists a Kinetics set (Kay et al. 2017, 1705.06950; 400, 600, 700).

  Test rows without a label are left out. Where no test row is left, results are
  reported on the validation list, and it is the test split here. A group is the
  YouTube video.

  Args:
    annotations: folder with CSV files of the columns label, youtube_id,
      time_start, time_end and split; all *.csv in it are read. Where there are
      label_map*.txt (a class a row), a label must be in one of them.
  """
  folder = existing_annotations(annotations)
  files = sorted(folder.glob("*.csv"))
  if not files:
    raise AnnotationError(f"{folder} holds no CSV file, such as train.csv")
  known = {
    line
    for path in folder.glob("label_map*.txt")
    for _, line in read_lines(path)
  }
  listed = [row for file in files for row in _kinetics_rows(file, known)]
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


def _without_brackets(row: dict) -> str:
  return re.sub(r"[\[\]]", "", str(row.get("template", "")))


def _ssv2_json(annotations: str | os.PathLike, name: str) -> dict | list:
  folder = existing_annotations(annotations)
  short = folder / f"{name}.json"
  long = folder / f"something-something-v2-{name}.json"
  path = short if short.is_file() else long
  try:
    content = json.loads(read_text(path))
  except json.JSONDecodeError as error:
    raise AnnotationError(f"{path} is no JSON file: {error}") from error
  if not isinstance(content, dict if name == "labels" else list):
    raise AnnotationError(f"{path} is not an official {name} file")
  return content


def _kinetics_rows(path: Path, known: set[str]) -> list[Listed]:
  reader = csv.DictReader(read_text(path).splitlines())
  missing = [c for c in _KINETICS_COLUMNS if c not in (reader.fieldnames or [])]
  if missing:
    raise AnnotationError(
      f"{path}: no column {', '.join(missing)}. Leave only lists of clips in"
      " the folder."
    )
  listed, wrong, unknown = [], [], []
  for row in reader:
    line = f"line {reader.line_num}"
    try:
      listed.append(_kinetics_row(row))
    except (KeyError, ValueError, TypeError):
      wrong.append(line)
      continue
    label = listed[-1].label
    if known and label and label not in known:
      unknown.append(f"{line} {label!r}")
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


def _kinetics_row(row: dict[str, str | None]) -> Listed:
  names = ("label", "split", "youtube_id")
  label, folder, video = ((row.get(name) or "").strip() for name in names)
  split = _KINETICS_SPLITS[folder]
  if not video or (not label and split != "test"):
    raise ValueError("no video or no label")
  start, end = int(row["time_start"]), int(row["time_end"])
  name = f"{folder}/{label}/{video}_{start:06d}_{end:06d}.mp4"
  return Listed(name, split, label, video)
