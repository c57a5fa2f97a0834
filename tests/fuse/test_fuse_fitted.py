"""Fitted fusion: what every rule promises, then the SVM and the subsets."""

import dataclasses
import functools

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from twostream_jax import fuse, metrics
from twostream_jax.fuse import fitting, linear
from twostream_jax.scores import (
  Scores,
  ScoresError,
  probabilities,
  softmax,
)

RULES = sorted(fuse.FITS)
# Two candidates a rule, where it does not matter how good the best is: all of
# them, by cross-validation, take seconds.
FEW = {
  "adaptive": {"lambdas": [(0.01, 1e-3), (1e-4, 0.0)]},
  "logistic": {"lambdas": [0.01, 1e-4]},
  "svm": {"costs": [0.1, 1.0]},
}


def reordered(scores, order):
  return Scores(
    tuple(scores.ids[i] for i in order),
    scores.labels[order],
    scores.logits[order],
    scores.protocol,
  )


def complementary(split, seed, per_class=12):
  """Stream "a" knows classes 0 to 4 of 10, "b" the others.

  Of what it does not know "a" is sure, and wrong; "b" is never sure.
  """
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(10), per_class).astype(np.int32)
  guess = np.where(labels < 5, labels, rng.integers(5, size=len(labels)))
  a = 6 * np.eye(10)[guess] + rng.normal(size=(len(labels), 10))
  b = 2.5 * np.eye(10)[labels] * (labels >= 5)[:, None]
  b += 0.5 * rng.normal(size=b.shape)
  ids = tuple(f"{split}{i:03d}" for i in range(len(labels)))
  return {
    name: Scores(ids, labels, logits.astype(np.float32), "25 x 10")
    for name, logits in (("a", a), ("b", b))
  }


def multi_label(split, seed, videos=80):
  """Four classes, several or none a video; "a" knows 0 and 1, "b" the rest."""
  rng = np.random.default_rng(seed)
  labels = rng.random((videos, 4)) < 0.3
  sign = np.where(labels, 2.0, -2.0)
  ids = tuple(f"{split}{i:03d}" for i in range(videos))
  knows = {"a": [1, 1, 0, 0], "b": [0, 0, 1, 1]}
  return {
    name: Scores(
      ids,
      labels,
      (sign * known + 2 * rng.normal(size=sign.shape)).astype(np.float32),
      "25 x 10",
    )
    for name, known in knows.items()
  }


@functools.cache
def fitted_on_validation(make):
  """Every rule's fit with its own candidates, which several tests read."""
  validation = make("v", 0)
  return {
    rule: fit(validation, split="validation") for rule, fit in fuse.FITS.items()
  }


@pytest.fixture(scope="module", params=["single", "multi"])
def kind(request):
  make = complementary if request.param == "single" else multi_label
  return make("v", 0), make("t", 1), fitted_on_validation(make)


def fit_few(rule, named):
  return fuse.FITS[rule](named, split="validation", **FEW.get(rule, {}))


def quality(scores):
  return fitting.quality(scores.logits, scores.labels)


@pytest.mark.parametrize(
  "rule",
  [pytest.param("adaptive", marks=pytest.mark.slow), "logistic", "svm"],
)
def test_learned_rules_beat_the_average(rule):
  test = complementary("t", 1)
  fitted = fitted_on_validation(complementary)[rule]
  assert quality(fuse.average(test)) < 0.75
  assert quality(fuse.apply(fitted, test)) > 0.9


def calibration_error(scores, bins=10):
  """Expected calibration error (Naeini et al. 2015) of the top answers.

  Of a multi-label set, of every class.
  """
  chances = probabilities(scores)
  if scores.multi_label:
    sure, true = chances.ravel(), scores.labels.ravel()
  else:
    sure, true = chances.max(axis=1), chances.argmax(axis=1) == scores.labels
  place = np.minimum((sure * bins).astype(int), bins - 1)
  gaps = [abs((sure - true)[place == i].sum()) for i in range(bins)]
  return sum(gaps) / len(sure)


@pytest.mark.parametrize("rule", RULES)
def test_probabilities_hold_true(kind, rule):
  """Before they were calibrated, errors were 0.18 to 0.7."""
  _, test, fitted = kind
  assert calibration_error(fuse.apply(fitted[rule], test)) < 0.13


@pytest.mark.parametrize("rule", ["fitted_weights", "svm", "logistic"])
def test_a_rule_that_is_always_right_is_sure_of_it(rule):
  """51 classes, all right: the top probability was 0.03."""
  validation, test = (
    {
      name: dataclasses.replace(
        s, logits=(2 * np.eye(51)[s.labels] + s.logits / 9).astype(np.float32)
      )
      for name, s in easy(split).items()
    }
    for split in ("v", "t")
  )
  fused = fuse.apply(fit_few(rule, validation), test)
  assert quality(fused) == 1
  assert probabilities(fused).max(axis=1).mean() > 0.9


def easy(split, per_class=2):
  rng = np.random.default_rng(len(split))
  labels = np.repeat(np.arange(51), per_class).astype(np.int32)
  ids = tuple(f"{split}{i:03d}" for i in range(len(labels)))
  return {
    name: Scores(ids, labels, rng.normal(size=(len(ids), 51)), "1x1")
    for name in ("a", "b")
  }


@pytest.mark.parametrize("videos", [2, 3, 5, 12])
@pytest.mark.parametrize("rule", RULES)
def test_small_fitting_sets_work(rule, videos):
  """Also where classes are missing, and others have one video."""
  whole = complementary("v", 0)
  rows = np.random.default_rng(1).permutation(120)[:videos]
  few = {name: reordered(s, rows) for name, s in whole.items()}
  fitted = fit_few(rule, few)
  fused = fuse.apply(fitted, complementary("t", 1))
  assert np.isfinite(fused.logits).all()
  assert 0 < fitted.scale < 1e4


@pytest.mark.parametrize("rule", RULES)
def test_shuffled_test_labels_change_no_score(kind, rule):
  _, test, fitted = kind
  order = np.random.default_rng(3).permutation(len(test["a"].ids))
  blind = {
    name: dataclasses.replace(s, labels=s.labels[order])
    for name, s in test.items()
  }
  fused = fuse.apply(fitted[rule], test)
  again = fuse.apply(fitted[rule], blind)
  np.testing.assert_array_equal(fused.logits, again.logits)
  assert (fused.labels != again.labels).any()


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_videos_in_files_plays_no_part(kind, rule):
  validation, test, _ = kind
  order = np.random.default_rng(4).permutation(len(validation["a"].ids))
  moved = {
    "a": reordered(validation["a"], order),
    "b": reordered(validation["b"], order[::-1]),
  }
  fitted = fit_few(rule, validation)
  fused = fuse.apply(fitted, test)
  again = fuse.apply(fit_few(rule, moved), test)
  np.testing.assert_array_equal(fused.logits, again.logits)
  other = fuse.apply(fitted, {"b": reordered(test["b"], order), "a": test["a"]})
  assert other.ids == test["a"].ids
  np.testing.assert_array_equal(fused.logits, other.logits)


@pytest.mark.parametrize("rule", RULES)
def test_what_it_was_fitted_on_is_said(kind, rule):
  validation, test, fitted = kind
  videos = len(validation["a"].ids)
  where = f"fitted on 'validation' ({videos} videos, 25 x 10)"
  assert fitted[rule].fitted_on in where
  assert where in fuse.apply(fitted[rule], test).protocol
  assert fitted[rule].streams == ("a", "b")


@pytest.mark.parametrize("rule", RULES)
def test_fused_scores_are_finite_and_of_the_test_videos(kind, rule):
  _, test, fitted = kind
  fused = fuse.apply(fitted[rule], test)
  assert fused.ids == test["a"].ids
  assert fused.logits.dtype == np.float32
  assert fused.logits.shape == test["a"].logits.shape
  np.testing.assert_array_equal(fused.labels, test["a"].labels)
  assert metrics.classification_metrics(fused.logits, fused.labels)


@pytest.mark.parametrize("rule", RULES)
def test_fused_multi_label_scores_are_better_than_either_stream(rule):
  test = multi_label("t", 1)
  fitted = fitted_on_validation(multi_label)[rule]
  alone = max(quality(s) for s in test.values())
  assert quality(fuse.apply(fitted, test)) > alone + 0.05


@pytest.mark.parametrize("rule", RULES)
def test_other_streams_are_refused(kind, rule):
  _, test, fitted = kind
  with pytest.raises(ScoresError, match=r"\['a', 'b'\], but is given \['a'\]"):
    fuse.apply(fitted[rule], {"a": test["a"]})
  with pytest.raises(ScoresError, match=r"given \['a', 'c'\]"):
    fuse.apply(fitted[rule], {"a": test["a"], "c": test["b"]})


@pytest.mark.parametrize("rule", RULES)
def test_differing_videos_are_refused(kind, rule):
  validation, test, fitted = kind
  fewer = reordered(test["b"], np.arange(1, len(test["b"].ids)))
  with pytest.raises(ScoresError, match="same videos"):
    fuse.apply(fitted[rule], {"a": test["a"], "b": fewer})
  with pytest.raises(ScoresError, match="same videos"):
    fuse.FITS[rule]({"a": validation["a"], "b": test["b"]}, split="x")


@pytest.mark.parametrize("rule", ["adaptive", "logistic", "svm"])
def test_other_classes_or_kinds_of_labels_are_refused(kind, rule):
  _, test, fitted = kind
  fewer = {
    name: Scores(
      s.ids, np.zeros(len(s.ids), np.int32), s.logits[:, :3], s.protocol
    )
    for name, s in test.items()
  }
  with pytest.raises(ScoresError, match="classes, but the scores have 3"):
    fuse.apply(fitted[rule], fewer)
  n = test["a"].logits.shape[1]
  if test["a"].multi_label:
    labels = np.zeros(len(test["a"].ids), np.int32)
  else:
    labels = np.eye(n, dtype=bool)[test["a"].labels]
  other = {k: dataclasses.replace(s, labels=labels) for k, s in test.items()}
  with pytest.raises(ScoresError, match="only one is multi-label"):
    fuse.apply(fitted[rule], other)


@pytest.mark.parametrize("rule", ["adaptive", "logistic", "svm"])
def test_a_class_absent_from_fitting_does_not_hurt_the_others(rule):
  validation, test = complementary("v", 0), complementary("t", 1)
  seen = np.flatnonzero(validation["a"].labels != 7)
  fewer = {name: reordered(s, seen) for name, s in validation.items()}
  fused = fuse.apply(fit_few(rule, fewer), test)
  assert np.isfinite(fused.logits).all()
  others = np.flatnonzero(test["a"].labels != 7)
  assert quality(reordered(fused, others)) > 0.9


@pytest.mark.parametrize("rule", ["adaptive", "logistic", "svm"])
def test_multi_label_classes_without_positives_stay_finite(rule):
  validation = {
    name: dataclasses.replace(
      s, labels=s.labels & np.array([True, True, True, False])
    )
    for name, s in multi_label("v", 0).items()
  }
  fitted = fit_few(rule, validation)
  fused = fuse.apply(fitted, multi_label("t", 1))
  assert np.isfinite(fused.logits).all()
  assert (fused.logits[:, 3] < 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_unusable_fitting_sets_are_refused(rule):
  fit = fuse.FITS[rule]
  whole = complementary("v", 0)
  one = {name: reordered(s, np.array([0])) for name, s in whole.items()}
  with pytest.raises(ScoresError, match="1 videos in 'val'.*at least 2"):
    fit(one, split="val")
  bare = {
    name: dataclasses.replace(s, labels=np.zeros_like(s.labels))
    for name, s in multi_label("v", 0).items()
  }
  with pytest.raises(ScoresError, match="no video of 'val' shows a class"):
    fit(bare, split="val")


def test_folds_are_stratified_runs():
  targets = np.eye(2)[[0] * 10 + [1] * 5]
  fold = fitting.assign_folds(targets, k=5)
  assert fold.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 1, 2, 3, 4, 0]
  # Without a class: a group of their own.
  assert set(fitting.assign_folds(np.zeros((5, 2)), k=5)) == set(range(5))


def test_small_classes_do_not_share_a_fold():
  assert sorted(fitting.assign_folds(np.eye(5), k=5)) == [0, 1, 2, 3, 4]


def test_choose_takes_the_first_among_equals_and_the_best():
  data = fitting.fitting_set(complementary("v", 0), "validation")

  def predict(candidate, seen, held_out):
    assert not (seen & held_out).any() and (seen | held_out).all()
    wrong = np.roll(data.targets[held_out], 1, axis=1)
    return data.targets[held_out] if candidate >= 2 else wrong

  chosen = fitting.choose([1, 2, 3], predict, data)
  assert (chosen.candidate, chosen.words) == (2, "by 5-fold cross-validation")
  assert fitting.choose([1], predict, data).words == "as given"


def test_svm_is_scikit_learn_s_on_unit_vectors():
  validation, test = complementary("v", 0), complementary("t", 1)
  fitted = fuse.fit_svm(validation, split="validation", costs=[1.0])

  def features(named):
    parts = [softmax(s.logits) for s in named.values()]
    return np.hstack([p / np.sqrt((p**2).sum(1))[:, None] for p in parts])

  reference = LinearSVC(C=1.0, dual=False)
  reference.fit(features(validation), validation["a"].labels)
  np.testing.assert_allclose(
    fuse.apply(fitted, test).logits / fitted.scale,
    reference.decision_function(features(test)),
    atol=1e-3,
  )
  assert fitted.rule == "linear SVM (C 1 as given)"


def test_svm_on_two_points_has_its_known_margin():
  """w = 2 a, b = 0 of points (+-1/2): hinge met with equality as C grows."""
  features = np.array([[0.5], [-0.5]])
  targets = np.array([[1.0, 0.0], [0.0, 1.0]])
  weights, bias = linear.one_vs_rest(features, targets, 1e6)
  np.testing.assert_allclose(weights, [[2, -2]], rtol=1e-3)
  np.testing.assert_allclose(bias, 0, atol=1e-6)


def test_svm_of_a_class_absent_or_everywhere_is_constant():
  features = np.array([[0.5], [-0.5], [0.1]])
  targets = np.array([[0.0, 1.0]] * 3)
  weights, bias = linear.one_vs_rest(features, targets, 1.0)
  assert not weights.any()
  assert bias.tolist() == [-1, 1]


def test_subset_table():
  named = complementary("t", 1) | {"copy": complementary("t", 1)["b"]}
  table = fuse.subset_table(named)
  assert len(table) == 7
  top1 = [row.metrics["top1"] for row in table]
  assert top1 == sorted(top1, reverse=True)
  rows = {row.streams: row.metrics for row in table}
  assert rows["a",] == metrics.classification_metrics(
    named["a"].logits, named["a"].labels
  )
  assert rows["a", "b"] == metrics.classification_metrics(
    fuse.average({"a": named["a"], "b": named["b"]}).logits, named["a"].labels
  )
  # Of equals the smaller first, then in the order given.
  order = [row.streams for row in table]
  assert order.index(("b",)) < order.index(("copy",))
  assert order.index(("copy",)) < order.index(("b", "copy"))


def test_subset_table_of_a_multi_label_set():
  table = fuse.subset_table(multi_label("t", 1))
  assert table[0].streams == ("a", "b")
  assert list(table[0].metrics) == ["map", "precision_at_1"]
