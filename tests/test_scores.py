"""Scores: what is saved is what is loaded; misfits are refused by name."""

import dataclasses

import numpy as np
import pytest

from twostream_jax.scores import (
  Scores,
  ScoresError,
  join,
  load_scores,
  probabilities,
  protocols,
  save_scores,
  sigmoid,
  softmax,
)


def make_scores(ids=("a", "b", "c"), num_classes=4, seed=0):
  rng = np.random.default_rng(seed)
  return Scores(
    ids=tuple(ids),
    labels=np.arange(len(ids), dtype=np.int32) % num_classes,
    logits=rng.normal(size=(len(ids), num_classes)).astype(np.float32),
    protocol="25 views, mean of logits · 10 crops",
  )


@pytest.mark.parametrize("ids", [("a", "b/ü <1>", "a longer id"), ()])
def test_round_trip(tmp_path, ids):
  scores = make_scores(ids)
  path = tmp_path / "scores" / "spatial-test.npz"
  save_scores(path, scores)
  loaded = load_scores(path)
  assert loaded.ids == scores.ids
  assert loaded.protocol == scores.protocol
  assert loaded.labels.dtype == np.int32
  assert loaded.logits.dtype == np.float32
  np.testing.assert_array_equal(loaded.labels, scores.labels)
  np.testing.assert_array_equal(loaded.logits, scores.logits)
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def make_multi_label(ids=("a", "b", "c"), dtype=bool):
  scores = make_scores(ids)
  labels = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype)
  return dataclasses.replace(scores, labels=labels)


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32])
def test_round_trip_of_multi_label_scores(tmp_path, dtype):
  scores = make_multi_label(dtype=dtype)
  save_scores(tmp_path / "s.npz", scores)
  loaded = load_scores(tmp_path / "s.npz")
  assert loaded.labels.dtype == bool
  assert loaded.multi_label and not make_scores().multi_label
  np.testing.assert_array_equal(loaded.labels, scores.labels)
  np.testing.assert_array_equal(loaded.logits, scores.logits)


@pytest.mark.parametrize("value", [0.5, 2, -1, np.nan])
def test_multi_label_labels_are_zero_or_one(value):
  labels = np.full((3, 4), value)
  with pytest.raises(ScoresError, match=f"0 or 1, found {value}"):
    dataclasses.replace(make_scores(), labels=labels)


def test_failed_save_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch
):
  path = tmp_path / "s.npz"
  old = make_scores(seed=1)
  save_scores(path, old)

  def fail(file, **arrays):
    file.write(b"half an arch")
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez", fail)
  with pytest.raises(OSError, match="disk full"):
    save_scores(path, make_scores(seed=2))
  np.testing.assert_array_equal(load_scores(path).logits, old.logits)
  assert list(tmp_path.iterdir()) == [path]


def cut(path):
  path.write_bytes(path.read_bytes()[:-200])


def flip_a_byte_of_the_logits(path):
  content = bytearray(path.read_bytes())
  at = content.index(make_scores().logits.tobytes())
  content[at] ^= 255
  path.write_bytes(content)


def set_encryption_flag(path):
  content = bytearray(path.read_bytes())
  content[content.index(b"PK\x01\x02") + 8] |= 1
  path.write_bytes(content)


def drop_logits(path):
  np.savez(path, ids=np.array(["a"]), labels=np.zeros(1, np.int32))


def pickle_ids(path):
  np.savez(path, ids=np.array(["a", None], dtype=object))


def lone_array(path):
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))


DAMAGE = {
  "missing": lambda path: path.unlink(),
  "empty": lambda path: path.write_bytes(b""),
  "text": lambda path: path.write_text("not an archive"),
  "cut": cut,
  "flipped": flip_a_byte_of_the_logits,
  "encrypted": set_encryption_flag,
  "incomplete": drop_logits,
  "pickled": pickle_ids,
  "lone array": lone_array,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_is_named(tmp_path, damage):
  path = tmp_path / "spatial-test.npz"
  save_scores(path, make_scores())
  damage(path)
  with pytest.raises(ScoresError, match="spatial-test.npz can't be read"):
    load_scores(path)


@pytest.mark.parametrize(
  "change",
  [
    {"ids": ("a", "b")},
    {"labels": np.zeros(4, np.int32)},
    {"labels": np.zeros((3, 1), np.int32)},
    {"labels": np.zeros((2, 4), bool)},
    {"labels": np.zeros((2, 4), bool), "logits": np.zeros((2, 4))},
    {"logits": np.zeros((2, 4), np.float32)},
    {"logits": np.zeros(3, np.float32)},
    {"logits": np.zeros((3, 4, 1), np.float32)},
  ],
)
def test_misfitting_shapes_are_refused(change):
  with pytest.raises(ScoresError, match="do not belong together"):
    dataclasses.replace(make_scores(), **change)


def test_repeated_ids_are_refused():
  with pytest.raises(ScoresError, match="1 video ids occur twice"):
    make_scores(("a", "b", "a"))


def test_softmax():
  logits = np.array([[0, np.log(3)], [1000, 1000], [-1000, 0]], np.float32)
  expected = [[0.25, 0.75], [0.5, 0.5], [0, 1]]
  np.testing.assert_allclose(softmax(logits), expected, atol=1e-7)


def test_sigmoid():
  logits = np.array([[0, np.log(3)], [1000, -1000]], np.float32)
  expected = [[0.5, 0.75], [1, 0]]
  np.testing.assert_allclose(sigmoid(logits), expected, atol=1e-7)


def test_probabilities_are_of_the_kind_of_labels():
  single, multi = make_scores(), make_multi_label()
  np.testing.assert_array_equal(probabilities(single), softmax(single.logits))
  np.testing.assert_array_equal(probabilities(multi), sigmoid(multi.logits))


def test_join_takes_the_order_of_the_first():
  spatial = make_scores()
  order = [2, 0, 1]
  temporal = make_scores(seed=1)
  shuffled = Scores(
    tuple(temporal.ids[i] for i in order),
    temporal.labels[order],
    temporal.logits[order],
    "another protocol",
  )
  joined = join({"spatial": spatial, "temporal": shuffled})
  assert list(joined) == ["spatial", "temporal"]
  assert joined["temporal"].ids == spatial.ids
  assert joined["temporal"].protocol == "another protocol"
  np.testing.assert_array_equal(joined["temporal"].logits, temporal.logits)
  np.testing.assert_array_equal(joined["temporal"].labels, spatial.labels)
  np.testing.assert_array_equal(joined["spatial"].logits, spatial.logits)


def test_join_refuses_other_videos():
  named = {"spatial": make_scores("abcd"), "temporal": make_scores("abx")}
  with pytest.raises(ScoresError) as error:
    join(named)
  assert "2 only in 'spatial' ['c', 'd']" in str(error.value)
  assert "1 only in 'temporal' ['x']" in str(error.value)


def test_join_refuses_other_labels():
  first = make_scores()
  second = dataclasses.replace(first, labels=np.array([0, 3, 2], np.int32))
  with pytest.raises(ScoresError, match="1 videos, first 'b'"):
    join({"spatial": first, "temporal": second})


def test_join_refuses_another_number_of_classes():
  named = {"spatial": make_scores(), "temporal": make_scores(num_classes=5)}
  with pytest.raises(ScoresError, match="4 classes, 'temporal' has 5"):
    join(named)


def test_join_of_multi_label_scores():
  spatial = make_multi_label()
  order = [2, 0, 1]
  moved = Scores(
    tuple(spatial.ids[i] for i in order),
    spatial.labels[order],
    spatial.logits[order],
    "",
  )
  joined = join({"spatial": spatial, "temporal": moved})["temporal"]
  np.testing.assert_array_equal(joined.labels, spatial.labels)
  np.testing.assert_array_equal(joined.logits, spatial.logits)
  other = spatial.labels.copy()
  other[1, 2] = True
  wrong = dataclasses.replace(spatial, labels=other)
  with pytest.raises(ScoresError, match="1 videos, first 'b'"):
    join({"spatial": spatial, "temporal": wrong})


def test_join_refuses_two_kinds_of_labels():
  with pytest.raises(ScoresError, match="only one has multi-label labels"):
    join({"spatial": make_scores(), "temporal": make_multi_label()})


def test_join_of_nothing_is_refused():
  with pytest.raises(ScoresError, match="no scores"):
    join({})


def test_protocols_are_named_once():
  named = {
    name: dataclasses.replace(make_scores(), protocol=protocol)
    for name, protocol in (("s", "25 x 10"), ("t", "25 x 1"), ("u", "25 x 10"))
  }
  assert protocols(named) == "25 x 10; 25 x 1"
