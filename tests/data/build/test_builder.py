"""The builder and what it stores, from small videos to opened records."""

import dataclasses
import functools
import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import build_processes
from twostream_jax import files
from twostream_jax.data import dataset
from twostream_jax.data.build import builder, check, clip_task, staging
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.datasets.annotations import Clip
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

_SPEC = FlowSpec("farneback", default_parameters("farneback"), short_side=64)


def _moving_frames(n, seed=0, height=64, width=80):
  """A texture that moves 2 pixels to the right a frame."""
  noise = np.random.default_rng(seed).random((height, width + 2 * n, 3))
  smooth = cv2.GaussianBlur(noise, (0, 0), 2)
  image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
  return [image[:, 2 * (n - i) :][:, :width] for i in range(n)]


def _write_video(path, frames, fps=12.5):
  path.parent.mkdir(parents=True, exist_ok=True)
  height, width = frames[0].shape[:2]
  fourcc = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(path), fourcc, fps, (width, height))
  for frame in frames:
    writer.write(frame[..., ::-1])
  writer.release()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  root = tmp_path_factory.mktemp("videos")
  for i in range(4):
    _write_video(root / f"{i}.avi", _moving_frames(4 + i, seed=i))
  return root


def _clip(path, split="train", label="b", group=""):
  return Clip(path.name, path, split, label, group)


def _four(root):
  return [
    _clip(root / "0.avi", label="b", group="é"),
    _clip(root / "1.avi", label="a"),
    _clip(root / "2.avi", "test"),
    _clip(root / "3.avi", "test", label="a"),
  ]


def _build(out, clips, **options):
  arguments = {"name": "tiny", "flow_spec": _SPEC, "num_workers": 1}
  return builder.build_dataset(
    out, clips=clips, **arguments | {"progress": False} | options
  )


def _hashes(path):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in path.iterdir()
  }


@pytest.fixture(scope="module")
def four(videos, tmp_path_factory):
  """The folder and the summary of a build of `_four`; not to be changed."""
  folder = tmp_path_factory.mktemp("four")
  return folder, _build(folder, _four(videos))


@pytest.fixture
def built(four, tmp_path):
  """A copy of that folder, and of the dataset in it."""
  folder, summary = four
  copied = shutil.copytree(folder, tmp_path / "built")
  return copied, copied / summary.path.relative_to(folder)


@pytest.fixture
def no_processes(monkeypatch):
  """Clips are worked on here: processes take most of the time of a build."""
  for module in (check, clip_task):
    monkeypatch.setattr(module, "map_in_processes", build_processes.map_here)


def test_round_trip_of_a_dataset(videos, four):
  clips = _four(videos)
  folder, summary = four
  assert summary.path == folder / "tiny" / "1.0.0"
  assert summary.counts == {"train": 2, "test": 2}
  assert summary.rejected == summary.untrained == ()
  assert summary.size == sum(f.stat().st_size for f in summary.path.iterdir())
  assert [f.name for f in folder.rglob("*") if f.is_dir()] == [
    "tiny",
    "1.0.0",
  ]

  opened = dataset.open_dataset(folder)
  assert (opened.path, opened.name) == (summary.path, "tiny")
  assert opened.class_names == ("a", "b")
  assert opened.flow_spec == _SPEC
  assert (opened.rgb_quality, opened.rejected) == (95, ())
  assert set(opened.sources) == {"train", "test"}
  for split, source in opened.sources.items():
    expected = [clip for clip in clips if clip.split == split]
    assert len(source) == len(expected)
    source = pickle.loads(pickle.dumps(source))
    for i, clip in enumerate(expected):
      record = process_clip(clip, _SPEC, 95)
      read = source[i]
      assert read.pop("times").tolist() == record.times
      stored = dataclasses.asdict(record) | {
        "label": opened.class_names.index(clip.label),
        "video_id": clip.video_id.encode(),
        "group": clip.group.encode(),
      }
      del stored["times"]
      assert read == stored


def test_number_of_workers_does_not_change_a_byte(videos, four, tmp_path):
  two = _build(tmp_path, _four(videos), num_workers=2)
  assert _hashes(four[1].path) == _hashes(two.path)


def test_unusable_files_are_listed_and_the_rest_is_used(videos, tmp_path):
  whole = (videos / "0.avi").read_bytes()
  noise = np.random.default_rng(0).bytes(len(whole))
  (tmp_path / "corrupted.avi").write_bytes(whole[:16] + noise[16:])
  (tmp_path / "text.txt").write_text("no video\n" * 99)
  _write_video(tmp_path / "one.avi", _moving_frames(1))
  broken = [
    _clip(tmp_path / "corrupted.avi"),
    _clip(tmp_path / "one.avi", "test"),
    _clip(tmp_path / "text.txt", label="c"),
  ]
  first, *rest = _four(videos)
  summary = _build(tmp_path / "out", [first, *broken, *rest])
  assert summary.counts == {"train": 2, "test": 2}
  assert summary.untrained == ("c",)
  reasons = {r["video_id"]: r["reason"] for r in summary.rejected}
  assert reasons == {
    "corrupted.avi": "can't be opened as a video",
    "one.avi": "1 frame decoded, at least 2 needed",
    "text.txt": "can't be opened as a video",
  }
  opened = dataset.open_dataset(tmp_path / "out")
  assert opened.rejected == summary.rejected
  assert opened.rejected[1] == {
    "video_id": "one.avi",
    "split": "test",
    "label": "b",
    "reason": "1 frame decoded, at least 2 needed",
  }
  assert opened.class_names == ("a", "b", "c")


@pytest.mark.slow
def test_crash_costs_only_the_clip_that_crashes(videos, tmp_path):
  clips = [*_four(videos), _clip(videos / "0.avi")]
  process = functools.partial(build_processes.abort_on, "1.avi", process_clip)
  summary = _build(tmp_path, clips, num_workers=2, process=process)
  assert summary.counts == {"train": 2, "test": 2}
  assert [(r["video_id"], r["reason"]) for r in summary.rejected] == [
    ("1.avi", "the decoder crashed")
  ]
  source = dataset.open_dataset(tmp_path).sources["test"]
  assert [record["video_id"] for record in source] == [b"2.avi", b"3.avi"]


@pytest.mark.usefixtures("no_processes")
def test_split_without_usable_clips_writes_no_dataset(videos, tmp_path):
  clips = [_clip(videos / "0.avi"), _clip(videos / "no.avi", "test")]
  with pytest.raises(
    builder.BuildError, match="test split.*1 x file not found .no.avi"
  ):
    _build(tmp_path / "out", clips)
  with pytest.raises(dataset.DatasetNotFoundError):
    dataset.open_dataset(tmp_path / "out")


@pytest.mark.usefixtures("no_processes")
def test_existing_dataset_is_kept_or_replaced(videos, built):
  clips = _four(videos)
  folder, path = built
  before = _hashes(path)
  with pytest.raises(FileExistsError, match="--overwrite"):
    _build(folder, clips)
  missing = [dataclasses.replace(c, path=videos / "no.avi") for c in clips]
  with pytest.raises(builder.BuildError):
    _build(folder, missing, overwrite=True)
  assert _hashes(path) == before
  _build(folder, [clips[0], *clips[2:]], overwrite=True)
  assert len(dataset.open_dataset(folder).sources["train"]) == 1
  assert [f.name for f in path.parent.iterdir()] == ["1.0.0"]


def test_half_a_replacement_is_undone(videos, built):
  folder, path = built
  path.rename(path.with_name(".replaced-1.0.0"))
  with pytest.raises(FileExistsError):
    _build(folder, _four(videos))
  assert dataset.open_dataset(path).name == "tiny"


@pytest.mark.parametrize(
  "folder, file, overwrite",
  [
    ("1.0.0", "thesis.tex", True),
    ("1.0.0", "chapters/1/intro.tex", True),
    ("1.0.0", "cats.labels.txt", True),
    ("1.0.0", "my-notes.index", True),
    ("1.0.0", f"incomplete.{'0a' * 16}.thesis", True),
    ("1.0.0", f".thesis.{'0a' * 16}", True),
    (".replaced-1.0.0", "my-notes.index", False),
    ("1.0.0.incomplete", "dataset/cats.labels.txt", False),
    (".replaced-1.0.0", ".git/config", False),
    ("1.0.0.incomplete", "thesis.tex", False),
    ("1.0.0.incomplete", "dataset/notes", False),
    ("1.0.0.incomplete", "clips/.hidden", False),
  ],
)
def test_no_file_of_the_user_is_removed(
  videos, tmp_path, folder, file, overwrite
):
  path = tmp_path / "tiny" / folder / file
  path.parent.mkdir(parents=True)
  path.write_text("mine")
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(files.ForeignFileError, match=f"{path}', .*move it away"):
    _build(tmp_path, _four(videos), overwrite=overwrite, process=None)
  assert path.read_text() == "mine"
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [".replaced-1.0.0", "1.0.0.incomplete"])
def test_a_folder_of_a_build_is_no_link(videos, tmp_path, name):
  (tmp_path / "mine").mkdir()
  (tmp_path / "out" / "tiny").mkdir(parents=True)
  (tmp_path / "out" / "tiny" / name).symlink_to(tmp_path / "mine")
  with pytest.raises(files.ForeignFileError, match=name):
    _build(tmp_path / "out", _four(videos), process=None)
  assert not list((tmp_path / "mine").iterdir())


def test_an_empty_folder_of_the_user_stays(tmp_path):
  with staging.only_build(tmp_path / ".1.0.0.lock"):
    pass
  assert tmp_path.exists()


@pytest.mark.usefixtures("no_processes")
def test_a_dataset_is_built_and_replaced_where_a_link_leads(videos, tmp_path):
  (tmp_path / "out" / "tiny").mkdir(parents=True)
  (tmp_path / "out" / "tiny" / "1.0.0").symlink_to(tmp_path / "disk" / "tiny1")
  for _ in range(2):
    _build(tmp_path / "out", _four(videos), overwrite=True)
  assert (tmp_path / "out" / "tiny" / "1.0.0").is_symlink()
  assert [f.name for f in (tmp_path / "disk").iterdir()] == ["tiny1"]
  opened = dataset.open_dataset(tmp_path / "out" / "tiny" / "1.0.0")
  assert len(opened.sources["train"]) == 2


def test_script_without_a_main_guard_is_told_so(videos, tmp_path):
  script = tmp_path / "script.py"
  script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import pathlib
from tests.data.build import test_builder as t
clips = t._four(pathlib.Path({str(videos)!r}))
t._build({str(tmp_path / "out")!r}, clips)
""")
  done = subprocess.run(
    [sys.executable, script], capture_output=True, text=True
  )
  assert done.returncode == 1
  assert "WorkerStartError: worker processes can't start" in done.stderr


@pytest.mark.parametrize(
  "options, message",
  [
    ({"name": "My-Data"}, "lower-case.*'My-Data'"),
    ({"clips": []}, "no clips"),
    ({"rgb_quality": 0}, "rgb JPEG quality must be 1 to 100: 0"),
    ({"num_workers": 0}, "at least one worker"),
    (
      {"flow_spec": dataclasses.replace(_SPEC, quality=0)},
      "flow JPEG quality",
    ),
    (
      {"flow_spec": dataclasses.replace(_SPEC, short_side=100)},
      "multiple of 8",
    ),
    ({"flow_spec": dataclasses.replace(_SPEC, algorithm="no")}, "known: dis"),
  ],
)
def test_wrong_arguments_are_found_before_any_work(tmp_path, options, message):
  clips = options.pop("clips", [_clip(tmp_path / "a.avi")])
  with pytest.raises(ValueError, match=message):
    _build(tmp_path / "out", clips, **options)
  assert not (tmp_path / "out").exists()


def test_opening_where_there_is_no_dataset(tmp_path):
  with pytest.raises(dataset.DatasetNotFoundError, match=str(tmp_path)):
    dataset.open_dataset(tmp_path)
  with pytest.raises(FileNotFoundError):
    dataset.open_dataset(tmp_path / "nowhere")


def test_opening_needs_one_dataset_of_this_format(built):
  folder, path = built
  second = path.parent / "2.0.0"
  second.mkdir()
  for file in path.iterdir():
    (second / file.name).write_bytes(file.read_bytes())
  with pytest.raises(ValueError, match="2 datasets(.|\n)*1.0.0(.|\n)*2.0.0"):
    dataset.open_dataset(folder)
  (second / dataset.METADATA_FILE).write_text("{}")
  with pytest.raises(ValueError, match="not a dataset of format version 2 or"):
    dataset.open_dataset(second)


@pytest.mark.usefixtures("no_processes")
def test_a_build_at_a_constant_rate(videos, four, tmp_path):
  spec = dataclasses.replace(_SPEC, fps=5.0)
  slow = _build(tmp_path, _four(videos), flow_spec=spec)
  one, other = (dataset.open_dataset(s.path) for s in (four[1], slow))
  assert (one.flow_spec.fps, other.flow_spec.fps) == (None, 5.0)
  every, some = one.sources["train"][0], other.sources["train"][0]
  assert some["fps"] == 5 and every["fps"] == 12.5
  assert some["times"].tolist() == [0, 200_000]
  assert list(some["rgb"]) == [every["rgb"][0], every["rgb"][2]]


@pytest.mark.usefixtures("no_processes")
def test_tfds_reads_the_class_names_that_were_stored(videos, tmp_path):
  # Here, not above: the script below imports this module, twice.
  import tensorflow_datasets as tfds

  labels = ["run far", "éa\u3000b"]
  clips = [
    dataclasses.replace(clip, label=labels[i % 2])
    for i, clip in enumerate(_four(videos))
  ]
  path = _build(tmp_path / "out", clips).path
  names = tfds.builder_from_directory(path).info.features["label"].names
  assert tuple(names) == dataset.open_dataset(path).class_names
  for strange in ("run ", "\ufeff\n", "a\nb", ""):
    labelled = [dataclasses.replace(clip, label=strange) for clip in clips]
    with pytest.raises(ValueError, match="1 class name empty, with spaces"):
      _build(tmp_path / "no", labelled)
  assert not (tmp_path / "no").exists()
