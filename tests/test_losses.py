"""Cross-entropy against NumPy."""

import numpy as np
import pytest

from twostream_jax import losses, metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_formula(smoothing):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 4)).astype(np.float32) * 5
  labels = rng.integers(0, 4, 6)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  targets = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
  expected = -(targets * log_p).sum(axis=1)
  got = losses.softmax_cross_entropy(logits, labels, smoothing)
  np.testing.assert_allclose(got, expected, rtol=1e-4)
  if not smoothing:
    mean = metrics.cross_entropy(logits, labels)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-5)


def test_a_sure_and_right_model_reaches_zero():
  # A softmax before the loss would keep it above log(e + n - 1) - 1.
  logits = 100.0 * np.eye(174, dtype=np.float32)
  got = losses.softmax_cross_entropy(logits, np.arange(174))
  np.testing.assert_allclose(got, 0, atol=1e-6)


def test_large_logits_stay_finite():
  logits = np.array([[1e4, -1e4]], np.float32)
  got = losses.softmax_cross_entropy(logits, np.array([1]))
  np.testing.assert_allclose(got, 2e4)
