"""The report: sound HTML, true numbers, nothing from elsewhere, no gaps."""

import base64
import dataclasses
import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from twostream_jax import metrics
from twostream_jax.flow.colorwheel import flow_to_rgb
from twostream_jax.report import (
  ClassMap,
  Example,
  ReportData,
  SplitFacts,
  choose_examples,
  heatmap,
  pictures,
  plots,
  render_report,
  write_report,
)
from twostream_jax.report.confusion import cluster, worst_pairs
from twostream_jax.scores import Scores, ScoresError

VOID = {"meta", "link", "img", "input", "br", "hr", "wbr"}
NAMES = tuple(
  f"{c}·{m}" for c in ("amber", "teal", "violet") for m in ("slide", "rise")
)
HOSTILE = """<script>alert("1")</script>&'$title"""


class Page(html.parser.HTMLParser):
  """A page as lists of what the tests ask about; refuses unbalanced tags."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.text, self.tables = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    if tag == "tr":
      self.tables[-1].append([])
    if tag in ("td", "th"):
      self.tables[-1][-1].append("")

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

  @property
  def words(self):
    return " ".join(" ".join(self.text).split())

  def classed(self, name):
    return [a for _, a in self.tags if name in a.get("class", "").split()]


def make_scores(names, per_class=10, seed=0):
  """Two streams that see a half of the label each, and two fusions."""
  rng = np.random.default_rng(seed)
  n = len(names)
  labels = np.repeat(np.arange(n), per_class).astype(np.int32)
  ids = tuple(f"clip-{i:04d}" for i in range(len(labels)))

  def stream(part):
    hit = part(np.arange(n))[None] == part(labels)[:, None]
    return (3 * hit + rng.normal(0, 0.5, hit.shape)).astype(np.float32)

  spatial, temporal = stream(lambda i: i // 2), stream(lambda i: i % 2)
  logits = {
    "spatial": spatial,
    "temporal": temporal,
    "average": spatial + 0.2 * temporal,
    "weighted": spatial + temporal,
  }
  return {
    name: Scores(ids, labels, values, "one view")
    for name, values in logits.items()
  }


def make_multi_label(examples=4):
  """As `make_data`, but clips show one, two or no class; the last is unseen."""
  rng = np.random.default_rng(1)
  labels = np.zeros((30, len(NAMES)), bool)
  for i in range(30):
    labels[i, rng.choice(len(NAMES) - 1, i % 3, replace=False)] = True
  ids = tuple(f"clip-{i:04d}" for i in range(30))
  scores = {
    name: Scores(
      ids,
      labels,
      (labels + rng.normal(0, spread, labels.shape)).astype(np.float32),
      "one view",
    )
    for name, spread in (
      ("spatial", 0.9),
      ("temporal", 0.7),
      ("average", 0.6),
      ("weighted", 0.5),
    )
  }
  values = {
    name: metrics.classification_metrics(s.logits, labels)
    for name, s in scores.items()
  }
  chosen = choose_examples(
    scores, fused="weighted", streams=["spatial", "temporal"], count=examples
  )
  rng = np.random.default_rng(0)
  return with_results(
    make_data(
      scores=scores,
      curves={"spatial": [r | {"map": 0.25} for r in make_curve()]},
      examples=[
        Example(
          video_id,
          tuple(np.flatnonzero(labels[ids.index(video_id)]).tolist()),
          *make_moments(rng),
        )
        for video_id in chosen
      ],
    ),
    videos=30,
    streams={k: values[k] for k in ("spatial", "temporal")},
    fusion={k: values[k] for k in ("average", "weighted")},
    left_out={"classes": [NAMES[-1]], "videos": 10},
  )


def make_curve():
  records = [
    {
      "step": step,
      "split": "train",
      "loss": 2 / (1 + step / 100),
      "accuracy": step / 2000,
      "learning_rate": 0.01,
    }
    for step in range(0, 1000, 2)
  ]
  return records + [
    {"step": 500, "split": "validation", "loss": 1.25, "accuracy": 0.4375}
  ]


def make_example(scores, video_id):
  rng = np.random.default_rng(0)
  return Example(
    video_id,
    int(scores.labels[scores.ids.index(video_id)]),
    *make_moments(rng),
    tuple(
      ClassMap(
        model,
        modality,
        int(scores.labels[scores.ids.index(video_id)]),
        rng.integers(0, 256, (24, 24, 3), np.uint8),
        rng.uniform(size=(2, 3)).astype(np.float32),
      )
      for model, modality in (("spatial", "rgb"), ("temporal", "flow"))
    ),
  )


def make_moments(rng, count=3):
  """Frames and flows."""
  frames = rng.integers(0, 256, (count, 30, 40, 3), np.uint8)
  flows = rng.normal(size=(count, 15, 20, 2)).astype(np.float32)
  return tuple(frames), tuple(flows)


def make_split(n, clips=30):
  return SplitFacts(
    by_class=np.full(n, clips // n),
    num_frames=np.arange(clips) + 50,
    fps=np.full(clips, 25.0),
    pixel_aspect=np.ones(clips),
    num_damaged=np.zeros(clips, int),
    height=np.full(clips, 128),
    width=np.where(np.arange(clips) < 3, 160, 170),
  )


def make_data(names=NAMES, per_class=10, num_examples=4, **changes):
  scores = make_scores(names, per_class)
  values = {
    name: metrics.classification_metrics(s.logits, s.labels)
    for name, s in scores.items()
  }
  chosen = choose_examples(
    scores,
    fused="weighted",
    streams=["spatial", "temporal"],
    count=num_examples,
  )
  data = ReportData(
    title="Two streams",
    results={
      "dataset": "synthetic",
      "split": "test",
      "protocols": {"spatial": "one view", "temporal": "one view"},
      "videos": len(scores["spatial"].ids),
      "skipped": 3,
      "streams": {k: values[k] for k in ("spatial", "temporal")},
      "fusion": {k: values[k] for k in ("average", "weighted")},
      "subsets": [],
    },
    class_names=names,
    scores=scores,
    curves={"spatial": make_curve(), "temporal": make_curve()},
    examples=[make_example(scores["spatial"], i) for i in chosen],
    unmapped={},
    splits={"train": make_split(len(names)), "test": make_split(len(names))},
    rejected=[
      {
        "video_id": f"bad-{i}",
        "split": "train",
        "label": "teal·rise",
        "reason": ("no frames", "too short")[i % 2],
      }
      for i in range(5)
    ],
    note="Ceilings are known.",
    notes={"Fusion weights": "spatial 1, temporal 1.5"},
    config_json='{"seed": 0}',
    environment={"jax": "0.10.2"},
  )
  return dataclasses.replace(data, **changes)


def with_results(data, **changes):
  return dataclasses.replace(data, results={**data.results, **changes})


def one_stream(data):
  streams = {"spatial": data.results["streams"]["spatial"]}
  data = with_results(data, streams=streams, fusion={})
  return dataclasses.replace(
    data,
    scores={"spatial": data.scores["spatial"]},
    examples=[dataclasses.replace(e, maps=e.maps[:1]) for e in data.examples],
  )


def percent(value):
  return f"{100 * value:.1f}%"


def test_page_is_sound_and_self_contained():
  page = Page(render_report(make_data()))
  for tag, attrs in page.tags:
    assert tag not in ("link", "iframe", "base")
    assert not (tag == "script" and "src" in attrs)
    for key in ("src", "href", "srcset", "xlink:href"):
      value = attrs.get(key) or "#"
      assert value.startswith(("data:image/", "#")), value
    if tag == "img":
      assert attrs["alt"] and attrs["width"] and attrs["height"]
    if attrs.get("role") == "img":
      assert attrs["aria-label"]
    if tag == "th":
      assert attrs["scope"] in ("row", "col")
  text = render_report(make_data())
  assert "@import" not in text and "url(" not in text
  assert "http://" not in text and "https://" not in text
  anchors = {a["href"][1:] for tag, a in page.tags if tag == "a"}
  assert anchors <= {a.get("id") for _, a in page.tags}
  assert page.words.count("Two streams") == 2  # <title> and <h1>.


def test_result_table_equals_the_results():
  data = make_data()
  rows = {row[0].split()[0]: row for row in Page(render_report(data)).tables[0]}
  everything = {**data.results["streams"], **data.results["fusion"]}
  best = {
    key: max(m[key] for m in everything.values())
    for key in ("top1", "top5", "mean_class_accuracy")
  }
  for name, values in everything.items():
    for cell, key in zip(rows[name][2:], best, strict=True):
      assert percent(values[key]) in cell
      assert ("★" in cell) == (values[key] == best[key])
      assert ("best" in cell) == (values[key] == best[key])
  assert rows["Chance"][2:] == ["16.7%", "83.3%", "16.7%"]


def test_chance_of_top_5_is_at_most_one():
  names = NAMES[:4]
  table = Page(render_report(make_data(names))).tables[0]
  assert table[-1][2:] == ["25.0%", "100.0%", "25.0%"]


@pytest.mark.parametrize(
  "fused, expected",
  [
    (0.75, "right on 75.0% of the test clips, 25.0 percentage points more"),
    (0.5, "Fusion gained nothing"),
    (0.4, "Fusion lost: its best rule, weighted, is right on 40.0%"),
  ],
)
def test_gain_in_words(fused, expected):
  data = make_data()
  metric = {"top5": 1.0, "mean_class_accuracy": 0.5}
  data = with_results(
    data,
    streams={
      "spatial": {"top1": 0.5, **metric},
      "temporal": {"top1": 0.3, **metric},
    },
    fusion={"weighted": {"top1": fused, **metric}},
  )
  words = Page(render_report(data)).words
  assert expected in words
  assert "spatial (50.0%)" in words


@pytest.mark.parametrize(
  "won, lost, verdict",
  [
    (5, 0, "no more than chance"),  # The exact sign test: p = 0.063.
    (6, 0, "more than chance"),  # p = 0.031.
    (20, 15, "no more than chance"),
    (2, 20, "more than chance"),
  ],
)
def test_changes_by_fusion_are_counted(won, lost, verdict):
  data = make_data()
  labels = data.scores["spatial"].labels
  before, after = np.ones((2, len(labels)), bool)
  before[:won] = False
  after[won : won + lost] = False

  def scores(right):
    logits = np.eye(6, dtype=np.float32)[np.where(right, labels, labels - 1)]
    return dataclasses.replace(data.scores["spatial"], logits=logits)

  metric = {"top1": 0.5, "top5": 1.0, "mean_class_accuracy": 0.5}
  data = with_results(
    data, streams={"spatial": metric}, fusion={"average": metric}
  )
  data = dataclasses.replace(
    data,
    scores={"spatial": scores(before), "average": scores(after)},
    examples=[],
  )
  words = Page(render_report(data)).words
  assert (
    f"corrects {won} clips that spatial gets wrong and spoils {lost} that"
    f" spatial gets right: {verdict} would explain"
  ) in words


def test_hostile_text_stays_text():
  names = (HOSTILE, *NAMES[1:])
  data = make_data(names)
  scores = {
    name: dataclasses.replace(s, ids=(HOSTILE, *s.ids[1:]))
    for name, s in data.scores.items()
  }
  metric = data.results["streams"]["spatial"]
  data = with_results(
    data,
    **dict.fromkeys(("dataset", "split"), HOSTILE),
    protocols={HOSTILE: HOSTILE, "temporal": "one view"},
    subsets=[{"stages": [HOSTILE, "temporal"], **metric}],
    streams={HOSTILE: metric, "temporal": metric},
    fusion={f"fused {HOSTILE}": {**metric, "top1": 0.9}},
  )
  data = dataclasses.replace(
    data,
    title=HOSTILE,
    scores={
      HOSTILE: scores["spatial"],
      "temporal": scores["temporal"],
      # With mistakes, so that the class is among the confused pairs.
      f"fused {HOSTILE}": scores["temporal"],
    },
    curves={HOSTILE: make_curve()},
    examples=[
      dataclasses.replace(
        example,
        maps=tuple(
          dataclasses.replace(found, model=model)
          for found, model in zip(
            example.maps, (HOSTILE, "temporal"), strict=True
          )
        ),
      )
      for example in [make_example(scores["spatial"], HOSTILE)]
    ],
    unmapped={HOSTILE: HOSTILE},
    splits={HOSTILE: make_split(6)},
    rejected=[dict.fromkeys(("video_id", "split", "label", "reason"), HOSTILE)],
    note=HOSTILE,
    notes={HOSTILE: HOSTILE},
    config_json=HOSTILE,
    environment={HOSTILE: HOSTILE},
  )
  text = render_report(data)
  assert "alert(&#34;1&#34;)" in text
  assert 'alert("1")' not in text
  page = Page(text)
  scripts = [attrs for tag, attrs in page.tags if tag == "script"]
  assert scripts == [{}]
  assert page.words.count(HOSTILE) > 20
  pairs = page.tables[-4]
  assert HOSTILE in [row[0] for row in pairs]
  assert HOSTILE in [row[1] for row in pairs]


def test_curves_show_the_last_values():
  page = Page(render_report(make_data()))
  charts = page.classed("chart")
  assert len(charts) == 4
  assert "validation 1.25" in charts[0]["aria-label"]
  assert "validation 43.8%" in charts[1]["aria-label"]
  for tag, attrs in page.tags:
    if tag == "polyline":
      points = [p.split(",") for p in attrs["points"].split()]
      assert len(points) <= 250
      x, y = np.array(points, float).T
      assert (np.diff(x) > 0).all()
      assert x.min() >= 42 and x.max() <= 346
      assert y.min() >= 30 and y.max() <= 182


def test_no_validation_curve():
  records = [r for r in make_curve() if r["split"] == "train"]
  page = Page(render_report(make_data(curves={"spatial": records})))
  assert "no validation was run" in page.words
  assert len(page.classed("chart")) == 2


@pytest.mark.parametrize("curves", [{}, {"spatial": []}])
def test_no_curves(curves):
  page = Page(render_report(make_data(curves=curves)))
  assert "No training curves were recorded." in page.words
  assert not page.classed("chart")


def test_diverged_training_is_said():
  records = [
    {"step": 1, "split": "train", "loss": 2.0, "accuracy": 0.1},
    {"step": 2, "split": "train", "loss": float("nan"), "accuracy": 0.1},
    {"step": 3, "split": "train", "loss": None, "accuracy": 0.1},
  ]
  text = render_report(make_data(curves={"spatial": records}))
  assert "2 values are not finite" in Page(text).words
  assert "nan" not in "".join(re.findall(r'points="[^"]*"', text))


def test_one_stream_without_fusion():
  page = Page(render_report(one_stream(make_data())))
  assert "No fusion was run." in page.words
  assert "Accuracy of each class, ordered by accuracy." in page.words
  assert "Most confused pairs of spatial" in page.words
  assert "Fusion right" not in page.words
  assert len(page.classed("card")) == 4
  assert len(page.classed("opinion")) == 4


def test_class_table_holds_the_recall_in_order_of_the_gain():
  data = make_data()
  page = Page(render_report(data))
  recall = [
    metrics.per_class_accuracy(
      metrics.confusion_matrix(s.logits, s.labels, len(NAMES))
    )
    for s in (data.scores[k] for k in ("spatial", "temporal", "weighted"))
  ]
  rows = page.tables[1][1:]
  assert sorted(row[0] for row in rows) == sorted(NAMES)
  for row in rows:
    i = NAMES.index(row[0])
    assert row[2:5] == [f"{r[i]:.0%}" for r in recall]
    assert row[5] == "10"
  gains = [(recall[1] - recall[0])[NAMES.index(row[0])] for row in rows]
  assert gains == sorted(gains, reverse=True)


def test_class_without_a_test_clip():
  data = make_data(examples=[])
  kept = data.scores["spatial"].labels != 2
  data = dataclasses.replace(
    data,
    scores={
      name: Scores(
        tuple(np.array(s.ids)[kept].tolist()),
        s.labels[kept],
        s.logits[kept],
        s.protocol,
      )
      for name, s in data.scores.items()
    },
  )
  text = render_report(data)
  page = Page(text)
  assert page.tables[1][-1] == [NAMES[2], "", "–", "–", "–", "0"]
  assert "1 of 6 classes have no test clip" in page.words
  assert "nan" not in page.words.lower()
  assert not re.search(r'="[^"]*\bnan\b', text)


def test_missing_metrics_are_dashes():
  data = make_data()
  fusion = {
    "weighted": {"top1": 0.9, "top5": float("nan")},
    "average": {"top1": 0.1, "top5": None, "mean_class_accuracy": 0.1},
  }
  table = Page(render_report(with_results(data, fusion=fusion))).tables[0]
  assert table[3][3:] == ["–", "–"]
  assert table[4][3] == "–"


def test_confusion_counts_are_printed_for_few_classes():
  data = make_data()
  text = render_report(data)
  heats = [a for a in Page(text).classed("heat") if "role" in a]
  assert len(heats) == 3
  confusion = metrics.confusion_matrix(
    data.scores["weighted"].logits, data.scores["weighted"].labels, 6
  )
  label = heats[2]["aria-label"]
  assert f"{np.trace(confusion)} of 60 clips on the diagonal" in label
  drawn = heatmap.heat_map(confusion, NAMES, label)
  assert drawn in text
  for true, guess in zip(*np.nonzero(confusion), strict=True):
    count = confusion[true, guess]
    share = count / 10
    pair = f"{NAMES[true]} → {NAMES[guess]}: {count} ({share:.0%})"
    assert f"<title>{pair}</title>" in drawn


def test_image_of_a_large_confusion_matrix_is_true():
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 3, (40, 40)) + 20 * np.eye(40, dtype=int)
  counts[7] = 0  # A class without a clip.
  drawn = heatmap.heat_map(counts, ["x"] * 40, "")
  code = re.search(r"base64,([^\"]+)", drawn)[1]
  image = cv2.imdecode(
    np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_UNCHANGED
  )
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  np.testing.assert_allclose((image[..., 3] / 255) ** 2, shares, atol=0.005)


def test_many_classes_stay_usable():
  names = tuple(f"Pretending to do thing {i}" for i in range(174))
  text = render_report(make_data(names, per_class=2))
  page = Page(text)
  top, bottom, full = page.tables[1:4]
  assert (len(top), len(bottom), len(full)) == (16, 16, 175)
  assert [r[0] for r in full[1:16]] == [r[0] for r in top[1:]]
  assert [r[0] for r in full[-15:]] == [r[0] for r in bottom[1:]]
  assert len(text) < 1_000_000
  assert not page.classed("on")  # No count is printed.


def test_ends_of_the_classes_do_not_overlap():
  names = tuple(f"c{i}" for i in range(41))
  data = make_data(names, per_class=2, examples=[])
  kept = data.scores["spatial"].labels < 20
  scores = {
    k: Scores(
      tuple(np.array(s.ids)[kept].tolist()), s.labels[kept], s.logits[kept], ""
    )
    for k, s in data.scores.items()
  }
  page = Page(render_report(dataclasses.replace(data, scores=scores)))
  top, bottom, full = page.tables[1:4]
  assert (len(top), len(bottom), len(full)) == (16, 6, 42)


def test_worst_pairs():
  confusion = np.array([[5, 3, 0], [1, 9, 0], [0, 4, 2]])
  assert worst_pairs(confusion) == [(2, 1), (0, 1), (1, 0)]
  assert worst_pairs(np.eye(3, dtype=int)) == []


def test_perfect_model_has_no_confused_pairs():
  data = make_data(examples=[])
  labels = data.scores["weighted"].labels
  perfect = dataclasses.replace(
    data.scores["weighted"], logits=np.eye(6, dtype=np.float32)[labels]
  )
  scores = {**data.scores, "weighted": perfect}
  page = Page(render_report(dataclasses.replace(data, scores=scores)))
  assert "There are none: every test clip is right." in page.words


def test_headline_of_a_multi_label_set():
  data = make_multi_label()
  page = Page(render_report(data))
  table = page.tables[0]
  assert table[0][2:] == ["Mean average precision", "Precision at 1"]
  rows = {row[0].split()[0]: row[2:] for row in table}
  everything = data.results["streams"] | data.results["fusion"]
  for name, values in everything.items():
    assert percent(values["map"]) in rows[name][0]
    assert percent(values["precision_at_1"]) in rows[name][1]
  # 30 labels over 5 classes shown by 30 clips; 1.5 of 6 a labelled clip.
  assert rows["Chance"] == ["20.0%", "25.0%"]
  reached = percent(everything["weighted"]["map"])
  assert f"weighted reaches a mean average precision of {reached}" in page.words
  assert "Judged by the top class alone, fusion corrects" in page.words
  assert "With 20 labelled test clips, precision at 1" in page.words
  assert f"what no test clip shows: {NAMES[-1]}." in page.words
  assert "leaves out clips without any class: 10." in page.words


def test_classes_of_a_multi_label_set():
  data = make_multi_label()
  page = Page(render_report(data))
  precision = [
    metrics.mean_average_precision(s.logits, s.labels).per_class
    for s in (data.scores[k] for k in ("spatial", "temporal", "weighted"))
  ]
  labels = data.scores["spatial"].labels
  rows = page.tables[1][1:]
  assert rows[-1] == [NAMES[-1], "", "–", "–", "–", "0"]
  for row in rows[:-1]:
    i = NAMES.index(row[0])
    assert row[2:5] == [f"{p[i]:.0%}" for p in precision]
    assert row[5] == str(labels[:, i].sum())
  assert "onfusion" not in page.words and "ccuracy" not in page.words
  assert "nan" not in page.words.lower()
  titles = [a["aria-label"].split(" over ")[0] for a in page.classed("chart")]
  assert titles == [
    f"spatial, {title}"
    for title in ("loss", "precision at 1", "mean average precision")
  ]


def test_gallery_of_a_multi_label_set():
  data = make_multi_label(examples=30)
  assert len(data.examples) == 20  # Clips without a class are left out.
  page = Page(render_report(data))
  verdicts, chances = [], []
  for example in data.examples:
    assert ", ".join(NAMES[i] for i in example.label) in page.words
    for name in ("spatial", "temporal", "weighted"):
      found = data.scores[name]
      logits = found.logits[found.ids.index(example.video_id)]
      verdicts.append(logits.argmax() in example.label)
      top = sorted(logits, reverse=True)[:3]
      chances += [f"{1 / (1 + np.exp(-logit)):.0%}" for logit in top]
  assert [sign == "✓" for sign in re.findall("[✓✗]", page.words)] == verdicts
  assert set(verdicts) == {True, False}
  shown = [text for text in page.text if re.fullmatch(r"\d+%", text)]
  assert [text for text in shown if text in chances][-len(chances) :] == chances
  marked = [a for tag, a in page.tags if tag == "li" and a.get("class")]
  assert len(marked) > len(data.examples)


def test_example_without_a_class_is_wrong_of_every_model():
  data = make_multi_label()
  bare = dataclasses.replace(data.examples[0], video_id="clip-0000", label=())
  page = Page(render_report(dataclasses.replace(data, examples=[bare])))
  assert "no class" in page.words
  assert re.findall("[✓✗]", page.words) == ["✗"] * 3


def test_each_protocol_is_named_once_with_its_stages():
  data = make_data()
  words = Page(render_report(data)).words
  assert "Test protocol: one view." in words
  protocols = {"spatial": "one view", "temporal": "two", "lstm": "one view"}
  words = Page(render_report(with_results(data, protocols=protocols))).words
  assert "Test protocol of spatial, lstm: one view." in words
  assert "Test protocol of temporal: two." in words


@pytest.mark.parametrize("count, said", [(4, "All 4"), (26, "The best 15 of")])
def test_subsets_are_shown_up_to_15(count, said):
  data = make_data()
  assert "worth fusing" not in Page(render_report(data)).words
  subsets = [
    {
      "stages": ["spatial", f"s{i}"],
      "top1": 0.9 - i / 100,
      "top5": 1.0,
      "mean_class_accuracy": 0.5,
    }
    for i in range(count)
  ]
  page = Page(render_report(with_results(data, subsets=subsets)))
  assert said in page.words
  assert page.tables[1][1:] == [
    [f"spatial + s{i}", f"{90 - i:.1f}%", "100.0%", "50.0%"]
    for i in range(min(count, 15))
  ]


@pytest.mark.parametrize("streams, crowded", [(3, False), (4, True)])
def test_figures_of_many_models_get_lines_of_their_own(streams, crowded):
  data = make_data()
  names = [f"stream_{i}" for i in range(streams)]
  metric = data.results["streams"]["spatial"]
  data = with_results(data, streams=dict.fromkeys(names, metric))
  data = dataclasses.replace(
    data,
    scores=data.scores | dict.fromkeys(names, data.scores["spatial"]),
    examples=[dataclasses.replace(e, maps=()) for e in data.examples],
  )
  page = Page(render_report(data))
  assert bool(page.classed("crowded")) == crowded
  heads = page.tables[1][0]
  assert heads[2:-1] == [*names, "weighted"]


@pytest.mark.parametrize("count", [1, 5, 60])
def test_gallery_shows_every_example(count):
  data = make_data(num_examples=count)
  page = Page(render_report(data))
  assert len(data.examples) == count
  assert len(page.classed("card")) == count
  assert len(page.classed("opinion")) == 3 * count
  pictures = [a for tag, a in page.tags if tag == "img"]
  # Three frames, three fields and two maps of each; and the wheel.
  assert len(pictures) == 8 * count + 1
  for example in data.examples:
    assert example.video_id in page.words


def test_gallery_marks_right_and_wrong():
  data = make_data(num_examples=8)
  page = Page(render_report(data))
  verdicts = [
    s.logits[s.ids.index(e.video_id)].argmax() == e.label
    for e in data.examples
    for s in (data.scores[k] for k in ("spatial", "temporal", "weighted"))
  ]
  signs = re.findall("[✓✗]", page.words)
  assert [sign == "✓" for sign in signs] == verdicts
  assert set(verdicts) == {True, False}


def test_no_examples():
  page = Page(render_report(make_data(examples=[])))
  assert "No example clips were kept" in page.words
  assert not page.classed("card")


def test_flow_scale_fits_all_examples():
  data = make_data()
  still = [
    dataclasses.replace(e, flows=tuple(map(np.zeros_like, e.flows)))
    for e in data.examples
  ]
  page = Page(render_report(dataclasses.replace(data, examples=still)))
  assert "the rim moves at 1\N{NO-BREAK SPACE}px/frame" in " ".join(page.text)
  fast = [
    dataclasses.replace(e, flows=tuple(flow * 0 + 10 for flow in e.flows))
    for e in data.examples
  ]
  page = Page(render_report(dataclasses.replace(data, examples=fast)))
  assert "the rim moves at 15\N{NO-BREAK SPACE}px/frame" in " ".join(page.text)


def test_large_frames_are_shrunk():
  data = make_data(num_examples=1)
  (example,) = data.examples
  example = dataclasses.replace(
    example, frames=(np.full((1080, 1920, 3), 200, np.uint8),) * 3
  )
  text = render_report(dataclasses.replace(data, examples=[example]))
  pictures = [a for tag, a in Page(text).tags if tag == "img"][1:]
  assert (pictures[0]["width"], pictures[0]["height"]) == ("320", "180")
  image = cv2.imdecode(
    np.frombuffer(base64.b64decode(pictures[0]["src"].split(",")[1]), np.uint8),
    cv2.IMREAD_COLOR,
  )
  assert image.shape == (180, 320, 3)
  assert abs(image.astype(int) - 200).max() <= 2


def test_data_uri_keeps_red_red():
  image = np.zeros((4, 4, 3), np.uint8)
  image[..., 0] = 255
  code = plots.data_uri(image, ".png").split(",")[1]
  decoded = cv2.imdecode(
    np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_COLOR
  )
  assert decoded[0, 0].tolist() == [0, 0, 255]  # OpenCV's order: BGR.


def test_intervals_are_shown_where_there_are_any():
  data = make_data()
  page = Page(render_report(data))
  assert "95% confidence interval" not in page.words
  ends = {"top1": [0.612, 0.858], "top5": [1.0, 1.0]}
  data = with_results(
    data, intervals={"streams": {"spatial": ends}, "fusion": {"weighted": {}}}
  )
  page = Page(render_report(data))
  rows = {row[0].split()[0]: row for row in page.tables[0]}
  value = percent(data.results["streams"]["spatial"]["top1"])
  assert rows["spatial"][2].split() == [value, "61–86"]
  assert rows["spatial"][3].endswith("100–100")
  assert "–" not in "".join(rows["temporal"] + rows["weighted"])
  assert "95% confidence interval" in page.words
  assert "sampling error" not in page.words
  (left, right), *_ = [
    (a["x1"], a["x2"]) for a in page.classed("ends") if "x1" in a
  ]
  assert (left, right) == ("61.20%", "85.80%")


def test_what_helps_where_is_in_words():
  data = make_data()
  labels = data.scores["spatial"].labels

  def scores(right):
    hit = np.isin(labels, right)
    logits = np.eye(6, dtype=np.float32)[np.where(hit, labels, labels - 1)]
    return dataclasses.replace(data.scores["spatial"], logits=logits)

  data = dataclasses.replace(
    data,
    scores={
      "spatial": scores([0, 1]),
      "temporal": scores([1, 2, 3]),
      "average": scores([]),
      "weighted": scores([0, 1, 2, 3, 4]),
    },
  )
  page = render_report(data)
  found = page.split('<div class="helps">')[1].split("<h3>Every class")[0]
  motion, appearance, fusion = found.split("<h3>")[1:]
  for part, names in (
    (motion, [NAMES[2], NAMES[3]]),
    (appearance, [NAMES[0]]),
    (fusion, [NAMES[4]]),
  ):
    assert re.findall(r'"name">([^<]+)<', part) == names
    assert re.findall(r'"num">([^<]+)<', part) == ["+100"] * len(names)
  assert "Points of temporal over spatial" in motion
  assert "Points of spatial over temporal" in appearance


def test_orders_of_the_confusion_matrix():
  data = make_data()
  page = Page(render_report(data))
  (facts,) = [json.loads(a["data-facts"]) for a in page.classed("sorter")]
  assert facts["names"] == list(NAMES)
  given, by_name, accuracy, gain, together = facts["orders"]
  assert given == [0, 1, 2, 3, 4, 5]
  assert [NAMES[i] for i in by_name] == sorted(NAMES)
  recall = {
    name: metrics.per_class_accuracy(
      metrics.confusion_matrix(s.logits, s.labels, 6)
    )
    for name, s in data.scores.items()
  }
  assert (np.diff(recall["weighted"][accuracy]) <= 0).all()
  assert (np.diff((recall["temporal"] - recall["spatial"])[gain]) <= 0).all()
  assert sorted(together) == given
  for a, model in zip(
    (a for a in page.classed("heat") if "role" in a),
    ("spatial", "temporal", "weighted"),
    strict=True,
  ):
    s = data.scores[model]
    counts = np.zeros((6, 6), int)
    for true, guess, count in json.loads(a["data-cells"]):
      counts[true, guess] = count
    expected = metrics.confusion_matrix(s.logits, s.labels, 6)
    np.testing.assert_array_equal(counts, expected)


def test_confused_classes_stand_together():
  confusion = np.diag([10, 10, 10, 10, 10, 0])
  confusion[0, 3] = confusion[4, 1] = 8
  order = cluster(confusion)
  assert sorted(order) == list(range(6))
  place = np.argsort(order)
  assert abs(place[0] - place[3]) == abs(place[1] - place[4]) == 1


def test_data_is_summed_up():
  page = Page(render_report(make_data()))
  rows = {row[0]: row[1:] for t in page.tables for row in t}
  assert rows["Clips"] == ["30", "30"]
  assert rows["Classes with a clip"] == ["6 of 6"] * 2
  assert rows["Clips a class"] == ["5"] * 2
  assert rows["Frames a clip"] == ["64 (50 to 79)"] * 2
  assert rows["Seconds a clip"] == ["2.6 (2.0 to 3.2)"] * 2
  assert rows["Frames a second"] == ["25"] * 2
  assert rows["Frame size, pixels"] == ["170 × 128 (90%; 2 sizes)"] * 2
  assert rows["Video in all"] == ["1.3 min"] * 2
  empty = make_split(6, clips=0)
  page = Page(render_report(make_data(splits={"test": empty})))
  assert ["Frames a clip", "–"] in [row for t in page.tables for row in t]


def test_maps_name_the_answer_and_what_has_none():
  data = make_data()
  page = Page(render_report(data))
  assert "Grad-CAM" in page.words and "No maps" not in page.words
  (first, *_) = data.examples
  assert f"Where temporal finds {NAMES[first.label]} in {first.video_id}" in [
    a.get("alt") for _, a in page.tags
  ]
  bare = [dataclasses.replace(e, maps=()) for e in data.examples]
  page = Page(
    render_report(
      dataclasses.replace(
        data, examples=bare, unmapped={"a": "why", "b": "why", "c": "not"}
      )
    )
  )
  assert "No maps of a, b: why; c: not." in page.words
  assert "Grad-CAM" not in page.words


def test_map_of_an_unknown_model_is_refused():
  data = make_data()
  found = dataclasses.replace(data.examples[0].maps[0], model="other")
  example = dataclasses.replace(data.examples[0], maps=(found,))
  with pytest.raises(ValueError, match="map by 'other'"):
    render_report(dataclasses.replace(data, examples=[example]))
  with pytest.raises(ValueError, match="map by spatial.*must be finite"):
    bad = dataclasses.replace(
      data.examples[0].maps[0], heat=np.full((2, 2), np.nan)
    )
    dataclasses.replace(example, maps=(bad,))


def test_heat_is_where_the_map_is():
  image = np.full((40, 60, 3), 100, np.uint8)
  heat = np.zeros((2, 3), np.float32)
  heat[1, 2] = 7.0
  drawn = pictures.heat_over(image, heat, 60)
  assert drawn.shape == image.shape
  np.testing.assert_allclose(drawn[:15, :30], 220, atol=3)
  strength = np.abs(drawn.astype(int) - 220).sum(axis=2)
  y, x = np.unravel_index(strength.argmax(), strength.shape)
  assert y > 20 and x > 40
  none = pictures.heat_over(image, heat * 0, 60)
  assert (none == 220).all()
  # The brightest pixels of a dark frame stay white.
  image[0, 0], image[0, 1] = 255, 0
  none = pictures.heat_over(image, heat * 0, 60)
  assert none[0, 0].tolist() == [255] * 3 and none[0, 1].tolist() == [0] * 3


def test_cards_say_who_is_right():
  data = make_data(num_examples=8)
  for attrs, example in zip(
    Page(render_report(data)).classed("card"), data.examples, strict=True
  ):
    row = data.scores["spatial"].ids.index(example.video_id)
    judged = [
      int(data.scores[k].logits[row].argmax() == example.label)
      for k in ("spatial", "temporal", "weighted")
    ]
    assert attrs["data-right"] == "".join(map(str, judged))
    assert attrs["data-classes"] == str(example.label)
    kinds = {(1, 1): "agreed", (1, 0): "rescued", (0, 1): "broken"}
    right = judged[2], int(all(judged[:2]) if judged[2] else any(judged[:2]))
    assert attrs["data-kind"] == kinds.get(right, "wrong")


def test_page_of_many_classes_and_large_frames_is_small():
  """Noise is what JPEG compresses worst; six models, as a hybrid has."""
  rng = np.random.default_rng(0)
  frame = rng.integers(0, 256, (240, 426, 3), np.uint8)
  flow = rng.normal(size=(240, 426, 2)).astype(np.float32)
  heat = np.abs(flow[..., 0])
  side = pictures.longest_side(24 * 8)
  drawn = [
    np.round(pictures.shrink(frame, side)).astype(np.uint8),
    flow_to_rgb(pictures.shrink(flow, side), 1.0),
    pictures.heat_over(frame[:, :240], heat, side),
  ]
  names = tuple(f"Pretending to do thing {i}" for i in range(174))
  page = render_report(make_data(names, per_class=20, num_examples=0))
  size = sum(len(plots.data_uri(image, ".jpg")) for image in drawn)
  # Three frames, three fields, two maps.
  assert len(page) + 3 * 24 * size < 15_000_000


def test_more_pictures_are_smaller():
  sides = [pictures.longest_side(n) for n in (1, 192, 1000, 4000)]
  assert sides[0] == 320 and sides == sorted(sides, reverse=True)
  for side, n in zip(sides[1:], (192, 1000, 4000), strict=True):
    assert n * side**2 <= 10_000_000


def test_rejected_files_are_counted_by_reason():
  page = Page(render_report(make_data()))
  summary, files = page.tables[-2:]
  assert summary[1:] == [
    ["no frames", "train", "3"],
    ["too short", "train", "2"],
  ]
  assert [row[0] for row in files[1:]] == [f"bad-{i}" for i in range(5)]
  page = Page(render_report(make_data(rejected=[])))
  assert "Every file of the data set could be used." in page.words


@pytest.mark.parametrize(
  "low, high", [(0, 1), (0, 0), (0, 3.7), (0, 12345), (-2, 0.3), (0, 1e-7)]
)
def test_ticks_cover_the_range(low, high):
  ticks = plots.ticks(low, high)
  assert ticks[0] <= low and ticks[-1] >= high * 0.999
  assert 2 <= len(ticks) <= 8
  np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda d: with_results(d, streams={}), "no stream"),
    (
      lambda d: dataclasses.replace(d, class_names=NAMES[:-1]),
      "there are 5 class names",
    ),
    (
      lambda d: dataclasses.replace(d, scores={"spatial": d.scores["spatial"]}),
      r"no scores of \['temporal', 'weighted'\]",
    ),
    (
      lambda d: dataclasses.replace(
        d, examples=[dataclasses.replace(d.examples[0], video_id="other")]
      ),
      "'other' has label .*missing",
    ),
    (
      lambda d: dataclasses.replace(
        d, examples=[dataclasses.replace(d.examples[0], label=5)]
      ),
      "has label 5",
    ),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    render_report(change(make_data()))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"frames": [np.zeros((4, 4, 3), np.float32)] * 3}, "must be RGB uint8"),
    ({"frames": [np.zeros((4, 4), np.uint8)] * 3}, "must be RGB uint8"),
    ({"flows": [np.zeros((4, 4, 3), np.float32)] * 3}, r"must be \[h w 2\]"),
    ({"flows": [np.full((4, 4, 2), np.nan)] * 3}, "not finite"),
    ({"flows": [np.zeros((4, 4, 2))] * 2}, "as many frames as flows.*3 and 2"),
    ({"frames": (), "flows": ()}, "at least one"),
  ],
)
def test_bad_examples_are_refused(change, message):
  example = make_data().examples[0]
  with pytest.raises(ValueError, match=f"{example.video_id}.*{message}"):
    dataclasses.replace(example, **change)


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "run" / "report.html"
  data = make_data()
  write_report(path, data)
  assert path.read_text(encoding="utf-8") == render_report(data)
  assert list(path.parent.iterdir()) == [path]
  before = path.read_bytes()

  def fail(*args):
    raise OSError("disk full")

  monkeypatch.setattr("pathlib.Path.rename", fail)
  with pytest.raises(OSError, match="disk full"):
    write_report(path, dataclasses.replace(data, title="Another"))
  assert path.read_bytes() == before
  assert list(path.parent.iterdir()) == [path]


def outcomes(rows, fused="fused"):
  """Scores of two classes from strings such as "✓✗✓": streams, then fusion."""
  labels = np.array([i % 2 for i in range(len(rows))], np.int32)
  ids = tuple(f"v{i}" for i in range(len(rows)))
  return {
    name: Scores(
      ids,
      labels,
      np.eye(2)[
        [
          y if row[k] == "✓" else 1 - y
          for row, y in zip(rows, labels, strict=True)
        ]
      ],
      "",
    )
    for k, name in enumerate(("a", "b", fused))
  }


def choose(rows, count):
  return choose_examples(
    outcomes(rows), fused="fused", streams=["a", "b"], count=count
  )


def test_examples_mix_the_cases():
  rows = ["✓✓✓"] * 20 + ["✓✗✓"] * 6 + ["✗✓✓"] * 6 + ["✗✗✓"] * 6
  rows += ["✗✗✗"] * 6 + ["✓✗✗"] * 6
  chosen = [rows[int(i[1:])] for i in choose(rows, 12)]
  assert len(chosen) == 12
  assert chosen.count("✓✓✓") == 3
  assert [chosen.count(row) for row in ("✓✗✓", "✗✓✓", "✗✗✓")] == [1, 1, 1]
  assert chosen.count("✗✗✗") == chosen.count("✓✗✗") == 3


def test_examples_fill_up_from_what_there_is():
  rows = ["✓✓✓"] * 4 + ["✗✗✗"]
  assert sorted(choose(rows, 9)) == [f"v{i}" for i in range(5)]
  assert len(choose(rows, 3)) == 3
  assert choose(rows, 0) == []


def test_examples_are_spread_over_classes():
  scores = make_scores(NAMES)
  chosen = choose_examples(
    scores, fused="weighted", streams=["spatial", "temporal"], count=6
  )
  first = scores["spatial"]
  shown = [int(first.labels[first.ids.index(i)]) for i in chosen]
  assert len(set(chosen)) == 6
  assert len(set(shown)) >= 4


def test_examples_are_deterministic_and_ignore_the_order_of_others():
  scores = make_scores(NAMES)
  arguments = {
    "fused": "weighted",
    "streams": ["spatial", "temporal"],
    "count": 7,
  }
  expected = choose_examples(scores, **arguments)
  assert choose_examples(scores, **arguments) == expected
  back = scores["spatial"]
  turned = Scores(
    back.ids[::-1], back.labels[::-1], back.logits[::-1], back.protocol
  )
  scores = {**scores, "spatial": turned}
  assert choose_examples(scores, **arguments) == expected


def test_examples_of_a_single_stream():
  scores = make_scores(NAMES)
  chosen = choose_examples(
    scores, fused="spatial", streams=["spatial"], count=6
  )
  assert len(set(chosen)) == 6


def test_examples_of_different_videos_are_refused():
  scores = make_scores(NAMES)
  other = make_scores(NAMES, per_class=9)["temporal"]
  with pytest.raises(ScoresError, match="do not score the same videos"):
    choose_examples(
      {**scores, "temporal": other},
      fused="weighted",
      streams=["spatial", "temporal"],
      count=3,
    )
