"""Score files of other programs: what is read, and what each refusal says."""

import base64
import io
import json
import pickle
import zipfile
import zlib

import numpy as np
import pytest

from twostream_jax import fuse, metrics, scores
from twostream_jax.files import limits
from twostream_jax.fuse import files, fitting, subsets, tables
from twostream_jax.scores import Scores, ScoresError

IDS = ("jump/a.mp4", "wave/b c.mp4", "wave/d.mp4")
LABELS = np.array([0, 1, 1])
PROBABILITIES = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
NAMES = ("jump", "wave")

# What pickle writes of mmaction2's results with tensors of torch 2: scores of
# two videos that are views of one storage.
TORCH_DUMP = """
eNrtlNlu00AUhu3YSVpDF3bK1kJZXJZAnTQLS1ugFCSzDje+QZbrDLGRa+e3J5WKFKk3rijP
wAPAIyBxlb4YM3WqUqmVyiUVY+mMdebXeM43//Fa7gMkvQtZtwYlSfKXW3biOW2KnKma6joU
a4CnW8wOnCUaQHVZFLteye4wP0g0O6ZLHT9o2oyGSRTbK4aGvN7XJHxyWlSzg8hp2h/jaNle
WmU00VBwbTdqUjfRaCheNBStEVmSemu53lct2PzV+7a4+XPiU+/727EST77a/KGIucuPao3y
87TjiEVuFNgrNE78KIQsJNYQXwp8xgJq07DpOyFyvS+WxrNstU3txP9MEyhdqLqV58nEi2KG
vJmzFFF6yFAwVUsVm0RhC0VT7XTEZ3WrKNRZOZCy8rSXXPO+XyJka5hLGpW6UauUy9Uaf+rI
9nXbHSim/JpBfSd247z3EstOiRPYNTBgFcRhHOaH0xhch0ZwJMVRgiFTMuUUwyKMbLicREBd
xkEk2pu4SWPaXPBdpmF0iuAYw3GCE1sY2nzFTtwopjjp5XWv4BWtyX8N/CL3E9uHfM1oVCu7
yRf2Jd8Xc/KFHehzgsZsP4gxn2VwyuM3cJrgTIqzBGP8BpQU58QNnN/wBOgLDBcJLu2Azlpm
fBv04XJ4rVo2DuzwLfFeDp8QUC8TXEkxSXA1s/U1Ea5nUG8w6ARTnS5u6l7OUzz1UOJsGEb9
wD+MTPwHzu0ZtwTO2wR3UpQI7mY474kwneE0GMoEFe9/9/9l988IslWCWoo6QcNURPffF2Qf
ZGQfMjwimPXGD6k/ZyqVg/tTiPfy55ygOE/wOMUTgqeZPxdEeJZRXGR4TvCiQ0u/AeCBa98=
"""


def logits_of(found):
  return scores.probabilities(found)


def check(found, multi_label=False):
  assert found.ids == IDS
  if not multi_label:
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, LABELS)
  assert found.logits.dtype == np.float32
  np.testing.assert_allclose(logits_of(found), PROBABILITIES, atol=1e-6)


def listing(tmp_path, text):
  path = tmp_path / "list.txt"
  path.write_text(text)
  return tables.read_listing(path)


def as_csv(header="id,label,jump,wave", labels=LABELS, values=PROBABILITIES):
  rows = [
    ",".join(map(str, (f'"{i}"', label, *row)))
    for i, label, row in zip(IDS, labels, np.array(values), strict=True)
  ]
  return "\r\n".join([header, *rows, ""])


def as_json(labels=(0, 1, 1), **more):
  videos = {
    i: {"label": label, "scores": row}
    for i, label, row in zip(IDS, labels, PROBABILITIES.tolist(), strict=True)
  }
  return json.dumps({"videos": videos} | more)


def as_dump(protocol=2, **more):
  results = [
    {"pred_score": row.astype("f4"), "gt_label": np.array([label])} | more
    for label, row in zip(LABELS, PROBABILITIES, strict=True)
  ]
  return pickle.dumps(results, protocol)


def as_npz(**changed):
  file = io.BytesIO()
  whole = {"ids": IDS, "labels": LABELS, "probabilities": PROBABILITIES}
  np.savez(file, **(whole | changed))
  return file.getvalue()


def as_npy(array):
  file = io.BytesIO()
  np.save(file, array, allow_pickle=True)
  return file.getvalue()


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_are_read(tmp_path, mark):
  path = tmp_path / "a.csv"
  path.write_bytes((mark + as_csv()).encode())
  check(files.read_file(path))
  assert files.read_file(path).class_names == NAMES


def test_json_is_read(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(as_json(class_names=NAMES, protocol="25x10"))
  found = files.read_file(path)
  check(found)
  assert (found.class_names, found.protocol) == (NAMES, "25x10")
  path.write_text(as_json())
  assert files.read_file(path).class_names == ()
  path.write_text(as_json(labels=([], [1], [0, 1])))
  found = files.read_file(path)
  np.testing.assert_array_equal(found.labels, [[0, 0], [0, 1], [1, 1]])
  check(found, multi_label=True)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_dumps_of_mmaction2_are_read(tmp_path, protocol):
  path = tmp_path / "a.pkl"
  path.write_bytes(as_dump(protocol))
  lines = "".join(f"{i} 100 {k}\n" for i, k in zip(IDS, LABELS, strict=True))
  check(files.read_file(path, listing(tmp_path, lines)))
  check(files.read_file(path, listing(tmp_path, "\n".join(IDS))))
  # Of versions before 1.0: no labels.
  rows = [np.array(row) for row in PROBABILITIES]
  path.write_bytes(pickle.dumps(rows, protocol))
  check(files.read_file(path, listing(tmp_path, lines)))
  named = [
    {"pred_scores": {"item": row}, "gt_labels": {"item": k}, "filename": i}
    for i, k, row in zip(IDS, LABELS, PROBABILITIES.tolist(), strict=True)
  ]
  path.write_bytes(pickle.dumps(named, protocol))
  check(files.read_file(path))


def test_tensors_in_dumps_are_read_without_torch(tmp_path):
  path = tmp_path / "a.pkl"
  path.write_bytes(zlib.decompress(base64.b64decode(TORCH_DUMP)))
  found = files.read_file(path, listing(tmp_path, "a 0\nb 1\n"))
  np.testing.assert_array_equal(found.labels, [0, 1])
  np.testing.assert_allclose(
    logits_of(found), [[0.5, 0.25, 0.25], [0, 0.75, 0.25]], atol=1e-6
  )


def test_plain_arrays_are_read_with_a_list(tmp_path):
  path = tmp_path / "a.npy"
  path.write_bytes(as_npy(PROBABILITIES))
  lines = "".join(f"{i} {k}\n" for i, k in zip(IDS, LABELS, strict=True))
  check(files.read_file(path, listing(tmp_path, lines)))
  path.write_bytes(as_npy(np.log(PROBABILITIES + 1e-9) + 7))
  check(files.read_file(path, listing(tmp_path, lines)))


def test_labels_may_be_floats_of_whole_numbers(tmp_path):
  path = tmp_path / "a.npz"
  path.write_bytes(as_npz(labels=LABELS.astype(float)))
  check(files.read_file(path))


OBJECTS = np.array([np.zeros(2), None, None], object)
HUGE = as_npy(np.zeros(4)).replace(b"(4,), }      ", b"(4000000000,)}")


class _ObjectScalar:
  """Pickled as a NumPy scalar of type object, which NumPy does not write."""

  def __reduce__(self):
    return np._core.multiarray.scalar, (np.dtype("O"), b"12345678")


REFUSED = {
  "labels.npz": (as_npz(labels=[0.5, 1.5, 1]), "whole numbers, found 0.5"),
  "nan.npz": (as_npz(labels=[0, np.nan, 1]), "whole numbers, found nan"),
  "text.npz": (as_npz(labels=["x", "y", "\x1b"]), "from 0, found 'x'"),
  "outside.npz": (as_npz(labels=[0, 1, 2]), "from 0 to 1, found 2"),
  "below.npz": (as_npz(labels=[0, -1, 0]), "found -1 for 'wave/b c.mp4'"),
  "large.npz": (as_npz(labels=[0, 2**32, 0]), "found 4294967296"),
  "both.npz": (
    as_npz(labels=[[0.5, 1], [0, 0], [0, 0]]),
    "whole numbers, found 0.5 for 'jump/a.mp4'",
  ),
  "infinite.npz": (
    as_npz(logits=[[1, 2], [np.inf, 1], [np.nan, 0]]),
    "2 videos are not finite, such as those of 'wave/b c.mp4'",
  ),
  "float32.npz": (as_npz(logits=[[1e300, 2], [1, 1], [1, 0]]), "not finite"),
  "twice.npz": (as_npz(ids=["a", "b", "a"]), "occur twice, such as 'a'"),
  "bytes.npz": (as_npz(ids=np.array([b"\xff", b"b", b"c"])), "not UTF-8"),
  "floats.npz": (as_npz(ids=[1.5, 2, 3]), "whole numbers, found '1.5'"),
  "names.npz": (as_npz(class_names=["a"]), "1 names for 2 classes"),
  "same.npz": (as_npz(class_names=["a", "a"]), "a class name occurs twice"),
  "complex.npz": (as_npz(logits=PROBABILITIES * 1j), "complex128"),
  "words.npz": (as_npz(logits=PROBABILITIES.astype(str)), "found '0.5'"),
  "empty.npz": (
    as_npz(ids=np.array([], str), labels=[], probabilities=np.zeros((0, 2))),
    "nothing to fuse: 0 videos, 2 classes",
  ),
  "objects.npz": (as_npz(ids=OBJECTS), "'ids' holds Python objects"),
  "objects.npy": (as_npy(OBJECTS), "the array holds Python objects"),
  "lone.npy": (as_npy(np.zeros(3)), r"shape \(3,\)"),
  "huge.npy": (HUGE, "cut off"),
  "header.npy": (HUGE.replace(b"'descr'", b"'nonse'"), "damaged header"),
  "cut.npz": (as_npz()[:-30], "a damaged or no .npz file"),
  "nothing.npz": (b"", "no score file of a known kind"),
  "a.csv": ("id;label;x;y\n", "a .csv file of scores has a header line"),
  "b.csv": (as_csv(labels=["wave", 0, 1]), "line 2: 'wave' is not a class"),
  "c.csv": (as_csv(labels=[0, 1.5, 1]), "found 1.5 for 'wave/b c.mp4'"),
  "d.csv": (as_csv() + "x,1\n", "line 5 has 2 columns, the header has 4"),
  "e.csv": (as_csv() + '"x,1,1,1\n', "line 5: unexpected end of data"),
  "f.csv": (as_csv() + ",1,1,1\n", "video 4 of 4 has no id"),
  "g.csv": (as_csv(values=PROBABILITIES * 0.9), "add up to 1 but for 0.1"),
  "h.csv": (as_csv().encode("utf-16"), "not text in UTF-8"),
  "i.csv": (as_csv("id,label,x,x"), "a class name occurs twice"),
  "j.csv": ("id,label,x\n", "0 videos, 1 classes"),
  "k.csv": (as_csv() + IDS[0] + ",0,0,1\n", "occur twice"),
  "a.json": ("[" * 100_000, "nested too deeply"),
  "b.json": ('{"a": [0.5]}', "a .json file of scores is"),
  "c.json": ("{", "not JSON"),
  "d.json": ('{"videos": {"a": 1, "a": 2}}', "'a' occurs twice"),
  "e.json": (as_json(labels=(0, 1, "wave")), "from 0 to 1, found 'wave'"),
  "f.json": (as_json(labels=(0, [1], 1)), "'jump/a.mp4' has one label, others"),
  "g.json": (as_json(labels=(0, 0.5, 1)), "found '0.5' for 'wave/b c.mp4'"),
  "h.json": (as_json(class_names=["x"]), "1 names for 2 classes"),
  "i.json": (as_json().replace("0.25, 0.75", "0.25"), "has 1 scores"),
  "j.json": (as_json().replace("0.25", "NaN"), "not finite"),
  "k.json": (as_json().replace("0.25", '"0"'), "are not a list of numbers"),
  "l.json": ('{"videos": {}}', "nothing to fuse"),
  "m.json": (as_json().replace("0.25", "1" * 5000), "not JSON"),
  "a.pkl": (as_dump(), "does not name its videos; give the list"),
  "b.pkl": (pickle.dumps({"a": 1}), "no list of results"),
  "c.pkl": (pickle.dumps([{"pred_score": [1.0]}]), "no 'gt_label'"),
  "d.pkl": (pickle.dumps([print, print]), "result 0 holds .* of numbers"),
  "e.pkl": (as_dump()[:-20], "it can't be read: damaged pickle"),
  "f.pkl": (pickle.dumps([[0.5, 0.5], [1.0]]), r"shape \(1,\)"),
  "g.pkl": (
    pickle.dumps([{"pred_score": [0.5, 0.5, 0], "gt_label": [0, 1]}]),
    "one class, or 0 or 1 for each of 3",
  ),
  # A memo of 2**28 places, and ten times ten references to each list.
  "memo.pkl": (b"\x80\x02}r\x00\x00\x00\x10.", "no list of results"),
  "nested.pkl": (
    b"\x80\x02]q\x00"
    + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(40))
    + b".",
    "result 0 holds list in place of numbers",
  ),
  "rows.pkl": (
    pickle.dumps([[1.0] * 1000] * 1000, 2),
    "it holds more numbers than bytes",
  ),
  "copies.pkl": (
    # A list of a thousand places, and 20,000 tuples of it.
    b"\x80\x02]q\x00("
    + b"N" * 1000
    + b"e0cbuiltins\ntuple\nq\x010"
    + b"h\x01h\x00\x85R" * 20_000
    + b".",
    "copy more than a file has use for",
  ),
  "object.pkl": (
    pickle.dumps([_ObjectScalar()]),
    "result 0 holds numpy.core.multiarray.scalar in place of numbers",
  ),
  "a.mat": ("MATLAB 5.0", "no score file of a known kind"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_is_one_sentence_with_the_file(tmp_path, name):
  content, words = REFUSED[name]
  path = tmp_path / name
  if isinstance(content, str):
    path.write_text(content)
  else:
    path.write_bytes(content)
  with pytest.raises(ScoresError, match=words) as refusal:
    files.read_file(path)
  said = str(refusal.value)
  assert said.startswith(f"{path}: ") and said.isprintable()
  assert "allow_pickle" not in said and "unsafe" not in said


@pytest.mark.parametrize(
  "text, words",
  [
    ("a 1\nb 1\nc 1\n", "2 labels are not those of .*first in line 1"),
    ("a 0\nb 1\n", "scores of 3 videos, but .*list.txt lists 2"),
    ("a 0\nb\nc 1\n", "list.txt, line 2: no label, but other lines have"),
    ("a 0\n\nc 1\n", "list.txt, line 2: a list of videos has"),
    ("", "list.txt: a list of videos has"),
  ],
)
def test_a_list_of_other_videos_is_refused(tmp_path, text, words):
  path = tmp_path / "a.pkl"
  content = pickle.loads(as_dump())
  content[0]["gt_label"] = np.array([0])
  content[2]["gt_label"] = np.array([0])
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(ScoresError, match=words):
    files.read_file(path, listing(tmp_path, text))


@pytest.mark.parametrize(
  "line, video_id, label",
  [
    ("a", "a", None),
    ("a b.mp4", "a b.mp4", None),
    ("a 1", "a", 1),
    ("a b 250 1 ", "a b", 1),
    ("250 1", "250", 1),
    ("250", "250", None),
  ],
)
def test_lines_of_lists(tmp_path, line, video_id, label):
  found = listing(tmp_path, f"{line}\r\n")
  assert found.ids == (video_id,)
  assert (found.labels is None) == (label is None)
  if label is not None:
    assert found.labels.tolist() == [label]


def test_an_archive_takes_no_more_memory_than_it_should(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, "_FREE", 1000)
  path = tmp_path / "a.npz"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("ids.npy", as_npy(np.zeros(200_000)))
  with pytest.raises(ScoresError, match="a.npz: its .* GiB of arrays"):
    files.read_file(path)


def test_files_of_one_stem_in_one_folder_are_all_read(tmp_path):
  for name, content in (("a.csv", as_csv()), ("a.json", as_json())):
    (tmp_path / name).write_text(content)
  found = files.read_files([str(tmp_path / "a.csv"), str(tmp_path / "a.json")])
  assert len(found) == 2


def named_scores(class_names, order, seed=0):
  """Scores of six videos whose columns are in an order."""
  labels = np.arange(6) % 3
  logits = np.random.default_rng(seed).normal(size=(6, 3)) + np.eye(3)[labels]
  return Scores(
    tuple("abcdef"),
    np.argsort(order)[labels].astype(np.int32),
    logits[:, order].astype(np.float32),
    "",
    tuple(class_names[i] for i in order),
  )


def test_classes_are_joined_by_name(tmp_path):
  first = named_scores("xyz", [0, 1, 2])
  other = named_scores("xyz", [2, 0, 1])
  assert not np.array_equal(first.labels, other.labels)
  moved = scores.join({"first": first, "other": other})["other"]
  assert moved.class_names == first.class_names
  np.testing.assert_array_equal(moved.labels, first.labels)
  np.testing.assert_array_equal(moved.logits, first.logits)
  fused = fuse.average({"first": first, "other": other})
  scores.save_scores(tmp_path / "s.npz", fused)
  assert scores.load_scores(tmp_path / "s.npz").class_names == ("x", "y", "z")
  third = named_scores("xyw", [0, 1, 2])
  with pytest.raises(ScoresError, match=r"'a' and 'c' .*\['z'\].*\['w'\]"):
    scores.join({"a": first, "c": third})
  with pytest.raises(ScoresError, match="'b' and 'c' do not have the same"):
    bare = Scores(first.ids, first.labels, first.logits, "")
    scores.join({"a": bare, "b": first, "c": third})


def test_weights_of_many_streams_are_fitted_in_few_steps(monkeypatch):
  rng = np.random.default_rng(0)
  labels = rng.integers(5, size=200).astype(np.int32)
  ids = tuple(map(str, range(200)))

  def stream(strength):
    logits = rng.normal(size=(200, 5)) + strength * np.eye(5)[labels]
    return Scores(ids, labels, logits.astype(np.float32), "")

  named = {f"s{i}": stream(0.3 * i) for i in range(8)}
  calls = []

  def count(fused, labels):
    calls.append(fused.shape)
    return metrics.top_k_accuracy(fused, labels, 1)

  monkeypatch.setattr(fitting, "quality", count)
  # Before the search: the grid of old had 214 million combinations.
  weights = fuse.fit_weights(named)
  assert len(calls) <= 1 + 10 * 8 * 10
  assert sum(weights) == pytest.approx(1) and min(weights) >= 0

  def quality(shares):
    return count(fuse.weighted(named, shares).logits, labels)

  assert quality(weights) >= quality([1] * 8)
  assert weights[7] > weights[0]
  same = {f"s{i}": named["s7"] for i in range(8)}
  assert fuse.fit_weights(same) == (1 / 8,) * 8


def test_a_table_of_subsets_stays_small():
  counts = [len(subsets._sizes(m)) for m in (1, 2, 8, 9, 30)]
  assert counts == [1, 2, 8, 4, 2]
  labels = np.arange(4) % 2
  one = Scores(tuple("abcd"), labels, np.eye(2, dtype="f4")[labels], "")
  named = {f"s{i}": one for i in range(12)}
  table = fuse.subset_table(named)
  assert len(table) == 12 + 66 + 1
  assert tuple(named) in [row.streams for row in table]


def test_rounding_makes_no_logits_of_probabilities(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text(
    "id,label,run,jump\na,0,1.0000001,0\nb,1,0.2,0.8\nc,1,1,-1e-9"
  )
  found = scores.probabilities(files.read_file(path))
  np.testing.assert_allclose(found[1], [0.2, 0.8], atol=1e-6)
  np.testing.assert_allclose(found[0], [1, 0], atol=1e-5)


def test_percentages_are_no_logits(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("id,label,run,jump\na,0,90,10\nb,1,20,80\n")
  with pytest.raises(
    scores.ScoresError, match="percentages: divide them by 100"
  ):
    files.read_file(path)
