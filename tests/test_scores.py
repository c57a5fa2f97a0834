"""Scores: what is saved is what is loaded; misfits are refused by name."""

import dataclasses

import numpy as np
import pytest

from twostream_jax.scores import (
  Scores,
  ScoresError,
  join,
  load_scores,
  save_scores,
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


def test_join_of_nothing_is_refused():
  with pytest.raises(ScoresError, match="no scores"):
    join({})
