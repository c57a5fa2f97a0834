"""The command line of data_prep/build_tfds.py."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags

from data_prep import build_tfds
from twostream_jax.data.builder import BuildSummary
from twostream_jax.data.dataset import open_dataset

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


def test_annotation_warnings_are_shown(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "1.avi").write_bytes(b"x")
  (tmp_path / "b").mkdir()
  code = build_tfds.run(
    _flags("--dataset=folder", f"--videos={tmp_path}", "--out=unused")
  )
  assert code == 1
  assert "no clips in the test split" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--dataset=folder", "--out=o"], "--videos"),
    (["--dataset=folder", "--videos=v"], "--out"),
    (["--videos=v", "--out=o"], "--dataset"),
    (["--dataset=web", "--videos=v", "--out=o"], "web.*folder.csv"),
    (["--dataset=folder", "--videos=v", "--out=o", "--sped=1"], "sped"),
    (["--dataset=folder", "--videos=v", "--out=o", "--flow=tvl2"], "dis"),
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
  summary = BuildSummary(Path("o/d/1.0.0"), {"train": 1}, (), ("wave",), 1.0, 9)
  assert "no train clip could be used of: wave" in build_tfds.describe(summary)


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
  assert build_tfds.name_from_folder(out) == name
