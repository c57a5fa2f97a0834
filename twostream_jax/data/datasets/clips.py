"""Labelled clips, and everything that can be wrong with a list of them.

It is found here, before hours of decoding and flow.
"""

import dataclasses
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from twostream_jax.files.words import printable

SPLITS = ("train", "validation", "test")
# Reasons of a rejection that was asked for, by the split that keeps its clips.
SHARED_GROUP = {
  split: f"its group is also in {split} (--drop_shared_groups)"
  for split in ("test", "validation")
}
# What must share no group with the splits that are scored.
_SCORED = {"test": ("train", "validation"), "validation": ("train",)}
# Seconds that a clip may take: as one of 1 GiB with slow flow on one core.
TIME_LIMIT = 1800.0
_EXAMPLES = 3
# Characters of one.
_LONGEST = 300


class AnnotationError(ValueError):
  """The annotations of a dataset can't be used as they are."""


@dataclasses.dataclass(frozen=True)
class Clip:
  """A labelled video: a file, or a folder of its frames (see `frames`).

  Attributes:
    video_id: name that the list gives it, or its path, relative to the folder
      of videos, with '/', extension kept. It does not depend on where the file
      is and on the form it was converted to: scores of datasets that were made
      from one list join.
    path: the file or the folder.
    split: 'train', 'validation' or 'test'.
    label: name of the class; a tuple of names in a set where a clip has any
      number of classes.
    group: subject, scene or source video: what must not be on both sides of a
      split. Empty where unknown.
    rejection: reason why it can't be used, found without decoding it; empty if
      there is none.
  """

  video_id: str
  path: Path
  split: str
  label: str | tuple[str, ...]
  group: str
  rejection: str = ""


def class_names(clips: Iterable[Clip]) -> list[str]:
  """Returns the names of the classes, sorted; a label is an index into it."""
  return sorted({name for clip in clips for name in labels_of(clip)})


def labels_of(clip: Clip) -> tuple[str, ...]:
  """Returns the names of a clip's classes, one or any number."""
  return clip.label if isinstance(clip.label, tuple) else (clip.label,)


def clip_exists(clip: Clip) -> bool:
  """Whether the clip's file or folder of frames is there."""
  return clip.path.exists()


def is_multi_label(clips: Iterable[Clip]) -> bool:
  """Whether the clips have any number of classes, not one each.

  Raises:
    ValueError: some have one class and others a tuple of them.
  """
  kinds = {isinstance(clip.label, tuple) for clip in clips}
  if len(kinds) > 1:
    raise ValueError("some labels are names of classes, others tuples of names")
  return True in kinds


def existing_folder(videos: str | os.PathLike) -> Path:
  """Returns the folder of videos; raises AnnotationError if there is none."""
  videos = Path(videos)
  if not videos.is_dir():
    raise AnnotationError(f"no such folder of videos: {videos}")
  return videos


def leave_out_shared_groups(clips: Iterable[Clip]) -> list[Clip]:
  """Rejects the clips of groups that are also in a split that is scored.

  The test split stays as it was published. Train and validation clips of its
  groups are rejected, then train clips of the groups that are left in the
  validation split. Groups stay in the clips, so the rejected ones are in the
  dataset's metadata like any other.
  """
  clips = list(clips)
  for kept, others in _SCORED.items():
    scored = _groups(clips, (kept,))
    clips = [
      dataclasses.replace(clip, rejection=SHARED_GROUP[kept])
      if clip.split in others
      and clip.group in scored
      and not _is_left_out(clip)
      else clip
      for clip in clips
    ]
  return clips


def _groups(clips: Iterable[Clip], splits: Sequence[str]) -> set[str]:
  """The known groups of the clips of some splits that are not left out."""
  return {
    clip.group
    for clip in clips
    if clip.split in splits and clip.group and not _is_left_out(clip)
  }


def _is_left_out(clip: Clip) -> bool:
  return clip.rejection in SHARED_GROUP.values()


def check_files(
  clips: Sequence[Clip], videos: Path, allow_missing: bool, advice: str
) -> None:
  """Raises AnnotationError where files that a list names are not there.

  With `allow_missing` only where a split has no file at all; otherwise a
  warning counts them, and another one names classes without any to train on.
  """
  wanted = [clip for clip in clips if not _is_left_out(clip)]
  found, missing = [], []
  for clip in wanted:
    usable = not clip.rejection and clip_exists(clip)
    (found if usable else missing).append(clip)
  if missing:
    splits = {clip.split for clip in found}
    lost = [clip for clip in missing if clip.split not in splits]
    tolerated = allow_missing and not lost
    told = lost if allow_missing and lost else missing
    names = [
      f"{clip.video_id} ({clip.rejection})" if clip.rejection else clip.video_id
      for clip in told
    ]
    message = (
      f"{counted(told, 'video')} of {len(wanted)} not found below {videos}:"
      f" {examples(names)}"
    )
    if not tolerated:
      raise AnnotationError(f"{message}. {advice}")
    warnings.warn(message, stacklevel=3)
  learned = class_names(clip for clip in found if clip.split == "train")
  lost = sorted(set(class_names(clips)) - set(learned))
  if lost:
    warnings.warn(
      f"{counted(lost, 'class', 'classes')} of which no train video was found:"
      f" {examples(lost)}",
      stacklevel=3,
    )


def check_clips(clips: Sequence[Clip]) -> None:
  """Raises AnnotationError where a list of clips can't make a dataset.

  Train and test clips are needed, no video twice, no group in two splits, no
  class in validation or test that train lacks, two classes, and
  names of classes as in `check_class_names`. Warns of classes that are one
  class with two spellings.
  """
  used = [clip for clip in clips if not _is_left_out(clip)]
  _check_names(clips)
  check_class_names(class_names(clips))
  _warn_of_alike_classes(clips)
  _check_splits(used)
  # Groups first: a video in two splits has one, and there is a flag for it.
  _check_groups(used)
  _check_duplicates(used)
  _check_labels(clips)


def _warn_of_alike_classes(clips: Sequence[Clip]) -> None:
  count = Counter(name for clip in clips for name in labels_of(clip))
  alike = {}
  for name in sorted(count):
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    alike.setdefault(plain, []).append(name)
  told = [
    " and ".join(f"{_shown(name)} (clips: {count[name]})" for name in names)
    for names in alike.values()
    if len(names) > 1
  ]
  if told:
    warnings.warn(
      "classes whose names differ only in letter case, spaces or Unicode form"
      f" stay different classes: {examples(told)}. Where they are one class,"
      " give it one name",
      stacklevel=4,
    )


def _shown(name: str) -> str:
  composed = unicodedata.normalize("NFC", name) == name
  return repr(name) if composed else ascii(name)


def check_class_names(names: Iterable[str]) -> None:
  """Raises AnnotationError for class names that a dataset can't hold.

  TFDS stores a name a line and strips it when it reads them back.
  """
  wrong = [
    repr(name)
    for name in names
    if name != name.strip()
    or len(name.splitlines()) != 1
    or not _is_unicode(name)
  ]
  if wrong:
    raise AnnotationError(
      f"{counted(wrong, 'class name')} empty, with spaces around it, of several"
      f" lines or not text: {examples(wrong)}. Rename the class."
    )


def _check_names(clips: Sequence[Clip]) -> None:
  undecodable = [c for c in clips if not _is_unicode(c.video_id)]
  if undecodable:
    names = [repr(os.fsencode(clip.video_id)) for clip in undecodable]
    raise AnnotationError(
      f"{counted(names, 'file name')} not in UTF-8: {examples(names)}. Rename"
      " them."
    )


def _is_unicode(name: str) -> bool:
  return name.encode("utf-8", "replace").decode() == name


def _check_splits(clips: Sequence[Clip]) -> None:
  present = {clip.split for clip in clips}
  missing = [split for split in ("train", "test") if split not in present]
  if missing:
    raise AnnotationError(
      f"no clips in the {' and the '.join(missing)} split; both train and test"
      " are needed (a class needs two clips to be in both)"
    )


def _check_duplicates(clips: Sequence[Clip]) -> None:
  by_path = {}
  for clip in clips:
    by_path.setdefault(_file_of(clip.path), []).append(clip)
  found = []
  for same in by_path.values():
    if len(same) > 1:
      names = " = ".join(dict.fromkeys(clip.video_id for clip in same))
      found.append(f"{names} ({', '.join(clip.split for clip in same)})")
  if found:
    raise AnnotationError(
      f"{counted(found, 'video')} listed more than once: {examples(found)}."
      " Keep one row for each: a video in two splits makes the test result"
      " worthless."
    )


def _file_of(path: Path) -> tuple[int, int] | str:
  """What is one file, or folder, by whatever name or link."""
  try:
    found = os.stat(path)
  except OSError:
    return os.path.normpath(path)
  return found.st_dev, found.st_ino


def _check_groups(clips: Sequence[Clip]) -> None:
  for kept, others in _SCORED.items():
    shared = sorted(_groups(clips, (kept,)) & _groups(clips, others))
    if shared:
      learned = " or ".join(others)
      raise AnnotationError(
        f"{counted(shared, 'group')} in {kept} and also in {learned}:"
        f" {examples(shared)}. Such leakage makes the {kept} result too good."
        f" Move each group to one side, or leave out its"
        f" {' and '.join(others)} clips (--drop_shared_groups)."
      )


def _check_labels(clips: Sequence[Clip]) -> None:
  learned = set(class_names(c for c in clips if c.split == "train"))
  unknown = sorted(set(class_names(clips)) - learned)
  if unknown:
    raise AnnotationError(
      f"{counted(unknown, 'label')} in validation or test that no train clip"
      f" has: {examples(unknown)}. Correct the spelling, or add train clips."
    )
  if len(learned) < 2:
    raise AnnotationError(
      f"only one class ({', '.join(learned)}); a classifier needs at least two"
    )


def counted(items: Sequence, one: str, many: str = "") -> str:
  """Returns "1 video", "2 videos" ... for messages."""
  return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"


def examples(items: Sequence[str]) -> str:
  """Returns the first three items, for messages; what is invisible escaped."""
  shown = ", ".join(printable(x[:_LONGEST]) for x in items[:_EXAMPLES])
  return shown + (", ..." if len(items) > _EXAMPLES else "")


def extensions(names: Iterable[str]) -> str:
  """Returns the most common extensions with their counts, for messages."""
  count = Counter(
    os.path.splitext(name)[1].lower() or "no extension" for name in names
  )
  return examples([f"{ext} ({n})" for ext, n in count.most_common()])
