"""Lists in every form that editors and spreadsheets give them."""

import pytest

from twostream_jax.data.datasets.annotations import read_csv
from twostream_jax.data.datasets.clips import AnnotationError
from twostream_jax.data.datasets.official import DATASETS
from twostream_jax.data.datasets.texts import read_lines

_ROWS = "path,label\na/1.avi,a\nb/1.avi,b\n"


@pytest.fixture
def lists(tmp_path):
  """Arguments of `read_csv`, whose files are there."""
  for name in ("a/1", "b/1", "a/2", "b/2", "a/-é"):
    path = tmp_path / "videos" / f"{name}.avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
  (tmp_path / "train.csv").write_text(_ROWS)
  (tmp_path / "test.csv").write_text("path,label\na/2.avi,a\nb/2.avi,b\n")
  return {
    "videos": tmp_path / "videos",
    "train": tmp_path / "train.csv",
    "test": tmp_path / "test.csv",
  }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_in_every_list(lists, tmp_path, encoding):
  lists["train"].write_bytes(_ROWS.encode(encoding))
  match = r"train.csv is UTF-16 text.*: save it as UTF-8"
  with pytest.raises(AnnotationError, match=match):
    read_csv(**lists)
  (tmp_path / "classInd.txt").write_bytes("1 Archery\n".encode(encoding))
  with pytest.raises(AnnotationError, match="classInd.txt is UTF-16 text"):
    DATASETS["ucf101"](lists["videos"], tmp_path)


def test_latin_1_is_named_with_its_line(lists):
  text = f"{_ROWS}a/-é.avi,a\n"
  lists["train"].write_bytes(text.encode("latin-1"))
  with pytest.raises(AnnotationError, match=r"train.csv is not .* line 4\)"):
    read_csv(**lists)
  lists["train"].write_bytes(text.encode("utf-8-sig"))
  assert read_csv(**lists)[2].video_id == "a/-é.avi"


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_than_commas_are_named(lists, tmp_path, separator):
  lists["train"].write_text(_ROWS.replace(",", separator))
  match = "train.csv: .* between the columns; save it with commas"
  with pytest.raises(AnnotationError, match=match):
    read_csv(**lists)
  header = "label,youtube_id,time_start,time_end,split"
  (tmp_path / "k").mkdir()
  (tmp_path / "k" / "val.csv").write_text(header.replace(",", separator))
  with pytest.raises(AnnotationError, match="val.csv: .*save it with commas"):
    DATASETS["kinetics"](lists["videos"], tmp_path / "k")


@pytest.mark.parametrize("row", ['a/-é.avi,a,"g', 'a/-é.avi,a,"g"h'])
def test_a_quotation_mark_swallows_no_rows(lists, row):
  text = f"path,label,note\n{row}\na/1.avi,a,\nb/1.avi,b,\n"
  lists["train"].write_text(text)
  with pytest.raises(AnnotationError, match="train.csv, line .*quotation mark"):
    read_csv(**lists)


def test_blank_rows_of_spreadsheets_and_any_line_ends(lists, tmp_path):
  clips = read_csv(**lists)
  text = _ROWS.replace("\n", "\r\n") + ",\r\n ,,\r\n"
  lists["train"].write_bytes(text.encode("utf-8-sig"))
  assert read_csv(**lists) == clips
  lists["train"].write_bytes(_ROWS.replace("\n", "\r").encode())
  assert read_csv(**lists) == clips
  path = tmp_path / "names.txt"
  path.write_bytes("a\u2028b\rc\r\n\nd".encode())
  assert list(read_lines(path)) == [(1, "a\u2028b"), (2, "c"), (4, "d")]


def test_home_folder_and_absolute_paths(lists, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  absolute = lists["videos"] / "b" / "1.avi"
  rows = f"path,label\n~/videos/a/1.avi,a\n{absolute},b\n"
  lists["train"].write_text(rows)
  ids = [clip.video_id for clip in read_csv(**lists)]
  assert ids == ["a/1.avi", "b/1.avi", "a/2.avi", "b/2.avi"]
  # Through a link to the folder '..' leads elsewhere.
  link = tmp_path / "elsewhere" / "link"
  link.parent.mkdir()
  link.symlink_to(tmp_path / "videos" / "a")
  (tmp_path / "elsewhere" / "1.avi").write_bytes(b"x")
  outside = tmp_path / "elsewhere" / "1.avi"
  lists["train"].write_text(f"path,label\n1.avi,a\n{outside},b\n")
  lists["test"].write_text("path,label\n2.avi,a\n")
  clips = read_csv(**lists | {"videos": link})
  assert [c.video_id for c in clips] == ["1.avi", "../1.avi", "2.avi"]
  assert clips[1].path.samefile(outside)
