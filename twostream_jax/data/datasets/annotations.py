"""Lists of labelled clips, from folders or from CSV files."""

import dataclasses
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twostream_jax.data.datasets.clips import (
  SPLITS,
  AnnotationError,
  Clip,
  check_clips,
  class_names,
  counted,
  examples,
  existing_folder,
  extensions,
)
from twostream_jax.data.datasets.find_videos import find_videos
from twostream_jax.data.datasets.lists import Listed
from twostream_jax.data.datasets.texts import expand_home, read_rows
from twostream_jax.data.video.frames import (
  enclosing,
  is_frame_folder,
  is_left_behind,
  without_video_extension,
)

_HEADER = (
  "The first row must name the columns, with commas between them: path,label or"
  " path,label,group"
)
# Names of folders that are splits, in any case of letters.
_SPLIT_NAMES = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
  **dict.fromkeys(("test", "testing"), "test"),
}


def read_folder(
  videos: str | os.PathLike, *, test_fraction: float = 0.25, seed: int = 0
) -> list[Clip]:
  """Lists the clips of a folder with one folder a class.

  Every file below a class folder is a clip, except hidden ones and those that
  systems leave behind; a warning counts the files without the extension of a
  video. Every folder of frames (see `frames`) is one clip, with all that is in
  it.
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
  _tell_of_files([videos, *(splits or {}).values()], clips)
  check_clips(clips)
  return clips


def read_csv(
  videos: str | os.PathLike,
  *,
  train: str | os.PathLike,
  test: str | os.PathLike,
  validation: str | os.PathLike | None = None,
  allow_missing: bool = False,
  drop_shared_groups: bool = False,
) -> list[Clip]:
  """Lists the clips that CSV files name, one file a split.

  Args:
    videos: the folder that paths are relative to.
    train: List of the train clips: UTF-8 file (a byte-order mark and CRLF are
      fine) with a header row and the columns path, label and, if known, group.
      Others are ignored. A path is that of a file or of a folder of frames (see
      `frames`); where neither is there, `find_videos` says what is taken.
    test: List of the test clips.
    validation: List of the validation clips, optional.
    allow_missing: see `find_videos`.
    drop_shared_groups: see `clips.leave_out_shared_groups`.

  Returns:
    Clips in the files' order: train, then validation, then test.

  Raises:
    AnnotationError: what is wrong and what to do.
  """
  videos = existing_folder(videos)
  lists = {"train": train, "validation": validation, "test": test}
  listed = [
    row
    for split, path in lists.items()
    if path is not None
    for row in _read_list(videos, Path(path), split)
  ]
  return find_videos(
    videos,
    listed,
    allow_missing=allow_missing,
    drop_shared_groups=drop_shared_groups,
    anywhere=False,
  )


def _read_list(videos: Path, path: Path, split: str) -> list[Listed]:
  listed, unlabelled = [], []
  for line, row in read_rows(path, ("path", "label"), _HEADER):
    cells = row["path"], row["label"], row.get("group", "")
    if not all(cells[:2]) or any(len(c.splitlines()) > 1 for c in cells):
      unlabelled.append(f"line {line}")
    else:
      listed.append(Listed(_relative(videos, cells[0]), split, *cells[1:]))
  if unlabelled:
    raise AnnotationError(
      f"{path}: {counted(unlabelled, 'row')} without a path or a label of one"
      f" line: {examples(unlabelled)}. Fill them in or remove the rows."
    )
  if not listed:
    raise AnnotationError(
      f"{path} lists no video; the {split} split needs some"
    )
  return listed


def _relative(videos: Path, path: str) -> str:
  """A listed path relative to the folder of videos; '~' is a home folder."""
  whole = videos / expand_home(path, videos)
  return Path(os.path.relpath(whole, videos)).as_posix()


def _tell_of_files(parents: Sequence[Path], clips: Sequence[Clip]) -> None:
  """Warns of files beside the classes' folders and of unusual clips."""
  loose = [
    path.name for parent in parents for path in _visible(parent, folders=False)
  ]
  if loose:
    warnings.warn(
      f"{counted(loose, 'file')} beside the folders of classes not taken:"
      f" {extensions(loose)}",
      stacklevel=3,
    )
  strange = [
    clip.video_id
    for clip in clips
    if without_video_extension(clip.video_id) == clip.video_id
    and clip.path.is_file()
  ]
  if strange:
    warnings.warn(
      f"{counted(strange, 'file')} of {len(clips)} without the extension of a"
      f" video, taken as clips all the same: {extensions(strange)}",
      stacklevel=3,
    )


def _visible(folder: Path, *, folders: bool) -> list[Path]:
  return sorted(
    entry
    for entry in folder.iterdir()
    if not is_left_behind(entry.name)
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
  top = enclosing(videos)
  assert top is not None
  for folder in folders:
    if is_frame_folder(folder):
      raise AnnotationError(
        f"{folder} is the folder of a class and holds numbered images. Frames"
        f" need a folder for each clip: {folder}/<clip>/img_00001.jpg ..."
      )
    # The parent is the whole folder, or a split in it.
    around = enclosing(parent, top) or top
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
