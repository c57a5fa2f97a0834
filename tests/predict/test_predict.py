"""Any video by a finished run: answers, timelines, overlays, refusals."""

import csv
import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags

import twostream_jax
from tests.bad_readers import BadReader
from tests.paths import SHARED
from tests.stub_predictor import coded
from twostream_jax import scores
from twostream_jax.data.loader import protocols
from twostream_jax.data.video.frames import VideoError
from twostream_jax.data.video.reading import read_frames
from twostream_jax.predict import (
  answers,
  command,
  following,
  live,
  long_videos,
  overlay,
  predictor,
  reading,
  timeline,
)
from twostream_jax.predict.__main__ import define_flags
from twostream_jax.predict.following import Seen, Window
from twostream_jax.predict.reading import Source
from twostream_jax.predict.timeline import Segment, Track

_ODD = SHARED / "odd_videos"


@pytest.fixture(scope="module")
def videos(tiny_dir):
  """Folder of the videos that the run was tested on."""
  return tiny_dir / "videos" / "test"


@pytest.fixture(scope="module")
def ready(finished_dir):
  return twostream_jax.load(finished_dir)


def parsed(*arguments):
  values = flags.FlagValues()
  define_flags(values)
  return values(["predict", *map(str, arguments)]), values


def run_command(*arguments):
  rest, values = parsed(*arguments)
  return command.main(rest, values)


def test_a_video_scores_as_in_the_test_of_the_run(ready, finished_dir, videos):
  found = ready.predict(videos / "teal-spin" / "000.avi")
  for name in (*found.stages, *found.fused):
    expected = scores.load_scores(finished_dir / "scores" / f"{name}-test.npz")
    row = expected.ids.index("test/teal-spin/000.avi")
    probabilities = scores.probabilities(expected)[row]
    mine = {**found.stages, **found.fused}[name]
    np.testing.assert_allclose(mine, probabilities, rtol=1e-5, atol=1e-6)
    if name in found.logits:
      np.testing.assert_allclose(
        found.logits[name], expected.logits[row], rtol=1e-4, atol=2e-6
      )
      assert found.protocols[name] == expected.protocol
  (label, best), *others = found.top("average", 3)
  assert best == max(found.fused["average"]) and len(others) == 2
  assert label == ready.run.class_names[found.fused["average"].argmax()]


def test_a_folder_of_frames_is_a_video(ready, videos, tmp_path):
  capture = cv2.VideoCapture(str(videos / "teal-bob" / "000.avi"))
  count = 0
  while (step := capture.read())[0]:
    cv2.imwrite(str(tmp_path / f"img_{count:05d}.png"), step[1])
    count += 1
  whole = ready.predict(videos / "teal-bob" / "000.avi")
  again = ready.predict(tmp_path)
  assert again.num_frames == whole.num_frames == count
  for name, logits in whole.logits.items():
    np.testing.assert_array_equal(again.logits[name], logits)


def test_another_protocol_may_be_asked_for(ready):
  other = twostream_jax.load(ready.run.workdir, "single")
  assert other.run.stages["temporal"].protocol.startswith("single")
  assert ready.run.stages["temporal"].protocol.startswith("2x1")
  with pytest.raises(ValueError, match="eval.protocol='25'"):
    twostream_jax.load(ready.run.workdir, "25")


def test_views_are_mirrored_only_where_training_was(ready, monkeypatch):
  config = ready.run.config.copy_and_resolve_references()
  config.temporal.input.flip = False
  views = dataclasses.replace(
    ready.run.stages["temporal"].views, protocol=protocols.parse("2x10")
  )
  stage = dataclasses.replace(ready.run.stages["temporal"], views=views)
  run = dataclasses.replace(
    ready.run, config=config, stages={"temporal": stage}
  )
  monkeypatch.setattr(predictor.trained, "open_run", lambda *_: run)
  with pytest.raises(ValueError, match="'2x10' mirrors.*'temporal'"):
    predictor.load("run", "2x10")


def test_a_video_without_an_answer_has_a_reason(ready, tmp_path):
  with pytest.raises(predictor.PredictionError, match="file not found"):
    ready.predict(tmp_path / "missing.mp4")
  (tmp_path / "empty.mp4").touch()
  with pytest.raises(predictor.PredictionError, match="the file is empty"):
    ready.predict(tmp_path / "empty.mp4")


def test_scores_that_are_not_finite_are_no_answer(ready, videos, monkeypatch):
  monkeypatch.setitem(
    ready._predict, "joint", lambda *_: np.full((2, 12), np.nan)
  )
  with pytest.raises(predictor.PredictionError, match="'joint' are not finite"):
    ready.predict(videos / "teal-bob" / "000.avi")


def test_a_run_of_extracted_flow_refuses_files(ready, videos):
  spec = dataclasses.replace(
    ready.run.flow_spec, algorithm="extracted", parameters={}
  )
  run = dataclasses.replace(ready.run, flow_spec=spec)
  other = predictor.Predictor(run)
  path = videos / "teal-bob" / "000.avi"
  with pytest.raises(predictor.PredictionError, match="folder of frames"):
    other.predict(path)
  with pytest.raises(VideoError, match="another program extracted"):
    next(reading.Streamer(spec, 95)(Source("file", str(path))))


def test_a_run_that_does_not_say_its_quality_is_told(ready):
  run = dataclasses.replace(ready.run, rgb_quality=None)
  with pytest.warns(UserWarning, match="JPEG quality.*95 is taken"):
    assert predictor.Predictor(run).rgb_quality == 95


def test_processes_that_decode_start_without_jax():
  code = (
    "import sys, twostream_jax.predict.reading;"
    "assert not {'jax', 'flax', 'orbax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore:2 files in . not taken")
def test_sources_are_found(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("b/x.mp4", "b/notes.txt", "a/y.AVI", "b/.hidden.mp4"):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
  for number in range(3):
    Path("c").mkdir(exist_ok=True)
    Path(f"c/img_{number}.jpg").touch()
  Path("none").mkdir()
  Path("7").touch()
  with pytest.warns(UserWarning, match=r"2 files in \. not taken"):
    found = reading.find_sources(
      [
        *(".", "c", "none", "0", "7", "rtsp://host/x"),
        *("b/notes.txt", "gone.mp4", "concat:a/y.AVI|b/x.mp4"),
        *("concat:file://a", "file:a/y.AVI"),
      ]
    )
  assert [(s.kind, s.path) for s in found] == [
    ("file", "a/y.AVI"),
    ("file", "b/x.mp4"),
    ("file", "c"),
    ("file", "c"),
    ("file", "none"),
    ("camera", "0"),
    ("file", "7"),
    ("stream", "rtsp://host/x"),
    ("file", "b/notes.txt"),
    ("file", "gone.mp4"),
    ("file", "concat:a/y.AVI|b/x.mp4"),
    ("file", "concat:file://a"),
    ("file", "file:a/y.AVI"),
  ]
  Path("list").write_text(" a b.mp4 \n\nc\n")
  assert reading.read_list("list") == ["a b.mp4", "c"]


def test_every_kind_of_video_file_in_a_folder_is_taken(tmp_path):
  names = ["a.MTS", "b.m2ts", "c.mxf", "d.asf", "e.dv", "f.divx", "g.f4v"]
  names += ["h.y4m", "i.h264", "j.ogv", "k.webm"]
  others = ["notes.txt", "subtitles.srt", "subtitles2.SRT", "noext"]
  for name in [*names, *others, "Thumbs.db", ".hidden", "desktop.ini"]:
    (tmp_path / name).touch()
  (tmp_path / "__MACOSX").mkdir()
  (tmp_path / "__MACOSX" / "a.mp4").touch()
  told = r"4 files in .* not taken.*: .srt \(2\), .* \(1\), .* \(1\)"
  with pytest.warns(UserWarning, match=told):
    found = reading.find_sources([str(tmp_path)])
  assert [Path(source.path).name for source in found] == names


def test_a_link_to_a_folder_around_it_ends(tmp_path):
  (tmp_path / "in" / "deep").mkdir(parents=True)
  (tmp_path / "in" / "a.mp4").touch()
  (tmp_path / "in" / "deep" / "up").symlink_to(tmp_path)
  (tmp_path / "in" / "itself").symlink_to(tmp_path / "in")
  found = reading.find_sources([str(tmp_path)])
  assert [source.path for source in found] == [str(tmp_path / "in" / "a.mp4")]


def test_home_folder_in_a_list_of_videos(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "~x").touch()
  found = reading.find_sources(["~/a.mp4", "~x", "-dash.mp4"])
  expected = [str(tmp_path / "a.mp4"), "~x", "-dash.mp4"]
  assert [source.path for source in found] == expected


def test_a_list_of_paths_is_utf8_with_or_without_a_mark(tmp_path):
  path = tmp_path / "list.txt"
  path.write_bytes("caf\u00e9.mp4\n".encode("utf-8-sig"))
  assert reading.read_list(path) == ["caf\u00e9.mp4"]
  path.write_bytes("caf\u00e9.mp4\n".encode("latin-1"))
  with pytest.raises(
    ValueError, match="list.txt is not UTF-8 text .at byte 3."
  ):
    reading.read_list(path)


@pytest.mark.filterwarnings("ignore:1 file in .* not taken")
def test_a_batch_of_good_and_bad_files_finishes(
  ready, finished_dir, videos, tmp_path, monkeypatch, capsys
):
  good = videos / "teal-bob" / "000.avi"
  folder = tmp_path / "videos"
  folder.mkdir()
  shutil.copy(good, folder / "a_crash.avi")
  shutil.copy(good, folder / "b_hang.avi")
  (folder / "c_bad.mp4").write_bytes(b"no video")
  (tmp_path / "list").write_text(f"{tmp_path / 'missing.mp4'}\n")
  answer_all = command.answer_all
  monkeypatch.setattr(
    command,
    "answer_all",
    lambda *rest, reader: answer_all(*rest, reader=BadReader(reader)),
  )
  monkeypatch.setattr(predictor, "load", lambda *_: ready)
  code = run_command(
    f"--workdir={finished_dir}",
    folder,
    good,
    f"--list={tmp_path / 'list'}",
    f"--json={tmp_path / 'answers.jsonl'}",
    "--time_limit=4",
    "--top=2",
    "--workers=2",
  )
  assert code == command.SOME_FAILED
  lines = (tmp_path / "answers.jsonl").read_text().splitlines()
  found = {Path(line["path"]).name: line for line in map(json.loads, lines)}
  reasons = {name: line.get("error") for name, line in found.items()}
  # How much it computed before it hung depends on the machine.
  assert reasons.pop("b_hang.avi").startswith("not done in 4 s, ")
  assert reasons == {
    "a_crash.avi": "the decoder crashed",
    "c_bad.mp4": "can't be opened as a video",
    "missing.mp4": "file not found",
    "000.avi": None,
  }
  answer = found["000.avi"]
  assert list(answer["stages"]) == list(ready.run.stages)
  assert list(answer["fused"]) == list(ready.run.rules)
  assert [len(row) for row in answer["fused"].values()] == [2] * 4
  assert answer["flow"]["algorithm"] == "dis" and answer["frames"] > 1
  assert set(answer["protocol"]) == set(ready.run.stages)
  shown = capsys.readouterr().out
  assert "missing.mp4: no answer: file not found\n" in shown
  assert f"  weighted        {answer['fused']['weighted'][0][0]} 0." in shown


def test_json_alone_goes_to_standard_output(
  ready, finished_dir, videos, monkeypatch, capsys
):
  monkeypatch.setattr(predictor, "load", lambda *_: ready)
  found = ready.predict(videos / "teal-bob" / "000.avi")
  answer = answers.answer(found, ready.run, 3)
  monkeypatch.setattr(
    command, "answer_all", lambda *_, reader: (found for found in [answer])
  )
  code = run_command(f"--workdir={finished_dir}", videos, "--json=-")
  (line,) = capsys.readouterr().out.splitlines()
  assert code == 0 and json.loads(line) == json.loads(json.dumps(answer))


@pytest.mark.parametrize(
  "arguments, match",
  [
    (["x.mp4"], "--workdir=RUN is missing"),
    (["--workdir=nowhere", "x.mp4"], "no run in .*nowhere"),
    (["--workdir=nowhere"], "name a video"),
    (["--workdir=w", "x.mp4", "y.mp4", "--overlay=o.mp4"], "one video, but 2"),
    (["--workdir=w", "--list=nowhere.txt"], "nowhere.txt"),
  ],
)
def test_commands_that_can_not_work_say_why(arguments, match, capsys):
  assert run_command(*arguments) == 1
  error = capsys.readouterr().err
  assert error.startswith("twostream_jax.predict: ")
  assert error.count("\n") == 1
  assert re.search(match, error)


def test_what_streams_is_what_a_build_stores(ready, videos):
  path = videos / "teal-slide" / "000.avi"
  for changes in ({}, {"direction": "bidirectional", "step": 2}):
    spec = dataclasses.replace(ready.run.flow_spec, **changes)
    source = Source("file", str(path))
    cv2.setNumThreads(1)
    stored = reading.Reader(spec, 90)(source)
    frames = list(reading.Streamer(spec, 90)(source))
    streamed = reading.record_of(frames, spec, str(path))
    assert streamed == stored
    part = reading.record_of(frames[5:12], spec)
    assert part.fps == stored.fps and part.times[:2] == stored.times[:2]
    assert part.rgb == stored.rgb[5:12] and part.num_frames == 7
    assert part.flow == stored.flow[5 : 12 - spec.step]
    assert len(part.flow_backward) == (0 if not changes else 5)
    with pytest.raises(VideoError, match="at least"):
      reading.record_of(frames[: spec.step], spec)


def windows_of(times, length, stride, least=2):
  frames = coded(times)
  windows = list(following.slide(frames, Window(length, stride), least=least))
  for first, shown in windows:
    assert shown == frames[first : first + len(shown)]
  return [(first, len(shown)) for first, shown in windows]


@pytest.mark.parametrize(
  "count, length, stride, expected",
  [
    (10, 4, 2, [(0, 4), (2, 4), (4, 4), (6, 4)]),
    (9, 4, 2, [(0, 4), (2, 4), (4, 4), (5, 4)]),
    (8, 4, 4, [(0, 4), (4, 4)]),
    (3, 4, 2, [(0, 3)]),
    (0, 4, 2, []),
    (4, 2.5, 0.5, [(0, 3), (1, 3)]),
  ],
)
@pytest.mark.parametrize("unit", [1.0, 0.04])
def test_windows_cover_the_video(count, length, stride, expected, unit):
  times = [number * unit for number in range(count)]
  assert windows_of(times, length * unit, stride * unit) == expected


def test_windows_are_seconds_where_the_rate_changes():
  # 10 frames in the first second, then one a second.
  times = [*np.arange(10) / 10, 1, 2, 3, 4]
  expected = [(0, 10), (5, 6), (10, 2), (11, 2), (12, 2)]
  assert windows_of(times, 1, 0.5) == expected
  # Nothing for a day: no window without a new frame.
  times = [0, 1, 2, 86400, 86401, 86402]
  assert windows_of(times, 3, 1) == [(0, 3), (2, 2), (3, 2), (3, 3)]


def test_every_frame_is_in_a_window():
  rng = np.random.default_rng(0)
  for _ in range(50):
    times = np.cumsum(rng.choice([0.01, 0.04, 0.5, 7.0], 60)).tolist()
    length = rng.uniform(0.02, 3)
    least = int(rng.integers(1, 4))
    end = 0
    windows = windows_of(times, length, length / 2, least)
    for first, count in windows:
      assert first <= end < first + count and count >= least
      end = first + count
    assert end == 60
    # And an overlay shows every one once.
    frames = list(range(60))
    shown = [Seen(i, frames[i : i + n], np.ones(1)) for i, n in windows]
    assert [frame for frame, _ in overlay._nearest(shown)] == frames


def test_a_window_never_leaves_a_gap():
  for length, stride in ((4, 5), (1, 0)):
    with pytest.raises(ValueError, match="--stride"):
      Window(length, stride)


def seen(first, length, probabilities):
  frames = coded([i / 2 for i in range(9)])[first : first + length]
  return Seen(first, frames, np.array(probabilities, float))


def test_a_track_speaks_for_what_is_nearest():
  recorder = timeline.Recorder()
  windows = [seen(0, 4, [1, 0]), seen(2, 4, [0, 1]), seen(3, 4, [0.5, 0.5])]
  assert list(recorder(windows)) == windows
  found = recorder.track()
  np.testing.assert_allclose(found.edges, [0, 1.5, 2.25, 3.5])
  assert found.probabilities.tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
  assert recorder.frames == 7


def test_what_was_shown_last_is_shown_until_the_video_goes_on():
  # Two seconds, nothing, and from 30 s on some frames of something else.
  frames = coded([*np.arange(8) / 4, *(30 + np.arange(5) / 4)])
  windows = [
    Seen(first, shown, np.eye(2)[int(first >= 8)])
    for first, shown in following.slide(frames, Window(6, 2), least=2)
  ]
  recorder = timeline.Recorder()
  assert len(list(recorder(windows))) == 2
  assert rounded(timeline.find_segments(recorder.track(), ["a", "b"])) == [
    (0, 30, "a", 1.0),
    (30, 31.25, "b", 1.0),
  ]


TRACK = Track(
  np.array([0.0, 1.0, 2.0, 3.0, 4.0]),
  np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]]),
)


def test_windows_of_one_class_become_a_segment():
  assert rounded(timeline.find_segments(TRACK, ["run", "jump"])) == [
    (0, 2, "run", 0.8),
    (2, 3, "jump", 0.8),
    (3, 4, "run", 0.6),
  ]
  assert rounded(
    timeline.find_segments(TRACK, ["run", "jump"], threshold=0.65)
  ) == [(0, 2, "run", 0.8), (2, 3, "jump", 0.8)]


def test_smoothing_bridges_a_short_change():
  values = timeline.smoothed(TRACK.probabilities, 3)
  np.testing.assert_allclose(values[:, 0], [0.8, 0.6, 0.5, 0.4])
  np.testing.assert_array_equal(
    timeline.smoothed(TRACK.probabilities, 1), TRACK.probabilities
  )
  flicker = Track(
    TRACK.edges, np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.9, 0.1]])
  )
  assert len(timeline.find_segments(flicker, ["run", "jump"])) == 3
  whole = timeline.find_segments(flicker, ["run", "jump"], smooth=3)
  assert [s[:3] for s in whole] == [(0.0, 4.0, "run")]
  with pytest.raises(ValueError, match="--smooth=2 must be odd"):
    timeline.smoothed(TRACK.probabilities, 2)


def test_classes_of_a_multi_label_set_overlap():
  found = timeline.find_segments(
    TRACK, ["run", "jump"], threshold=0.4, multi_label=True
  )
  assert rounded(found) == [
    (0, 2, "run", 0.8),
    (2, 4, "jump", 0.6),
    (3, 4, "run", 0.6),
  ]


def test_a_threshold_of_zero_would_show_every_class_always():
  names = ["run", "jump"]
  with pytest.raises(ValueError, match="--threshold=0 would show every class"):
    timeline.find_segments(TRACK, names, threshold=0.0, multi_label=True)
  found = timeline.find_segments(TRACK, names, multi_label=True)
  assert found == timeline.find_segments(TRACK, names)  # More likely than not.
  assert timeline.threshold_of(0.0, multi_label=False) == 0
  for wrong in (-0.1, 1.1, np.nan):
    with pytest.raises(ValueError, match="must be in 0..1"):
      timeline.threshold_of(wrong, multi_label=False)


@pytest.mark.parametrize("multi_label, threshold", [(False, 0), (True, 0.5)])
def test_the_command_s_threshold_is_that_of_the_kind(multi_label, threshold):
  values = flags.FlagValues()
  define_flags(values)
  values(["predict"])
  run = types.SimpleNamespace(
    rules={}, stages={"a": None}, multi_label=multi_label, flow_spec=None
  )
  ready = types.SimpleNamespace(run=run)
  assert command.options(values, ready).threshold == threshold


def rounded(segments):
  return [(s.start, s.end, s.label, round(s.score, 6)) for s in segments]


def test_segments_are_written_as_a_table(tmp_path):
  path = tmp_path / "x.csv"
  timeline.write_csv(path, [Segment(0.0, 1.25, "run, jump", 0.5)])
  with open(path, newline="") as file:
    rows = list(csv.reader(file))
  assert rows == [
    ["start", "end", "label", "score"],
    ["0.000", "1.250", "run, jump", "0.5000"],
  ]
  assert list(tmp_path.iterdir()) == [path]


def test_a_long_video_gets_a_table_and_a_picture(
  ready, videos, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(predictor, "load", lambda *_: ready)
  (tmp_path / "bad.mp4").write_bytes(b"no video")
  code = run_command(
    f"--workdir={ready.run.workdir}",
    videos / "teal-bob" / "000.avi",
    tmp_path / "bad.mp4",
    f"--timeline={tmp_path / 'found'}",
    "--window=0.5",
    "--stride=0.25",
    "--by=weighted",
    f"--json={tmp_path / 'lines'}",
  )
  assert code == command.SOME_FAILED
  assert "bad.mp4: no answer: can't be opened" in capsys.readouterr().out
  lines = [json.loads(x) for x in (tmp_path / "lines").read_text().splitlines()]
  assert "error" in lines[1]
  written = sorted(path.name for path in (tmp_path / "found").iterdir())
  assert written == ["000.csv", "000.png"]
  line = lines[0]
  picture = cv2.imread(line["files"]["picture"])
  assert picture.shape[1] == 1200
  with open(line["files"]["table"], newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(line["segments"]) > 0
  assert float(rows[0]["start"]) == 0.0
  assert float(rows[-1]["end"]) == pytest.approx(line["seconds"], abs=1e-3)
  names = set(ready.run.class_names)
  assert {row["label"] for row in rows} <= names
  assert line["by"] == "weighted"


def test_a_video_of_few_frames_a_second_does_not_end_the_others(
  ready, videos, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(predictor, "load", lambda *_: ready)
  # The processes that decode are those of the test above.
  monkeypatch.setattr(
    long_videos, "iterate_in_process", lambda work, item, *_, **__: work(item)
  )
  code = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(tmp_path / "slow.avi"), code, 0.5, (64, 64))
  for level in range(10):
    writer.write(np.full((64, 64, 3), 20 * level, np.uint8))
  writer.release()
  code = run_command(
    f"--workdir={ready.run.workdir}",
    tmp_path / "slow.avi",
    videos / "teal-bob" / "000.avi",
    f"--timeline={tmp_path / 'found'}",
    "--window=0.5",
    "--stride=0.25",
    f"--json={tmp_path / 'lines'}",
  )
  assert code == 0
  slow, good = map(json.loads, (tmp_path / "lines").read_text().splitlines())
  assert slow["seconds"] == 20 and slow["frames"] == 10
  assert slow["segments"][-1][1] == 20 and good["segments"]


def test_a_picture_shows_segments_and_curves_below_a_title(tmp_path):
  names = ["run", "jump"]
  segments = timeline.find_segments(TRACK, names)
  timeline.draw(tmp_path / "a.png", TRACK, segments, names, title="a")
  image = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
  assert image.shape[1] == 1200
  left, right = np.flatnonzero((image[-50] < 50).all(axis=-1))[[0, -1]]
  spent = dict.fromkeys(names, 0.0)
  for segment in segments:
    spent[segment.label] += segment.end - segment.start
  for row, name in enumerate(sorted(names, key=spent.get, reverse=True)):
    strip = image[35 + 52 * row : 35 + 52 * (row + 1)]
    filled = (strip[7] != 255).any(axis=-1)[left + 1 : right]
    share = spent[name] / TRACK.edges[-1]
    assert filled.mean() == pytest.approx(share, abs=0.005)
    assert (strip[10:40, :left] < 128).any()


def test_names_of_any_script_are_drawn_as_they_are(tmp_path):
  pictures = []
  for name in (r"$\frac{", "\u6f22\u5b57", "\u8d70\u308b"):
    names = [name, "jump"]
    segments = timeline.find_segments(TRACK, names)
    path = tmp_path / "a.png"
    timeline.draw(path, TRACK, segments, names, title=r"costs 5$ and 6$^{")
    pictures.append(path.read_bytes())
  assert len(set(pictures)) == 3  # Not boxes for all that a font lacks.


def test_long_names_of_videos_are_cut(tmp_path):
  paths = ["x" * 254, "\u6f22" * 83 + ".mp4", "\u6f22" * 84 + ".mp4"]
  names = long_videos.file_names([Source("file", path) for path in paths])
  assert len(set(names)) == 3
  for name in names:
    (tmp_path / f".{name}.csv.tmp").touch()
    assert len(name.encode()) <= 205


def test_a_window_is_scored_as_a_video_of_its_own(ready, videos):
  path = videos / "violet-bob" / "000.avi"
  run = ready.run
  cv2.setNumThreads(1)
  frames = list(reading.Streamer(run.flow_spec, 95)(Source("file", str(path))))
  window = Window(1000, 1000)
  (whole,) = following.follow(ready, frames, window, by="average")
  expected = ready.predict(path)
  np.testing.assert_array_equal(whole.probabilities, expected.fused["average"])
  (alone,) = following.follow(ready, frames, window, by="joint")
  np.testing.assert_array_equal(alone.probabilities, expected.stages["joint"])


def test_files_of_videos_are_told_apart():
  paths = ["a/x.mp4", "b/x.mp4", "y z.mp4", "rtsp://h/", "0"]
  names = long_videos.file_names([Source("file", path) for path in paths])
  assert names == ["a_x_mp4", "b_x_mp4", "y_z", "h", "0"]
  same = long_videos.file_names([Source("file", "x.mp4")] * 2)
  assert len(set(same)) == 2


def test_an_overlay_draws_the_best_classes_and_the_flow(ready, videos):
  spec = ready.run.flow_spec
  source = Source("file", str(videos / "teal-slide" / "000.avi"))
  frames = list(reading.Streamer(spec, 95)(source))
  names = ["run", "jump", "wave"]
  image = overlay.draw_frame(
    frames[8], np.array([0.1, 0.6, 0.3]), names, spec, 2
  )
  height, width = frames[8].size
  assert image.shape == (height + 48, 2 * width, 3)
  still = overlay.draw_frame(
    frames[0], np.array([0.1, 0.6, 0.3]), names, spec, 2
  )
  assert (still[:height, width:] == 255).all()
  assert (image[:height, width:] != 255).any()
  bars = (image[height + 3 :: 24, :] == (120, 180, 240)).all(axis=-1)
  np.testing.assert_allclose(
    bars.sum(axis=1) / (2 * width), [0.6, 0.3], atol=0.01
  )


def test_a_stream_is_read_for_some_seconds(ready, videos):
  # A file by its URL is the stream that needs no network.
  path = videos / "teal-bob" / "000.avi"
  spec = ready.run.flow_spec
  source = Source("stream", path.as_uri())
  record = reading.Reader(spec, 95, seconds=60.0)(source)
  stored = reading.Reader(spec, 95)(Source("file", str(path)))
  assert record.rgb == stored.rgb and record.flow == stored.flow
  none = reading.Reader(spec, 95, seconds=0.0)(source)
  assert none == reading.Rejection("0 frames decoded, at least 2 needed")
  gone = reading.Reader(spec, 95)(Source("stream", "file:///no/such/file"))
  assert gone == reading.Rejection(
    "the stream can't be opened: No such file or directory"
  )


def test_seconds_of_a_stream_are_its_own(ready, videos):
  path = videos / "teal-bob" / "000.avi"
  times = [frame.time for frame in read_frames(path)]
  slow = live.read_stream(path.as_uri(), seconds=0.5)
  assert [frame.time for frame in slow] == [t for t in times if t < 0.499]


class Camera:
  """Gives ten images, one every 20 ms."""

  def __init__(self, index):
    self.left = 10 if index == 0 else 0

  def isOpened(self):
    return self.left > 0

  def read(self):
    time.sleep(0.02)
    self.left -= 1
    return self.left >= 0, np.full((16, 24, 3), 20 * abs(self.left), np.uint8)

  def release(self):
    self.left = 0


def test_frames_of_a_camera_have_the_times_of_their_arrival(monkeypatch):
  monkeypatch.setattr(live.cv2, "VideoCapture", Camera)
  frames = list(live.read_ahead(live.read_camera(0, seconds=60)))
  assert [int(f.rgb[0, 0, 0]) for f in frames] == [*range(180, -1, -20)]
  gaps = np.diff([frame.time for frame in frames])
  assert frames[0].time == 0 and (gaps > 0.015).all()
  np.testing.assert_allclose(gaps, [f.duration for f in frames[:-1]], atol=1e-5)
  assert 1 < len(list(live.read_camera(0, seconds=0.1))) < 8
  with pytest.raises(VideoError, match="the camera can't be opened"):
    next(live.read_ahead(live.read_camera(1, seconds=1)))


def test_frames_that_nobody_wants_any_more_are_not_read_on():
  taken = []

  def endless():
    for number in itertools.count():
      taken.append(number)
      yield number

  ahead = live.read_ahead(endless(), limit=3)
  assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
  ahead.close()
  time.sleep(0.3)
  assert len(taken) < 12


@pytest.mark.optional
def test_every_odd_video_has_an_answer_or_a_reason(ready, finished_dir):
  if not _ODD.is_dir():
    pytest.skip(f"no odd videos in {_ODD}")
  small = [
    path
    for path in sorted(_ODD.rglob("*"))
    if path.is_file() and path.stat().st_size < 8_000
  ]
  assert len(small) > 10
  _, values = parsed(f"--workdir={finished_dir}")
  sources = reading.find_sources(map(str, small))
  reader = reading.Reader(ready.run.flow_spec, ready.rgb_quality)
  found = list(command.answer_all(ready, sources, values, reader=reader))
  assert {line["path"] for line in found} == {str(path) for path in small}
  for line in found:
    assert ("error" in line) != ("stages" in line)
    assert "\n" not in answers.table(line) or "stages" in line
    assert line.get("error", "a reason").strip()
