"""Lists of labelled clips, from folders or from CSV files."""

import csv
import dataclasses
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twostream_jax.data.clips import (
  SPLITS,
  AnnotationError,
  Clip,
  check_clips,
  check_files,
  class_names,
  counted,
  examples,
  existing_folder,
)
from twostream_jax.data.frames import (
  enclosing,
  is_frame_folder,
  without_video_extension,
)

# Names of folders that are splits, in any case of letters.
_SPLIT_NAMES = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
  **dict.fromkeys(("test", "testing"), "test"),
}
# What archives and file systems leave behind.
_NO_CLASSES = {
  "__macosx",
  "@eadir",
  "$recycle.bin",
  "system volume information",
  "lost+found",
}


def read_folder(
  videos: str | os.PathLike, *, test_fraction: float = 0.25, seed: int = 0
) -> list[Clip]:
  """Lists the clips of a folder with one folder a class.

  Every file below a class folder counts as a clip, hidden ones excepted, and
  every folder of frames (see `frames`) as one clip, with all that is in it.
  Where the top folders hold folders and are called train (training), validation
  (val, valid, dev) and test (testing), in any case of letters, they are the
  splits. Otherwise each class is split on its own: the draw depends on the
  seed, the class and its files, not on other classes. A class of one clip goes
  to train, with a warning.

  Args:
    videos: the folder.
    test_fraction: share of each class for test, in 0..1, both excluded; at
      least one clip. Not used where the folders make the split.
    seed: of the draw.

  Returns:
    Clips by split, then by class, then by path.

  Raises:
    AnnotationError: what is wrong and what to do.
  """
  videos = existing_folder(videos)
  folders = _visible(videos, folders=True)
  if not folders:
    raise AnnotationError(
      f"{videos} holds no folders; it needs one folder a class"
      f" ({videos}/<class>/<clip>)"
    )
  if splits := _split_folders(videos, folders):
    clips = [
      clip
      for split in SPLITS
      if split in splits
      for clip in _class_clips(videos, splits[split], split)
    ]
  else:
    if not 0 < test_fraction < 1:
      raise AnnotationError(
        f"the test fraction must be between 0 and 1: {test_fraction}"
      )
    clips = _split_by_class(
      list(_class_clips(videos, videos, "train")), test_fraction, seed
    )
  check_clips(clips)
  return clips


def read_csv(
  videos: str | os.PathLike,
  *,
  train: str | os.PathLike,
  test: str | os.PathLike,
  validation: str | os.PathLike | None = None,
  allow_missing: bool = False,
) -> list[Clip]:
  """Lists the clips that CSV files name, one file a split.

  Args:
    videos: the folder that paths are relative to.
    train: UTF-8 file (a byte-order mark and CRLF are fine) with a header row
      and the columns path, label and, if known, group. Others are ignored. A
      path is that of a file or of a folder of frames (see `frames`); where
      neither is there, v.avi stands for the folder of frames v.
    test: likewise.
    validation: likewise, optional.
    allow_missing: whether files that are not there are no error; their clips
      are in the result all the same.

  Returns:
    Clips in the files' order: train, then validation, then test.

  Raises:
    AnnotationError: what is wrong and what to do.
  """
  videos = existing_folder(videos)
  lists = {"train": train, "validation": validation, "test": test}
  clips = []
  for split, path in lists.items():
    if path is not None:
      clips += _read_list(videos, Path(path), split)
  check_clips(clips)
  check_files(
    clips,
    videos,
    allow_missing,
    "Paths in the lists are relative to that folder: pass another one, remove"
    " the rows, or build without them (--allow_missing).",
  )
  return clips


def _read_list(videos: Path, path: Path, split: str) -> list[Clip]:
  clips, unlabelled = [], []
  for line, row in _read_rows(path):
    video, label = (row["path"] or "").strip(), (row["label"] or "").strip()
    if not video or not label or len(label.splitlines()) > 1:
      unlabelled.append(f"line {line}")
      continue
    video_id = _video_id(videos, video)
    group = (row.get("group") or "").strip()
    clips.append(Clip(video_id, videos / video_id, split, label, group))
  if unlabelled:
    raise AnnotationError(
      f"{path}: {counted(unlabelled, 'row')} without a path or a label of one"
      f" line: {examples(unlabelled)}. Fill them in or remove the rows."
    )
  if not clips:
    raise AnnotationError(
      f"{path} lists no video; the {split} split needs some"
    )
  return clips


def _video_id(videos: Path, listed: str) -> str:
  path = Path(videos, listed)
  if not path.exists():
    folder = path.with_name(without_video_extension(path.name))
    path = folder if is_frame_folder(folder) else path
  return Path(os.path.relpath(path, videos)).as_posix()


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file)
      header = [name.strip() for name in reader.fieldnames or []]
      reader.fieldnames = header
      missing = [name for name in ("path", "label") if name not in header]
      if missing:
        raise AnnotationError(
          f"{path}: no column {' and no column '.join(missing)}; its first row"
          f" is {','.join(header)!r}. The first row must name the columns, with"
          " commas between them: path,label or path,label,group"
        )
      for row in reader:
        surplus = row.pop(None, [])
        if any(cell.strip() for cell in surplus):
          raise AnnotationError(
            f"{path}, line {reader.line_num}: {len(header) + len(surplus)}"
            f" cells, but the first row names {len(header)} columns. A label"
            ' with a comma needs quotes: video.avi,"push, pull"'
          )
        yield reader.line_num, row
  except OSError as error:
    raise AnnotationError(f"can't read {path}: {error.strerror}") from error
  except (UnicodeDecodeError, csv.Error) as error:
    raise AnnotationError(
      f"{path} is not a CSV file in UTF-8: {error}. Save it as one."
    ) from error


def _visible(folder: Path, *, folders: bool) -> list[Path]:
  return sorted(
    entry
    for entry in folder.iterdir()
    if not entry.name.startswith(".")
    and entry.name.casefold() not in _NO_CLASSES
    and (entry.is_dir() if folders else entry.is_file())
  )


def _split_folders(
  videos: Path, folders: Sequence[Path]
) -> dict[str, Path] | None:
  """Folders by split; None where they are classes.

  Raises:
    AnnotationError: They look like splits, but not all of them, or there is no
      test split. They would be taken for classes and split again.
  """
  named = [f for f in folders if f.name.casefold() in _SPLIT_NAMES]
  others = [f for f in folders if f not in named]
  holding = [f for f in named if _visible(f, folders=True)]
  splits = {}
  for folder in named:
    splits.setdefault(_SPLIT_NAMES[folder.name.casefold()], []).append(folder)
  # Trains are a class too.
  if not holding or (len(splits) < 2 and others):
    return None
  problems = [
    f"{' and '.join(f.name for f in same)} are the same split"
    for same in splits.values()
    if len(same) > 1
  ]
  if others:
    problems.append(
      f"{examples([f.name for f in others])} beside them: no name of a split"
    )
  if empty := [f.name for f in named if f not in holding]:
    problems.append(f"no folder of a class in {examples(empty)}")
  missing = [split for split in ("train", "test") if split not in splits]
  if missing:
    problems.append(f"no {' and no '.join(missing)} folder")
  if problems:
    raise AnnotationError(
      f"{videos} holds folders that are named like splits"
      f" ({', '.join(f.name for f in named)}), but {'; '.join(problems)}."
      " Splits are train, validation and test (or training, val, testing), each"
      " with one folder a class. Move away or rename what is not; where all of"
      " these are classes, rename them."
    )
  return {split: same[0] for split, same in splits.items()}


def _class_clips(videos: Path, parent: Path, split: str) -> Iterator[Clip]:
  """One clip for each file or folder of frames below each class's folder.

  A class has the name of its folder, without spaces around it, as in a list.
  """
  folders = _visible(parent, folders=True)
  names = Counter(folder.name.strip() for folder in folders)
  twins = [repr(f.name) for f in folders if names[f.name.strip()] > 1]
  if twins:
    raise AnnotationError(
      f"{counted(twins, 'folder')} in {parent} with names that differ only in"
      f" the spaces around them: {examples(twins)}. Rename or merge them."
    )
  for folder in folders:
    if is_frame_folder(folder):
      raise AnnotationError(
        f"{folder} is the folder of a class and holds numbered images. Frames"
        f" need a folder for each clip: {folder}/<clip>/img_00001.jpg ..."
      )
    # The parent is the whole folder, or a split in it.
    around = enclosing(parent, enclosing(videos)) or enclosing(videos)
    paths = list(_paths_below(folder, around))
    if not paths:
      warnings.warn(f"no files in {folder}: no such class", stacklevel=4)
    for path in paths:
      video_id = path.relative_to(videos).as_posix()
      yield Clip(video_id, path, split, folder.name.strip(), "")


def _paths_below(folder: Path, around: frozenset[str]) -> Iterator[Path]:
  """Files and folders of frames; for `around` see `enclosing`."""
  inside = enclosing(folder, around)
  if inside is None:
    return
  yield from _visible(folder, folders=False)
  for child in _visible(folder, folders=True):
    if is_frame_folder(child):
      yield child
    else:
      yield from _paths_below(child, inside)


def _split_by_class(
  clips: Sequence[Clip], test_fraction: float, seed: int
) -> list[Clip]:
  train, test, single = [], [], []
  for name in class_names(clips):
    members = [clip for clip in clips if clip.label == name]
    if len(members) == 1:
      single.append(name)
    wanted = max(1, round(test_fraction * len(members)))
    n_test = min(wanted, len(members) - 1)
    rng = np.random.default_rng([seed, zlib.crc32(os.fsencode(name))])
    drawn = set(rng.permutation(len(members))[:n_test].tolist())
    for i, clip in enumerate(members):
      (test if i in drawn else train).append(clip)
  if single:
    warnings.warn(
      f"{counted(single, 'class', 'classes')} with a single clip, which goes to"
      f" train, so that the test split has none: {examples(single)}",
      stacklevel=3,
    )
  return train + [dataclasses.replace(clip, split="test") for clip in test]
