"""Listed videos below a folder, by their names or by names like theirs.

A file may have become another form than the list says (v.mp4 for v.avi), lie in
another folder, or be spelled in other letter case or Unicode form. It is taken
where only one can be meant, and counted in a warning.
"""

import dataclasses
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from twostream_jax.data.datasets.clips import (
  AnnotationError,
  Clip,
  check_clips,
  check_files,
  counted,
  examples,
  existing_folder,
  leave_out_shared_groups,
)
from twostream_jax.data.datasets.lists import Listed
from twostream_jax.data.video.frames import (
  enclosing,
  hold_frames,
  is_frame_folder,
  is_left_behind,
  without_video_extension,
)

_Index = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class _Below:
  """What is below a folder, as paths relative to it; hidden files excepted."""

  files: Sequence[str]
  frame_folders: Sequence[str]


def find_videos(
  videos: str | os.PathLike,
  listed: Sequence[Listed],
  *,
  allow_missing: bool = False,
  drop_shared_groups: bool = False,
  anywhere: bool = True,
) -> list[Clip]:
  """Finds listed videos below a folder and checks the clips.

  A file that is there under its listed name is taken (a/v.avi), otherwise the
  folder of frames in that place (a/v, see `frames`), otherwise the one file or
  folder with the last part of that name (v.avi, v), at any depth. Where there
  is none, the one video that is named like it is taken: first with another
  extension (v.mp4), then in other letter case or Unicode form (V.avi).

  Args:
    videos: the folder.
    listed: what to find.
    allow_missing: whether missing files are accepted. Their clips
      are in the result all the same, under their listed names; so are those of
      which several files could be meant, rejected with a reason that names
      them. Each split needs a file even so.
    drop_shared_groups: see `clips.leave_out_shared_groups`.
    anywhere: whether files may be in other folders than the list says.

  Returns:
    Clips in the order of `listed`.

  Raises:
    AnnotationError: the list can't make a dataset, videos are missing, or
      several files or folders have the name of one.
  """
  folder = existing_folder(videos)
  names = list(dict.fromkeys(row.name for row in listed))
  below = _walk(folder) if anywhere else None
  exact = _exact_anywhere(below, names) if below else _exact(folder, names)
  several = [
    f"{name} ({', '.join(found)})" for name, found in exact.items() if found[1:]
  ]
  if several:
    raise AnnotationError(
      f"{counted(several, 'video')} with more than one file or folder of frames"
      f" below {folder}: {examples(several)}. Keep one of each, or pass the"
      " folder of one copy."
    )
  others = [name for name in names if not exact[name]]
  alike = {}
  if others:
    taken = {found[0] for found in exact.values() if found}
    alike = _alike(below or _walk(folder), others, taken, anywhere)
    _tell(alike, len(names), anywhere)
  clips = []
  for row in listed:
    found = exact[row.name] or alike[row.name]
    name = found[0] if len(found) == 1 else row.name
    reason = ""
    if len(found) > 1:
      reason = f"several files may be meant: {', '.join(found)}"
    path = folder / name
    clips.append(Clip(row.name, path, row.split, row.label, row.group, reason))
  if drop_shared_groups:
    clips = leave_out_shared_groups(clips)
  check_clips(clips)
  check_files(
    clips,
    folder,
    allow_missing,
    "Pass the folder that holds them"
    + ("" if anywhere else " (paths in the lists are relative to it)")
    + ", or build without those that are missing (--allow_missing), with some"
    " in each split.",
  )
  return clips


def _walk(folder: Path) -> _Below:
  files, frame_folders = [], []
  top = enclosing(folder)
  assert top is not None
  around = {os.fspath(folder): top}
  for parent, children, names in os.walk(
    folder, onerror=_refuse, followlinks=True
  ):
    inside = {
      name: found
      for name in children
      if not is_left_behind(name)
      and (found := enclosing(os.path.join(parent, name), around[parent]))
    }
    children[:] = sorted(inside)
    around |= {os.path.join(parent, name): inside[name] for name in children}
    base = Path(os.path.relpath(parent, folder))
    if parent != os.fspath(folder) and hold_frames(names):
      frame_folders.append(base.as_posix())
    else:
      names = sorted(name for name in names if not is_left_behind(name))
      files += [(base / name).as_posix() for name in names]
  return _Below(files, frame_folders)


def _refuse(error: OSError) -> NoReturn:
  # Files below a folder that can't be read would be taken for missing.
  raise error


def _exact_anywhere(
  below: _Below, names: Iterable[str]
) -> dict[str, Sequence[str]]:
  """What has the name of each; only the best where one is in its place."""
  files = _index(below.files, _last)
  frame_folders = _index(below.frame_folders, lambda path: _last(_stem(path)))
  exact = {}
  for name in names:
    found = [
      *files.get(_last(name), ()),
      *frame_folders.get(_last(_stem(name)), ()),
    ]
    there = [path for path in (name, _stem(name)) if path in found]
    exact[name] = there[:1] or found
  return exact


def _exact(folder: Path, names: Iterable[str]) -> dict[str, Sequence[str]]:
  """What is in the place of each: a file or a folder of frames."""
  exact = {}
  for name in names:
    # Where the folder is a link, '..' in a name leads elsewhere.
    plain = os.path.normpath(folder.absolute() / name)
    if (folder / name).exists():
      exact[name] = [name]
    elif is_frame_folder(folder / _stem(name)):
      exact[name] = [_stem(name)]
    else:
      exact[name] = [plain] if os.path.exists(plain) else []
  return exact


def _alike(
  below: _Below, names: Iterable[str], taken: set[str], anywhere: bool
) -> dict[str, Sequence[str]]:
  """Videos that have no listed name and are named like a missing one."""
  videos = [path for path in below.files if _stem(path) != path]
  left = [p for p in (*videos, *below.frame_folders) if p not in taken]
  by_stem = _index(left, lambda path: _last(_stem(path)))
  by_form = _index(left, lambda path: _folded(_last(_stem(path))))
  alike = {}
  for name in names:
    stem = _stem(name)
    same = by_stem.get(_last(stem), ())
    spelled = by_form.get(_folded(_last(stem)), ())
    alike[name] = _nearest(stem, same, anywhere) or _nearest(
      stem, spelled, anywhere
    )
  return alike


def _nearest(stem: str, found: Sequence[str], anywhere: bool) -> Sequence[str]:
  """Those in the listed place, or in one of that spelling; or else all."""
  for form in (str, _folded):
    there = [path for path in found if form(_stem(path)) == form(stem)]
    if there:
      return there
  return found if anywhere else ()


def _tell(
  alike: Mapping[str, Sequence[str]], total: int, anywhere: bool
) -> None:
  """Warns of videos that were taken under another name than the listed one."""
  converted, spelled = [], []
  for name, found in alike.items():
    if len(found) != 1:
      continue
    stems = _stem(name), _stem(found[0])
    if anywhere:
      stems = _last(stems[0]), _last(stems[1])
    if stems[0] != stems[1]:
      spelled.append(f"{name} ({found[0]})")
    elif _stem(name) != name:  # The list states an extension.
      converted.append(f"{name} ({found[0]})")
  for told, what in [
    (converted, "another extension"),
    (spelled, "other letter case or Unicode form"),
  ]:
    if told:
      warnings.warn(
        f"{counted(told, 'video')} of {total} taken from a file whose name has"
        f" {what} than the list: {examples(told)}",
        stacklevel=4,
      )


def _index(paths: Iterable[str], key: Callable[[str], str]) -> _Index:
  index = {}
  for path in paths:
    index.setdefault(key(path), []).append(path)
  return index


def _stem(path: str) -> str:
  return without_video_extension(path)


def _last(path: str) -> str:
  return path.rpartition("/")[2]


def _folded(text: str) -> str:
  """The same for texts that differ in letter case or Unicode form."""
  composed = unicodedata.normalize("NFC", text)
  return unicodedata.normalize("NFC", composed.casefold())
