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


def multi_task_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  num_classes: int,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """Cross-entropy of two heads, each for the examples of its own dataset.

  Simonyan & Zisserman 2014 (1406.2199), section 2, "multi-task learning": the
  head of the other dataset gets no gradient from an example.

  Args:
    logits: [b n]: the first dataset's head, then the second's.
    labels: int [b]; those of the second dataset begin at `num_classes`.
    num_classes: of the first dataset.
    label_smoothing: probability mass spread over the own dataset's classes.

  Returns:
    float32 [b].
  """
  first = softmax_cross_entropy(
    logits[:, :num_classes], labels, label_smoothing
  )
  second = softmax_cross_entropy(
    logits[:, num_classes:], labels - num_classes, label_smoothing
  )
  return jnp.where(labels < num_classes, first, second)
