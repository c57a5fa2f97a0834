"""The command line of data_prep/build_tfds.py."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags

from data_prep import build_tfds
from tests import build_processes
from twostream_jax.data.build import check, clip_task, command, workers
from twostream_jax.data.build.builder import BuildSummary, build_dataset
from twostream_jax.data.build.check import (
  Rejection,
  check_clip,
  check_clips_decode,
)
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.build.forecast import Forecast
from twostream_jax.data.build.summary import describe, describe_forecast
from twostream_jax.data.dataset import open_dataset
from twostream_jax.data.datasets.annotations import read_folder
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

_SCRIPT = Path(build_tfds.__file__).resolve()


def _write_video(path, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  frames = np.random.default_rng(seed).integers(
    0, 256, (3, 48, 64, 3), np.uint8
  )
  fourcc = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(path), fourcc, 25, (64, 48))
  for frame in frames:
    writer.write(frame)
  writer.release()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  root = tmp_path_factory.mktemp("videos")
  for label in ("hug", "kick"):
    for i in range(2):
      _write_video(root / label / f"{i}.avi", seed=i)
  return root


def _flags(*arguments):
  values = flags.FlagValues()
  build_tfds.define_flags(values)
  values(["build_tfds.py", *arguments])
  return values


def _run_script(*arguments, **options):
  return subprocess.run(
    [sys.executable, _SCRIPT, *arguments],
    capture_output=True,
    text=True,
    **options,
  )


@pytest.fixture
def no_processes(monkeypatch):
  """Clips are worked on here: processes take most of the time of a build."""
  for module in (check, clip_task):
    monkeypatch.setattr(module, "map_in_processes", build_processes.map_here)


def test_folder_end_to_end_from_another_folder(videos, tmp_path):
  done = _run_script(
    *("--dataset=folder", f"--videos={videos}", "--out=My-set"),
    *("--short_side=32", "--flow=farneback", "--bound=15", "--workers=1"),
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert "clips     train 2, test 2" in done.stdout
  assert "rejected" not in done.stdout
  assert "--config.data.dir=My-set/my_set" in done.stdout
  assert "my_set: 100%" in done.stderr
  opened = open_dataset(tmp_path / "My-set")
  assert opened.class_names == ("hug", "kick")
  assert not opened.multi_label
  assert {int(record["label"]) for record in opened.sources["train"]} == {0, 1}
  assert opened.flow_spec.algorithm == "farneback"
  assert opened.flow_spec.parameters["winsize"] == 15
  assert (opened.flow_spec.short_side, opened.flow_spec.bound) == (32, 15.0)


def test_csv_with_rejections(videos, tmp_path, capsys):
  (videos / "hug" / "broken.avi").write_bytes(b"no video")
  (tmp_path / "a.csv").write_text(
    "path,label\nhug/0.avi,hug\nhug/broken.avi,hug\nkick/0.avi,kick\n"
  )
  (tmp_path / "b.csv").write_text(
    "path,label\nhug/1.avi,hug\nkick/1.avi,kick\n"
  )
  code = build_tfds.run(
    _flags(
      *("--dataset=csv", f"--videos={videos}", f"--out={tmp_path / 'out'}"),
      *(f"--train={tmp_path / 'a.csv'}", f"--test={tmp_path / 'b.csv'}"),
      *("--name=tiny", "--short_side=32", "--workers=1"),
    )
  )
  shown = capsys.readouterr()
  assert code == 0, shown.err
  metadata = tmp_path / "out" / "tiny" / "1.0.0" / "metadata.json"
  assert "clips     train 2, test 2" in shown.out
  assert "rejected  1 of 5 files" in shown.out
  assert "1  can't be opened as a video" in shown.out
  assert str(metadata) in shown.out
  assert metadata.is_file()


@pytest.mark.usefixtures("no_processes")
def test_csv_with_a_missing_video(videos, tmp_path, capsys):
  lists = {"train": ["hug/0", "kick/0", "kick/gone"], "test": ["hug/1"]}
  arguments = []
  for split, ids in lists.items():
    rows = [f"{i}.avi,{i.split('/')[0]}" for i in ids]
    (tmp_path / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
    arguments.append(f"--{split}={tmp_path / split}.csv")
  arguments += ["--dataset=csv", f"--videos={videos}", "--short_side=32"]
  arguments += [f"--out={tmp_path / 'out'}", "--workers=1"]
  assert build_tfds.run(_flags(*arguments)) == 1
  assert "1 video of 4 not found" in capsys.readouterr().err
  assert build_tfds.run(_flags(*arguments, "--allow_missing")) == 0
  assert "1  file not found (kick/gone.avi)" in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--dataset=csv"], "--dataset=csv needs --train=FILE.csv"),
    (["--dataset=csv", "--train=a"], "--dataset=csv needs --test=FILE.csv"),
    (["--dataset=csv", "--test_fraction=.1"], "--test_fraction can't be used"),
    (["--dataset=folder", "--train=a"], "--train can't be used with"),
    (["--dataset=folder", "--short_side=100"], "multiple of 8: 100"),
    (["--dataset=folder", "--bound=0"], "bound must be positive"),
    (["--dataset=folder", "--name=A b"], "lower-case letters"),
    (["--dataset=folder", "--videos=/nowhere"], "no such folder of videos"),
    (["--dataset=folder", "--allow_missing"], "--allow_missing can't be used"),
    (["--dataset=csv", "--annotations=a"], "--annotations can't be used with"),
    (["--dataset=ucf101"], "--dataset=ucf101 needs --annotations=DIR"),
    (
      ["--dataset=ssv2", "--split=2", "--mini_test=1"],
      "--mini_test, --split can't be used with --dataset=ssv2",
    ),
    (
      ["--dataset=ccv", "--annotations=/nowhere", "--keep_unlabelled"],
      "can't read /nowhere/categoryName.txt",
    ),
    (["--dataset=folder", "--check", "--short_side=100"], "of 8: 100"),
    (["--dataset=folder", "--check", "--workers=0"], "at least one worker"),
  ],
)
def test_expected_error_is_one_message(
  videos, tmp_path, capsys, arguments, message
):
  out = tmp_path / "out"
  code = build_tfds.run(
    _flags(f"--videos={videos}", f"--out={out}", *arguments)
  )
  shown = capsys.readouterr()
  assert code == 1
  assert shown.out == ""
  assert shown.err.startswith("error: ")
  assert message in shown.err
  assert not out.exists()


def test_home_folder_in_flags(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  names = ("videos", "out", "train", "test", "validation", "annotations")
  values = _flags("--dataset=csv", *(f"--{name}=~/{name}" for name in names))
  assert [values[n].value for n in names] == [f"/home/me/{n}" for n in names]


def test_groups_in_test_are_left_out_on_demand(
  videos, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(
    command,
    "check_clips_decode",
    lambda clips, *, flow_spec, **_: [
      check_clip(clip, flow_spec) for clip in clips
    ],
  )
  rows = {
    "train": ["hug/0.avi,hug,1", "kick/0.avi,kick,2", "hug/0b.avi,hug,3"],
    "test": ["hug/1.avi,hug,3", "kick/1.avi,kick,4"],
  }
  arguments = ["--dataset=csv", f"--videos={videos}", "--short_side=16"]
  arguments += [f"--out={tmp_path / 'set'}", "--workers=1"]
  for split, lines in rows.items():
    (tmp_path / split).write_text("\n".join(["path,label,group", *lines]))
    arguments.append(f"--{split}={tmp_path / split}")
  assert build_tfds.run(_flags(*arguments)) == 1
  assert "1 group in test and also in train" in capsys.readouterr().err
  # Their files are not needed either.
  arguments.append("--drop_shared_groups")
  assert build_tfds.run(_flags(*arguments, "--check")) == 0
  reason = "its group is also in test (--drop_shared_groups)"
  assert f"1  {reason} (hug/0b.avi)" in capsys.readouterr().out
  clip = Clip("a", videos / "hug/0.avi", "train", "hug", "3", reason)
  assert process_clip(clip, FlowSpec("dis", {}), 95) == Rejection(reason)


def test_a_check_tells_before_it_decodes(videos, tmp_path, capsys, monkeypatch):
  rows = ["hug/0.mp4,hug", "kick/0.avi,Kick", "kick/gone.avi,kick"]
  for name, lines in [("a", rows), ("b", ["hug/1.avi,hug", "kick/1.avi,kick"])]:
    (tmp_path / name).write_text("\n".join(["path,label", *lines]))
  monkeypatch.setattr(command, "check_clips_decode", lambda clips, **_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    build_tfds.run(
      _flags(
        *("--dataset=csv", f"--videos={videos}", "--check"),
        *(f"--train={tmp_path / 'a'}", f"--test={tmp_path / 'b'}"),
      )
    )
  told = capsys.readouterr().err
  assert "1 video of 5 taken from a file whose name has another" in told
  assert "'Kick' (clips: 1) and 'kick' (clips: 2)" in told
  assert "1 video of 5 not found" in told


def test_reasons_that_name_files_do_not_fill_the_screen():
  rejected = tuple({"video_id": "v", "reason": f"r{i}"} for i in range(30))
  summary = BuildSummary(
    Path("o/d/1.0.0"), {"train": 1}, rejected, (), 1.0, {}, 1.0, 1
  )
  assert "      10  10 other reasons" in describe(summary)


def test_annotation_warnings_are_shown(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "1.avi").write_bytes(b"x")
  (tmp_path / "b").mkdir()
  code = build_tfds.run(
    _flags("--dataset=folder", f"--videos={tmp_path}", "--out=unused")
  )
  shown = capsys.readouterr().err
  assert code == 1
  assert "no clips in the test split" in shown
  assert "warning: 1 class with a single clip" in shown


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--dataset=folder", "--out=o"], "--videos"),
    (["--dataset=folder", "--videos=v"], "--out"),
    (["--videos=v", "--out=o"], "--dataset"),
    (["--dataset=web", "--videos=v", "--out=o"], "web.*folder.csv"),
    (["--dataset=folder", "--videos=v", "--out=o", "--sped=1"], "sped"),
    (["--dataset=folder", "--videos=v", "--out=o", "--flow=tvl2"], "dis"),
    (["--dataset=ucf101", "--videos=v", "--out=o", "--split=4"], "split=4"),
  ],
)
def test_wrong_flags_are_named(arguments, message):
  with pytest.raises(flags.Error, match=message):
    _flags(*arguments)


def test_script_ends_without_a_traceback(tmp_path):
  done = _run_script("--dataset=folder", f"--videos={tmp_path}", "--out=o")
  assert done.returncode == 1
  assert "one folder a class" in done.stderr
  assert "Traceback" not in done.stderr
  stray = _run_script("--dataset=folder", "--videos=v", "--out=o", "stray")
  assert stray.returncode == 1
  assert stray.stderr == "error: not a flag: stray\n"


def test_summary_tells_of_classes_that_can_not_be_learned():
  summary = BuildSummary(
    path=Path("o/d/1.0.0"),
    counts={"train": 1},
    rejected=(),
    untrained=("wave",),
    video_seconds=9000.0,
    damaged={"a.ts": 3, "b.ts": 1},
    seconds=61.0,
    size=3 << 20,
  )
  text = describe(summary)
  assert "2 clips with 4 damaged or lost frames (a.ts, b.ts)" in text
  assert "no train clip could be used of: wave" in text
  assert "video     2 h 30 min" in text
  assert "3.0 MiB, built in 1 min" in text


def test_forecast_says_when_the_disk_is_too_small():
  forecast = Forecast(8, 1000, 4000.0, 5 << 30, disk_free=6 << 30)
  text = describe_forecast(forecast)
  assert "1000 clips left, about 1 h 7 min" in text
  assert "5.00 GiB" in text
  assert "warning" not in text
  full = dataclasses.replace(forecast, disk_free=5 << 30)
  assert "only 5.00 GiB are free" in describe_forecast(full)


def test_tvl1_can_be_that_of_earlier_datasets():
  arguments = ["--dataset=folder", "--videos=v", "--out=o"]
  now = command._flow_spec(_flags(*arguments, "--flow=tvl1"))
  before = command._flow_spec(
    _flags(*arguments, "--flow=tvl1", "--notvl1_texture")
  )
  assert now.parameters == default_parameters("tvl1")
  assert now.parameters == {**before.parameters, "texture": 1.0}
  assert "texture" not in before.parameters
  with pytest.raises(ValueError, match="--notvl1_texture is for --flow=tvl1"):
    command._flow_spec(_flags(*arguments, "--notvl1_texture"))


def test_extracted_flow_needs_its_bound(videos, capsys):
  code = build_tfds.run(
    _flags(
      "--dataset=folder", f"--videos={videos}", "--out=o", "--flow=extracted"
    )
  )
  assert code == 1
  assert "--flow=extracted needs --bound" in capsys.readouterr().err


@pytest.mark.optional
@pytest.mark.filterwarnings("default")
def test_beam_gives_the_same_dataset(videos, tmp_path, capsys):
  pytest.importorskip("apache_beam", reason="an extra of the package")
  arguments = ["--dataset=folder", f"--videos={videos}", "--short_side=32"]
  for name in ("here", "beam"):
    chosen = [f"--out={tmp_path / name}", "--name=tiny"]
    if name == "beam":
      chosen += ["--beam_runner=DirectRunner"]
      chosen += ["--beam_option=direct_num_workers=1"]
    assert build_tfds.run(_flags(*arguments, *chosen)) == 0
  here, there = (tmp_path / n / "tiny" / "1.0.0" for n in ("here", "beam"))
  assert {f.name: f.read_bytes() for f in here.iterdir()} == {
    f.name: f.read_bytes() for f in there.iterdir()
  }


def test_beam_that_is_not_installed_is_an_error_of_one_line(
  videos, tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.delitem(
    sys.modules, "twostream_jax.data.build.beam", raising=False
  )
  chosen = [f"--videos={videos}", f"--out={tmp_path / 'out'}"]
  chosen += ["--dataset=folder", "--beam_runner=DirectRunner"]
  assert build_tfds.run(_flags(*chosen)) == 1
  message = capsys.readouterr().err
  assert message.startswith("error: --beam_runner needs Apache Beam, an extra")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "out, name",
  [
    ("data/ut_interaction", "ut_interaction"),
    ("UT Interaction (HD)/", "ut_interaction_hd"),
    ("/data/2024-05", "videos_2024_05"),
    ("/", "videos"),
  ],
)
def test_a_dataset_is_named_after_its_folder(out, name):
  assert command.name_from_folder(out) == name


@pytest.fixture
def ccv(tmp_path):
  """Lists of eight ids, one without a file and one without a label."""
  lists = tmp_path / "lists"
  lists.mkdir()
  texts = {
    "categoryName": "Dog\nCat\nBeach\n",
    "trainVidID": "-a\nb\ngone\nnone\n",
    "trainLabel": "1 0 0 \n0 1 1 \n1 0 0 \n0 0 0 \n",
    "testVidID": "c\nd\n",
    "testLabel": "1 1 1 \n0 0 1 \n",
  }
  for name, text in texts.items():
    (lists / f"{name}.txt").write_text(text)
  for i, name in enumerate(["-a", "b", "none", "c", "d"]):
    _write_video(tmp_path / "videos" / f"{name}.avi", seed=i)
  return [
    *("--dataset=ccv", f"--videos={tmp_path / 'videos'}", "--workers=1"),
    *(f"--annotations={lists}", f"--out={tmp_path / 'ccv'}"),
    "--short_side=32",
  ]


def _records(path, split):
  data = open_dataset(path)
  return {
    record["video_id"].decode(): [data.class_names[i] for i in record["label"]]
    for record in data.sources[split]
  }


@pytest.mark.usefixtures("no_processes")
def test_multi_label_set_with_a_missing_video(ccv, tmp_path, capsys):
  assert build_tfds.run(_flags(*ccv)) == 1
  message = "1 video of 5 not found"
  assert message in capsys.readouterr().err
  assert not (tmp_path / "ccv").exists()

  code = build_tfds.run(_flags(*ccv, "--allow_missing"))
  shown = capsys.readouterr()
  assert code == 0, shown.err
  assert "warning: 1 of 6 clips have no label and are left out" in shown.err
  assert "clips     train 2, test 2" in shown.out
  assert "rejected  1 of 5 files\n       1  file not found (gone)" in shown.out
  assert "any number a clip" in shown.out
  assert (
    "next\n  python -m twostream_jax.main --config=configs/ccv_hybrid.py"
    f" --config.data.dir={tmp_path / 'ccv' / 'ccv'}\n"
  ) in shown.out
  data = open_dataset(tmp_path / "ccv")
  assert data.multi_label
  assert data.class_names == ("Beach", "Cat", "Dog")
  assert data.rejected == (
    {
      "video_id": "gone",
      "split": "train",
      "label": ["Dog"],
      "reason": "file not found",
    },
  )
  train = {"-a": ["Dog"], "b": ["Cat", "Beach"]}
  test = {"c": ["Dog", "Cat", "Beach"], "d": ["Beach"]}
  assert _records(tmp_path / "ccv", "train") == train
  assert _records(tmp_path / "ccv", "test") == test


@pytest.mark.usefixtures("no_processes")
def test_clips_without_a_label_can_be_kept(ccv, tmp_path, capsys):
  code = build_tfds.run(_flags(*ccv, "--allow_missing", "--keep_unlabelled"))
  assert code == 0, capsys.readouterr().err
  assert _records(tmp_path / "ccv", "train")["none"] == []


@pytest.mark.usefixtures("no_processes")
def test_check_of_a_set_with_a_missing_video(ccv, tmp_path, capsys):
  code = build_tfds.run(_flags(*ccv, "--check"))
  shown = capsys.readouterr()
  assert code == 1
  assert "check: 100%" in shown.err
  assert shown.out == (
    "checked   5 clips of 3 classes\n"
    "train     2 of 3 usable, 1 to 1 a class\n"
    "test      2 of 2 usable, 1 to 2 a class\n"
    "rejected  1 of 5 files\n"
    "       1  file not found (gone)\n"
  )
  assert build_tfds.run(_flags(*ccv, "--check", "--allow_missing")) == 0
  (tmp_path / "videos" / "c.avi").write_bytes(b"no video")
  assert build_tfds.run(_flags(*ccv, "--check", "--allow_missing")) == 1
  assert "1  can't be opened as a video (c)" in capsys.readouterr().out
  assert not (tmp_path / "ccv").exists()


@pytest.mark.usefixtures("no_processes")
def test_check_of_a_folder_needs_no_out(tmp_path, capsys):
  for name in ("hug/0", "hug/1", "kick/0", "kick/1"):
    _write_video(tmp_path / f"{name}.avi", seed=0)
  arguments = ["--dataset=folder", f"--videos={tmp_path}", "--check"]
  arguments += ["--workers=1", "--short_side=32"]
  before = sorted(tmp_path.rglob("*"))
  assert build_tfds.run(_flags(*arguments)) == 0
  assert sorted(tmp_path.rglob("*")) == before
  capsys.readouterr()
  # The clips have three frames.
  assert build_tfds.run(_flags(*arguments, "--flow_step=3")) == 1
  shown = capsys.readouterr().out
  assert "4  3 frames decoded, at least 4 needed (hug/" in shown
  assert "2 classes without a usable train clip:\n  hug, kick" in shown


def test_check_rejects_what_a_build_rejects(videos, tmp_path):
  whole = (videos / "hug" / "0.avi").read_bytes()
  for label in ("hug", "kick"):
    for i in range(4):
      path = tmp_path / "videos" / label / f"{i}.avi"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(whole)
  (tmp_path / "videos/hug/0.avi").write_bytes(b"")
  (tmp_path / "videos/hug/1.avi").write_bytes(b"no video" * 99)
  (tmp_path / "videos/kick/2.avi").write_bytes(whole[: len(whole) // 3])
  clips = read_folder(tmp_path / "videos")
  spec = FlowSpec("farneback", default_parameters("farneback"), short_side=32)
  built = build_dataset(
    tmp_path / "out",
    name="tiny",
    clips=clips,
    flow_spec=spec,
    num_workers=1,
    progress=False,
  )
  checked = check_clips_decode(
    clips, flow_spec=spec, num_workers=1, progress=False
  )
  assert len(built.rejected) >= 2
  assert {r["video_id"]: r["reason"] for r in built.rejected} == {
    clip.video_id: rejection.reason
    for clip, rejection in zip(clips, checked, strict=True)
    if rejection
  }


def test_check_outlives_a_crash(videos, monkeypatch):
  started = []
  begin = workers._Worker._begin
  monkeypatch.setattr(
    workers._Worker, "_begin", lambda self: (started.append(self), begin(self))
  )
  clips = [
    Clip(f"hug/{i}.avi", videos / "hug" / f"{i}.avi", "train", "hug", "")
    for i in (0, 1, 0)
  ]
  checked = check_clips_decode(
    clips,
    flow_spec=FlowSpec("dis", {}, short_side=32),
    num_workers=1,
    progress=False,
    process=functools.partial(
      build_processes.abort_on, "hug/0.avi", check_clip
    ),
  )
  crash = Rejection("the decoder crashed")
  assert checked == [crash, None, crash]
  # After the last clip there is nothing to start another process for.
  assert len(started) == 2


def test_labels_of_two_kinds_are_refused(videos, tmp_path):
  clips = [
    Clip("hug/0.avi", videos / "hug/0.avi", "train", "hug", ""),
    Clip("hug/1.avi", videos / "hug/1.avi", "test", ("hug",), ""),
  ]
  spec = FlowSpec("farneback", default_parameters("farneback"), short_side=32)
  with pytest.raises(ValueError, match="others tuples"):
    build_dataset(tmp_path / "out", name="a", clips=clips, flow_spec=spec)
  assert not (tmp_path / "out").exists()
