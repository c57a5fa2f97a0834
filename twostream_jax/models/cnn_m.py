"""CNN-M-2048, the network of the original two-stream paper."""

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
  local_response_normalisation,
  max_pool_ceil,
  scale_width,
)

# Name, channels, window, stride, padding, whether its input is pooled.
_CONVS = (
  ("conv1", 96, 7, 2, 0, False),
  ("conv2", 256, 5, 2, 1, True),
  ("conv3", 512, 3, 1, 1, True),
  ("conv4", 512, 3, 1, 1, False),
  ("conv5", 512, 3, 1, 1, False),
)
_HIDDEN = (("fc6", 4096), ("fc7", 2048))
_NORMALISATIONS = ("lrn", "batch", "none")


class CNNM(nn.Module):
  """CNN-M-2048 (Chatfield et al. 2014; Simonyan & Zisserman 2014, figure 1).

  Five convolutions and two hidden layers. The paper's text pools 3 x 3 with
  stride 2 and its figure 2 x 2; this is 3 x 3 with rounding up, as in the
  released model: maps of 224 -> 109 -> 54 -> 26 -> 13 -> 13 -> 6 pixels and
  18432 inputs to fc6. The map is flattened in the order h, w, c, so the size
  of fc6 follows the input size.

  Kernels are drawn after He et al. 2015 (fan-in), the classifier with a
  standard deviation of 0.01; biases are zero.

  Fields:
    num_classes: number of classes n.
    width: multiplies every channel and hidden unit count (at least 8 remain).
    dropout_rate: after fc6 and fc7. The paper trains its temporal net, and
      its spatial net where all layers are tuned, with 0.9.
    normalisation: 'lrn' (local response normalisation after the first two
      ReLUs, as in the paper), 'batch' (batch norm between every convolution
      and its ReLU instead) or 'none'.
    second_lrn: keep the LRN after conv2. The paper removes it in its temporal
      net, to save memory.
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
  width: float = 1.0
  dropout_rate: float = 0.9
  normalisation: str = "lrn"
  second_lrn: bool = True
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
      Logits [b n] float32 and the features 'conv' [b h' w' c'] (conv5 after
      ReLU, before pooling), 'fc6' [b 4096] and 'fc7' [b 2048] (after ReLU,
      before dropout).

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
    if self.normalisation not in _NORMALISATIONS:
      raise ValueError(
        f"normalisation must be one of {', '.join(_NORMALISATIONS)}, "
        f"got {self.normalisation!r}"
      )
    first_norm, norm = batch_norms(
      self.norm,
      train=train,
      partial=self.partial_batch_norm,
      dtype=self.dtype,
      axis_name=self.axis_name,
      sync=self.sync_batch_norm,
    )
    use_batch_norm = self.normalisation == "batch"
    for name, channels, window, stride, padding, pooled in _CONVS:
      if pooled:
        x = max_pool_ceil(x, pool=self.pool)
      x = self.conv(
        scale_width(channels, self.width),
        (window, window),
        strides=stride,
        padding=padding,
        use_bias=not use_batch_norm,  # Batch norm would subtract it again.
        dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(),
        name=name,
      )(x)
      if use_batch_norm:
        bn = first_norm if name == "conv1" else norm
        x = bn(name=name.replace("conv", "bn"))(x)
      x = nn.relu(x)
      if self._has_lrn(name):
        x = local_response_normalisation(x)
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
    x = max_pool_ceil(conv, pool=self.pool)
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

  def _has_lrn(self, name: str) -> bool:
    if self.normalisation != "lrn":
      return False
    return name == "conv1" or (name == "conv2" and self.second_lrn)
