"""Builds by Apache Beam: on a cluster with deaths, and on faulty machines."""

import collections
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import logged_build
from tests.paths import ROOT

pytest.importorskip("apache_beam", reason="an extra of the package: [beam]")

from twostream_jax.data.build import beam  # noqa: E402
from twostream_jax.data.build.encode import process_clip  # noqa: E402
from twostream_jax.data.datasets import annotations  # noqa: E402

# Beam and Dask warn of much of their own.
pytestmark = [
  pytest.mark.optional,
  pytest.mark.filterwarnings("default"),
]

_DIRECT = ["--runner=DirectRunner", "--direct_num_workers=1"]


def _write_clips(folder, number):
  for i in range(number):
    path = folder / "ab"[i % 2] / f"{i:02d}.avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), fourcc, 10, (40, 32))
    rng = np.random.default_rng(i)
    for _ in range(4):
      writer.write(rng.integers(0, 256, [32, 40, 3], np.uint8))
    writer.release()


def _hashes(out):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in (out / "tiny" / "1.0.0").iterdir()
  }


def _elsewhere(before=lambda: None):
  """Beam on this machine, after something has happened."""

  def finish(task, staging, clips, indices):
    before()
    beam.finish_with_beam(_DIRECT, task, staging, clips, indices)

  return finish


def _in_another_folder(folder, clip, flow_spec, rgb_quality):
  """Leaves the current folder, as a worker was never in the build's."""
  os.chdir(folder)
  return process_clip(clip, flow_spec, rgb_quality)


def test_relative_paths_mean_the_folders_of_the_build(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "elsewhere").mkdir()
  _write_clips(Path("videos"), 8)
  process = functools.partial(_in_another_folder, tmp_path / "elsewhere")
  summary = logged_build.build(
    "videos", "out", elsewhere=_elsewhere(), process=process
  )
  assert summary.rejected == ()
  assert sum(summary.counts.values()) == 8
  assert not any((tmp_path / "elsewhere").iterdir())


def _unmount(videos, clip, flow_spec, rgb_quality):
  """Takes the folder of videos away after the first clip."""
  record = process_clip(clip, flow_spec, rgb_quality)
  videos.rename(videos.with_name("unmounted"))
  return record


def test_videos_that_a_worker_does_not_see_are_not_rejected(tmp_path):
  videos = tmp_path / "videos"
  _write_clips(videos, 8)
  with pytest.raises(Exception, match="mount the folder of --videos there"):
    logged_build.build(
      videos,
      tmp_path,
      elsewhere=_elsewhere(),
      process=functools.partial(_unmount, videos),
    )
  # A rejected clip would be a finished one.
  assert len(_finished(tmp_path)) == 1


def test_a_folder_that_a_worker_does_not_see_is_named(tmp_path):
  here = beam.software()
  with pytest.raises(beam.MachineError, match="mount the folder of --out"):
    beam.check_machine(tmp_path / "out", here)


def test_other_versions_on_a_worker_are_refused(tmp_path):
  here = beam.software()
  beam.check_machine(tmp_path, here)
  with pytest.raises(beam.MachineError, match=r"has PyAV .*, not PyAV 1\.0:"):
    beam.check_machine(tmp_path, here | {"decoder": "PyAV 1.0"})


def test_a_daemonic_worker_is_told_how_to_start(tmp_path, monkeypatch):
  process = types.SimpleNamespace(daemon=True)
  monkeypatch.setattr(multiprocessing, "current_process", lambda: process)
  with pytest.raises(beam.MachineError, match="--no-nanny"):
    beam.check_machine(tmp_path, beam.software())


class _Cluster:
  """A scheduler and two workers of Dask, each in a folder of its own."""

  def __init__(self, folder):
    self.folder = folder
    self._processes = {}
    known = folder / "scheduler.json"
    self._start("scheduler", "--port=0", f"--scheduler-file={known}")
    _wait_until(known.exists, self._processes["scheduler"])
    self.address = json.loads(known.read_text())["address"]
    for name in ("one", "two"):
      arguments = ("--nthreads=1", "--no-nanny", "--local-directory=scratch")
      self._start("worker", self.address, *arguments, folder=name)

  def _start(self, command, *arguments, folder=""):
    here = self.folder / (folder or command)
    here.mkdir()
    with open(here / "log", "w") as log:
      self._processes[here.name] = subprocess.Popen(
        [sys.executable, "-m", "dask", command, *arguments, "--no-dashboard"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
        stdout=log,
        stderr=log,
      )

  def kill(self, name):
    process = self._processes.pop(name)
    process.kill()
    process.wait()

  def close(self):
    for name in list(self._processes):
      self.kill(name)


def _wait_until(condition, process):
  """Returns when a condition holds that a running process brings about."""
  deadline = time.monotonic() + 200
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)


def _begun(log):
  """Clip and current folder of each beginning."""
  lines = log.read_text().splitlines() if log.exists() else []
  return [(clip, Path(folder).name) for clip, folder in map(str.split, lines)]


def _finished(out):
  """The clips that an unfinished build has finished."""
  folder = out / "tiny" / "1.0.0.incomplete" / "clips"
  return {int(path.stem) for path in folder.glob("*.json")}


@pytest.mark.faults
def test_deaths_of_workers_and_of_the_build_change_no_byte(tmp_path):
  pytest.importorskip("distributed", reason="an extra of the package: [dask]")
  videos, out, log = (tmp_path / name for name in ("videos", "out", "log"))
  _write_clips(videos, 24)  # So many that a slow worker gets some.
  logged_build.build(videos, tmp_path / "whole")
  names = [clip.video_id for clip in annotations.read_folder(videos)]

  with contextlib.closing(_Cluster(tmp_path)) as cluster:
    options = [
      "--runner=apache_beam.runners.dask.dask_runner.DaskRunner",
      f"--dask_client_address={cluster.address}",
      "--dask_partition_size=3",
    ]
    # As relative paths: workers have other current folders.
    command = [sys.executable, "-m", "tests.logged_build", "videos", "out"]
    start = functools.partial(
      subprocess.Popen,
      [*command, os.fspath(log), *options],
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
      stderr=subprocess.PIPE,
      text=True,
    )

    # The build is killed, and later given again.
    first = start()
    _wait_until(lambda: len(_finished(out)) >= 4, first)
    first.kill()
    first.communicate()
    finished, begun = _finished(out), len(_begun(log))
    assert len(finished) < len(names)

    # Worker "one" is killed in the middle of a clip; this build continues.
    second = start()
    _wait_until(
      lambda: "one" in [name for _, name in _begun(log)[begun + 4 :]], second
    )
    finished_then = _finished(out)
    begun_then = len(_begun(log))
    cluster.kill("one")
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors

  assert _hashes(out) == _hashes(tmp_path / "whole")
  for indices, since in ((finished, begun), (finished_then, begun_then)):
    again = {names[i] for i in indices} & {c for c, _ in _begun(log)[since:]}
    assert not again
  counts = collections.Counter(folder for _, folder in _begun(log))
  assert counts["one"] and counts["two"]
  assert sum(counts.values()) <= len(names) + 4
  # Nothing of the build is in a folder of one worker.
  for name in ("one", "two"):
    assert {p.name for p in (tmp_path / name).iterdir()} <= {"log", "scratch"}
