"""What the machine is to blame for: never a rejection, and no work is lost."""

import errno
import functools
import hashlib
import os
import re
import shutil

import av
import cv2
import jax
import numpy as np
import pytest
from absl import flags

from data_prep import build_tfds
from tests.full_disk import largest_file
from twostream_jax.data import dataset, record_index
from twostream_jax.data.build import builder, check, clip_task
from twostream_jax.data.build.check import Rejection, check_clip
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.build.workers import Lost
from twostream_jax.data.datasets.annotations import read_folder
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.data.video import faults
from twostream_jax.data.video.frames import VideoError
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec
from twostream_jax.predict.reading import Reader, Source

_SPEC = FlowSpec("farneback", default_parameters("farneback"), short_side=16)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  for i in range(8):
    path = folder / ("train" if i < 5 else "test") / "ab"[i % 2] / f"{i}.avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), fourcc, 10, (24, 16))
    for _ in range(3 + i):
      image = np.random.default_rng(i).integers(0, 256, [16, 24, 3], np.uint8)
      writer.write(image)
    writer.release()
  return folder


def _map_here(task, clips, indices, num_workers):
  """As `clip_task._map`, in this process: starting others takes seconds."""
  for index in indices:
    yield index, task((index, clips[index]))


@pytest.fixture
def here(monkeypatch):
  monkeypatch.setattr(clip_task, "_map", _map_here)


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
  """The bytes of a build that nothing disturbed."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_task, "_map", _map_here)
    return _hashes(_build(tmp_path_factory.mktemp("whole"), videos).path)


def _build(out, videos, **options):
  arguments = {"name": "tiny", "flow_spec": _SPEC, "num_workers": 1}
  clips = options.pop("clips", None) or read_folder(videos)
  return builder.build_dataset(
    out, clips=clips, **arguments | {"progress": False} | options
  )


def _hashes(folder):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in folder.iterdir()
  }


def _clip(path):
  return Clip(path.name, path, "train", "a", "")


def _none_again(done):
  """A process that fails where a clip was finished before."""

  def process(clip, spec, quality):
    assert clip.video_id not in done, f"{clip.video_id} was finished"
    return process_clip(clip, spec, quality)

  return process


def test_videos_that_go_away_for_a_while_cost_nothing(
  here, videos, whole, tmp_path
):
  copy = tmp_path / "videos"
  shutil.copytree(videos, copy)
  gone = tmp_path / "gone"
  done = []

  def unmount(clip, spec, quality):
    if clip.video_id.startswith("test") and copy.exists():
      copy.rename(gone)
    result = process_clip(clip, spec, quality)
    if not isinstance(result, Rejection):
      done.append(clip.video_id)
    return result

  with pytest.raises(builder.BuildError) as caught:
    _build(tmp_path, copy, process=unmount)
  message = str(caught.value)
  assert "3 of 3 test clips could not be finished" in message
  assert "3 x file not found (test/a/6.avi, " in message
  assert "the others (5) is kept in" in message
  assert "run the same command again" in message and "\n" not in message
  assert len(done) == 5
  gone.rename(copy)
  summary = _build(tmp_path, copy, process=_none_again(done))
  assert summary.rejected == ()
  assert _hashes(summary.path) == whole


@pytest.mark.parametrize("away", ["train", "test"])
def test_what_was_missing_is_looked_for_again(
  here, videos, whole, tmp_path, away
):
  copy = tmp_path / "videos"
  shutil.copytree(videos, copy)
  clips = read_folder(copy)
  (copy / away).rename(tmp_path / "away")
  for process in (process_clip, _none_again({c.video_id for c in clips})):
    # The second run has nothing to do, and forgets nothing.
    with pytest.raises(builder.BuildError, match=f"no clip of the {away} spl"):
      _build(tmp_path, copy, clips=clips, process=process)
  (tmp_path / "away").rename(copy / away)
  finished = {c.video_id for c in clips if c.split != away}
  summary = _build(tmp_path, copy, process=_none_again(finished))
  assert _hashes(summary.path) == whole


def test_a_split_of_broken_files_can_be_repaired(here, videos, whole, tmp_path):
  copy = tmp_path / "videos"
  shutil.copytree(videos, copy)
  tests = sorted((copy / "test").glob("*/*"))
  for path in tests:
    path.write_bytes(b"no video")
  with pytest.raises(builder.BuildError, match="no clip of the test") as caught:
    _build(tmp_path, copy)
  assert "3 x can't be opened as a video (test/a/6.avi, " in str(caught.value)
  for path in tests:
    shutil.copy(videos / path.relative_to(copy), path)
  finished = {c.video_id for c in read_folder(copy) if c.split == "train"}
  summary = _build(tmp_path, copy, process=_none_again(finished))
  assert _hashes(summary.path) == whole


def test_a_file_that_changed_costs_only_its_clip(
  here, videos, whole, tmp_path, monkeypatch
):
  copy = tmp_path / "videos"
  shutil.copytree(videos, copy)
  changed = copy / "train" / "a" / "2.avi"
  changed.write_bytes((videos / "train" / "a" / "4.avi").read_bytes())
  with monkeypatch.context() as patch:
    patch.setattr(builder, "_install", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _build(tmp_path, copy)
  shutil.copy(videos / "train" / "a" / "2.avi", changed)
  others = {c.video_id for c in read_folder(copy)} - {"train/a/2.avi"}
  with monkeypatch.context() as patch:
    # In the middle of taking the shard of the clip apart.
    patch.setattr(
      "twostream_jax.data.build.staging.write_json", lambda *_: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
      _build(tmp_path, copy, process=_none_again(others))
  summary = _build(tmp_path, copy, process=_none_again(others))
  assert _hashes(summary.path) == whole


def _opencv_without_memory(*_):
  cv2.resize(np.zeros([8, 8], np.uint8), (1 << 23, 1 << 23))


def _numpy_without_memory(*_):
  np.empty(1 << 60, np.uint8)


_DEVICE = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."


def _raising(error):
  def work(*_):
    raise error

  return work


def _from(cause):
  """As `decode` raises what FFmpeg can't do."""
  error = VideoError("can't be opened as a video")
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  "work, reason",
  [
    (_raising(MemoryError()), "out of memory"),
    (_opencv_without_memory, "out of memory"),
    (_numpy_without_memory, "out of memory"),
    (_raising(jax.errors.JaxRuntimeError(_DEVICE)), "out of memory on the dev"),
    (_raising(jax.errors.JaxRuntimeError("INTERNAL: x")), "failed: INTERNAL"),
    (_raising(OSError(errno.EIO, "a")), "can't be read: a"),
    (_raising(OSError(errno.ESTALE, "b")), "can't be read: b"),
    (_raising(PermissionError(errno.EACCES, "c")), "can't be read: c"),
    (_raising(FileNotFoundError(errno.ENOENT, "d")), "file not found"),
    (_raising(RuntimeError("can't start new thread")), "no more threads"),
    (
      _raising(_from(av.error.OSError(errno.EMFILE, "e"))),
      "can't be read: e",
    ),
  ],
)
def test_faults_of_the_machine_are_no_rejections_for_good(
  videos, monkeypatch, work, reason
):
  monkeypatch.setattr("twostream_jax.data.build.encode.read_resized", work)
  monkeypatch.setattr("twostream_jax.data.build.check.read_resized", work)
  path = videos / "train" / "a" / "0.avi"
  found = [
    process_clip(_clip(path), _SPEC, 95),
    check_clip(_clip(path), FlowSpec("dis", {})),
    # A prediction is told the reason.
    Reader(_SPEC, 95)(Source("file", str(path))),
  ]
  assert all(rejection.transient for rejection in found)
  assert all(reason in rejection.reason for rejection in found)


@pytest.mark.parametrize(
  "error",
  [
    VideoError("no frame could be decoded"),
    ValueError("strange"),
    # FFmpeg's words for damage, too.
    _from(av.error.OSError(errno.EIO, "Input/output error")),
    _from(av.error.InvalidDataError(1094995529, "Invalid data")),
    av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
  ],
)
def test_faults_of_the_file_are_rejections_for_good(videos, monkeypatch, error):
  monkeypatch.setattr(
    "twostream_jax.data.build.encode.read_resized", _raising(error)
  )
  path = videos / "train" / "a" / "0.avi"
  assert not process_clip(_clip(path), _SPEC, 95).transient


def test_damage_that_asks_for_memory_names_no_path(videos, monkeypatch):
  error = av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory", "/a/b")
  monkeypatch.setattr(check, "read_resized", _raising(error))
  rejection = check_clip(_clip(videos / "train/a/0.avi"), FlowSpec("dis", {}))
  assert rejection.reason.startswith("damaged: ")
  assert "/" not in rejection.reason


def test_ffmpeg_without_memory_where_there_is_none(monkeypatch):
  monkeypatch.setattr(faults, "_can_allocate", lambda size: False)
  error = av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")
  assert faults.machine_fault(error) == "out of memory"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux only")
def test_a_file_that_can_not_be_read_is_no_short_video(videos, monkeypatch):
  # FFmpeg takes the error for the end of the file, and gives what came before.
  path = videos / "train" / "a" / "0.avi"
  assert faults.read_fault(path) is None
  reason = "can't be read: Input/output error"
  assert faults.read_fault("/proc/self/mem") == reason
  monkeypatch.setattr(check, "read_fault", lambda _: reason)
  wanted = Rejection(reason, transient=True)
  assert process_clip(_clip(path), _SPEC, 95) == wanted
  assert check_clip(_clip(path), FlowSpec("dis", {})) == wanted


def _short_of_memory(times, clip, spec, quality, *, names):
  """Fails some times for each of some clips."""
  times[clip.video_id] = times.get(clip.video_id, 0) + 1
  if times[clip.video_id] <= names.get(clip.video_id, 0):
    return Rejection("out of memory", transient=True)
  return process_clip(clip, spec, quality)


def test_memory_that_was_short_costs_nothing(here, videos, whole, tmp_path):
  names = {"train/a/0.avi": 1, "test/b/5.avi": 1}
  process = functools.partial(_short_of_memory, {}, names=names)
  assert _hashes(_build(tmp_path, videos, process=process).path) == whole


def test_clips_that_memory_does_not_suffice_for(here, videos, whole, tmp_path):
  names = {"train/a/0.avi": 99, "test/b/5.avi": 99}
  done = set()
  for _ in range(2):
    times = {}
    process = functools.partial(_short_of_memory, times, names=names)
    with pytest.raises(builder.BuildError) as caught:
      _build(tmp_path, videos, process=process)
    message = str(caught.value)
    assert "1 of 5 train and 1 of 3 test clips could not be fini" in message
    assert "2 x out of memory (train/a/0.avi, test/b/5.avi)" in message
    assert "--allow_failed" in message and "the others (6)" in message
    # Twice in each run; what is finished, never again.
    assert [times[name] for name in names] == [2, 2]
    assert not done & set(times)
    done |= set(times) - set(names)
  shutil.copytree(tmp_path / "tiny", tmp_path / "other" / "tiny")
  summary = _build(tmp_path, videos, process=process, allow_failed=True)
  assert [(r["video_id"], r["reason"]) for r in summary.rejected] == [
    ("train/a/0.avi", "out of memory"),
    ("test/b/5.avi", "out of memory"),
  ]
  assert len(dataset.open_dataset(summary.path).rejected) == 2
  other = _build(tmp_path / "other", videos, process=_none_again(done))
  assert _hashes(other.path) == whole


def _lost(reason, names):
  """As `clip_task._map`, where some clips lose their processes."""

  def run(task, clips, indices, num_workers):
    for index in indices:
      failed = clips[index].video_id in names
      result = Lost(reason) if failed else task((index, clips[index]))
      yield index, result

  return run


@pytest.mark.parametrize("reason", ["killed", "stalled"])
def test_clips_whose_processes_are_ended_are_tried_by_the_next_run(
  videos, whole, tmp_path, monkeypatch, reason
):
  def stalls(work, items, *_, time_limit):
    assert work is faults.read_fault
    yield from ((item, Lost("stalled")) for item in items)

  monkeypatch.setattr(clip_task, "map_in_processes", stalls)
  monkeypatch.setattr(clip_task, "_map", _lost(reason, {"train/b/1.avi"}))
  words = {"killed": "was killed", "stalled": "spent waiting"}[reason]
  with pytest.raises(builder.BuildError, match=f"1 of 5 train.*{words}"):
    _build(tmp_path, videos)
  monkeypatch.setattr(clip_task, "_map", _map_here)
  assert _hashes(_build(tmp_path, videos).path) == whole


def test_a_clip_that_crashes_twice_is_rejected(videos, tmp_path, monkeypatch):
  monkeypatch.setattr(clip_task, "_map", _lost("crashed", {"train/b/1.avi"}))
  summary = _build(tmp_path, videos)
  assert [r["reason"] for r in summary.rejected] == ["the decoder crashed"]


def test_second_tries_end_where_none_succeeds(here, videos, tmp_path):
  tries = []

  def process(clip, spec, quality):
    tries.append(clip.video_id)
    return Rejection("can't be read: Stale file handle", transient=True)

  clips = [
    Clip(f"{i}.avi", videos / "train/a/0.avi", split, "ab"[i % 2], "")
    for i, split in enumerate(["train"] * 15 + ["test"] * 15)
  ]
  with pytest.raises(builder.BuildError, match="15 of 15 train and 15 of"):
    _build(tmp_path, videos, clips=clips, process=process)
  assert len(tries) == 30 + 10


def test_a_full_disk_is_one_sentence_and_costs_nothing(
  here, videos, whole, tmp_path
):
  done, finished = set(), []

  def process(clip, spec, quality):
    assert clip.video_id not in done
    finished.append(clip.video_id)
    return process_clip(clip, spec, quality)

  failed = []
  for size in [*range(0, 8000, 500), *range(8000, 300_000, 8000)]:
    finished.clear()
    try:
      with largest_file(size):
        summary = _build(tmp_path, videos, process=process)
      break
    except builder.BuildError as error:
      message = str(error)
    # The last one was not written.
    done.update(finished[:-1])
    assert "\n" not in message
    assert "File too large" in message and "make room on that" in message
    assert "run the same command again" in message
    assert not [p for p in tmp_path.rglob("clips/.*")]
    failed.append(re.search(r"'.*/([^/]*)'", message)[1])
  assert _hashes(summary.path) == whole
  assert {"sources.json", "00000000.example", "00000.data"} <= set(failed)


def test_the_command_ends_in_a_sentence(here, videos, tmp_path, capsys):
  values = flags.FlagValues()
  build_tfds.define_flags(values)
  arguments = ["--dataset=folder", f"--videos={videos}", f"--out={tmp_path}/o"]
  values(["build_tfds.py", *arguments, "--short_side=16", "--workers=1"])
  with largest_file(1000):
    assert build_tfds.run(values) == 1
  lines = capsys.readouterr().err.splitlines()
  (error,) = [line for line in lines if line.startswith("error: ")]
  assert error == lines[-1] and "No such" not in error
  assert "File too large" in error and "resumes it" in error


def test_memory_of_the_main_process_is_a_sentence(here, videos, tmp_path):
  def announce(_):
    raise MemoryError

  clips = [
    Clip(f"{i}.avi", videos / "train/a/0.avi", split, "ab"[i % 2], "")
    for i, split in enumerate(["train"] * 10 + ["test"] * 10)
  ]
  with pytest.raises(builder.BuildError, match="stopped .out of memory.: mend"):
    _build(tmp_path, videos, clips=clips, announce=announce)


def _out_of_memory_for_1(clip, spec, quality):
  if clip.video_id == "train/b/1.avi":
    return Rejection("out of memory", transient=True)
  return process_clip(clip, spec, quality)


@pytest.mark.optional
@pytest.mark.filterwarnings("default")
def test_beam_leaves_what_the_machine_fails_to_the_next_run(
  videos, whole, tmp_path, monkeypatch
):
  pytest.importorskip("apache_beam", reason="an extra of the package")
  from twostream_jax.data.build.beam import finish_with_beam

  options = ["--runner=DirectRunner", "--direct_num_workers=1"]
  elsewhere = functools.partial(finish_with_beam, options)
  process = _out_of_memory_for_1
  with pytest.raises(builder.BuildError, match="1 of 5 train.*1 x out of mem"):
    _build(tmp_path, videos, elsewhere=elsewhere, process=process)
  monkeypatch.setattr(clip_task, "_map", _map_here)
  done = {clip.video_id for clip in read_folder(videos)} - {"train/b/1.avi"}
  summary = _build(tmp_path, videos, process=_none_again(done))
  assert _hashes(summary.path) == whole


def test_a_file_that_changed_without_its_size_is_done_again(
  videos, tmp_path, monkeypatch
):
  copy = tmp_path / "copy"
  shutil.copytree(videos, copy)
  changed = copy / "train" / "a" / "2.avi"
  before = changed.stat()
  with monkeypatch.context() as patch:
    patch.setattr(builder, "_install", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _build(tmp_path, copy)
  changed.write_bytes(bytes(before.st_size))
  os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000))
  summary = _build(tmp_path, copy)
  assert [entry["video_id"] for entry in summary.rejected] == ["train/a/2.avi"]


def test_a_build_needs_no_threads_of_the_record_reader(
  videos, tmp_path, monkeypatch
):
  # It waits for ever for threads that can't be started.
  def wait(*_):
    raise TimeoutError

  whole = _hashes(_build(tmp_path / "whole", videos).path)
  monkeypatch.setattr(record_index, "ArrayRecordReader", wait)
  assert _hashes(_build(tmp_path / "again", videos).path) == whole
