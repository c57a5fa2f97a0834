"""Fusion joins by id and averages probabilities or logits."""

import numpy as np
import pytest

from twostream_jax import fuse
from twostream_jax.scores import Scores, ScoresError, sigmoid, softmax


def make_scores(seed, ids=("a", "b", "c", "d"), n=3):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(len(ids), n)).astype(np.float32) * 3
  return Scores(tuple(ids), np.arange(len(ids)) % n, logits, "1x1")


def test_weighted_is_the_mean_of_probabilities():
  one, two = make_scores(0), make_scores(1)
  fused = fuse.weighted({"s": one, "t": two}, (1, 2))
  expected = (softmax(one.logits) + 2 * softmax(two.logits)) / 3
  np.testing.assert_allclose(softmax(fused.logits), expected, rtol=1e-5)
  assert fused.protocol == "mean of class probabilities (s 1, t 2); 1x1"


def test_fusion_joins_by_id():
  one, two = make_scores(0), make_scores(1)
  order = [2, 0, 3, 1]
  shuffled = Scores(
    tuple(two.ids[i] for i in order),
    two.labels[order],
    two.logits[order],
    "1x1",
  )
  np.testing.assert_array_equal(
    fuse.average({"s": one, "t": shuffled}).logits,
    fuse.average({"s": one, "t": two}).logits,
  )


def test_differing_videos_are_refused():
  with pytest.raises(ScoresError, match="'d'.*'x'"):
    fuse.average({"s": make_scores(0), "t": make_scores(1, ids="abcx")})


@pytest.mark.parametrize("weights", [(1,), (0, 0), (-1, 2), (np.nan, 1)])
def test_weights_that_mean_nothing_are_refused(weights):
  with pytest.raises(ValueError, match="weights"):
    fuse.weighted({"s": make_scores(0), "t": make_scores(1)}, weights)


def test_a_zero_weight_leaves_the_other_stream():
  one, two = make_scores(0), make_scores(1)
  fused = fuse.weighted({"s": one, "t": two}, (0, 1))
  np.testing.assert_allclose(
    softmax(fused.logits), softmax(two.logits), rtol=1e-5
  )


def test_fitted_weights_find_the_stream_that_knows():
  labels = np.arange(30) % 3
  ids = tuple(str(i) for i in range(30))
  right = np.eye(3, dtype=np.float32)[labels] * 0.4
  wrong = np.eye(3, dtype=np.float32)[(labels + 1) % 3] * 3
  named = {
    "knows": Scores(ids, labels, right, ""),
    "misleads": Scores(ids, labels, wrong, ""),
  }
  weights = fuse.fit_weights(named)
  fused = fuse.weighted(named, weights)
  assert (fused.logits.argmax(axis=1) == labels).all()
  assert weights[0] > weights[1]


def test_equal_weights_win_where_nothing_speaks_against_them():
  labels = np.arange(6) % 3
  good = Scores(
    tuple("abcdef"), labels, 9 * np.eye(3, dtype=np.float32)[labels], ""
  )
  assert fuse.fit_weights({"s": good, "t": good}) == (0.5, 0.5)


def make_multi_label(seed):
  one = make_scores(seed)
  labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], bool)
  return Scores(one.ids, labels, one.logits, "1x1")


def test_multi_label_weighted_is_the_mean_of_sigmoids():
  one, two = make_multi_label(0), make_multi_label(1)
  fused = fuse.weighted({"s": one, "t": two}, (1, 2))
  expected = (sigmoid(one.logits) + 2 * sigmoid(two.logits)) / 3
  np.testing.assert_allclose(sigmoid(fused.logits), expected, rtol=1e-5)
  assert fused.multi_label


def test_the_average_of_one_multi_label_stream_is_itself_however_sure():
  one = make_multi_label(0)
  logits = np.array([[60, -60, 0]] * 4, np.float32)
  fused = fuse.average({"s": Scores(one.ids, one.labels, logits, "1x1")})
  np.testing.assert_allclose(fused.logits, logits, rtol=1e-6)


def test_average_of_logits_is_the_geometric_mean_of_probabilities():
  one, two = make_scores(0), make_scores(1)
  fused = fuse.average_logits({"s": one, "t": two})
  product = np.sqrt(softmax(one.logits) * softmax(two.logits))
  np.testing.assert_allclose(
    softmax(fused.logits),
    product / product.sum(axis=1, keepdims=True),
    rtol=1e-5,
  )
  assert fused.logits.dtype == np.float32
  assert fused.protocol == "mean of logits (s, t); 1x1"


def test_fitted_weights_of_a_multi_label_set_find_the_stream_that_knows():
  truth = make_multi_label(0)
  sign = np.where(truth.labels, 1, -1).astype(np.float32)
  named = {
    "knows": Scores(truth.ids, truth.labels, sign, ""),
    "misleads": Scores(truth.ids, truth.labels, -3 * sign, ""),
  }
  weights = fuse.fit_weights(named)
  assert weights[0] > weights[1]


def test_weights_whose_sum_is_beyond_all_numbers():
  named = {name: make_scores(seed) for name, seed in (("a", 0), ("b", 1))}
  huge = fuse.weighted(named, [1e308, 1e308])
  even = fuse.weighted(named, [1.0, 1.0])
  np.testing.assert_array_equal(huge.logits, even.logits)
