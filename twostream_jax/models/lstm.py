"""LSTMs over the features of a clip's frames."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from twostream_jax.models.layers import Dropout, classifier

_OUTPUTS = ("last", "mean")


class LSTMClassifier(nn.Module):
  """Classifies a sequence of frame features (Wu et al. 2015, arXiv 1504.01561).

  The paper stacks two layers, of 1024 and of 512 units, on the features of a
  trained stream, and classifies the video from the last time step.

  Padding never changes a result: beyond a sequence's length the state is
  handed on as it is, and what is stored there gets no gradient.

  Fields:
    num_classes: number of classes n.
    source: name of the stream whose features are read.
    hidden_sizes: units of each layer, the first reads the features.
    output: what is classified: "last", the state after the whole sequence was
      read, or "mean", the mean state over its steps.
    bidirectional: in each layer, a second LSTM reads each sequence from its
      own end to its start; both states are concatenated.
    dropout_rate: between layers and before the classifier. A unit is dropped
      at all steps of a sequence or at none.
    dtype: compute dtype of the matrix products; the state and the parameters
      are always float32.
  """

  num_classes: int
  source: str
  hidden_sizes: tuple[int, ...] = (1024, 512)
  output: str = "last"
  bidirectional: bool = False
  dropout_rate: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, inputs: Mapping[str, Array], *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies sequences.

    Args:
      inputs: the source's features, float [b t d], and "length", int [b]: the
        steps of each that count, 1..t; what follows is padding.
      train: dropout on (needs a 'dropout' key).

    Returns:
      Logits [b n] float32 and the feature 'lstm' [b h]: what is classified,
      before dropout; h is the last hidden size, twice that if bidirectional.

    Raises:
      ValueError: an input is missing or of a wrong kind, or a field is wrong.
    """
    if self.output not in _OUTPUTS:
      raise ValueError(
        f"output must be one of {', '.join(_OUTPUTS)}, got {self.output!r}"
      )
    x, valid = read_frames(inputs, self.source)
    states, last = LSTMStack(
      self.hidden_sizes,
      bidirectional=self.bidirectional,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      name="lstm",
    )(x, valid, train=train)
    video = last if self.output == "last" else masked_mean(states, valid)
    dropout = Dropout(self.dropout_rate)
    logits = classifier(
      dropout(video, deterministic=not train), self.num_classes
    )
    return logits, {"lstm": video}


class LSTMStack(nn.Module):
  """Layers of LSTMs, each reading the states of the one before.

  Fields: as LSTMClassifier.
  """

  hidden_sizes: tuple[int, ...]
  bidirectional: bool
  dropout_rate: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Array, valid: Array, *, train: bool
  ) -> tuple[Array, Array]:
    """Maps x [b t d] and valid bool [b t] to states [b t h] and last [b h].

    The last state of a direction is the one after all its valid steps.

    Raises:
      ValueError: there is no layer.
    """
    if not self.hidden_sizes:
      raise ValueError("hidden_sizes needs at least one layer")
    dropout = Dropout(self.dropout_rate)
    for layer, size in enumerate(self.hidden_sizes, start=1):
      if layer > 1:
        ones = jnp.ones((x.shape[0], x.shape[2]), x.dtype)
        x = x * dropout(ones, deterministic=not train)[:, None]
      name = f"layer{layer}"
      x_of_layer = x
      x, last = LSTM(size, dtype=self.dtype, name=name)(x_of_layer, valid)
      if self.bidirectional:
        backward, first = LSTM(
          size, reverse=True, dtype=self.dtype, name=f"{name}_backward"
        )(x_of_layer, valid)
        x = jnp.concatenate([x, backward], axis=-1)
        last = jnp.concatenate([last, first], axis=-1)
    return x, last


class LSTM(nn.Module):
  """One layer (Hochreiter & Schmidhuber 1997, forget gates of Gers 2000).

    i, f, o = sigmoid(...),  g = tanh(...)  of  W x + U h + b
    c' = f * c + i * g
    h' = o * tanh(c')

  The state starts at zero and stays as it is where a step is not valid. The
  gates are stored in the order i, f, g, o. Each gate's U starts orthogonal;
  the forget gate's bias starts at 1 (Jozefowicz et al. 2015), so that the
  first gradients reach far back.

  Fields:
    size: units h.
    reverse: read from the last step to the first.
    dtype: compute dtype of the matrix products.
  """

  size: int
  reverse: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array) -> tuple[Array, Array]:
    """Maps x [b t d] and valid bool [b t] to states [b t h] and last [b h].

    The states of all steps, after each step, float32; and the state after the
    last step that is read.
    """
    # All steps at once; only U h has to wait for the step before.
    projected = nn.Dense(
      4 * self.size, dtype=self.dtype, bias_init=_forget_bias, name="input"
    )(x)
    scan = nn.scan(
      _Step,
      variable_broadcast="params",
      split_rngs={"params": False},
      in_axes=1,
      out_axes=1,
      reverse=self.reverse,
    )
    zeros = jnp.zeros((x.shape[0], self.size), jnp.float32)
    (_, last), states = scan(self.size, self.dtype, name="recurrent")(
      (zeros, zeros), projected, valid
    )
    return states, last


class _Step(nn.Module):
  size: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, carry, projected, valid):
    cell, hidden = carry
    kernel = self.param("kernel", _orthogonal, (self.size, 4 * self.size))
    gates = projected + hidden.astype(self.dtype) @ kernel.astype(self.dtype)
    i, f, g, o = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
    new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    new_hidden = nn.sigmoid(o) * jnp.tanh(new_cell)
    valid = valid[:, None]
    cell = jnp.where(valid, new_cell, cell)
    hidden = jnp.where(valid, new_hidden, hidden)
    return (cell, hidden), hidden


def _orthogonal(key, shape, dtype=jnp.float32):
  size = shape[0]
  gate = nn.initializers.orthogonal()
  keys = jax.random.split(key, 4)
  return jnp.concatenate([gate(k, (size, size), dtype) for k in keys], axis=1)


def _forget_bias(key, shape, dtype=jnp.float32):
  del key
  return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1.0)


def read_frames(
  inputs: Mapping[str, Array], source: str
) -> tuple[Array, Array]:
  """A source's features with zeros for padding, and which steps are valid.

  Args:
    inputs: the source's features, float [b t d], and "length", int [b].
    source: name of the stream.

  Returns:
    float [b t d] and bool [b t]. Padding of any value, also NaN, reaches
    neither results nor gradients.

  Raises:
    ValueError: an input is missing, or of a wrong rank, dtype or batch size.
  """
  missing = [name for name in (source, "length") if name not in inputs]
  if missing:
    raise ValueError(
      f"no input {', '.join(missing)}; the inputs are {', '.join(inputs)}"
    )
  x, length = inputs[source], inputs["length"]
  if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"features of {source} must be float [b t d], got {x.dtype} {x.shape}"
    )
  if length.shape != x.shape[:1]:
    raise ValueError(
      f"length has shape {length.shape}, but {source} has {x.shape[0]} clips"
    )
  valid = jnp.arange(x.shape[1])[None] < length[:, None]
  return jnp.where(valid[..., None], x, 0), valid


def masked_mean(x: Array, valid: Array) -> Array:
  """Mean over the valid steps: x [b t d] and valid bool [b t] to [b d].

  Without any valid step, as in a clip that only fills up a batch, it is zero.
  """
  total = jnp.where(valid[..., None], x, 0).sum(axis=1)
  count = jnp.maximum(valid.sum(axis=1), 1)
  return total / count[:, None].astype(x.dtype)
