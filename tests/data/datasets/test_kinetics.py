"""Kinetics in the forms that its distributors ship."""

import json

import pytest

from twostream_jax.data.build.check import check_clip
from twostream_jax.data.datasets.clips import SHARED_GROUP, AnnotationError
from twostream_jax.data.datasets.kinetics import list_kinetics
from twostream_jax.data.datasets.lists import Listed
from twostream_jax.data.datasets.official import DATASETS
from twostream_jax.flow.spec import FlowSpec

_HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
_TRAIN = [
  '"massaging person\'s head",-3B32lodo2M,59,69,train,0',
  "air drumming,--6bJUbfpnQ,17,27,train,1",
]
_VAL = [
  "air drumming,aaaaaaaaaaa,0,10,val,0",
  '"massaging person\'s head",bbbbbbbbbbb,1,11,val,0',
]
pytestmark = pytest.mark.filterwarnings("ignore:no test row has a label")


def _write(folder, **lists):
  folder.mkdir(exist_ok=True)
  for name, rows in lists.items():
    path = folder / name.replace("_", ".")
    path.write_text("".join(f"{row}\n" for row in [_HEADER, *rows]))
  return folder


def _names(listed):
  return [row.name for row in listed]


def test_text_files_are_lists_too(tmp_path):
  as_csv = list_kinetics(_write(tmp_path / "c", train_csv=_TRAIN, val_csv=_VAL))
  _write(tmp_path / "t", train_txt=_TRAIN, val_txt=_VAL)
  assert list_kinetics(tmp_path / "t") == as_csv
  (tmp_path / "t" / "readme.txt").write_text("About, this\n")
  _write(tmp_path / "t", train_csv=_TRAIN)
  with pytest.warns(UserWarning, match="2 files .* not read.*: readme.txt, tr"):
    assert list_kinetics(tmp_path / "t") == as_csv


def test_times_may_be_written_with_a_point(tmp_path):
  rows = [row.replace(",59,69,", ",59.0,69.0,") for row in _TRAIN]
  listed = list_kinetics(_write(tmp_path, train_csv=rows, val_csv=_VAL))
  assert listed[0].name.endswith("/-3B32lodo2M_000059_000069.mp4")
  for time in ("59.5", "nan", "inf", ""):
    rows = [row.replace(",59,69,", f",{time},69,") for row in _TRAIN]
    with pytest.raises(AnnotationError, match="train.csv: 1 row .*whole sec"):
      list_kinetics(_write(tmp_path, train_csv=rows))


def test_json(tmp_path):
  def entry(subset, segment=(59.0, 69.0), **label):
    annotations = {"segment": list(segment), **label}
    url = "https://www.youtube.com/watch?v=x"
    about = {"duration": 10.0, "subset": subset, "url": url}
    return {"annotations": annotations, **about}

  parts = {
    "train": {
      "-3B32lodo2M": entry("train", label="massaging person's head"),
      "--6bJUbfpnQ": entry("train", (17.0, 27.0), label="air drumming"),
    },
    "validate": {"aaaaaaaaaaa": entry("validate", label="air drumming")},
    "test": {"c": entry("test"), "d": {"subset": "test"}},
  }
  for name, content in parts.items():
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
  (tmp_path / "classes.json").write_text(json.dumps({"air drumming": 0}))
  with (
    pytest.warns(UserWarning, match="2 test rows have no label: left out"),
    pytest.warns(UserWarning, match="1 file .* not read.*: classes.json"),
  ):
    listed = list_kinetics(tmp_path)
  assert listed == [
    Listed(
      "train/massaging person's head/-3B32lodo2M_000059_000069.mp4",
      "train",
      "massaging person's head",
      "-3B32lodo2M",
    ),
    Listed(
      "train/air drumming/--6bJUbfpnQ_000017_000027.mp4",
      "train",
      "air drumming",
      "--6bJUbfpnQ",
    ),
    Listed(
      "validate/air drumming/aaaaaaaaaaa_000059_000069.mp4",
      "test",
      "air drumming",
      "aaaaaaaaaaa",
    ),
  ]
  parts["train"]["-3B32lodo2M"]["annotations"]["segment"] = [59.0]
  (tmp_path / "train.json").write_text(json.dumps(parts["train"]))
  with (
    pytest.warns(UserWarning, match="not read"),
    pytest.raises(AnnotationError, match="train.json: 1 row .*'-3B32lodo2M'"),
  ):
    list_kinetics(tmp_path)


def _shared(tmp_path):
  """A set in which a test video is in validation too, and one in train."""
  val = [*_VAL, "air drumming,ttttttttttt,5,15,val,0"]
  train = [*_TRAIN, "air drumming,aaaaaaaaaaa,100,110,train,0"]
  test = [
    "air drumming,ttttttttttt,5,15,test,0",
    "air drumming,aaaaaaaaaaa,50,60,test,0",
  ]
  lists = {"train_csv": train, "val_csv": val, "test_csv": test}
  _write(tmp_path / "lists", **lists)
  videos = tmp_path / "v"
  videos.mkdir()
  for name in _names(list_kinetics(tmp_path / "lists")):
    (videos / name.rpartition("/")[2]).write_bytes(b"x")
  return videos, tmp_path / "lists"


def test_groups_that_are_also_in_test_are_refused_or_left_out(tmp_path):
  arguments = _shared(tmp_path)
  with pytest.raises(
    AnnotationError, match="2 groups in test .*: a.*--drop_shared_groups"
  ):
    DATASETS["kinetics"](*arguments)
  clips = DATASETS["kinetics"](*arguments, drop_shared_groups=True)
  left_out = [clip for clip in clips if clip.rejection]
  assert [(clip.split, clip.group) for clip in left_out] == [
    ("train", "aaaaaaaaaaa"),
    ("validation", "aaaaaaaaaaa"),
    ("validation", "ttttttttttt"),
  ]
  assert {check_clip(c, FlowSpec("dis", {})).reason for c in left_out} == {
    SHARED_GROUP["test"]
  }
  assert [clip.split for clip in clips if not clip.rejection].count("test") == 2
