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


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Binary cross-entropy of multi-label examples, in nats.

  Args:
    logits: [b n].
    labels: float [b n]: 1 for each class of a clip, 0 for the others. A clip
      may have none.

  Returns:
    float32 [b]: the sum over classes, the negative log-likelihood of
    independent classes.
  """
  losses = optax.sigmoid_binary_cross_entropy(
    logits.astype(jnp.float32), labels
  )
  return losses.sum(axis=-1)
