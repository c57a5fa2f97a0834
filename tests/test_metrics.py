"""Metrics: known answers, and agreement with scikit-learn."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from twostream_jax import metrics
from twostream_jax.metrics import intervals

LOGITS = np.array(
  [[0.9, 0.5, 0.1], [0.2, 0.7, 0.6], [0.8, 0.1, 0.3], [0.1, 0.2, 0.3]],
  np.float32,
)
LABELS = np.array([0, 2, 1, 2], np.int32)  # Ranks 1, 2, 3, 1.


@pytest.mark.parametrize("k, expected", [(1, 0.5), (2, 0.75), (3, 1), (9, 1)])
def test_top_k_known(k, expected):
  assert metrics.top_k_accuracy(LOGITS, LABELS, k) == expected


def test_confusion_known():
  confusion = metrics.confusion_matrix(LOGITS, LABELS, 3)
  assert confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
  recall = metrics.per_class_accuracy(confusion)
  np.testing.assert_array_equal(recall, [1, 0, 0.5])


def test_classification_metrics_known():
  assert metrics.classification_metrics(LOGITS, LABELS) == {
    "top1": 0.5,
    "top5": 1.0,
    "mean_class_accuracy": 0.5,
  }


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
  rng = np.random.default_rng(seed)
  n = 12
  labels = rng.integers(n, size=300)
  # Far from chance, so that a wrong k or axis would show.
  logits = rng.normal(size=(300, n)) + 1.5 * np.eye(n)[labels]
  for k in (1, 2, 5):
    expected = sklearn.metrics.top_k_accuracy_score(
      labels, logits, k=k, labels=range(n)
    )
    ours = metrics.top_k_accuracy(logits, labels, k)
    assert ours == pytest.approx(expected)
  guesses = logits.argmax(axis=1)
  np.testing.assert_array_equal(
    metrics.confusion_matrix(logits, labels, n),
    sklearn.metrics.confusion_matrix(labels, guesses, labels=range(n)),
  )
  ours = metrics.classification_metrics(logits, labels)
  assert ours["top1"] == pytest.approx((guesses == labels).mean())
  assert ours["mean_class_accuracy"] == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(labels, guesses)
  )


def test_class_without_an_example_is_left_out_of_the_mean():
  logits = np.eye(4)[[0, 1, 0, 0]]
  labels = np.array([0, 1, 1, 3])  # No clip of class 2.
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    recall = metrics.per_class_accuracy(
      metrics.confusion_matrix(logits, labels, 4)
    )
    result = metrics.classification_metrics(logits, labels)
  np.testing.assert_array_equal(recall, [1, 0.5, np.nan, 0])
  assert result["mean_class_accuracy"] == 0.5


def test_ties_count_against_the_model():
  logits = np.zeros((3, 4))
  labels = np.array([0, 1, 3])
  assert metrics.top_k_accuracy(logits, labels, 1) == 0
  assert np.diag(metrics.confusion_matrix(logits, labels, 4)).sum() == 0
  assert metrics.top_k_accuracy(logits, labels, 3) == 0
  assert metrics.top_k_accuracy(logits, labels, 4) == 1


def test_tie_below_the_label_does_not_matter():
  logits = np.array([[2.0, 1.0, 1.0]])
  assert metrics.top_k_accuracy(logits, np.array([0]), 1) == 1


def test_nan_never_counts_as_right():
  logits = np.array([[np.nan, 1.0, 0.0], [2.0, np.nan, 1.0]])
  assert metrics.top_k_accuracy(logits, np.array([0, 0]), 1) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_scores_are_refused(value):
  logits = LOGITS.copy()
  logits[2, 1] = value
  with pytest.raises(ValueError, match="1 rows of scores .* first 2"):
    metrics.classification_metrics(logits, LABELS)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused(label):
  labels = np.array([0, 1, 2, label])
  with pytest.raises(ValueError, match=f"labels run from .*{label}.*0-based"):
    metrics.classification_metrics(LOGITS, labels)


def test_no_examples_are_refused():
  with pytest.raises(ValueError, match="no examples"):
    metrics.classification_metrics(np.zeros((0, 3)), np.zeros(0, int))


def test_average_precision_known():
  """Positives at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3."""
  scores = np.array([0.9, 0.1, 0.7, 0.8, 0.3])
  positive = np.array([1, 0, 1, 0, 1], bool)
  assert metrics.average_precision(scores, positive) == pytest.approx(
    (1 + 2 / 3 + 3 / 4) / 3
  )


def test_average_precision_of_constant_scores_is_the_share_of_positives():
  positive = np.array([1, 0, 0, 1, 0], bool)
  assert metrics.average_precision(np.zeros(5), positive) == 0.4


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_against_scikit_learn(ties):
  rng = np.random.default_rng(0)
  labels = rng.random((200, 6)) < [0.5, 0.3, 0.1, 0.05, 0.9, 0.2]
  logits = rng.normal(size=(200, 6)) + labels
  if ties:
    logits = logits.round()
  expected = [
    sklearn.metrics.average_precision_score(labels[:, c], logits[:, c])
    for c in range(6)
  ]
  result = metrics.mean_average_precision(logits, labels)
  np.testing.assert_allclose(result.per_class, expected)
  assert result.mean == pytest.approx(np.mean(expected))
  assert result.left_out == ()
  order = rng.permutation(200)
  again = metrics.mean_average_precision(logits[order], labels[order])
  np.testing.assert_array_equal(again.per_class, result.per_class)


def test_classes_without_a_positive_are_left_out_and_said():
  labels = np.array([[1, 0, 0], [0, 0, 1]], bool)
  result = metrics.mean_average_precision(np.eye(3)[[0, 0]], labels)
  np.testing.assert_array_equal(result.per_class, [0.5, np.nan, 0.5])
  assert result.mean == 0.5
  assert result.left_out == (1,)
  with pytest.raises(ValueError, match="no class has a positive"):
    metrics.mean_average_precision(np.zeros((2, 3)), np.zeros((2, 3), bool))


def test_precision_at_1_known():
  logits = np.array([[3, 2, 1], [3, 2, 1], [3, 3, 1], [3, 3, 1], [3, 2, 1]])
  # Right, wrong, tied with a wrong one, tied but both right, without a label.
  labels = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
  assert metrics.precision_at_1(logits, labels) == 0.5
  assert np.isnan(metrics.precision_at_1(logits, np.zeros((5, 3))))
  assert metrics.precision_at_1(logits * np.nan, labels) == 0


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_classification_metrics_of_a_multi_label_set(dtype):
  logits = np.array([[2.0, 1.0], [0.0, 1.0]])
  labels = np.array([[1, 1], [1, 0]], dtype)
  # Class 0: both videos are of it, so 1. Class 1: its one video ties, so 1 / 2.
  assert metrics.classification_metrics(logits, labels) == {
    "map": 0.75,
    "precision_at_1": 0.5,
  }


def test_misfitting_multi_label_sets_are_refused():
  with pytest.raises(ValueError, match=r"\(4, 2\) do not fit .* \(4, 3\)"):
    metrics.classification_metrics(LOGITS, np.ones((4, 2), bool))
  logits = LOGITS.copy()
  logits[1, 0] = np.nan
  with pytest.raises(ValueError, match="1 rows of scores .* first 1"):
    metrics.classification_metrics(logits, np.ones((4, 3), bool))


@pytest.mark.parametrize("right, count", [(0, 1), (7, 10), (37, 37), (0, 60)])
def test_wilson_is_scipy_s(right, count):
  theirs = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
  np.testing.assert_allclose(intervals.wilson(right, count), theirs, atol=1e-12)


@pytest.mark.parametrize("right", [0, 1, 20, 39, 40])
def test_no_interval_is_without_width(right):
  """Eight classes of five videos; also where all are right, or none."""
  labels = np.repeat(np.arange(8), 5)
  logits = np.eye(8)[np.where(np.arange(40) < right, labels, labels - 1)]
  found = metrics.classification_metrics(logits, labels)
  bounds = intervals.metric_intervals(logits, labels)
  assert list(bounds) == list(found)
  for name, (low, high) in bounds.items():
    assert 0 <= low <= found[name] <= high <= 1
    assert 0.05 < high - low < 0.35


def test_interval_of_the_mean_over_classes():
  """Of one class it is Wilson's; classes without a video play no part."""
  labels = np.zeros(20, int)
  logits = np.eye(3)[[0] * 13 + [1] * 7]
  bounds = intervals.metric_intervals(logits, labels)
  np.testing.assert_allclose(bounds["mean_class_accuracy"], bounds["top1"])
  np.testing.assert_allclose(bounds["top1"], intervals.wilson(13, 20))
  # Five classes or fewer: no video can be wrong.
  assert bounds["top5"] == (1.0, 1.0)


@pytest.mark.parametrize(
  "counts, truth",
  [
    ([30, 10, 20, 5], [0.9, 0.5, 0.97, 0.8]),
    ([37] * 101, [0.95] * 101),
    ([1] * 101, [0.5] * 101),
    ([3] * 10, [0.9] * 10),
  ],
)
def test_intervals_of_means_over_classes_cover(counts, truth):
  rng = np.random.default_rng(0)
  counts, truth = np.array(counts), np.array(truth)
  n = len(counts)
  found = []
  for right in rng.binomial(counts, truth, size=(1000, n)):
    confusion = np.diag(right) + np.roll(np.diag(counts - right), 1, axis=1)
    found.append(intervals._of_mean(confusion, 0.95))
  low, high = np.array(found).T
  assert 0.92 < np.mean((low <= truth.mean()) & (truth.mean() <= high)) < 0.99
  # Each end is passed about as often as the other.
  assert np.mean(high < truth.mean()) < 0.06
  assert np.mean(low > truth.mean()) < 0.06


def test_the_bootstrap_of_map_is_that_of_the_metric():
  rng = np.random.default_rng(3)
  # Rounded: many scores tie.
  logits = rng.normal(size=(30, 4)).round(1)
  labels = rng.random((30, 4)) < 0.3
  found = intervals.metric_intervals(logits, labels, resamples=40)
  rng = np.random.default_rng(0)
  rows = [rng.integers(30, size=30) for _ in range(40)]
  drawn = [metrics.classification_metrics(logits[r], labels[r]) for r in rows]
  expected = np.quantile([m["map"] for m in drawn], (0.025, 0.975))
  np.testing.assert_allclose(found["map"], expected, rtol=1e-12)
  labelled = labels.any(axis=1).sum()
  right = metrics.precision_at_1(logits, labels) * labelled
  np.testing.assert_allclose(
    found["precision_at_1"], intervals.wilson(right, labelled)
  )


def test_a_perfect_ranking_has_no_interval_of_map():
  labels = np.eye(3, dtype=bool)[np.arange(12) % 3]
  bounds = intervals.metric_intervals(
    labels.astype(float), labels, resamples=50
  )
  assert list(bounds) == ["precision_at_1"]
  assert bounds["precision_at_1"] == pytest.approx((0.757, 1.0), abs=1e-3)
