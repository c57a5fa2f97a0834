"""Builds that are killed, hang, crash or meet each other."""

import dataclasses
import functools
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.decoded import assert_same_records
from tests.paths import SHARED
from twostream_jax import files
from twostream_jax.data import dataset
from twostream_jax.data.build import builder, staging, store
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.build.staging import UnfinishedBuildError, only_build
from twostream_jax.data.datasets.annotations import read_folder
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

_SPEC = FlowSpec("farneback", default_parameters("farneback"), short_side=32)
_UCF = SHARED / "ucf101_sample" / "UCF-101"


def _write_clips(folder, number):
  for i in range(number):
    path = folder / "ab"[i % 2] / f"{i:02d}.avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(
      str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (40, 32)
    )
    rng = np.random.default_rng(i)
    for _ in range(4):
      writer.write(rng.integers(0, 256, [32, 40, 3], np.uint8))
    writer.release()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  _write_clips(folder, 12)
  return folder


def _build(out, videos, **options):
  arguments = {
    "name": "tiny",
    "clips": read_folder(videos),
    "flow_spec": _SPEC,
    "num_workers": 1,
    "progress": False,
  }
  return builder.build_dataset(out, **arguments | options)


def _hashes(folder):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in folder.iterdir()
  }


def _logged(clip, flow_spec, rgb_quality):
  """Writes down each clip that is begun, and takes its time."""
  with open(os.environ["STARTED"], "a") as file:
    file.write(f"{clip.video_id}\n")
  time.sleep(float(os.environ["PAUSE"]))
  return process_clip(clip, flow_spec, rgb_quality)


def _build_in_a_process(out, videos, spec, log, pause):
  """Starts a build in a process of its own."""
  code = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.data.build import test_builds_survive as t
if __name__ == "__main__":
  t._build({str(out)!r}, pathlib.Path({str(videos)!r}), process=t._logged,
           num_workers=2, flow_spec=t.FlowSpec(**{vars(spec)!r}))
"""
  return subprocess.Popen(
    [sys.executable, "-c", code],
    env=os.environ | {"STARTED": str(log), "PAUSE": str(pause)},
    stderr=subprocess.PIPE,
  )


def _finished(out, clips, spec):
  """The clips that an unfinished build has finished."""
  folder = out / "tiny" / "1.0.0.incomplete"
  plan = builder.Plan("tiny", clips, spec, 95)
  return {clips[i].video_id for i in staging.Staging(folder, plan).outcomes()}


def _kill_again_and_again(out, videos, spec, kills, pause):
  """Kills a build at random moments; returns the numbers of clips finished.

  Checks that no clip is begun again that was finished.
  """
  clips = read_folder(videos)
  rng = random.Random(0)
  log = out / "started"
  finished, counts = set(), []
  for _ in range(kills):
    log.write_text("")
    process = _build_in_a_process(out, videos, spec, log, pause)
    # So many clips are begun; in the middle of the last ones.
    begun = rng.randint(0, len(clips) // kills + 2)
    while process.poll() is None and log.read_text().count("\n") < begun:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    time.sleep(0.2)  # Workers end with their parent.
    assert not finished & set(log.read_text().split())
    if (out / "tiny" / "1.0.0.incomplete" / "plan.json").exists():
      finished = _finished(out, clips, spec)
    counts.append(len(finished))
  assert counts == sorted(counts)
  return counts


@pytest.mark.slow
def test_a_build_killed_again_and_again_ends_in_the_same_bytes(
  videos, tmp_path
):
  whole = _hashes(_build(tmp_path / "whole", videos).path)
  counts = _kill_again_and_again(tmp_path, videos, _SPEC, kills=4, pause=0.4)
  assert 0 < counts[-1] < 12
  path = _build(tmp_path, videos).path
  assert _hashes(path) == whole
  assert [f.name for f in path.parent.iterdir()] == ["1.0.0"]


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:40 classes with a single clip")
@pytest.mark.skipif(not _UCF.exists(), reason="needs the UCF-101 sample")
def test_ucf101_clips_killed_twenty_times(tmp_path):
  dis = FlowSpec("dis", default_parameters("dis"), short_side=64)
  whole = _build(tmp_path / "whole", _UCF, flow_spec=dis, num_workers=2).path
  counts = _kill_again_and_again(tmp_path, _UCF, dis, kills=20, pause=0)
  print("finished after each kill:", counts)
  again = _build(tmp_path, _UCF, flow_spec=dis, num_workers=2).path
  assert _hashes(again) == _hashes(whole)


def _never(clip, flow_spec, rgb_quality):
  raise AssertionError(f"{clip.video_id} was finished")


@pytest.mark.parametrize(
  "module, function, process",
  [
    (store, "write_records", process_clip),  # After the first of two.
    (staging, "write_info", _never),
    (builder, "_install", _never),
    (files.shutil, "rmtree", _never),
  ],
)
def test_an_end_at_any_step_loses_nothing(
  videos, tmp_path, monkeypatch, module, function, process
):
  whole = _hashes(_build(tmp_path / "whole", videos).path)

  def fail(*_, **__):
    raise OSError("no space left")

  with monkeypatch.context() as patch:
    patch.setattr(module, function, fail)
    with pytest.raises(builder.BuildError, match="no space left"):
      _build(tmp_path / "out", videos)
  final = tmp_path / "out" / "tiny" / "1.0.0"
  if not final.exists():
    summary = _build(tmp_path / "out", videos, process=process)
    assert summary.counts == {"train": 8, "test": 4}
  with pytest.raises(FileExistsError):
    _build(tmp_path / "out", videos)
  assert _hashes(final) == whole
  assert [f.name for f in final.parent.iterdir()] == ["1.0.0"]


def test_a_replacement_that_was_cut_off_goes_on(videos, tmp_path, monkeypatch):
  _build(tmp_path, videos)
  other = dataclasses.replace(_SPEC, bound=5.0)
  with monkeypatch.context() as patch:
    # After the old dataset was moved away and before the new one came.
    rename = Path.rename

    def fail_second(path, target):
      if path.name == "dataset":
        raise OSError("power cut")
      return rename(path, target)

    patch.setattr(Path, "rename", fail_second)
    with pytest.raises(builder.BuildError, match="power cut"):
      _build(tmp_path, videos, flow_spec=other, overwrite=True)
  path = _build(
    tmp_path, videos, flow_spec=other, overwrite=True, process=_never
  ).path
  assert dataset.open_dataset(path).flow_spec == other
  assert [f.name for f in path.parent.iterdir()] == ["1.0.0"]


def test_an_unfinished_build_with_other_settings_is_refused(
  videos, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(builder, "_install", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _build(tmp_path, videos)
  other = dataclasses.replace(_SPEC, bound=5.0)
  with pytest.raises(
    UnfinishedBuildError, match="flow bound: 20.0 there, 5.0 now"
  ):
    _build(tmp_path, videos, flow_spec=other, rgb_quality=95)
  fewer = read_folder(videos)[1:]
  with pytest.raises(UnfinishedBuildError, match="clips: 12 there, 11 now"):
    _build(tmp_path, videos, clips=fewer)
  assert (tmp_path / "tiny" / "1.0.0.incomplete").exists()


def test_two_builds_of_one_dataset_do_not_meet(videos, tmp_path):
  with (
    only_build(tmp_path / "tiny" / ".1.0.0.lock"),
    pytest.raises(UnfinishedBuildError, match="is running"),
  ):
    _build(tmp_path, videos)
  _build(tmp_path, videos)


def _hang(clip, flow_spec, rgb_quality):
  if clip.video_id == "a/02.avi":
    time.sleep(60)
  return process_clip(clip, flow_spec, rgb_quality)


@pytest.mark.slow
def test_a_clip_that_hangs_is_rejected_at_the_time_limit(videos, tmp_path):
  summary = _build(tmp_path, videos, process=_hang, time_limit=2.0)
  assert [(r["video_id"], r["reason"]) for r in summary.rejected] == [
    ("a/02.avi", "not done in 2 s, the time limit of a clip")
  ]
  assert sum(summary.counts.values()) == 11


def _crash_once(folder, clip, flow_spec, rgb_quality):
  mark = folder / clip.video_id.replace("/", "-")
  if clip.video_id in ("a/02.avi", "b/05.avi") and not mark.exists():
    mark.touch()
    os.abort()
  return process_clip(clip, flow_spec, rgb_quality)


@pytest.mark.slow
def test_a_crash_that_does_not_come_again_costs_nothing(videos, tmp_path):
  whole = _hashes(_build(tmp_path / "whole", videos).path)
  process = functools.partial(_crash_once, tmp_path)
  summary = _build(tmp_path, videos, process=process)
  assert summary.rejected == ()
  assert _hashes(summary.path) == whole


def test_the_forecast_comes_true(tmp_path):
  _write_clips(tmp_path / "videos", 40)
  forecasts = []
  summary = _build(tmp_path, tmp_path / "videos", announce=forecasts.append)
  (forecast,) = forecasts
  assert (forecast.sample, forecast.clips) == (4, 36)
  assert 0 < forecast.seconds < 60
  assert 0.7 < forecast.size / summary.size < 1.3
  assert forecast.disk_free > 0
  assert summary.video_seconds == pytest.approx(40 * 0.4)


def test_few_clips_need_no_forecast(videos, tmp_path):
  _build(tmp_path, videos, announce=_fail_announce)


def _fail_announce(forecast):
  raise AssertionError(forecast)


@pytest.mark.slow
def test_several_shards_keep_the_order(videos, tmp_path, monkeypatch):
  whole = _build(tmp_path / "whole", videos)
  monkeypatch.setattr("twostream_jax.data.build.plan._CLIPS_PER_SHARD", 3)
  parts = _build(tmp_path / "parts", videos, num_workers=2)
  assert len(list(parts.path.glob("*train.array_record-*"))) == 3
  one, several = (
    dataset.open_dataset(summary.path).sources for summary in (whole, parts)
  )
  for split, source in one.items():
    assert_same_records(several[split], source)
