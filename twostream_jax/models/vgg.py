"""VGG-11, VGG-16 and VGG-19, with or without batch norm."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from twostream_jax.models import kernels
from twostream_jax.models.layers import (
  Dropout,
  batch_norms,
  check_input,
  classifier,
  hidden_layers,
  scale_width,
)

_CHANNELS = (64, 128, 256, 512, 512)
_HIDDEN = (("fc6", 4096), ("fc7", 4096))


class VGG(nn.Module):
  """VGG (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1).

  Five stages of 3 x 3 convolutions, each stage ending in 2 x 2 max pooling,
  then two hidden layers of 4096 units. The map after the last pooling (7 x 7
  at 224 x 224 pixels) is flattened in the order h, w, c (PyTorch and Caffe
  flatten c, h, w: imported fc6 kernels must be permuted), so the size of fc6
  follows the input size. Parameter names are the paper's: conv1_1 ... fc7.

  Kernels are drawn after He et al. 2015 (fan-in), the classifier with a
  standard deviation of 0.01; biases are zero.

  Fields:
    num_classes: number of classes n.
    stage_sizes: number of convolutions of the five stages.
    use_batch_norm: batch norm between every convolution and its ReLU. The
      convolutions keep their bias, so that published weights fit.
    width: multiplies every channel and hidden unit count (at least 8 remain).
    dropout_rate: after fc6 and fc7; 0.5 in the paper.
    dtype: compute dtype; parameters are always float32.
    axis_name: the pmap axis, or None.
    sync_batch_norm: batch norm statistics over axis_name.
    fc7_dropout_rate: after fc7, where it is another than after fc6.
    partial_batch_norm: all but the first batch norm keep their statistics.
    conv: Convolution layer, with the fields of flax's.
    norm: Batch norm layer, with the fields of flax's.
    pool: Max pooling, called as `kernels.max_pool`.
  """

  num_classes: int
  stage_sizes: tuple[int, int, int, int, int]
  use_batch_norm: bool = False
  width: float = 1.0
  dropout_rate: float = 0.5
  dtype: DTypeLike = jnp.float32
  axis_name: str | None = None
  sync_batch_norm: bool = False
  partial_batch_norm: bool = False
  fc7_dropout_rate: float | None = None
  conv: Callable[..., nn.Module] = kernels.Conv
  norm: Callable[..., nn.Module] = kernels.BatchNorm
  pool: Callable[..., Array] = kernels.max_pool

  def __call__(
    self, x: Array, *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies images or stacks of flow fields.

    Args:
      x: [b h w c] float, normalised; any c, h and w of at least 64.
      train: dropout on (needs a 'dropout' key), batch norm by the batch.

    Returns:
      Logits [b n] float32 and the features 'conv' [b h' w' c'] (the last
      convolution after ReLU, before pooling), 'fc6' and 'fc7' [b 4096]
      (after ReLU, before dropout).

    Raises:
      ValueError: x has a wrong rank, dtype or size, or a field is wrong.
    """
    conv = self.trunk(x, train=train)
    logits, features = self.head(conv, train=train)
    return logits, {"conv": conv} | features

  @nn.compact
  def trunk(self, x: Array, *, train: bool) -> Array:
    """Maps x [b h w c] to the last convolution after ReLU [b h' w' c'].

    Raises:
      ValueError: x has a wrong rank, dtype or size, or a field is wrong.
    """
    check_input(x)
    first_norm, norm = batch_norms(
      self.norm,
      train=train,
      partial=self.partial_batch_norm,
      dtype=self.dtype,
      axis_name=self.axis_name,
      sync=self.sync_batch_norm,
    )
    for stage, size in enumerate(self.stage_sizes, start=1):
      if stage > 1:
        x = self.pool(x, 2, 2, ((0, 0), (0, 0)))
      for layer in range(1, size + 1):
        x = self.conv(
          scale_width(_CHANNELS[stage - 1], self.width),
          (3, 3),
          padding=1,
          dtype=self.dtype,
          kernel_init=nn.initializers.he_normal(),
          name=f"conv{stage}_{layer}",
        )(x)
        if self.use_batch_norm:
          bn = first_norm if (stage, layer) == (1, 1) else norm
          x = bn(name=f"bn{stage}_{layer}")(x)
        x = nn.relu(x)
    return x

  @nn.compact
  def embed(
    self, conv: Array, *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """What the classifier reads: the layers between trunk and logits.

    Args:
      conv: [b h' w' c'], the map of `trunk` or one in its place.
      train: dropout on.

    Returns:
      fc7 [b units] after dropout, and the features 'fc6' and 'fc7' before.
    """
    x = self.pool(conv, 2, 2, ((0, 0), (0, 0)))
    return hidden_layers(
      x.reshape(x.shape[0], -1),
      _HIDDEN,
      width=self.width,
      dropout=Dropout(self.dropout_rate),
      last_rate=self.fc7_dropout_rate,
      dtype=self.dtype,
      train=train,
    )

  @nn.compact
  def head(self, conv: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """Classifies a map [b h' w' c']: logits [b n] and the features of embed."""
    x, features = self.embed(conv, train=train)
    return classifier(x, self.num_classes), features


VGG11 = functools.partial(VGG, stage_sizes=(1, 1, 2, 2, 2))
VGG16 = functools.partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
VGG19 = functools.partial(VGG, stage_sizes=(2, 2, 4, 4, 4))
