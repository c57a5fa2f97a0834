"""Known datasets: official lists as they are distributed, and their files."""

import errno
import json
import os
from collections import Counter

import pytest

from tests.made_files import write_files
from tests.paths import SHARED
from twostream_jax.data.datasets.clips import AnnotationError, Clip
from twostream_jax.data.datasets.find_videos import find_videos
from twostream_jax.data.datasets.kinetics import list_kinetics
from twostream_jax.data.datasets.lists import (
  Listed,
  list_ccv,
  list_hmdb51,
  list_ucf101,
)
from twostream_jax.data.datasets.official import DATASETS
from twostream_jax.data.datasets.ssv2 import (
  list_ssv2,
  list_ssv2_mini,
  list_ssv2_part,
)
from twostream_jax.data.datasets.texts import read_lines

_OFFICIAL = SHARED / "annotations"


def _official(folder):
  if not (_OFFICIAL / folder).is_dir():
    pytest.skip(f"no official lists in {_OFFICIAL / folder}")
  return _OFFICIAL / folder


def _write(folder, **texts):
  """Writes <name>.txt files."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in texts.items():
    (folder / f"{name}.txt").write_bytes(text.encode())
  return folder


_UCF101 = {
  "classInd": "1 Archery\n2 HandstandPushups\n",
  "trainlist02": (
    "Archery/v_Archery_g01_c01.avi 1\n"
    "HandstandPushups/v_HandStandPushups_g01_c01.avi 2\n"
  ),
  "testlist02": (
    "Archery/v_Archery_g02_c01.avi\n"
    "HandstandPushups/v_HandStandPushups_g02_c04.avi\n"
  ),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ucf101(tmp_path, end):
  texts = {name: text.replace("\n", end) for name, text in _UCF101.items()}
  pushups = "HandstandPushups/v_HandStandPushups"
  assert list_ucf101(_write(tmp_path, **texts), 2) == [
    Listed("Archery/v_Archery_g01_c01.avi", "train", "Archery", "Archery_g01"),
    Listed(
      f"{pushups}_g01_c01.avi",
      "train",
      "HandstandPushups",
      "HandstandPushups_g01",
    ),
    Listed("Archery/v_Archery_g02_c01.avi", "test", "Archery", "Archery_g02"),
    Listed(
      f"{pushups}_g02_c04.avi",
      "test",
      "HandstandPushups",
      "HandstandPushups_g02",
    ),
  ]


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("classInd", "Archery\nB\n", "classInd.txt: 2 rows without .*: line 1, l"),
    ("trainlist02", "Archery/a.avi 1\n", "1 row not like .*: line 1. Restore"),
    ("trainlist02", "Bow/v_Bow_g01_c01.avi 1\n", "1 row of a class not in cla"),
    # Labels that count from 0.
    (
      "trainlist02",
      "Archery/v_Archery_g01_c01.avi 0\n",
      "1 row with the number of another class: .*c01.avi 0. .* from 1",
    ),
  ],
)
def test_ucf101_lists_that_are_not_official(tmp_path, name, text, message):
  folder = _write(tmp_path, **_UCF101 | {name: text})
  with pytest.raises(AnnotationError, match=message):
    list_ucf101(folder, 2)


def test_ucf101_list_that_is_not_there(tmp_path):
  with pytest.raises(AnnotationError, match="can't read .*classInd.txt: No"):
    list_ucf101(tmp_path)
  with pytest.raises(AnnotationError, match="can't read .*trainlist03.txt: No"):
    list_ucf101(_write(tmp_path, **_UCF101), 3)


_HMDB51 = {
  "brush_hair_test_split1": "a_1.avi 1 \nb.avi 2 \nc.avi 0 \n",
  "brush_hair_test_split2": "a_1.avi 2 \nb.avi 1 \nc.avi 0 \n",
  "hit_test_split1": "d (1).avi 2 \r\ne.avi 1 \r\n",
  "hit_test_split2": "d (1).avi 0 \ne.avi 0 \n",
}


def test_hmdb51(tmp_path):
  folder = _write(tmp_path, **_HMDB51, class_list="brush_hair\nhit\n")
  assert list_hmdb51(folder, 1) == [
    Listed("brush_hair/a_1.avi", "train", "brush_hair"),
    Listed("brush_hair/b.avi", "test", "brush_hair"),
    Listed("hit/d (1).avi", "test", "hit"),
    Listed("hit/e.avi", "train", "hit"),
  ]
  assert [row.split for row in list_hmdb51(folder, 2)] == ["test", "train"]


def test_hmdb51_lists_that_are_not_official(tmp_path):
  with pytest.raises(AnnotationError, match="no such folder of annotations"):
    list_hmdb51(tmp_path / "nowhere")
  with pytest.raises(AnnotationError, match="holds no <class>_test_split1"):
    list_hmdb51(tmp_path)
  _write(tmp_path, **_HMDB51, wave_test_split1="x.avi 3\ny.avi\n")
  with pytest.raises(AnnotationError, match="1 class without .* split 2.*wave"):
    list_hmdb51(tmp_path, 2)
  with pytest.raises(AnnotationError, match="wave.*2 rows .*: line 1, line 2"):
    list_hmdb51(tmp_path, 1)


def _write_ssv2(folder, prefix="something-something-v2-", **parts):
  folder.mkdir(exist_ok=True)
  labels = {"Closing something": "0", "Holding something next to it": "1"}
  for name, content in {"labels": labels, **parts}.items():
    (folder / f"{prefix}{name}.json").write_text(json.dumps(content))
  return folder


def _ssv2_rows(first, closing, holding):
  """Clips of one class, then of another, with ids from `first`."""
  templates = ["Closing [something]"] * closing
  templates += ["Holding [something next to it]"] * holding
  return [
    {"id": str(first + i), "label": "closing a box", "template": template}
    for i, template in enumerate(templates)
  ]


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2(tmp_path, prefix):
  folder = _write_ssv2(
    tmp_path,
    prefix,
    train=_ssv2_rows(10, 1, 1),
    validation=_ssv2_rows(70, 1, 1),
    test=[{"id": "99"}],
  )
  assert list_ssv2(folder) == [
    Listed("10.webm", "train", "Closing something"),
    Listed("11.webm", "train", "Holding something next to it"),
    Listed("70.webm", "test", "Closing something"),
    Listed("71.webm", "test", "Holding something next to it"),
  ]
  with pytest.raises(AnnotationError, match="1 clip with a template that is"):
    list_ssv2_part(folder, "test", "test")


def test_ssv2_mini_takes_the_first_of_each_class(tmp_path):
  folder = _write_ssv2(
    tmp_path, train=_ssv2_rows(0, 30, 2), validation=_ssv2_rows(50, 2, 5)
  )
  names = [row.name for row in list_ssv2_mini(folder, 2, 1)]
  assert names == [f"{i}.webm" for i in (0, 1, 30, 31, 50, 52)]
  found = Counter((r.split, r.label[:4]) for r in list_ssv2_mini(folder))
  assert found == {
    ("train", "Clos"): 20,
    ("train", "Hold"): 2,
    ("test", "Clos"): 2,
    ("test", "Hold"): 3,
  }


@pytest.mark.parametrize(
  "train, message",
  [
    (
      [{"id": "1", "template": "Flying [a kite]"}],
      "train list.*: 1.webm. Take",
    ),
    ([{"template": "Closing [something]"}], "clips without an id"),
    ({}, "is not an official train file"),
  ],
)
def test_ssv2_lists_that_are_not_official(tmp_path, train, message):
  folder = _write_ssv2(tmp_path, train=train, validation=_ssv2_rows(0, 1, 1))
  with pytest.raises(AnnotationError, match=message):
    list_ssv2(folder)


def test_ssv2_json_that_does_not_parse(tmp_path):
  _write_ssv2(tmp_path, validation=[])
  with pytest.raises(AnnotationError, match="can't read .*train.json: No such"):
    list_ssv2(tmp_path)
  (tmp_path / "something-something-v2-train.json").write_text("[{")
  with pytest.raises(AnnotationError, match="train.json is not a JSON file"):
    list_ssv2(tmp_path)


_CCV = {
  "categoryName": "Dog\nCat\nBeach\n",
  "trainVidID": "-Rwc2ut0kzs\nb_2\nc-3\n",
  "trainLabel": "1 0 0 \n0 1 1 \n0 0 0 \n",
  "testVidID": "d\ne\n",
  "testLabel": "1 1 1 \r\n0 0 1 \r\n",
}


def test_ccv(tmp_path):
  folder = _write(tmp_path, **_CCV)
  with pytest.warns(UserWarning, match="1 of 5 clips have no label"):
    labelled = list_ccv(folder)
  assert labelled == [
    Listed("-Rwc2ut0kzs", "train", ("Dog",)),
    Listed("b_2", "train", ("Cat", "Beach")),
    Listed("d", "test", ("Dog", "Cat", "Beach")),
    Listed("e", "test", ("Beach",)),
  ]
  everything = list_ccv(folder, keep_unlabelled=True)
  assert [row for row in everything if row not in labelled] == [
    Listed("c-3", "train", ())
  ]


@pytest.mark.parametrize(
  "label, message",
  [
    ("1 0 0\n0 1 1\n", "trainLabel.txt has 2 rows for 3 ids"),
    ("1 0 0\n0 1\n0 0 2\n", "2 rows that are not 3 times 0 or 1: line 2, line"),
  ],
)
def test_ccv_matrices_that_do_not_fit(tmp_path, label, message):
  folder = _write(tmp_path, **_CCV | {"trainLabel": label})
  with pytest.raises(AnnotationError, match=message):
    list_ccv(folder)


_HEADER = "label,youtube_id,time_start,time_end,split"
_TRAIN = [
  "abseiling,-7kbO0v4hag,107,117,train",
  '"massaging, legs",b,0,10,train',
]


def _write_csv(folder, **rows):
  folder.mkdir(exist_ok=True)
  for name, lines in rows.items():
    text = "".join(f"{line}\r\n" for line in lines)
    (folder / f"{name}.csv").write_text(text, newline="")
  return folder


@pytest.mark.filterwarnings("ignore:no test row has a label")
def test_kinetics(tmp_path):
  val = ["abseiling,c,5,15,val", '"massaging, legs",d,7,1017,validate']
  _write_csv(tmp_path, train=[_HEADER, *_TRAIN], val=[_HEADER, *val])
  first, second = "train/abseiling/-7kbO0v4hag", "train/massaging, legs/b"
  assert list_kinetics(tmp_path) == [
    Listed(f"{first}_000107_000117.mp4", "train", "abseiling", "-7kbO0v4hag"),
    Listed(f"{second}_000000_000010.mp4", "train", "massaging, legs", "b"),
    Listed("val/abseiling/c_000005_000015.mp4", "test", "abseiling", "c"),
    Listed(
      "validate/massaging, legs/d_000007_001017.mp4",
      "test",
      "massaging, legs",
      "d",
    ),
  ]


def test_kinetics_test_rows_with_and_without_labels(tmp_path):
  val = [_HEADER, "abseiling,c,5,15,val"]
  hidden = ["youtube_id,time_start,time_end,split", "d,5,15,test"]
  _write_csv(tmp_path, train=[_HEADER, *_TRAIN], val=val, test=hidden)
  with (
    pytest.warns(UserWarning, match="1 test rows have no label: left out"),
    pytest.warns(UserWarning, match="validation list is the test split"),
  ):
    splits = [row.split for row in list_kinetics(tmp_path)]
  assert splits == ["train", "train", "test"]
  _write_csv(tmp_path, test=[_HEADER, "abseiling,d,5,15,test"])
  splits = [row.split for row in list_kinetics(tmp_path)]
  assert splits == ["test", "train", "train", "validation"]


@pytest.mark.parametrize(
  "lines, message",
  [
    (
      ["id,name", "0,abseiling"],
      "no column youtube_id and no column time_start.*Leave only",
    ),
    ([_HEADER, ",c,5,15,val"], "1 row without an id, a label"),
    (
      [_HEADER, "abseiling,c,5,15,dev"],
      "1 row without an id, a label, a split",
    ),
    ([_HEADER, "abseiling,c,5.5,15,val", "abseiling"], "2 rows .*: line 2, l"),
    ([_HEADER, "Abseiling,c,5,15,val"], "1 row with a label that no label_map"),
  ],
)
def test_kinetics_lists_that_are_not_official(tmp_path, lines, message):
  _write(tmp_path, label_map="abseiling\nmassaging, legs\n")
  _write_csv(tmp_path, train=[_HEADER, *_TRAIN], val=lines)
  with pytest.raises(AnnotationError, match=message):
    list_kinetics(tmp_path)


def test_kinetics_folder_without_lists(tmp_path):
  with pytest.raises(AnnotationError, match="holds no list of Kinetics"):
    list_kinetics(tmp_path)


_LISTED = [
  Listed("a/1.avi", "train", "a"),
  Listed("b/2.avi", "train", "b"),
  Listed("a/3.avi", "test", "a"),
  Listed("b/4.avi", "test", "b"),
]


@pytest.mark.parametrize(
  "files",
  [
    ["a/1.avi", "b/2.avi", "a/3.avi", "b/4.avi"],
    ["1.avi", "2.avi", "3.avi", "4.avi"],
    ["train/a/1.avi", "train/b/2.avi", "test/a/3.avi", "UCF/b/4.avi"],
  ],
)
def test_videos_are_found_at_any_depth(tmp_path, files):
  write_files(tmp_path, *files, ".trash/1.avi", "more/5.avi", "more/1.txt")
  assert find_videos(tmp_path, _LISTED) == [
    Clip(row.name, tmp_path / file, row.split, row.label, "")
    for file, row in zip(files, _LISTED, strict=True)
  ]


def test_links_to_folders_around_them_end(tmp_path):
  files = ["a/1.avi", "b/2.avi", "a/3.avi", "b/4.avi"]
  write_files(tmp_path, *files)
  # Through two links, and to the folder itself.
  (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
  (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
  (tmp_path / "a" / "all").symlink_to(tmp_path)
  found = [clip.path for clip in find_videos(tmp_path, _LISTED)]
  assert found == [tmp_path / file for file in files]


def test_the_listed_place_comes_before_another_copy(tmp_path):
  names = [row.name for row in _LISTED]
  write_files(tmp_path, *names, "0/1.avi")
  assert [c.video_id for c in find_videos(tmp_path, _LISTED)] == names
  (tmp_path / "a/1.avi").rename(tmp_path / "b/1.avi")
  with pytest.raises(
    AnnotationError, match=r"1 video with more .* a/1.avi \(0/1.avi, b/1.avi\)"
  ):
    find_videos(tmp_path, _LISTED)


def _frame_folders(root, *folders):
  return write_files(
    root,
    *(f"{f}/{kind}_00001.jpg" for f in folders for kind in ("img", "flow_x")),
  )


@pytest.mark.parametrize(
  "folders",
  [
    ["a/1", "b/2", "a/3", "b/4"],
    ["1", "2", "3", "4"],
    ["train/a/1", "train/b/2", "test/a/3", "frames/UCF/b/4"],
    ["a/1.avi", "b/2.avi", "more/3.avi", "4.avi"],
  ],
)
def test_folders_of_frames_are_found_at_any_depth(tmp_path, folders):
  _frame_folders(tmp_path, *folders, ".trash/1", "more/5")
  write_files(tmp_path, "a/4/notes.txt")
  assert [(c.video_id, c.path) for c in find_videos(tmp_path, _LISTED)] == [
    (row.name, tmp_path / folder)
    for row, folder in zip(_LISTED, folders, strict=True)
  ]


def test_a_file_in_its_place_comes_first_and_then_a_folder_there(tmp_path):
  names = [row.name for row in _LISTED]
  write_files(tmp_path, *names)
  _frame_folders(tmp_path, "a/1", "b/2", "a/3", "b/4")
  assert [c.video_id for c in find_videos(tmp_path, _LISTED)] == names
  (tmp_path / "a/1.avi").rename(tmp_path / "1.avi")
  assert find_videos(tmp_path, _LISTED)[0].path == tmp_path / "a/1"
  (tmp_path / "a/1").rename(tmp_path / "1")
  with pytest.raises(AnnotationError, match=r"a/1.avi \(1.avi, 1\)"):
    find_videos(tmp_path, _LISTED)


def test_images_of_a_folder_of_frames_are_not_looked_through(tmp_path):
  rows = [
    Listed(f"{label}/img_0000{i}.jpg", split, label)
    for i, (label, split) in enumerate(
      [("a", "train"), ("b", "train"), ("a", "test")], 1
    )
  ]
  write_files(tmp_path / "v", *(row.name.partition("/")[2] for row in rows))
  with pytest.raises(AnnotationError, match="3 videos of 3 not found"):
    find_videos(tmp_path, rows)


def test_a_folder_that_can_not_be_read_is_no_missing_video(
  tmp_path, monkeypatch
):
  write_files(tmp_path, "1.avi", "deep/2.avi", "3.avi")
  scan = os.scandir

  def fail(path):
    if str(path).endswith("deep"):
      raise PermissionError(errno.EACCES, "Permission denied", path)
    return scan(path)

  monkeypatch.setattr(os, "scandir", fail)
  with pytest.raises(PermissionError, match="deep"):
    find_videos(tmp_path, _LISTED, allow_missing=True)


def test_folders_of_frames_of_names_without_extension(tmp_path):
  names = ["-Rw", "x_y", "c", "d"]
  rows = [
    Listed(name, row.split, row.label)
    for name, row in zip(names, _LISTED, strict=True)
  ]
  write_files(tmp_path, "train/-Rw.mkv")
  _frame_folders(tmp_path, "x_y", "test/c", "test/d.mp4")
  found = find_videos(tmp_path, rows)
  assert [clip.video_id for clip in found] == names
  paths = ["train/-Rw.mkv", "x_y", "test/c", "test/d.mp4"]
  assert [clip.path for clip in found] == [tmp_path / path for path in paths]


def test_any_extension(tmp_path):
  names = ["-Rw", "x_y", "c", "d"]
  rows = [
    Listed(name, row.split, row.label)
    for name, row in zip(names, _LISTED, strict=True)
  ]
  files = ["train/-Rw.mkv", "x_y.webm", "test/c.mp4", "test/d"]
  write_files(tmp_path, *files, "c.mp4.part", "d.info.json", "c.json", "c.jpg")
  found = find_videos(tmp_path, rows)
  assert [clip.video_id for clip in found] == names
  assert [clip.path for clip in found] == [tmp_path / file for file in files]


def test_missing_videos_are_counted_or_allowed(tmp_path):
  write_files(tmp_path, "1.avi", "2.avi", "3.avi")
  with pytest.raises(
    AnnotationError, match=r"1 video of 4 not .*: b/4.avi. .*--allow_missing"
  ):
    find_videos(tmp_path, _LISTED)
  with pytest.warns(UserWarning, match="1 video of 4 not found .*: b/4.avi"):
    found = find_videos(tmp_path, _LISTED, allow_missing=True)
  assert [c.video_id for c in found] == [row.name for row in _LISTED]
  assert [c.path.exists() for c in found] == [True, True, True, False]


def test_class_without_train_videos_gives_a_warning(tmp_path):
  write_files(tmp_path, "1.avi", "3.avi", "4.avi")
  with (
    pytest.warns(UserWarning, match="1 video of 4 not found"),
    pytest.warns(UserWarning, match="1 class of which no train video.*: b"),
  ):
    find_videos(tmp_path, _LISTED, allow_missing=True)


def test_each_split_needs_some_videos(tmp_path):
  write_files(tmp_path, "1.avi", "2.avi")
  with pytest.raises(AnnotationError, match="2 videos of 4 not found"):
    find_videos(tmp_path, _LISTED, allow_missing=True)


@pytest.mark.parametrize(
  "row, message",
  [
    (_LISTED[0], r"1 video listed more than once: a/1.avi \(train, train\)"),
    (Listed("5.avi", "test", "c"), "1 label .* no train clip has: c"),
    (Listed("5.avi", "test", ("a", "c")), "1 label .* no train clip has: c"),
  ],
)
def test_lists_that_can_not_make_a_dataset(tmp_path, row, message):
  write_files(tmp_path, *(f"{i}.avi" for i in range(1, 6)))
  with pytest.raises(AnnotationError, match=message):
    find_videos(tmp_path, [*_LISTED, row])


def test_group_on_both_sides_is_leakage(tmp_path):
  test = "Archery/v_Archery_g01_c02.avi\n"
  folder = _write(tmp_path, **_UCF101 | {"testlist02": test})
  with pytest.raises(AnnotationError, match="1 group in test .* Archery_g01"):
    DATASETS["ucf101"](tmp_path, folder, split=2)


@pytest.mark.filterwarnings(
  "ignore:.*no label", "ignore:no test row", "ignore:.*not read"
)
def test_every_set_from_lists_to_clips(tmp_path):
  lists, videos = tmp_path / "lists", tmp_path / "videos"
  _write(lists, **_UCF101, **_HMDB51, **_CCV)
  ssv2 = {"train": _ssv2_rows(0, 9, 9), "validation": _ssv2_rows(20, 9, 9)}
  _write_ssv2(lists, **ssv2)
  val = ["abseiling,c,5,15,val", '"massaging, legs",d,7,17,val']
  _write_csv(lists, kinetics=[_HEADER, *_TRAIN, *val])
  expected = {
    "ucf101": list_ucf101(lists, 2),
    "hmdb51": list_hmdb51(lists, 1),
    "ssv2": list_ssv2(lists),
    "ssv2_mini": list_ssv2_mini(lists, 2, 1),
    "ccv": list_ccv(lists),
    "kinetics": list_kinetics(lists),
  }
  options = {
    "ucf101": {"split": 2},
    "ssv2_mini": {"mini_train": 2, "mini_test": 1},
  }
  assert set(expected) == set(DATASETS) - {"folder", "csv"}
  for name, rows in expected.items():
    extension = ".mp4" if name == "ccv" else ""
    write_files(videos / name, *(f"{row.name}{extension}" for row in rows))
    clips = DATASETS[name](videos / name, lists, **options.get(name, {}))
    assert [(c.video_id, c.split, c.label, c.group) for c in clips] == [
      (row.name, row.split, row.label, row.group) for row in rows
    ]


@pytest.mark.parametrize(
  "split, train, test", [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)]
)
@pytest.mark.optional
def test_official_ucf101(split, train, test):
  rows = list_ucf101(_official("ucfTrainTestlist"), split)
  assert Counter(r.split for r in rows) == {"train": train, "test": test}
  assert len({row.label for row in rows}) == 101
  assert len({row.group for row in rows}) == 101 * 25
  assert rows == list_ucf101(_official("ucfTrainTestlist_crlf"), split)


@pytest.mark.optional
@pytest.mark.parametrize("split", [1, 2, 3])
def test_official_hmdb51(split):
  rows = list_hmdb51(_official("hmdb51_splits"), split)
  count = Counter((row.label, row.split) for row in rows)
  assert len({row.label for row in rows}) == 51
  assert {n for (_, part), n in count.items() if part == "train"} == {70}
  assert {n for (_, part), n in count.items() if part == "test"} == {30}
  assert len(rows) == 3570 + 1530


@pytest.mark.optional
def test_official_ssv2():
  folder = _official("ssv2")
  rows = list_ssv2_part(folder, "validation", "test")
  labels = json.loads(
    (folder / "something-something-v2-labels.json").read_text()
  )
  assert len(rows) == 24777
  assert {row.label for row in rows} == set(labels)
  # Sorted, so that a label here is the official number.
  assert [labels[name] for name in sorted(labels)] == [
    str(i) for i in range(174)
  ]
  # The official test list: ids without templates.
  with pytest.raises(AnnotationError, match="27157 clips with a template"):
    list_ssv2_part(folder, "test", "test")


@pytest.mark.optional
def test_official_ccv():
  folder = _official("ccv")
  rows = list_ccv(folder, keep_unlabelled=True)
  assert Counter(r.split for r in rows) == {"train": 4659, "test": 4658}
  assert len({name for row in rows for name in row.label}) == 20
  numbers = Counter(len(row.label) for row in rows)
  assert numbers == {0: 1996, 1: 6773, 2: 538, 3: 10}
  with pytest.warns(UserWarning, match="1996 of 9317 clips have no label"):
    assert len(list_ccv(folder)) == 7321


@pytest.mark.filterwarnings("ignore:no test row has a label")
@pytest.mark.parametrize(
  "name, n", [("label_map", 400), ("label_map_600", 600)]
)
@pytest.mark.optional
def test_official_kinetics_labels(tmp_path, name, n):
  path = _official("kinetics") / f"{name}.txt"
  (tmp_path / path.name).write_bytes(path.read_bytes())
  rows = [
    f'"{label}",{i}{split},0,10,{split}'
    for i, (_, label) in enumerate(read_lines(path))
    for split in ("train", "val")
  ]
  listed = list_kinetics(_write_csv(tmp_path, all=[_HEADER, *rows]))
  assert len({row.label for row in listed}) == n
  assert len(listed) == 2 * n
