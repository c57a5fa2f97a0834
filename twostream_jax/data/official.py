"""The datasets that can be built by name, and where their files are.

Files and folders of frames are found by their names, wherever they lie below
the folder of videos: flat, in class folders, in split folders.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from twostream_jax.data import large_lists, lists
from twostream_jax.data.annotations import read_csv, read_folder
from twostream_jax.data.clips import (
  AnnotationError,
  Clip,
  check_clips,
  check_files,
  counted,
  examples,
  existing_folder,
)
from twostream_jax.data.frames import (
  enclosing,
  hold_frames,
  without_video_extension,
)


def read_ucf101(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  split: int = 1,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads UCF-101; see `lists.list_ucf101` and `find_videos`."""
  listed = lists.list_ucf101(annotations, split)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_hmdb51(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  split: int = 1,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads HMDB-51; see `lists.list_hmdb51` and `find_videos`."""
  listed = lists.list_hmdb51(annotations, split)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_ssv2(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads SSv2; see `large_lists.list_ssv2` and `find_videos`."""
  listed = large_lists.list_ssv2(annotations)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_ssv2_mini(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  mini_train: int = 20,
  mini_test: int = 3,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads part of SSv2; see `large_lists.list_ssv2_mini` and `find_videos`."""
  listed = large_lists.list_ssv2_mini(annotations, mini_train, mini_test)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_ccv(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  keep_unlabelled: bool = False,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads CCV, multi-label; see `lists.list_ccv` and `find_videos`."""
  listed = lists.list_ccv(annotations, keep_unlabelled)
  return find_videos(
    videos, listed, allow_missing=allow_missing, any_extension=True
  )


def read_kinetics(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads a Kinetics set; see `large_lists.list_kinetics` and `find_videos`."""
  listed = large_lists.list_kinetics(annotations)
  return find_videos(videos, listed, allow_missing=allow_missing)


# Name to function. Its parameters are the options that the dataset takes.
DATASETS: dict[str, Callable[..., list[Clip]]] = {
  "folder": read_folder,
  "csv": read_csv,
  "ucf101": read_ucf101,
  "hmdb51": read_hmdb51,
  "ssv2": read_ssv2,
  "ssv2_mini": read_ssv2_mini,
  "ccv": read_ccv,
  "kinetics": read_kinetics,
}


def find_videos(
  videos: str | os.PathLike,
  listed: Sequence[lists.Listed],
  *,
  allow_missing: bool = False,
  any_extension: bool = False,
) -> list[Clip]:
  """Finds listed videos below a folder and checks the clips.

  A file that is there under its listed name is taken (a/v.avi), otherwise the
  folder of frames in that place (a/v, see `frames`), otherwise the one file or
  folder with the last part of that name (v.avi, v), at any depth.

  Args:
    videos: the folder.
    listed: what to find.
    allow_missing: whether files that are not there are no error. Their clips
      are in the result all the same, under their listed names. Each split
      needs a file even so.
    any_extension: whether a file's extension plays no part.

  Returns:
    Clips in the order of `listed`.

  Raises:
    AnnotationError: the list can't make a dataset, videos are missing, or
      several files or folders have the name of one.
  """
  folder = existing_folder(videos)
  files, folders = _index(folder, any_extension)
  clips, several = [], []
  for row in listed:
    found = _matches(row.name, files, folders)
    if len(found) > 1:
      several.append(f"{row.name} ({', '.join(found)})")
    video_id = found[0] if found else row.name
    clips.append(
      Clip(video_id, folder / video_id, row.split, row.label, row.group)
    )
  if several:
    raise AnnotationError(
      f"{counted(several, 'video')} with more than one file or folder of frames"
      f" below {folder}: {examples(several)}. Keep one of each, or pass the"
      " folder of one copy."
    )
  check_clips(clips)
  check_files(
    clips,
    folder,
    allow_missing,
    "Pass the folder that holds them, or build without those that are missing"
    " (--allow_missing), with some in each split.",
  )
  return clips


def _index(
  folder: Path, any_extension: bool
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Names of files and of folders of frames to paths relative to the folder.

  Files by name or stem, folders without a video's extension; hidden excepted.
  """
  files, folders = {}, {}
  around = {os.fspath(folder): enclosing(folder)}
  for parent, children, names in os.walk(
    folder, onerror=_refuse, followlinks=True
  ):
    inside = {
      name: enclosing(os.path.join(parent, name), around[parent])
      for name in children
      if not name.startswith(".")
    }
    children[:] = sorted(name for name in inside if inside[name])
    around |= {os.path.join(parent, name): inside[name] for name in children}
    base = Path(os.path.relpath(parent, folder))
    if parent != os.fspath(folder) and hold_frames(names):
      key = without_video_extension(base.name)
      folders.setdefault(key, []).append(base.as_posix())
      continue
    for name in sorted(names):
      if not name.startswith("."):
        key = Path(name).stem if any_extension else name
        files.setdefault(key, []).append((base / name).as_posix())
  return files, folders


def _refuse(error: OSError) -> NoReturn:
  # Files below a folder that can't be read would be taken for missing.
  raise error


def _matches(
  name: str, files: dict[str, list[str]], folders: dict[str, list[str]]
) -> list[str]:
  """What a listed name can mean; only the best where one is in its place."""
  frames = without_video_extension(name)
  found = files.get(_last(name), []) + folders.get(_last(frames), [])
  there = [path for path in (name, frames) if path in found]
  return there[:1] or found


def _last(name: str) -> str:
  return name.rpartition("/")[2]
