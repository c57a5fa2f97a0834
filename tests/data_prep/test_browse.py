"""The page of a dataset: true counts, true pictures, nothing from elsewhere."""

import base64
import dataclasses
import html.parser
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags

from data_prep import browse
from tests.full_disk import largest_file
from twostream_jax.data.dataset import (
  decode_flow_codes,
  decode_rgb,
  encode_flow,
  encode_rgb,
)
from twostream_jax.flow.colorwheel import flow_to_rgb
from twostream_jax.flow.spec import dequantise
from twostream_jax.report.browse import render_dataset
from twostream_jax.report.survey import (
  DamagedDatasetError,
  choose_clips,
  read_sample,
  survey,
)

_SCRIPT = Path(browse.__file__).absolute()
_VOID = {"meta", "img", "input"}
HOSTILE = '<b>&"'


class Page(html.parser.HTMLParser):
  """A page as lists of what the tests ask about; refuses unbalanced tags."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.text = [], [], []
    self.tables, self.cards = [], []
    self.feed(text)
    self.close()
    assert not self.open, f"never closed: {self.open}"
    self.words = " ".join(" ".join(self.text).split())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if tag not in _VOID:
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    if tag == "tr":
      self.tables[-1].append([])
    if tag in ("td", "th"):
      self.tables[-1][-1].append("")
    if tag == "article":
      self.cards.append({"split": attrs["data-kind"], "images": {}})
    if tag == "img" and "article" in self.open:
      self.cards[-1]["images"][attrs["alt"]] = decode(attrs["src"])

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open[-3:]}"
    self.open.pop()

  def handle_data(self, data):
    if not {"style", "script"} & set(self.open):
      self.text.append(data)
    if "td" in self.open or "th" in self.open:
      self.tables[-1][-1][-1] += data
    if "article" in self.open and "h3" in self.open:
      self.cards[-1]["label"] = data
    if "article" in self.open and self.open[-1] == "p":
      self.cards[-1].setdefault("lines", []).append(data.strip())


def decode(uri):
  """RGB of a data: URI of a JPEG."""
  kind, code = uri.split(",")
  assert kind == "data:image/jpeg;base64"
  return decode_rgb(base64.b64decode(code, validate=True))


def assert_alike(image, expected):
  """Equal but for what JPEG loses, in colour more than in light."""
  assert image.shape == expected.shape
  assert np.abs(image.astype(float) - expected).mean() < 6


def make_record(data, i, label, **changes):
  """A stored clip of 5 frames whose shade and motion tell which it is."""
  rgb = np.full((64, 80, 3), (10 * i, 100, 255 - 10 * i), np.uint8)
  motion = np.full((64, 80, 2), (i, -2.0))
  record = {
    "video_id": f"clip-{i}".encode(),
    "label": label,
    "group": b"",
    "fps": 10.0,
    "num_frames": 5,
    "height": 64,
    "width": 80,
    "rgb": [encode_rgb(rgb, 95)] * 5,
    "flow": [encode_flow(motion, data.flow_spec)] * 4,
    "flow_backward": [],
  }
  return record | changes


def with_clips(data, names, **labels):
  """`data` with other classes, and a clip for each of the labels by split."""
  numbers = iter(range(100))
  return dataclasses.replace(
    data,
    class_names=tuple(names),
    sources={
      split: [make_record(data, next(numbers), label) for label in of_split]
      for split, of_split in labels.items()
    },
  )


def class_rows(page, splits):
  """Counts by class name in the table of the classes."""
  table = page.tables[1]
  assert table[0][2:] == list(splits)
  return {row[0]: [int(cell) for cell in row[2:]] for row in table[1:]}


def make_flags(*arguments):
  values = flags.FlagValues()
  browse.define_flags(values)
  values(["browse.py", *map(str, arguments)])
  return values


def run_script(*arguments, **options):
  return subprocess.run(
    [sys.executable, _SCRIPT, *map(str, arguments)],
    capture_output=True,
    text=True,
    **options,
  )


@pytest.fixture(scope="module")
def tiny_text(tiny):
  return render_dataset(tiny)


def test_counts_are_those_of_the_dataset(tiny, tiny_text):
  page = Page(tiny_text)
  splits = ("train", "validation", "test")
  expected, seconds = {name: [0, 0, 0] for name in tiny.class_names}, 0
  for column, split in enumerate(splits):
    for record in tiny.sources[split]:
      expected[tiny.class_names[record["label"]]][column] += 1
      seconds += record["num_frames"] / record["fps"]
  assert class_rows(page, splits) == expected
  assert list(expected) == sorted(expected)
  assert [row[0].strip() for row in page.tables[0][1:]] == list(splits)
  assert [row[1] for row in page.tables[0][1:]] == ["24", "12", "12"]
  assert [row[3] for row in page.tables[0][1:]] == ["12 of 12"] * 3
  assert "48 clips of 12 classes: train 24, validation 12, test 12" in (
    page.words
  )
  assert f"Video {seconds / 60:.1f} min" in page.words
  size = sum(file.stat().st_size for file in tiny.path.iterdir())
  assert f"On disk {size / 2**20:.1f} MiB" in page.words
  assert "Labels one a clip" in page.words
  assert "0 of 12 classes without a train clip" in page.words


def test_video_is_the_sum_of_the_clips_lengths(tiny):
  data = with_clips(tiny, ["a"], train=[0, 0])
  data.sources["train"][1] |= {"num_frames": 7200, "fps": 0.5}
  assert survey(data)["train"].seconds == 5 / 10 + 7200 / 0.5
  assert "Video 4.00 h" in Page(render_dataset(data)).words


def test_flow_settings_are_listed(tiny, tiny_text):
  rows = dict(row for row in Page(tiny_text).tables[2][1:])
  spec = tiny.flow_spec
  assert rows["algorithm"] == "dis"
  assert rows["bound"] == str(spec.bound)
  assert rows["step"] == "1" and rows["direction"] == "forward"
  for name, value in spec.parameters.items():
    assert rows[f"parameters.{name}"] == str(value)


def test_page_is_sound_and_self_contained(tiny_text):
  page = Page(tiny_text)
  images = [attrs for tag, attrs in page.tags if tag == "img"]
  assert len(images) == 1 + 24 * 6  # The wheel; 3 moments of 24 clips.
  for tag, attrs in page.tags:
    assert tag not in ("link", "iframe", "base")
    assert not (tag == "script" and "src" in attrs)
    for key in ("src", "href", "srcset", "xlink:href"):
      assert (attrs.get(key) or "#").startswith(("data:image/", "#"))
  for attrs in images:
    code = base64.b64decode(attrs["src"].split(",")[1], validate=True)
    image = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    assert attrs["alt"] and image.size
  for word in ("http:", "https:", "url(", "@import"):
    assert word not in tiny_text
  anchors = {a["href"][1:] for tag, a in page.tags if tag == "a"}
  assert anchors <= {a.get("id") for _, a in page.tags}


def test_pictures_are_of_the_clip_that_is_named(tiny, tiny_text):
  page = Page(tiny_text)
  scale = float(re.search(r"rim moves at ([\d.]+)\s*px/frame", page.words)[1])
  stored = {
    (split, record["video_id"].decode()): record
    for split, source in tiny.sources.items()
    for record in source
  }
  assert len(page.cards) == 24
  for card in page.cards:
    video_id, facts = card["lines"]
    record = stored.pop((card["split"], video_id))
    assert card["label"] == tiny.class_names[record["label"]]
    assert facts.startswith(f"{record['width']} × {record['height']} px")
    assert f"{record['fps']:g} fps · {record['num_frames']} frames" in facts
    frames = []
    for alt, image in card["images"].items():
      what, end, of = re.fullmatch(r"(\w+) (\S+) of (.*)", alt).groups()
      assert of == video_id
      if what == "frame":
        frames.append(int(end))
        assert_alike(image, decode_rgb(record["rgb"][frames[-1]]))
      else:
        assert end == f"{frames[-1]}→{frames[-1] + 1}"
        codes = decode_flow_codes(record["flow"][frames[-1]])
        flow = dequantise(codes, tiny.flow_spec.bound)
        assert_alike(image, flow_to_rgb(flow, scale))
    gaps = np.diff([-frames[0] - 1, *frames])
    assert len(frames) == 3 and np.ptp(gaps[1:]) <= 1


def test_page_is_the_same_to_the_byte(tiny, tiny_text):
  assert render_dataset(tiny, seed=0) == tiny_text
  other = Page(render_dataset(tiny, seed=1))
  ids = {card["lines"][0] for card in other.cards}
  assert ids != {card["lines"][0] for card in Page(tiny_text).cards}


def test_hostile_names_stay_text(tiny):
  data = with_clips(tiny, ["a", HOSTILE], train=[0, 1], test=[1])
  for source in data.sources.values():
    for record in source:
      record |= {"video_id": HOSTILE.encode(), "group": HOSTILE.encode()}
  data = dataclasses.replace(
    data,
    name=f"{HOSTILE}$title",
    rejected=(
      dict.fromkeys(("video_id", "split", "label", "reason"), HOSTILE),
    ),
  )
  text = render_dataset(data)
  assert HOSTILE not in text
  page = Page(text)
  assert class_rows(page, ("train", "test")) == {"a": [1, 0], HOSTILE: [1, 1]}
  assert page.cards[1]["label"] == HOSTILE
  assert f"group {HOSTILE}" in page.words
  assert page.tables[-1][1] == [HOSTILE] * 4
  assert f"{HOSTILE}$title" in page.words


def test_rejected_files_are_counted_and_listed(tiny):
  reasons = ("no frames", "too short", "no frames")
  rejected = tuple(
    {
      "video_id": f"bad-{i}",
      "split": "train",
      "label": ["x", "y"] if i else "x",
      "reason": reasons[i % 3],
    }
    for i in range(3000)
  )
  page = Page(render_dataset(dataclasses.replace(tiny, rejected=rejected)))
  summary, files = page.tables[-2:]
  assert summary[1:] == [
    ["no frames", "train", "2000"],
    ["too short", "train", "1000"],
  ]
  assert files[1] == ["bad-0", "train", "x", "no frames"]
  assert files[2] == ["bad-1", "train", "x, y", "too short"]
  assert len(files) == 3001
  assert "Rejected files 3,000" in page.words


def test_no_rejected_file_is_said(tiny_text):
  assert "Every file of the data set could be used." in Page(tiny_text).words


def test_multi_label_counts_a_clip_in_each_class(tiny):
  data = dataclasses.replace(
    with_clips(tiny, "abc", train=[[0, 1], [], [1]], test=[np.array([2])]),
    multi_label=True,
  )
  page = Page(render_dataset(data))
  rows = class_rows(page, ("train", "test"))
  assert list(rows.values()) == [[1, 0], [2, 0], [0, 1]]
  assert "1 clip without any class." in page.words
  assert "Labels any number a clip" in page.words
  assert {c["label"] for c in page.cards} == {"a, b", "no class", "b", "c"}


def test_class_without_a_train_clip_is_marked(tiny):
  data = with_clips(tiny, "ab", train=[0], test=[0, 1])
  page = Page(render_dataset(data))
  rows = class_rows(page, ("train", "test"))
  assert rows == {"a": [1, 1], "b no train clip": [0, 1]}
  assert "1 of 2 classes without a train clip" in page.words


def test_one_class_and_an_empty_split(tiny):
  data = with_clips(tiny, ["only"], train=[0, 0], test=[])
  page = Page(render_dataset(data))
  assert class_rows(page, ("train", "test")) == {"only": [2, 0]}
  assert "2 clips of 1 class: train 2, test 0" in page.words
  assert len(page.cards) == 2


def test_no_clip_at_all(tiny):
  page = Page(render_dataset(with_clips(tiny, ["a"], train=[], test=[])))
  assert "No clips are shown." in page.words
  assert not page.cards


def test_backward_fields_are_shown(tiny):
  spec = dataclasses.replace(tiny.flow_spec, direction="bidirectional", step=2)
  data = dataclasses.replace(
    with_clips(tiny, ["a"], train=[0, 0]), flow_spec=spec
  )
  forward, backward = np.zeros((2, 64, 80, 2))
  forward[..., 0], backward[..., 1] = 4, -4
  for record in data.sources["train"]:
    record["flow"] = [encode_flow(forward, spec)] * 3
    record["flow_backward"] = [encode_flow(backward, spec)] * 3
  page = Page(render_dataset(data, num_clips=1))
  scale, unit = re.search(r"rim moves at (\d+)\s*(.*?),", page.words).groups()
  assert unit.split() == ["px", "in", "2", "frames"]
  images = page.cards[0]["images"]
  kinds = [alt.split()[1] for alt in images]
  assert kinds[:3] == ["0", "0→2", "2→0"]
  pictures = list(images.values())
  assert_alike(pictures[1], flow_to_rgb(forward, float(scale)))
  assert_alike(pictures[2], flow_to_rgb(backward, float(scale)))


def test_rounding_of_still_clips_is_not_drawn_as_motion(tiny):
  data = with_clips(tiny, ["a"], train=[0])
  (record,) = data.sources["train"]
  still = encode_flow(np.zeros((64, 80, 2)), data.flow_spec)
  record["flow"] = [still] * 4
  assert dequantise(decode_flow_codes(still), data.flow_spec.bound).all()
  page = Page(render_dataset(data))
  for alt, image in page.cards[0]["images"].items():
    if alt.startswith("flow"):
      assert image.min() > 215


def test_many_classes_can_be_searched(tiny):
  names = [f"class {i:03d}" for i in range(400)]
  page = Page(render_dataset(with_clips(tiny, names, train=[0, 399])))
  assert len(class_rows(page, ("train",))) == 400
  assert "Find a class" in page.words
  assert "398 of 400 classes without a train clip" in page.words


def test_counting_decodes_no_image(tiny):
  data = with_clips(tiny, "ab", train=[0, 1, 1])
  for record in data.sources["train"]:
    record |= {"rgb": [b"?"], "flow": [b"?"]}
  assert survey(data)["train"].by_class.tolist() == [1, 2]
  with pytest.raises(DamagedDatasetError, match="clip 1 of the train split"):
    read_sample(data, "train", 1)


def test_clips_are_spread_over_classes_then_splits():
  labels = {
    "train": [(0,)] * 50 + [(1,)] * 5 + [(2,)],
    "test": [(0,), (1,), (1,)],
  }
  chosen = choose_clips(labels, count=6, seed=3)
  kinds = Counter((split, *labels[split][i]) for split, i in chosen)
  assert len(set(chosen)) == 6
  by_class = Counter(kind[1] for kind in kinds.elements())
  assert by_class[2] == 1  # There is one.
  assert sorted((by_class[0], by_class[1])) == [2, 3]
  assert {kind[0] for kind in kinds} == {"train", "test"}
  everything = choose_clips(labels, count=1000, seed=3)
  assert len(set(everything)) == len(everything) == 59
  assert choose_clips(labels, count=0, seed=3) == []


@pytest.mark.parametrize("num_fields, frames", [(1, [0]), (2, [0, 1])])
def test_short_clips_have_fewer_moments(tiny, num_fields, frames):
  data = with_clips(tiny, ["a"], train=[0])
  (record,) = data.sources["train"]
  record["flow"] = record["flow"][:num_fields]
  sample = read_sample(data, "train", 0)
  assert [moment.frame for moment in sample.moments] == frames


def test_command_line_from_another_folder(tiny_dir, tiny_text, tmp_path):
  done = run_script(tiny_dir, "--clips=24", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  (written,) = tmp_path.iterdir()
  assert written.name == "tiny.html" and str(written) in done.stdout
  assert written.read_text(encoding="utf-8") == tiny_text
  assert not re.search(r"^[IWEF]\d{4}", done.stderr, re.MULTILINE)


def test_out_clips_and_seed(tiny, tiny_dir, tmp_path, capsys):
  out = tmp_path / "new" / "page.html"
  values = make_flags(f"--out={out}", "--clips=3", "--seed=5")
  assert browse.run(values, tiny_dir, progress=False) == 0
  assert out.read_text(encoding="utf-8") == render_dataset(
    tiny, num_clips=3, seed=5
  )
  assert str(out) in capsys.readouterr().out


def run_error(capsys, folder, *arguments):
  """The one line that an error gives."""
  assert browse.run(make_flags(*arguments), folder, progress=False) == 1
  captured = capsys.readouterr()
  (line,) = captured.err.splitlines()
  assert line.startswith("error: ") and not captured.out
  return line


def test_errors_are_one_line(tiny, tiny_dir, tmp_path, capsys):
  assert "no dataset in" in run_error(capsys, tmp_path)
  assert "is a folder" in run_error(capsys, tiny_dir, f"--out={tmp_path}")
  for name in ("one", "two"):
    shutil.copytree(tiny.path, tmp_path / name)
  line = run_error(capsys, tmp_path)
  assert "2 datasets in" in line and str(tmp_path / "two") in line


def test_a_full_disk_leaves_no_page(tiny_dir, tmp_path, capsys):
  out = tmp_path / "page.html"
  with largest_file(1000):
    line = run_error(capsys, tiny_dir, f"--out={out}", "--clips=1")
  assert f"no page was written: File too large: '{out}'" in line
  assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_named(tiny, tmp_path, capsys):
  shutil.copytree(tiny.path, tmp_path / "copy")
  for shard in (tmp_path / "copy").glob("*train*record*"):
    shard.write_bytes(shard.read_bytes()[:1000])
  out = tmp_path / "page.html"
  line = run_error(capsys, tmp_path, f"--out={out}")
  assert "train.array_record" in line and "build the dataset again" in line
  assert not out.exists()


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "pass the folder of one dataset"),
    (["a", "b"], "given: a b"),
    (["a", "--frames=3"], "Unknown command line flag 'frames'"),
    (["a", "--clips=-1"], "clips=-1"),
  ],
)
def test_bad_command_lines(tmp_path, arguments, message):
  done = run_script(*arguments, cwd=tmp_path)
  assert done.returncode == 1
  assert message in done.stderr and "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())
