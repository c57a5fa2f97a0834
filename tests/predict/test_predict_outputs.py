"""Files of the predict command: refused early, whole, and kept when it ends."""

import errno
import functools
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.stub_predictor import StubPredictor, write_video
from twostream_jax import interrupts
from twostream_jax.data.video.frames import VideoError
from twostream_jax.fuse import LinearFusion, WeightedFusion
from twostream_jax.predict import (
  answers,
  command,
  guards,
  kept,
  long_videos,
  outputs,
  overlay,
  predictor,
  reading,
  timeline,
)
from twostream_jax.predict.__main__ import define_flags
from twostream_jax.stages.rules import FusionRule

NAMES = ("a", "b", "c")


def linear(weights):
  return LinearFusion(
    *("linear", ("s", "t"), False, True, weights, np.zeros(2), 1.0, 0.0, "")
  )


def averaging(share):
  return WeightedFusion(("s", "t"), (share, 1 - share), 1.0, 0.0, "")


def run_command(*arguments):
  values = flags.FlagValues()
  define_flags(values)
  rest = values(["predict", *map(str, arguments)])
  return command.main(rest, values)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Working directory with the videos a, b and c in `in`."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "in").mkdir()
  for name in NAMES:
    write_video(tmp_path / "in" / f"{name}.avi")
  return tmp_path


@pytest.fixture
def stub(folder, monkeypatch):
  """A command without networks, other processes and pictures; calls it."""

  def draw(path, *_, title, **__):
    path.write_text(title, encoding="utf-8")

  monkeypatch.setattr(timeline, "draw", draw)
  ready = StubPredictor(folder / "run")
  monkeypatch.setattr(predictor, "load", lambda *_: ready)
  monkeypatch.setattr(
    long_videos,
    "iterate_in_process",
    lambda work, source, start, time_limit: (x for x in work(source)),
  )
  return functools.partial(
    run_command, "--workdir=run", "in", "--window=0.2", "--stride=0.1"
  )


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def names_of(lines):
  return [line["path"] for line in lines]


# Before any work.


def test_a_video_is_not_overwritten_by_what_is_written(folder, capsys):
  video = folder / "in" / "a.mp4"
  video.write_bytes(b"precious")
  (folder / "soft.mp4").symlink_to(video)
  (folder / "hard.mp4").hardlink_to(video)
  for source in (video, "./soft.mp4", video.as_uri()):
    for name in ("in/a.mp4", "soft.mp4", "hard.mp4", str(video)):
      code = run_command("--workdir=RUN", f"--overlay={name}", source)
      assert code == 1
      said = capsys.readouterr().err
      assert said.endswith(
        f"--overlay={name} is the video itself: name another file\n"
      )
  assert video.read_bytes() == b"precious"


def test_a_list_is_not_overwritten_by_answers(folder, capsys):
  (folder / "list").write_text("in/a.avi\n")
  assert run_command("--workdir=RUN", "--list=list", "--json=./list") == 1
  assert "--json=list is read as well" in capsys.readouterr().err
  assert (folder / "list").read_text() == "in/a.avi\n"


@pytest.mark.parametrize(
  "flag, match",
  [
    ("--json=gone/x", "--json=gone/x: there is no folder .*/gone"),
    ("--overlay=gone/x.mp4", "--overlay=gone/x.mp4: there is no folder .*gone"),
    ("--json=in", "--json=in is a folder or a device: name a file"),
    ("--json=/dev/null", "/dev/null is a folder or a device"),
    ("--overlay=x.avi", "x.avi must end in one of .mp4, .m4v, .mov, .mkv, .w"),
    ("--overlay=x", "x must end in one of"),
    ("--overlay=frames/x.mp4", "lies among the frames of frames"),
    ("--timeline=frames", "--timeline=frames lies among the frames of frames"),
    ("--timeline=in/a.avi/x", "in/a.avi is a file, not a folder"),
    (f"--json={'x' * 250}", "File name too long"),
  ],
)
def test_what_can_not_be_written_is_told_first(folder, capsys, flag, match):
  (folder / "frames").mkdir()
  for number in range(3):
    (folder / "frames" / f"img_{number}.png").touch()
  # There is no run: nothing was opened.
  assert run_command("--workdir=RUN", flag, "frames") == 1
  said = capsys.readouterr().err
  assert said.count("\n") == 1
  assert re.search(match, said), said


@pytest.mark.parametrize("flag", ["json=x", "overlay=x.mp4", "timeline=x/y"])
def test_a_folder_that_is_read_only_is_told_first(
  folder, capsys, monkeypatch, flag
):
  def refuse(dir):
    raise PermissionError(errno.EACCES, "Permission denied", str(dir))

  monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
  assert run_command("--workdir=RUN", f"--{flag}", "in/a.avi") == 1
  expected = f"--{flag}: can't write in {folder}: Permission denied\n"
  assert capsys.readouterr().err.endswith(expected)


# Answers that are kept.


def full_disk_at(monkeypatch, stem, number=errno.ENOSPC):
  """Lets the table of one video fail."""
  write_csv = timeline.write_csv
  count = iter(range(99))

  def write(path, segments):
    if next(count) == NAMES.index(stem):
      raise OSError(number, os.strerror(number), str(path))
    write_csv(path, segments)

  monkeypatch.setattr(timeline, "write_csv", write)


def test_answers_are_kept_on_a_full_disk_and_the_command_resumes(
  stub, folder, monkeypatch, capsys
):
  with monkeypatch.context() as patches:
    full_disk_at(patches, "c")
    assert stub("--timeline=t", "--json=x.jsonl") == 1
  said = capsys.readouterr().err
  assert said == (
    "twostream_jax.predict: can't write t/c.csv: No space left on device;"
    " x.jsonl.partial keeps the answers so far (2): the same command resumes\n"
  )
  assert not (folder / "x.jsonl").exists()
  head, *lines = lines_of(folder / "x.jsonl.partial")
  answers = [line["answer"] for line in lines]
  assert names_of(answers) == ["in/a.avi", "in/b.avi"] and "command" in head
  there = sorted(path.name for path in (folder / "t").iterdir())
  assert there == ["a.csv", "a.png", "b.csv", "b.png"]
  # The last line is cut off, and a picture is lost.
  with open(folder / "x.jsonl.partial", "a") as file:
    file.write('{"answer": {"path": "in/c.avi", "segm')
  (folder / "t" / "b.png").unlink()
  assert stub("--timeline=t", "--json=x.jsonl") == 0
  shown = capsys.readouterr().out
  assert shown.startswith("videos answered already: 1; left: 2\n")
  assert names_of(lines_of(folder / "x.jsonl")) == [
    "in/a.avi",
    "in/b.avi",
    "in/c.avi",
  ]
  assert lines_of(folder / "x.jsonl")[0] == answers[0]
  assert not (folder / "x.jsonl.partial").exists()
  assert len(list((folder / "t").iterdir())) == 6


def answering(found, ended_by=None):
  """A fake of `command.answer_all`: an answer a source, then an error."""

  def answer_all(ready, sources, values, *, reader):
    for source in sources:
      if source.path not in found:
        raise ended_by
      yield found[source.path]

  return answer_all


def answer(path, **others):
  row = {"spatial": [["run", 0.9]]}
  return {
    "path": path,
    "frames": 3,
    "seconds": 1.0,
    "elapsed": 0.1,
    "stages": row,
    "fused": {},
  } | others


@pytest.mark.parametrize(
  "error", [interrupts.Ended(signal.SIGINT), KeyError("bug")]
)
def test_answers_are_kept_whatever_ends_the_command(
  stub, folder, monkeypatch, error
):
  first = {"in/a.avi": answer("in/a.avi")}
  first["in/b.avi"] = answers.failure("in/b.avi", "not done in 4 s")
  monkeypatch.setattr(command, "answer_all", answering(first, error))
  with pytest.raises(type(error)) as caught:
    stub("--json=x")
  assert caught.value.__notes__ == [
    "x.partial keeps the answers so far (2): the same command resumes"
  ]
  assert len(lines_of(folder / "x.partial")) == 3
  # What had no answer is tried once more.
  rest = {f"in/{name}.avi": answer(f"in/{name}.avi") for name in "bc"}
  monkeypatch.setattr(command, "answer_all", answering(rest))
  assert stub("--json=x") == 0
  assert lines_of(folder / "x") == [first["in/a.avi"], *rest.values()]


def test_a_video_that_changed_since_is_answered_again(
  stub, folder, monkeypatch
):
  first = {f"in/{name}.avi": answer(f"in/{name}.avi") for name in "ab"}
  monkeypatch.setattr(command, "answer_all", answering(first, KeyError("bug")))
  with pytest.raises(KeyError):
    stub("--json=x")
  # Older than the answer, as `cp -p` makes it.
  os.utime("in/a.avi", (1e9, 1e9))
  rest = {f"in/{name}.avi": answer(f"in/{name}.avi") for name in "ac"}
  monkeypatch.setattr(command, "answer_all", answering(rest))
  assert stub("--json=x") == 0
  assert names_of(lines_of(folder / "x")) == [
    "in/b.avi",
    "in/a.avi",
    "in/c.avi",
  ]


def test_a_frame_that_is_written_over_changes_a_folder_of_frames(folder):
  frames = folder / "frames"
  frames.mkdir()
  for number in range(3):
    (frames / f"{number}.jpg").write_bytes(b"a picture")
  paths = ["frames", frames.as_uri(), (folder / "in" / "a.avi").as_uri()]
  with pytest.raises(KeyError), kept.opened(folder / "x", {}, [], paths) as add:
    for path in paths:
      add(answer(path))
    raise KeyError("bug")
  assert names_of(kept.find(folder / "x", {})) == paths
  before = frames.stat().st_mtime_ns
  (frames / "1.jpg").write_bytes(b"another 1")
  os.utime(frames / "1.jpg", (1e9, 1e9))  # Older, as `cp -p` makes it.
  assert frames.stat().st_mtime_ns == before
  os.utime(folder / "in" / "a.avi", (1e9, 1e9))
  assert names_of(kept.find(folder / "x", {})) == []


def test_a_video_that_changes_while_it_is_answered_is_answered_again(folder):
  video = folder / "in" / "a.avi"
  with (
    pytest.raises(KeyError),
    kept.opened(folder / "x", {}, [], [str(video)]) as add,
  ):
    os.utime(video, (1e9, 1e9))
    add(answer(str(video)))
    raise KeyError("bug")
  assert kept.find(folder / "x", {}) == []


@pytest.mark.parametrize(
  "one, other",
  [
    (FusionRule("weighted", (1.0, 2.0)), FusionRule("weighted", (1.0, 3.0))),
    *(
      (FusionRule(name, fitted=a), FusionRule(name, fitted=b))
      for name, a, b in (
        ("svm", linear(np.zeros((4, 2))), linear(np.eye(4, 2))),
        ("fitted_weights", averaging(0.5), averaging(0.4)),
      )
    ),
  ],
)
def test_answers_of_other_fusion_weights_are_not_mixed_in(folder, one, other):
  run = StubPredictor(folder / "run").run
  facts = []
  for rule in (one, one, other):
    run.rules = {rule.name: rule}
    facts.append(json.loads(json.dumps(kept.facts_of(run, {}))))
  assert facts[0] == facts[1] != facts[2]
  with pytest.raises(KeyError), kept.opened(folder / "x", facts[0], []) as add:
    add(answer("in/a.avi"))
    raise KeyError("bug")
  kept.find(folder / "x", facts[1])
  with pytest.raises(ValueError, match=f"another command .fusion {one.name}:"):
    kept.find(folder / "x", facts[2])


def test_two_commands_do_not_write_one_file(folder):
  path = folder / "x"
  with kept.opened(path, {}, []) as add:
    add(answer("a"))
    with (
      pytest.raises(ValueError, match="another command is writing .*x.partial"),
      kept.opened(path, {}, []),
    ):
      pass
    add(answer("b"))
  assert names_of(lines_of(path)) == ["a", "b"]
  assert not list(folder.glob(".x*"))


def test_a_signal_keeps_answers_and_says_so_in_a_line(
  stub, folder, monkeypatch, capsys
):
  def answer_all(ready, sources, values, *, reader):
    yield answer("in/a.avi")
    os.kill(os.getpid(), signal.SIGTERM)
    yield answer("in/b.avi")

  monkeypatch.setattr(command, "answer_all", answer_all)
  with pytest.raises(SystemExit) as caught, interrupts.exit_at_signals("p"):
    stub("--json=x")
  assert caught.value.code == 143
  assert capsys.readouterr().err == (
    "p: ended by SIGTERM; x.partial keeps the answers so far (1): the same"
    " command resumes\n"
  )


def test_nothing_is_left_where_nothing_was_answered(stub, folder, monkeypatch):
  monkeypatch.setattr(command, "answer_all", answering({}, OSError("gone")))
  assert stub("--json=x") == 1
  assert sorted(path.name for path in folder.iterdir()) == ["in"]


def test_answers_of_another_command_are_not_mixed_in(
  stub, folder, monkeypatch, capsys
):
  first = {"in/a.avi": answer("in/a.avi")}
  monkeypatch.setattr(command, "answer_all", answering(first, OSError("gone")))
  assert stub("--json=x") == 1
  kept_lines = (folder / "x.partial").read_bytes()
  capsys.readouterr()
  assert stub("--json=x", "--top=2") == 1
  assert capsys.readouterr().err == (
    "twostream_jax.predict: x.partial holds answers of another command (top:"
    " 5, here 2): move it or remove it, or name another --json\n"
  )
  other = StubPredictor(folder / "run", weights=1.0)
  monkeypatch.setattr(predictor, "load", lambda *_: other)
  assert stub("--json=x") == 1
  assert "(stage spatial: {" in capsys.readouterr().err
  monkeypatch.setattr(predictor, "load", lambda *_: StubPredictor("run"))
  monkeypatch.chdir(folder / "in")
  assert stub(f"--json={folder / 'x'}", f"--workdir={folder / 'run'}") == 1
  assert "(folder: " in capsys.readouterr().err
  monkeypatch.chdir(folder)
  assert (folder / "x.partial").read_bytes() == kept_lines
  (folder / "x.partial").write_text('{"path": "a"}\n')
  assert stub("--json=x") == 1
  assert (
    "x.partial does not hold answers of this command" in capsys.readouterr().err
  )


def test_a_file_of_the_user_is_not_taken_for_answers(tmp_path):
  partial = tmp_path / "x.partial"
  for text in ("a thesis", "a thesis\n"):
    partial.write_text(text)
    with pytest.raises(ValueError, match="does not hold answers of this"):
      kept.find(tmp_path / "x", {})
  partial.write_text("")
  assert kept.find(tmp_path / "x", {}) == []


def test_a_full_disk_of_the_answers_is_told(stub, folder, monkeypatch, capsys):
  first = {f"in/{name}.avi": answer(f"in/{name}.avi") for name in NAMES}
  monkeypatch.setattr(command, "answer_all", answering(first))

  class Full(io.FileIO):
    def write(self, data):
      if b"b.avi" in data[:40]:
        raise OSError(errno.ENOSPC, "No space left on device")
      return super().write(data[:10])  # Part of a line, as on any disk.

  monkeypatch.setattr(
    kept, "open", lambda path, *_, **__: Full(path, "a"), raising=False
  )
  assert stub("--json=x") == 1
  assert capsys.readouterr().err == (
    "twostream_jax.predict: can't write x.partial: No space left on device;"
    " x.partial keeps the answers so far (1): the same command resumes\n"
  )
  kept_lines = lines_of(folder / "x.partial")[1:]
  assert names_of(line["answer"] for line in kept_lines) == ["in/a.avi"]


def test_a_video_that_is_named_twice_is_answered_twice():
  paths, done = ["a", "b", "a", "c", "a"], [{"path": "a"}, {"path": "c"}]
  assert kept.unanswered(paths, done) == [1, 2, 4]
  assert kept.unanswered(paths, []) == [0, 1, 2, 3, 4]


# One video never ends the others.


def check_only_b_failed(stub, folder, reason):
  assert stub("--timeline=t", "--json=x") == command.SOME_FAILED
  a, b, c = lines_of(folder / "x")
  assert "segments" in a and "segments" in c
  assert b == {"path": "in/b.avi", "error": reason}
  assert not [path for path in (folder / "t").iterdir() if path.name[0] == "."]


def test_a_name_that_a_file_system_refuses_ends_no_batch(
  stub, folder, monkeypatch
):
  full_disk_at(monkeypatch, "b", errno.ENAMETOOLONG)
  check_only_b_failed(stub, folder, "can't write t/b.csv: File name too long")


def test_a_table_that_can_not_be_replaced_ends_no_batch(stub, folder):
  (folder / "t" / "b.csv").mkdir(parents=True)
  check_only_b_failed(stub, folder, "can't write t/b.csv: Is a directory")


def test_a_picture_that_can_not_be_drawn_ends_no_batch(
  stub, folder, monkeypatch
):
  def fail(path, *_, title, **__):
    if "b.avi" in title:
      raise RuntimeError("no glyph")
    path.touch()

  monkeypatch.setattr(timeline, "draw", fail)
  check_only_b_failed(stub, folder, "unexpected RuntimeError: no glyph")


def test_an_error_of_scoring_ends_no_batch(stub, folder, monkeypatch):
  follow, count = long_videos.follow, iter(range(3))

  def fail(*rest, **others):
    if next(count) == 1:
      raise ValueError("shapes differ")
    return follow(*rest, **others)

  monkeypatch.setattr(long_videos, "follow", fail)
  check_only_b_failed(stub, folder, "unexpected ValueError: shapes differ")


def test_an_error_of_reading_ends_no_batch(stub, folder, monkeypatch):
  frames = long_videos.Streamer.__call__

  def fail(self, source):
    if "b.avi" in source.path:
      raise PermissionError(errno.EACCES, "Permission denied", source.path)
    return frames(self, source)

  monkeypatch.setattr(long_videos.Streamer, "__call__", fail)
  check_only_b_failed(stub, folder, "can't be read: Permission denied")


def test_an_answer_that_fails_ends_no_batch(stub, folder, monkeypatch):
  def answer_one(path, record, spent):
    if "b.avi" in path:
      raise ValueError("shapes\ndiffer")
    return path

  ready = predictor.load("run")
  ready.answer = answer_one
  monkeypatch.setattr(
    command,
    "map_in_processes",
    lambda work, items, *_, **__: (x for x in [(i, work(i)) for i in items]),
  )
  monkeypatch.setattr(
    command.answers, "answer", lambda path, run, top: answer(path)
  )
  assert stub("--json=x") == command.SOME_FAILED
  a, b, c = lines_of(folder / "x")
  assert (a["path"], c["path"]) == ("in/a.avi", "in/c.avi")
  assert b["error"] == "unexpected ValueError: shapes differ"


def test_names_that_can_not_be_printed_end_no_batch(stub, folder, monkeypatch):
  (folder / "in" / "b.avi").rename(folder / "in" / "b\udce9\u6f22.avi")
  shown = io.TextIOWrapper(io.BytesIO(), "ascii")
  monkeypatch.setattr(sys, "stdout", shown)
  assert stub("--timeline=t", "--json=x") == 0
  text = shown.buffer.getvalue().decode()
  assert r"in/b\udce9\u6f22.avi: 10 frames" in text
  assert names_of(lines_of(folder / "x"))[1] == "in/b\udce9\u6f22.avi"


def test_an_overlay_of_a_full_disk_ends_the_command_in_a_line(
  stub, folder, monkeypatch, capsys
):
  def fail(path, *_, **__):
    raise outputs.WriteError(path, OSError(errno.ENOSPC, "No space left"))

  monkeypatch.setattr(overlay, "write", fail)
  assert run_command("--workdir=run", "in/a.avi", "--overlay=o.mp4") == 1
  assert capsys.readouterr().err == (
    "twostream_jax.predict: can't write o.mp4: No space left\n"
  )


def test_what_the_machine_can_not_read_is_its_reason(folder, monkeypatch):
  source = reading.Source("file", "in/a.avi")
  reason = "can't be read: Input/output error"
  monkeypatch.setattr(guards, "read_fault", lambda path: reason)

  def broken(source):
    yield 1
    raise VideoError("can't be opened as a video")

  for work in (broken, lambda source: iter([1])):
    with pytest.raises(VideoError, match=reason):
      list(guards.GuardedStream(work)(source))
  monkeypatch.setattr(guards, "read_fault", lambda path: None)
  assert list(guards.GuardedStream(lambda _: iter([1, 2]))(source)) == [1, 2]
  with pytest.raises(VideoError, match="can't be opened"):
    list(guards.GuardedStream(broken)(source))


def test_a_folder_that_can_not_be_read_ends_no_search(folder, monkeypatch):
  (folder / "in" / "closed").mkdir()

  def listed(path):
    if Path(path).name == "closed":
      raise PermissionError(13, "Permission denied")
    return False

  monkeypatch.setattr(reading, "is_frame_folder", listed)
  names = [*(f"in/{name}.avi" for name in NAMES), "in/closed"]
  found = reading.find_sources(["in"])
  assert sorted(source.path for source in found) == sorted(names)
  assert [s.path for s in reading.find_sources(["in/closed"])] == ["in/closed"]
