"""Calibration: a scale, and an offset, by log loss."""

import numpy as np
import pytest
import scipy.special

from twostream_jax.fuse import calibration, fitting


def drawn(scale, offset, multi_label, videos=4000, n=5):
  """Scores of which scale * scores + offset are the true logits."""
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(videos, n))
  if multi_label:
    chances = scipy.special.expit(scale * scores + offset)
    return scores, (rng.random((videos, n)) < chances).astype(float)
  # The largest of logits with Gumbel noise is a draw from their softmax.
  noisy = scale * scores + rng.gumbel(size=scores.shape)
  return scores, np.eye(n)[noisy.argmax(axis=1)]


@pytest.mark.parametrize("scale", [0.3, 5.0])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 100.0])
def test_a_temperature_is_found(scale, unit):
  scores, targets = drawn(scale, 0.0, False)
  found = calibration.fit(unit * scores, targets, False)
  assert unit * found.scale == pytest.approx(scale, rel=0.1)
  assert found.offset == 0


def test_a_scale_and_an_offset_are_found_of_several_labels():
  scores, targets = drawn(2.0, -3.0, True)
  found = calibration.fit(scores, targets, True)
  assert found.scale == pytest.approx(2.0, rel=0.1)
  assert found.offset == pytest.approx(-3.0, rel=0.1)
  loss = np.logaddexp(0, 2 * scores - 3) - targets * (2 * scores - 3)
  assert found.losses.mean() == pytest.approx(loss.sum(axis=1).mean(), rel=0.02)


@pytest.mark.parametrize("videos", [2, 10, 1000])
def test_where_all_are_right_laplace_s_rule_holds(videos):
  targets = np.eye(3)[np.arange(videos) % 3]
  found = calibration.fit(targets - 0.5 * np.eye(3)[0], targets, False)
  logits = found.scale * (targets - 0.5 * np.eye(3)[0])
  sure = scipy.special.softmax(logits, axis=1).max(axis=1).mean()
  assert sure == pytest.approx((videos + 1) / (videos + 2), abs=0.06)


def test_scores_that_say_nothing_stay_in_their_order():
  scores = np.random.default_rng(0).normal(size=(30, 4))
  targets = np.eye(4)[scores.argmin(axis=1)]  # Worse than nothing.
  found = calibration.fit(scores, targets, False)
  assert found.scale > 0
  chances = scipy.special.softmax(found.scale * scores, axis=1)
  np.testing.assert_allclose(chances, 0.25, atol=0.01)
  np.testing.assert_array_equal(chances.argsort(axis=1), scores.argsort(axis=1))
  same = calibration.fit(np.zeros((30, 4)), targets, False)
  assert np.isfinite([same.scale, same.offset]).all()


def test_the_most_regularised_within_a_standard_error_is_taken():
  best = np.array([1.0, 2.0, 3.0, 4.0])
  hardly = best + [0.3, -0.2, 0.3, -0.2]
  clearly = best + [0.1, 0.1, 0.1, 0.2]
  assert fitting._most_regularised([clearly, hardly, best]) == 1
  assert fitting._most_regularised([clearly, best, hardly]) == 1
  assert fitting._most_regularised([best]) == 0
