"""Networks that join the features of several streams."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from twostream_jax.models.layers import Dropout, classifier
from twostream_jax.models.lstm import LSTMStack, masked_mean, read_frames


class ConcatFusion(nn.Module):
  """A linear classifier on the concatenated mean features of the sources.

  The plainest fusion of features: it weighs them, but no feature of one source
  can change what a feature of another means.

  Fields:
    num_classes: number of classes n.
    sources: names of the streams whose features are read.
    dropout_rate: before the classifier.
    dtype: as other models have it; the classifier computes in float32.
  """

  num_classes: int
  sources: tuple[str, ...] = ("spatial", "temporal")
  dropout_rate: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, inputs: Mapping[str, Array], *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies clips.

    Args:
      inputs: each source's features, float [b t d] (t and d may differ), and
        "length", int [b]: the steps that count; what follows is padding.
      train: dropout on (needs a 'dropout' key).

    Returns:
      Logits [b n] float32 and the feature 'concat' [b sum(d)].

    Raises:
      ValueError: an input is missing or of a wrong kind.
    """
    x = jnp.concatenate(_means(inputs, self.sources), axis=-1)
    dropout = Dropout(self.dropout_rate)
    logits = classifier(dropout(x, deterministic=not train), self.num_classes)
    return logits, {"concat": x}


class RegularisedFusion(nn.Module):
  """The feature fusion network of Wu et al. 2015 (arXiv 1504.01561).

  The mean of each source's features over the frames passes a hidden layer of
  its own; one fusion layer reads all of these, then the classes are scored.

  The paper regularises the kernel of the fusion layer, here the parameter
  'fusion/kernel' [sources * hidden, hidden], by its l1 norm and by the sum of
  the l2 norms of its columns: a column holds all weights into one fused unit,
  from all sources. These norms have no gradient at zero; see
  `optim.proximal`. The sizes are the paper's as far as they are known.

  Fields:
    num_classes: number of classes n.
    sources: names of the streams whose features are read.
    hidden: units of each source's hidden layer and of the fusion layer.
    dropout_rate: after the hidden layers and after the fusion layer.
    dtype: compute dtype; parameters are always float32.
  """

  num_classes: int
  sources: tuple[str, ...] = ("spatial", "temporal")
  hidden: int = 200
  dropout_rate: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, inputs: Mapping[str, Array], *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies clips.

    Args:
      inputs: each source's features, float [b t d] (t and d may differ), and
        "length", int [b]: the steps that count; what follows is padding.
      train: dropout on (needs a 'dropout' key).

    Returns:
      Logits [b n] float32 and the feature 'fusion' [b hidden] (after ReLU,
      before dropout).

    Raises:
      ValueError: an input is missing or of a wrong kind.
    """
    dropout = Dropout(self.dropout_rate)
    means = _means(inputs, self.sources)
    x = jnp.concatenate(
      _hidden(means, self.sources, self.hidden, self.dtype), axis=-1
    )
    fused = _dense_relu(
      dropout(x, deterministic=not train), self.hidden, self.dtype, "fusion"
    )
    logits = classifier(
      dropout(fused, deterministic=not train), self.num_classes
    )
    return logits, {"fusion": fused}


class JointHybrid(nn.Module):
  """LSTMs and feature fusion under one classifier.

  Wu et al. 2015 (arXiv 1504.01561) train an LSTM on each source and a fusion
  network apart and combine their scores. Here all are trained together: the
  last state of each source's LSTM and the output of the fusion layer are
  concatenated and classified. The fusion layer reads the sum of the sources'
  hidden layers; its kernel is 'fusion/kernel' [hidden, hidden].

  Fields:
    num_classes: number of classes n.
    sources: names of the streams whose features are read.
    lstm_sizes: units of the layers of each source's LSTM.
    hidden: units of each source's hidden layer and of the fusion layer.
    dropout_rate: between the layers of an LSTM, after the sum and before the
      classifier.
    dtype: compute dtype; parameters are always float32.
  """

  num_classes: int
  sources: tuple[str, ...] = ("spatial", "temporal")
  lstm_sizes: tuple[int, ...] = (1024, 512)
  hidden: int = 200
  dropout_rate: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, inputs: Mapping[str, Array], *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies clips.

    Args:
      inputs: each source's features, float [b t d] (t and d may differ), and
        "length", int [b]: the steps that count; what follows is padding.
      train: dropout on (needs a 'dropout' key).

    Returns:
      Logits [b n] float32 and the features 'lstm_<source>' [b h] (the last
      state) and 'fusion' [b hidden] (after ReLU), all before dropout.

    Raises:
      ValueError: an input is missing or of a wrong kind.
    """
    dropout = Dropout(self.dropout_rate)
    means = _means(inputs, self.sources)
    features = {}
    for source in self.sources:
      _, features[f"lstm_{source}"] = LSTMStack(
        self.lstm_sizes,
        bidirectional=False,
        dropout_rate=self.dropout_rate,
        dtype=self.dtype,
        name=f"lstm_{source}",
      )(*read_frames(inputs, source), train=train)
    # There are always sources, so it is not the 0 that `sum` may return.
    x: Any = sum(_hidden(means, self.sources, self.hidden, self.dtype))
    features["fusion"] = _dense_relu(
      dropout(x, deterministic=not train), self.hidden, self.dtype, "fusion"
    )
    x = jnp.concatenate(list(features.values()), axis=-1)
    logits = classifier(dropout(x, deterministic=not train), self.num_classes)
    return logits, features


def _means(inputs: Mapping[str, Array], sources: Sequence[str]) -> list[Array]:
  if len(set(sources)) < max(1, len(sources)):
    raise ValueError(f"sources must be different names, got {tuple(sources)}")
  return [masked_mean(*read_frames(inputs, source)) for source in sources]


def _hidden(
  means: Sequence[Array], sources: Sequence[str], units: int, dtype: DTypeLike
) -> list[Array]:
  return [
    _dense_relu(mean, units, dtype, f"hidden_{source}")
    for source, mean in zip(sources, means, strict=True)
  ]


def _dense_relu(x: Array, units: int, dtype: DTypeLike, name: str) -> Array:
  # Never zeros: under ReLU, layers that start at zero stay there.
  return nn.relu(
    nn.Dense(
      units,
      dtype=dtype,
      kernel_init=nn.initializers.he_normal(),
      name=name,
    )(x)
  )
