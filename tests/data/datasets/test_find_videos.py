"""Videos whose files are named like those of a list, but not the same."""

import unicodedata

import pytest

from tests.made_files import write_files
from twostream_jax.data.build.check import check_clip
from twostream_jax.data.datasets.annotations import read_csv
from twostream_jax.data.datasets.clips import AnnotationError
from twostream_jax.data.datasets.find_videos import find_videos
from twostream_jax.data.datasets.lists import Listed
from twostream_jax.flow.spec import FlowSpec

_CAFE = unicodedata.normalize("NFC", "café")
_LISTED = [
  Listed("a/v_HandStand.avi", "train", "a"),
  Listed(f"b/{_CAFE}.webm", "train", "b"),
  Listed("a/3.avi", "test", "a"),
  Listed("b/4.avi", "test", "b"),
]


def _csv(tmp_path, **splits):
  """Arguments of `read_csv` for rows of (path, label)."""
  lists = {}
  for split, rows in splits.items():
    lists[split] = tmp_path / f"{split}.csv"
    text = "".join(f"{','.join(row)}\n" for row in [("path", "label"), *rows])
    lists[split].write_text(text)
  return lists


def _as_csv(tmp_path):
  rows = {
    split: [(r.name, r.label) for r in _LISTED if r.split == split]
    for split in ("train", "test")
  }
  return _csv(tmp_path, **rows)


def _by_official(tmp_path, **options):
  return find_videos(tmp_path / "v", _LISTED, **options)


def _by_csv(tmp_path, **options):
  return read_csv(tmp_path / "v", **_as_csv(tmp_path), **options)


_BOTH = pytest.mark.parametrize("find", [_by_official, _by_csv])


@_BOTH
def test_another_extension_is_taken_and_told(tmp_path, find):
  files = ["a/v_HandStand.mp4", f"b/{_CAFE}.mp4", "a/3.AVI", "b/4.avi"]
  write_files(tmp_path / "v", *files, "a/3.srt", "b/4.mp4")
  match = r"3 videos of 4 .* another extension .*a/v_HandStand.avi \(a/v_HandS"
  with pytest.warns(UserWarning, match=match):
    clips = find(tmp_path)
  assert [clip.path for clip in clips] == [tmp_path / "v" / f for f in files]
  # Scores join by what the list says.
  assert [clip.video_id for clip in clips] == [row.name for row in _LISTED]


@_BOTH
def test_other_letter_case_and_unicode_form_are_taken_and_told(tmp_path, find):
  composed = unicodedata.normalize("NFD", _CAFE)
  files = ["A/v_Handstand.mp4", f"b/{composed}.webm", "a/3.avi", "b/4.avi"]
  write_files(tmp_path / "v", *files)
  match = r"2 videos of 4 .* letter case or Unicode form .*\(A/v_Handstand.mp4"
  with pytest.warns(UserWarning, match=match):
    clips = find(tmp_path)
  assert [clip.path for clip in clips] == [tmp_path / "v" / f for f in files]
  assert [clip.video_id for clip in clips] == [row.name for row in _LISTED]


@_BOTH
def test_nothing_is_guessed_where_two_files_may_be_meant(tmp_path, find):
  # Two extensions, and two spellings.
  write_files(
    tmp_path / "v", f"b/{_CAFE}.webm", "b/4.avi", "a/3.mkv", "a/3.mp4"
  )
  write_files(tmp_path / "v", "a/V_handstand.avi", "a/v_handstand.avi")
  reason = "several files may be meant: a/3.mkv, a/3.mp4"
  with pytest.raises(AnnotationError, match=rf"2 videos of 4 .*\({reason}\)"):
    find(tmp_path)
  with (
    pytest.warns(UserWarning, match="2 videos of 4 not found"),
    pytest.warns(UserWarning, match="1 class of which no train video"),
  ):
    clips = find(tmp_path, allow_missing=True)
  assert check_clip(clips[2], FlowSpec("dis", {})).reason == reason
  assert (
    "a/V_handstand.avi, a/v_"
    in check_clip(clips[0], FlowSpec("dis", {})).reason
  )


def test_a_file_of_another_row_is_not_taken(tmp_path):
  write_files(tmp_path / "v", "a/1.avi", "a/2.avi", "b/3.avi", "b/4.avi")
  lists = _csv(
    tmp_path,
    train=[("a/1.avi", "a"), ("a/1.mp4", "a"), ("b/3.avi", "b")],
    test=[("a/2.avi", "a"), ("b/4.avi", "b")],
  )
  with pytest.raises(AnnotationError, match="1 video of 5 not found.*a/1.mp4"):
    read_csv(tmp_path / "v", **lists)


def test_the_listed_place_comes_first_and_csv_has_no_other(tmp_path):
  write_files(tmp_path / "v", "a/v_HandStand.mp4", f"{_CAFE}.mp4", "a/3.avi")
  write_files(tmp_path / "v", "b/4.avi", "v_HandStand.mkv")
  with pytest.warns(UserWarning, match="2 videos of 4 .* another extension"):
    clips = _by_official(tmp_path)
  found = [clip.path.relative_to(tmp_path / "v").as_posix() for clip in clips]
  assert found[:2] == ["a/v_HandStand.mp4", f"{_CAFE}.mp4"]
  with (
    pytest.warns(UserWarning, match="1 video of 4 .* another extension"),
    pytest.raises(AnnotationError, match="1 video of 4 not found"),
  ):
    _by_csv(tmp_path)


def test_two_rows_of_one_file_are_refused(tmp_path):
  write_files(tmp_path / "v", "a/1.mp4", "a/2.avi", "b/3.avi", "b/4.avi")
  lists = _csv(
    tmp_path,
    train=[("a/1.avi", "a"), ("b/3.avi", "b")],
    test=[("a/1.mkv", "a"), ("a/2.avi", "a"), ("b/4.avi", "b")],
  )
  with (
    pytest.warns(UserWarning, match="2 videos of 5 .* another extension"),
    pytest.raises(AnnotationError, match=r"a/1.avi = a/1.mkv \(train, test\)"),
  ):
    read_csv(tmp_path / "v", **lists)


def test_classes_that_are_one_class_in_two_spellings_are_told(tmp_path):
  decomposed = unicodedata.normalize("NFD", _CAFE)
  labels = ["Jump", "jump", "wave", "jump  high", "jump high"]
  labels += [_CAFE, decomposed]
  train = [(f"{i}.avi", label) for i, label in enumerate(labels)]
  test = [("x.avi", "jump"), ("y.avi", "wave")]
  write_files(tmp_path / "v", *(path for path, _ in (*train, *test)))
  with pytest.warns(UserWarning, match="only in letter case") as told:
    read_csv(tmp_path / "v", **_csv(tmp_path, train=train, test=test))
  message = str(told[0].message)
  assert "'Jump' (clips: 1) and 'jump' (clips: 2)" in message
  assert "'jump  high' (clips: 1) and 'jump high' (clips: 1)" in message
  assert r"'cafe\u0301' (clips: 1) and 'café' (clips: 1)" in message
