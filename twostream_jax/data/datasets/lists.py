"""The official lists of video datasets, read as they are distributed.

Only the lists: no video has to exist. Unix and Windows line ends are equal.
Every function raises AnnotationError where a list is not what it should be.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from twostream_jax.data.datasets.clips import AnnotationError, counted, examples
from twostream_jax.data.datasets.texts import read_lines

_UCF101_ROW = re.compile(
  r"(?P<name>(?P<label>\w+)/v_\w+_(?P<group>g\d+)_c\d+\.\w+)"
  r"(\s+(?P<number>\d+))?"
)
_HMDB51_SPLITS = {"0": None, "1": "train", "2": "test"}


@dataclasses.dataclass(frozen=True)
class Listed:
  """A row of a list.

  Attributes:
    name: where the set's own layout puts the file, relative to the folder of
      videos. Without an extension where the list leaves that open.
    split: 'train', 'validation' or 'test'.
    label: name of the class, or a tuple of any number of names.
    group: see `clips.Clip`.
  """

  name: str
  split: str
  label: str | tuple[str, ...]
  group: str = ""


def list_ucf101(annotations: str | os.PathLike, split: int = 1) -> list[Listed]:
  """Lists UCF-101 (Soomro et al. 2012, 1212.0402), the lists for recognition.

  A group is the source video, gNN of v_Class_gNN_cNN; they count from 1 within
  each class, so the class is part of its name.

  Args:
    annotations: folder with classInd.txt ('1 ApplyEyeMakeup'), trainlist0N.txt
      ('Class/v_Class_g08_c01.avi 1', numbers as in classInd.txt) and
      testlist0N.txt (without the number).
    split: N, 1 to 3.
  """
  folder = Path(annotations)
  names = _ucf101_classes(folder / "classInd.txt")
  return [
    row
    for part in ("train", "test")
    for row in _ucf101_rows(folder / f"{part}list{split:02}.txt", part, names)
  ]


def list_hmdb51(annotations: str | os.PathLike, split: int = 1) -> list[Listed]:
  """Lists HMDB-51 (Kuehne et al. 2011).

  Args:
    annotations: folder with a <class>_test_split<N>.txt for each class; its
      rows are a file name and 1 (train), 2 (test) or 0 (in neither).
    split: N, 1 to 3.
  """
  folder = existing_annotations(annotations)
  found = {}
  for path in folder.glob("*_test_split?.txt"):
    label, _, number = path.stem.rpartition("_test_split")
    found.setdefault(label, {})[number] = path
  if not found:
    raise AnnotationError(f"{folder} holds no <class>_test_split{split}.txt")
  lacking = sorted(label for label in found if str(split) not in found[label])
  if lacking:
    raise AnnotationError(
      f"{counted(lacking, 'class', 'classes')} without a list for split"
      f" {split} in {folder}: {examples(lacking)}. Add"
      f" <class>_test_split{split}.txt."
    )
  return [
    row
    for label in sorted(found)
    for row in _hmdb51_rows(found[label][str(split)], label)
  ]


def list_ccv(
  annotations: str | os.PathLike, keep_unlabelled: bool = False
) -> list[Listed]:
  """Lists Columbia Consumer Video (Jiang et al. 2011), several labels a clip.

  A name is the YouTube id; the extension is open.

  Args:
    annotations: folder with categoryName.txt, {train,test}VidID.txt (an id a
      row) and {train,test}Label.txt (a row of 0 and 1 a video).
    keep_unlabelled: whether clips of no class are listed; left out otherwise,
      with a warning.
  """
  folder = Path(annotations)
  classes = [line for _, line in read_lines(folder / "categoryName.txt")]
  listed = [
    row
    for part in ("train", "test")
    for row in _ccv_rows(folder, part, classes)
  ]
  if keep_unlabelled:
    return listed
  kept = [row for row in listed if row.label]
  if len(kept) < len(listed):
    warnings.warn(
      f"{len(listed) - len(kept)} of {len(listed)} clips have no label and are"
      " left out (--keep_unlabelled keeps them)",
      stacklevel=2,
    )
  return kept


def _ucf101_classes(path: Path) -> dict[str, str]:
  rows = [(number, line.split()) for number, line in read_lines(path)]
  wrong = [f"line {n}" for n, w in rows if len(w) != 2 or not w[0].isdigit()]
  refuse_rows(path, wrong, "row", "without a number and a class")
  return {words[0]: words[1] for _, words in rows}


def _ucf101_rows(path: Path, split: str, names: dict[str, str]) -> list[Listed]:
  classes = set(names.values())
  listed, strange, unknown, other = [], [], [], []
  for line, text in read_lines(path):
    row = _UCF101_ROW.fullmatch(text)
    if row is None:
      strange.append(f"line {line}")
      continue
    name, label, number = row["name"], row["label"], row["number"]
    if label not in classes:
      unknown.append(name)
    elif number and names.get(number) != label:
      other.append(f"{name} {number}")
    listed.append(Listed(name, split, label, f"{label}_{row['group']}"))
  refuse_rows(path, strange, "row", "not like Class/v_Class_g01_c01.avi")
  advice = "Take all lists from one release."
  refuse_rows(path, unknown, "row", "of a class not in classInd.txt", advice)
  refuse_rows(
    path,
    other,
    "row",
    "with the number of another class",
    "Numbers are those of classInd.txt, from 1.",
  )
  return listed


def _hmdb51_rows(path: Path, label: str) -> list[Listed]:
  rows = [(line, *text.rpartition(" ")[::2]) for line, text in read_lines(path)]
  wrong = [
    f"line {n}"
    for n, name, code in rows
    if not name or code not in _HMDB51_SPLITS
  ]
  refuse_rows(path, wrong, "row", "that do not end in 0, 1 or 2")
  return [
    Listed(f"{label}/{name.strip()}", _HMDB51_SPLITS[code], label)
    for _, name, code in rows
    if _HMDB51_SPLITS[code]
  ]


def _ccv_rows(folder: Path, part: str, classes: Sequence[str]) -> list[Listed]:
  path = folder / f"{part}Label.txt"
  ids = [line for _, line in read_lines(folder / f"{part}VidID.txt")]
  rows = [(line, text.split()) for line, text in read_lines(path)]
  if len(rows) != len(ids):
    raise AnnotationError(
      f"{path} has {len(rows)} rows for {len(ids)} ids in {part}VidID.txt"
    )
  wrong = [
    f"line {line}"
    for line, row in rows
    if len(row) != len(classes) or not set(row) <= {"0", "1"}
  ]
  refuse_rows(path, wrong, "row", f"that are not {len(classes)} times 0 or 1")
  return [
    Listed(
      name,
      part,
      tuple(c for c, bit in zip(classes, row, strict=True) if bit == "1"),
    )
    for name, (_, row) in zip(ids, rows, strict=True)
  ]


def refuse_rows(
  where: object, rows: Sequence[str], one: str, what: str, advice: str = ""
) -> None:
  """Raises AnnotationError if there are any wrong rows.

  Args:
    where: the list.
    rows: what names each wrong row.
    one: of them, in the singular.
    what: is wrong with them.
    advice: what to do; by default to restore the official file.
  """
  if rows:
    raise AnnotationError(
      f"{where}: {counted(rows, one)} {what}: {examples(rows)}."
      f" {advice or 'Restore the official file.'}"
    )


def existing_annotations(folder: str | os.PathLike) -> Path:
  """Returns the folder of annotations; AnnotationError if there is none."""
  folder = Path(folder)
  if not folder.is_dir():
    raise AnnotationError(f"no such folder of annotations: {folder}")
  return folder
