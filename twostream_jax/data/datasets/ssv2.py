"""The official lists of Something-Something v2; see `lists`."""

import os
import re
from collections import Counter

from twostream_jax.data.datasets.clips import AnnotationError
from twostream_jax.data.datasets.lists import (
  Listed,
  existing_annotations,
  refuse_rows,
)
from twostream_jax.data.datasets.texts import read_text
from twostream_jax.files import json_files


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
    mini_test: clips of each class, in the order of the validation list.
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


def _without_brackets(row: dict) -> str:
  return re.sub(r"[\[\]]", "", str(row.get("template", "")))


def _ssv2_json(annotations: str | os.PathLike, name: str) -> dict | list:
  folder = existing_annotations(annotations)
  short = folder / f"{name}.json"
  long = folder / f"something-something-v2-{name}.json"
  path = short if short.is_file() else long
  try:
    content = json_files.parse(read_text(path).encode(), grown=json_files.GROWN)
  except json_files.JsonError as error:
    raise AnnotationError(f"{path} is not a JSON file: {error}") from error
  if not isinstance(content, dict if name == "labels" else list):
    raise AnnotationError(f"{path} is not an official {name} file")
  return content
