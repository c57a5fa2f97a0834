"""Lists of clips: what is read, and every way in which a list can be wrong."""

import itertools
import os

import pytest

from tests.made_files import write_files
from twostream_jax.data.datasets.annotations import (
  AnnotationError,
  Clip,
  class_names,
  read_csv,
  read_folder,
)
from twostream_jax.data.datasets.clips import SHARED_GROUP, SPLITS, clip_exists


def _class_files(root, **counts):
  return write_files(
    root, *(f"{name}/{i}.avi" for name, n in counts.items() for i in range(n))
  )


def _frame_folders(root, *folders):
  """Folders in the layout of dense_flow, three frames and their flow each."""
  kinds = ("img", "flow_x", "flow_y")
  return write_files(
    root,
    *(
      f"{f}/{k}_{i:05d}.jpg" for f in folders for k in kinds for i in (1, 2, 3)
    ),
  )


def _by_split(clips):
  found = {}
  for clip in clips:
    found.setdefault(clip.split, []).append(clip.video_id)
  return found


def _lists(tmp_path, train, test, validation=None, make_files=True):
  """Writes lists of (path, label[, group]) rows and the files they name."""
  arguments = {}
  rows = {"train": train, "test": test, "validation": validation}
  for split, lines in rows.items():
    if lines is None:
      continue
    header = "path,label,group" if lines and len(lines[0]) > 2 else "path,label"
    text = "\n".join([header, *(",".join(line) for line in lines)]) + "\n"
    (tmp_path / f"{split}.csv").write_text(text)
    arguments[split] = tmp_path / f"{split}.csv"
    if make_files:
      write_files(tmp_path / "videos", *(line[0] for line in lines if line[0]))
  return {"videos": tmp_path / "videos", **arguments}


_TRAIN = [("a/1.avi", "a"), ("b/1.avi", "b")]
_TEST = [("a/2.avi", "a"), ("b/2.avi", "b")]


def test_folder_split_is_stratified_and_complete(tmp_path):
  clips = read_folder(_class_files(tmp_path, hug=8, kick=4, wave=2))
  assert class_names(clips) == ["hug", "kick", "wave"]
  tested = [clip.label for clip in clips if clip.split == "test"]
  assert tested == ["hug", "hug", "kick", "wave"]
  assert len({clip.video_id for clip in clips}) == len(clips) == 14
  for clip in clips:
    assert clip.path == tmp_path / clip.video_id
    assert clip.video_id.split("/")[0] == clip.label
    assert clip.group == ""


def test_folder_split_depends_on_the_seed_only(tmp_path):
  _class_files(tmp_path, hug=20, kick=20)
  first = read_folder(tmp_path)
  assert read_folder(tmp_path) == first
  other = read_folder(tmp_path, seed=1)
  assert _by_split(other)["test"] != _by_split(first)["test"]


def test_folder_split_of_a_class_does_not_depend_on_other_classes(tmp_path):
  _class_files(tmp_path, hug=12, kick=12)
  before = [c for c in read_folder(tmp_path) if c.label == "kick"]
  _class_files(tmp_path, bow=7)
  assert [c for c in read_folder(tmp_path) if c.label == "kick"] == before


def test_high_test_fraction_leaves_a_train_clip(tmp_path):
  clips = read_folder(_class_files(tmp_path, a=3, b=3), test_fraction=0.99)
  splits = [(clip.label, clip.split) for clip in clips]
  assert splits.count(("a", "train")) == splits.count(("b", "train")) == 1


def test_class_of_one_clip_goes_to_train_with_a_warning(tmp_path):
  _class_files(tmp_path, a=4, lonely=1)
  with pytest.warns(UserWarning, match="1 class with a single clip.*lonely"):
    clips = read_folder(tmp_path)
  assert [c.split for c in clips if c.label == "lonely"] == ["train"]


def test_empty_class_folder_gives_a_warning(tmp_path):
  _class_files(tmp_path, a=2, b=2)
  (tmp_path / "void").mkdir()
  with pytest.warns(UserWarning, match="no files in .*void"):
    assert class_names(read_folder(tmp_path)) == ["a", "b"]


def test_folder_takes_every_visible_file(tmp_path):
  _class_files(tmp_path, a=2, b=2)
  write_files(tmp_path, "a/notes.txt", "a/deep/er/3.avi", "readme.md")
  write_files(tmp_path, "a/.hidden.avi", "a/.thumbs/1.avi", ".git/config")
  # What systems leave behind is not a file of a person.
  write_files(tmp_path, "a/Thumbs.db", "b/desktop.ini", "b/__MACOSX/1.avi")
  told = r"1 file of 6 without the extension of a video.*: .txt \(1\)"
  with (
    pytest.warns(UserWarning, match=told),
    pytest.warns(UserWarning, match=r"1 file beside .* not taken: .md \(1\)"),
  ):
    ids = {clip.video_id for clip in read_folder(tmp_path)}
  assert ids == {
    *("a/0.avi", "a/1.avi", "a/notes.txt", "a/deep/er/3.avi"),
    *("b/0.avi", "b/1.avi"),
  }


def test_split_folders(tmp_path):
  names = ["test/a/1.avi", "test/b/2.avi", "train/a/3.avi", "train/b/4.avi"]
  write_files(tmp_path, *names, "validation/a/5.avi", "test/6.avi", "7.avi")
  with pytest.warns(UserWarning, match=r"2 files beside .* taken: .avi \(2\)"):
    clips = read_folder(tmp_path)
  assert _by_split(clips) == {
    "train": ["train/a/3.avi", "train/b/4.avi"],
    "validation": ["validation/a/5.avi"],
    "test": ["test/a/1.avi", "test/b/2.avi"],
  }
  assert [clip.label for clip in clips] == ["a", "b", "a", "a", "b"]


def test_classes_that_are_called_like_splits(tmp_path):
  clips = read_folder(_class_files(tmp_path, train=2, test=2))
  assert class_names(clips) == ["test", "train"]


def test_split_folders_need_train_and_test(tmp_path):
  write_files(tmp_path, "train/a/1.avi", "train/b/1.avi")
  with pytest.raises(AnnotationError, match="no test folder"):
    read_folder(tmp_path)


@pytest.mark.filterwarnings("ignore:1 file beside the folders of classes")
def test_folder_errors(tmp_path):
  with pytest.raises(AnnotationError, match="no such folder of videos"):
    read_folder(tmp_path / "nowhere")
  with pytest.raises(AnnotationError, match="one folder a class"):
    read_folder(write_files(tmp_path, "1.avi"))
  with pytest.raises(AnnotationError, match="only one class .a."):
    read_folder(_class_files(tmp_path, a=4))
  with pytest.raises(AnnotationError, match="between 0 and 1: 1"):
    read_folder(tmp_path, test_fraction=1)


@pytest.mark.filterwarnings("ignore:2 classes with a single clip")
def test_folder_of_single_clips_has_no_test_split(tmp_path):
  with pytest.raises(AnnotationError, match="no clips in the test split"):
    read_folder(_class_files(tmp_path, a=1, b=1))


def test_a_folder_of_frames_is_one_clip(tmp_path):
  _frame_folders(tmp_path, "a/x", "a/deep/y.avi", "b/z")
  write_files(tmp_path, "a/1.avi", "b/2.avi", "a/x/small/img_00001.jpg")
  clips = read_folder(tmp_path)
  assert {clip.video_id: clip.path for clip in clips} == {
    name: tmp_path / name
    for name in ("a/1.avi", "a/x", "a/deep/y.avi", "b/2.avi", "b/z")
  }
  assert {clip.label for clip in clips} == {"a", "b"}


def test_split_folders_of_frames(tmp_path):
  _frame_folders(tmp_path, "train/a/x", "train/b/y", "test/a/z")
  assert _by_split(read_folder(tmp_path)) == {
    "train": ["train/a/x", "train/b/y"],
    "test": ["test/a/z"],
  }


@pytest.mark.filterwarnings("ignore:4 files of 8 without the extension")
def test_stills_beside_videos_do_not_make_a_clip_of_their_folder(tmp_path):
  clips = [f"{label}/{i}" for label in "ab" for i in (1, 2)]
  write_files(
    tmp_path, *(f"{clip}.{e}" for clip in clips for e in ("avi", "jpg"))
  )
  assert len(read_folder(tmp_path)) == 8


def test_frames_need_a_folder_below_that_of_their_class(tmp_path):
  _frame_folders(tmp_path, "a/x", "a/y", "b")
  with pytest.raises(
    AnnotationError, match=r"b is the folder of a class .*b/<clip>/img_00001"
  ):
    read_folder(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX")
def test_file_name_that_is_not_text(tmp_path):
  _class_files(tmp_path, a=2, b=2)
  try:
    (tmp_path / "a" / os.fsdecode(b"\xff.avi")).write_bytes(b"x")
  except OSError:
    pytest.skip("this file system takes only UTF-8 names")
  with pytest.raises(AnnotationError, match=r"1 file name not in UTF-8.*xff"):
    read_folder(tmp_path)


def test_csv(tmp_path):
  arguments = _lists(
    tmp_path,
    [("v/x.avi", "a", "g1"), ("v/y.avi", "b", "")],
    [("v/z.avi", "a", "g2")],
    [("v/w.avi", "b", "g3")],
  )
  videos = arguments["videos"]
  assert read_csv(**arguments) == [
    Clip("v/x.avi", videos / "v/x.avi", "train", "a", "g1"),
    Clip("v/y.avi", videos / "v/y.avi", "train", "b", ""),
    Clip("v/w.avi", videos / "v/w.avi", "validation", "b", "g3"),
    Clip("v/z.avi", videos / "v/z.avi", "test", "a", "g2"),
  ]


def test_csv_as_spreadsheets_write_it(tmp_path):
  arguments = _lists(tmp_path, _TRAIN, _TEST)
  expected = read_csv(**arguments)
  (tmp_path / "train.csv").write_bytes(
    "\ufefflabel,note,path \r\na,é,./a/1.avi\r\n\r\nb,,b/1.avi \r\n".encode()
  )
  assert read_csv(**arguments) == expected


def test_csv_takes_absolute_paths(tmp_path):
  absolute = str(tmp_path / "videos" / "a" / "1.avi")
  train = [(absolute, "a"), _TRAIN[1]]
  assert read_csv(**_lists(tmp_path, train, _TEST))[0].video_id == "a/1.avi"


def test_csv_takes_folders_of_frames(tmp_path):
  train = [("a/x", "a"), ("b/y.mp4", "b")]
  test = [("./a/z.AVI", "a"), ("b/2.avi", "b")]
  arguments = _lists(tmp_path, train, test, make_files=False)
  videos = arguments["videos"]
  _frame_folders(videos, "a/x", "b/y", "a/z", "b/2")
  write_files(videos, "b/2.avi")
  assert [(c.video_id, c.path) for c in read_csv(**arguments)] == [
    ("a/x", videos / "a/x"),
    ("b/y.mp4", videos / "b/y"),
    ("a/z.AVI", videos / "a/z"),
    ("b/2.avi", videos / "b/2.avi"),
  ]


def test_csv_does_not_take_another_folder_for_a_video(tmp_path):
  # No folder of frames, and no extension of a video.
  test = [("a/1.avi", "a"), ("b/v.2", "b")]
  arguments = _lists(tmp_path, _TRAIN[:1], test, make_files=False)
  write_files(arguments["videos"], "a/1/notes.txt")
  _frame_folders(arguments["videos"], "b/v")
  (tmp_path / "train.csv").write_text("path,label\na/0,a\nb/0,b\n")
  _frame_folders(arguments["videos"], "a/0", "b/0")
  with pytest.raises(
    AnnotationError, match="2 videos of 4 not found .*: a/1.avi, b/v.2. "
  ):
    read_csv(**arguments)


def test_a_video_and_its_folder_of_frames_are_one_clip(tmp_path):
  arguments = _lists(tmp_path, _TRAIN, _TEST, make_files=False)
  _frame_folders(arguments["videos"], "a/1", "b/1", "a/2", "b/2")
  with open(arguments["test"], "a") as file:
    file.write("a/1,a\n")
  with pytest.raises(AnnotationError, match=r"a/1.avi = a/1 \(train, test\)"):
    read_csv(**arguments)


def test_clips_are_files_or_folders(tmp_path):
  write_files(tmp_path, "a.avi", "b/img_1.jpg")
  found = {
    name: clip_exists(Clip(name, tmp_path / name, "train", "a", ""))
    for name in ("a.avi", "b", "c")
  }
  assert found == {"a.avi": True, "b": True, "c": False}


def test_csv_missing_videos_are_counted(tmp_path):
  arguments = _lists(tmp_path, _TRAIN, _TEST, make_files=False)
  write_files(tmp_path / "videos", "b/2.avi")
  with pytest.raises(AnnotationError) as caught:
    read_csv(**arguments)
  message = str(caught.value)
  assert "3 videos of 4 not found" in message
  assert "a/1.avi, b/1.avi, a/2.avi" in message


def test_examples_are_at_most_three(tmp_path):
  train = [(f"a/{i}.avi", "a") for i in range(9)] + [("b/1.avi", "b")]
  arguments = _lists(tmp_path, train, [("c", "a")], make_files=False)
  write_files(tmp_path / "videos", "c", "b/1.avi")
  with pytest.raises(
    AnnotationError, match=r"9 .*: a/0.avi, .*, a/2.avi, \.\."
  ):
    read_csv(**arguments)


@pytest.mark.parametrize(
  "train, test, message",
  [
    (_TRAIN, [], "test.csv lists no video"),
    ([("a/1.avi", ""), *_TRAIN], _TEST, "train.csv: 1 row .*: line 2"),
    ([("", "a"), *_TRAIN], _TEST, "without a path or a label"),
    ([*_TRAIN, _TRAIN[0]], _TEST, r"1 video .*a/1.avi \(train, train\)"),
    ([*_TRAIN, ("./a//1.avi", "a")], _TEST, r"1 video listed more than once"),
    (_TRAIN, [*_TEST, _TRAIN[1]], r"b/1.avi \(train, test\)"),
    (_TRAIN, [*_TEST, ("c/1.avi", "c")], "1 label .* no train clip has: c"),
    (_TRAIN[:1], _TEST[:1], "only one class"),
  ],
)
def test_csv_errors(tmp_path, train, test, message):
  with pytest.raises(AnnotationError, match=message):
    read_csv(**_lists(tmp_path, train, test))


@pytest.mark.parametrize("sides", list(itertools.permutations(SPLITS, 2)))
def test_group_in_two_splits_is_leakage(tmp_path, sides):
  rows = {
    "train": [("a/1.avi", "a", "g1"), ("b/1.avi", "b", "g2")],
    "validation": [("a/3.avi", "a", "g3"), ("b/3.avi", "b", "g4")],
    "test": [("a/2.avi", "a", "g5"), ("b/2.avi", "b", "g6")],
  }
  rows["train"] += [("a/4.avi", "a", ""), ("b/4.avi", "b", "")]
  one, other = sides
  path, label, _ = rows[other][0]
  rows[other][0] = path, label, rows[one][1][2]
  lists = _lists(tmp_path, **rows)
  with pytest.raises(
    AnnotationError, match="1 group .*leakage.*--drop_shared_groups"
  ):
    read_csv(**lists)
  left = [c for c in read_csv(**lists, drop_shared_groups=True) if c.rejection]
  # Those that are learned from go, not those that are scored.
  assert [clip.split for clip in left] == [min(sides, key=SPLITS.index)]
  assert left[0].rejection == SHARED_GROUP[max(sides, key=SPLITS.index)]


def test_a_clip_that_is_left_out_shares_nothing(tmp_path):
  """One group in all splits: the test clip stays, no clip goes twice."""
  rows = {
    "train": [
      ("a/1.avi", "a", "g1"),
      ("b/1.avi", "b", "g2"),
      ("b/4.avi", "b", "g3"),
    ],
    "validation": [("a/3.avi", "a", "g1"), ("b/3.avi", "b", "g2")],
    "test": [("a/2.avi", "a", "g1")],
  }
  rows["train"].append(("a/4.avi", "a", "g4"))
  clips = read_csv(**_lists(tmp_path, **rows), drop_shared_groups=True)
  assert {c.video_id: c.rejection for c in clips if c.rejection} == {
    "a/1.avi": SHARED_GROUP["test"],
    "a/3.avi": SHARED_GROUP["test"],
    "b/1.avi": SHARED_GROUP["validation"],
  }


def test_empty_groups_are_not_shared(tmp_path):
  train = [(*row, "") for row in _TRAIN]
  test = [(*row, "") for row in _TEST]
  assert len(read_csv(**_lists(tmp_path, train, test))) == 4


@pytest.mark.parametrize(
  "content, message",
  [
    (
      b"file,label\na/1.avi,a\n",
      "no column path; its first row is 'file,label'",
    ),
    (b"path;label\na/1.avi;a\n", "semicolons between the columns; save it"),
    (b"path\tlabel\tgroup\na/1.avi\ta\n", "tabs between the columns"),
    (b"", "no column path and no column label"),
    (b"path,label\n", "lists no video"),
    (
      b"path,label\n\xff\xfe,a\n",
      "train.csv is not UTF-8 text .at byte 11, line 2",
    ),
    (b"path,label\na/1.avi\n", "1 row without a path or a label"),
    (b'path,label\na/1.avi,"a\nb"\n', "label of one line"),
  ],
)
def test_malformed_csv(tmp_path, content, message):
  arguments = _lists(tmp_path, _TRAIN, _TEST)
  (tmp_path / "train.csv").write_bytes(content)
  with pytest.raises(AnnotationError, match=message):
    read_csv(**arguments)


def test_csv_that_is_not_there(tmp_path):
  arguments = _lists(tmp_path, _TRAIN, _TEST) | {"test": tmp_path / "no.csv"}
  with pytest.raises(
    AnnotationError, match="can't read .*no.csv: No such file"
  ):
    read_csv(**arguments)
  with pytest.raises(AnnotationError, match="no such folder of videos"):
    read_csv(**arguments | {"videos": tmp_path / "nowhere"})


@pytest.mark.parametrize(
  "train, validation, test",
  [
    ("train", "val", "test"),
    ("Train", "Valid", "Test"),
    ("training", "dev", "testing"),
    ("TRAIN", None, "TEST"),
  ],
)
def test_usual_names_of_splits(tmp_path, train, validation, test):
  names = {"train": train, "validation": validation, "test": test}
  for name in filter(None, names.values()):
    for label in ("hug", "kick"):
      write_files(tmp_path, f"{name}/{label}/1.avi", f"{name}/{label}/2.avi")
  write_files(tmp_path, "__MACOSX/hug/1.avi")
  clips = read_folder(tmp_path)
  assert class_names(clips) == ["hug", "kick"]
  for split, name in names.items():
    found = {c.video_id.split("/")[0] for c in clips if c.split == split}
    assert found == ({name} if name else set())


@pytest.mark.parametrize(
  "files, match",
  [
    (("train/a/1", "test/a/1", "annotations/a/1"), "annotations beside them"),
    (("train/a/1", "val/a/1"), "no test folder"),
    (("train/a/1",), "no test folder"),
    (("train/a/1", "Training/a/1", "test/a/1"), "the same split"),
    (("train/a/1", "test/1"), "no folder of a class in test"),
  ],
)
def test_what_looks_like_splits_is_no_set_of_classes(tmp_path, files, match):
  for name in files:
    folder, _, file = name.rpartition("/")
    write_files(tmp_path, f"{folder}/{file}.avi", f"{folder}/{file}b.avi")
  with pytest.raises(AnnotationError, match=match):
    read_folder(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
  for label in ("train", "bus", "car"):
    write_files(tmp_path, *(f"{label}/day/{i}.avi" for i in range(4)))
  assert class_names(read_folder(tmp_path)) == ["bus", "car", "train"]


def test_a_comma_in_a_label_without_quotes_is_told(tmp_path):
  lists = _lists(
    tmp_path, [("a.avi", "push, pull"), ("b.avi", "hug")], [("c.avi", "hug")]
  )
  with pytest.raises(AnnotationError, match=r"train.csv, line 2: 3 cells"):
    read_csv(**lists)
  quoted = 'path,label\na.avi,"push, pull"\nb.avi,hug,\n'
  lists["train"].write_text(quoted)
  labels = {clip.label for clip in read_csv(**lists)}
  assert labels == {"push, pull", "hug"}


def test_links_to_folders_around_them_end(tmp_path):
  write_files(tmp_path, *(f"{c}/{i}.avi" for c in ("a", "b") for i in range(4)))
  (tmp_path / "a" / "itself").symlink_to(tmp_path / "a")
  (tmp_path / "b" / "all").symlink_to(tmp_path)
  clips = read_folder(tmp_path)
  assert sorted(c.video_id for c in clips) == [
    f"{c}/{i}.avi" for c in ("a", "b") for i in range(4)
  ]


def test_spaces_around_the_name_of_a_class_are_no_part_of_it(tmp_path):
  files = ("train/ jump/1.avi", "train/run far\u3000/2.avi", "test/jump /3.avi")
  clips = read_folder(write_files(tmp_path, *files))
  assert [(clip.video_id, clip.label) for clip in clips] == [
    ("train/ jump/1.avi", "jump"),
    ("train/run far\u3000/2.avi", "run far"),
    ("test/jump /3.avi", "jump"),
  ]


def test_classes_that_differ_in_spaces_only_are_refused(tmp_path):
  write_files(tmp_path, "jump/1.avi", "jump /2.avi", "run/3.avi")
  with pytest.raises(AnnotationError, match="2 folders in .*'jump', 'jump '"):
    read_folder(tmp_path)


@pytest.mark.parametrize("name", [" ", "a\nb", "a\rb"])
def test_class_names_that_a_dataset_can_not_hold(tmp_path, name):
  write_files(
    tmp_path, *(f"{c}/{i}.avi" for c in (name, "run") for i in range(2))
  )
  with pytest.raises(AnnotationError, match="1 class name empty, with spaces"):
    read_folder(tmp_path)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_by_two_names_is_one_video(tmp_path, link):
  for name in ("train/a/1", "train/b/1", "test/a/2", "test/b/2"):
    path = tmp_path / f"{name}.avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
  link(tmp_path / "train/a/1.avi", tmp_path / "test/a/3.avi")
  with pytest.raises(AnnotationError, match=r"1 video listed .*train, test"):
    read_folder(tmp_path)
