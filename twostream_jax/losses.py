"""Losses, per example: from logits, in float32."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """Cross-entropy of single-label examples, in nats.

  Args:
    logits: [b n]; never probabilities (a softmax before this one keeps the loss
      above log(e + n - 1) - 1).
    labels: int [b], 0-based.
    label_smoothing: probability mass spread over all classes, 0..1.

  Returns:
    float32 [b].
  """
  logits = logits.astype(jnp.float32)
  targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, label_smoothing)
  return optax.softmax_cross_entropy(logits, targets)
