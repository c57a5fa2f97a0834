"""ResNet-18, 34, 50, 101 and 152, version 1.5."""

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
  scale_width,
)


class BasicBlock(nn.Module):
  """Two 3 x 3 convolutions and a shortcut (He et al. 2016, figure 5 left).

  Fields:
    channels: channels of both convolutions and of the output.
    stride: of the first convolution and of the shortcut.
    conv, norm: constructors of a convolution without bias and of batch norm.
  """

  channels: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [b h w c] to [b h' w' channels], h' = ceil(h / stride)."""
    y = self.conv(
      self.channels, (3, 3), strides=self.stride, padding=1, name="conv1"
    )(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)
    y = self.norm(name="bn2", scale_init=nn.initializers.zeros)(y)
    return nn.relu(y + _shortcut(self, x, self.channels))


class BottleneckBlock(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolution (He et al. 2016, figure 5 right).

  The stride is in the 3 x 3 convolution ("version 1.5", as in torchvision),
  not in the first 1 x 1 convolution, which would skip three pixels of four.

  Fields: as BasicBlock; the output has 4 * channels.
  """

  channels: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [b h w c] to [b h' w' 4*channels], h' = ceil(h / stride)."""
    y = self.conv(self.channels, (1, 1), name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(
      self.channels, (3, 3), strides=self.stride, padding=1, name="conv2"
    )(y)
    y = nn.relu(self.norm(name="bn2")(y))
    y = self.conv(4 * self.channels, (1, 1), name="conv3")(y)
    y = self.norm(name="bn3", scale_init=nn.initializers.zeros)(y)
    return nn.relu(y + _shortcut(self, x, 4 * self.channels))


def _shortcut(
  block: BasicBlock | BottleneckBlock, x: Array, channels: int
) -> Array:
  if block.stride == 1 and x.shape[-1] == channels:
    return x
  x = block.conv(
    channels, (1, 1), strides=block.stride, name="downsample_conv"
  )(x)
  return block.norm(name="downsample_bn")(x)


class ResNet(nn.Module):
  """ResNet v1.5 (He et al. 2016, arXiv 1512.03385, table 1).

  Padding is symmetric, as in torchvision, so that its weights give the same
  numbers here. The last batch norm of every block starts with a scale of
  zero, so that every block starts as its shortcut (Goyal et al. 2017,
  arXiv 1706.02677, section 5.1). Convolutions are drawn after He et al. 2015
  (fan-out), the classifier with a standard deviation of 0.01.

  Fields:
    num_classes: number of classes n.
    stage_sizes: number of blocks of each stage (four in the paper).
    block: BasicBlock or BottleneckBlock.
    width: multiplies every channel count (at least 8 remain).
    dropout_rate: before the classifier; 0 in the paper.
    dtype: compute dtype; parameters are always float32.
    axis_name: the pmap axis, or None.
    sync_batch_norm: batch norm statistics over axis_name.
    partial_batch_norm: all but the first batch norm keep their statistics.
    conv: Convolution layer, with the fields of flax's.
    norm: Batch norm layer, with the fields of flax's.
    pool: Max pooling, called as `kernels.max_pool`.
  """

  num_classes: int
  stage_sizes: tuple[int, ...]
  block: type[BasicBlock] | type[BottleneckBlock]
  width: float = 1.0
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  axis_name: str | None = None
  sync_batch_norm: bool = False
  partial_batch_norm: bool = False
  conv: Callable[..., nn.Module] = kernels.Conv
  norm: Callable[..., nn.Module] = kernels.BatchNorm
  pool: Callable[..., Array] = kernels.max_pool

  def __call__(
    self, x: Array, *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies images or stacks of flow fields.

    Args:
      x: [b h w c] float, normalised; any c, h and w of at least 64.
      train: batch norm by the batch, dropout on (needs a 'dropout' key where
        the rate is not 0).

    Returns:
      Logits [b n] float32 and the features 'conv' [b h' w' c'] (the last
      stage; h' = ceil(h / 32)) and 'pool' [b c'] (its mean over all positions).

    Raises:
      ValueError: x has a wrong rank, dtype or size, or a field is wrong.
    """
    conv = self.trunk(x, train=train)
    logits, features = self.head(conv, train=train)
    return logits, {"conv": conv} | features

  @nn.compact
  def trunk(self, x: Array, *, train: bool) -> Array:
    """Maps x [b h w c] to the output of the last stage [b h' w' c'].

    Raises:
      ValueError: x has a wrong rank, dtype or size, or a field is wrong.
    """
    check_input(x)
    conv, first_norm, norm = self._layers(train)
    x = conv(
      scale_width(64, self.width), (7, 7), strides=2, padding=3, name="conv1"
    )(x)
    x = nn.relu(first_norm(name="bn1")(x))
    x = self.pool(x, 3, 2, ((1, 1), (1, 1)))
    for stage, size in enumerate(self.stage_sizes):
      for index in range(size):
        x = self.block(
          channels=scale_width(64 * 2**stage, self.width),
          stride=2 if stage > 0 and index == 0 else 1,
          conv=conv,
          norm=norm,
          name=f"layer{stage + 1}_{index}",
        )(x)
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
      'pool' [b c'] after dropout, and the feature 'pool' before.
    """
    pool = conv.mean(axis=(1, 2))
    dropout = Dropout(self.dropout_rate)
    return dropout(pool, deterministic=not train), {"pool": pool}

  @nn.compact
  def head(self, conv: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """Classifies a map [b h' w' c']: logits [b n] and the features of embed."""
    x, features = self.embed(conv, train=train)
    return classifier(x, self.num_classes), features

  def _layers(self, train: bool) -> tuple[Callable, Callable, Callable]:
    conv = functools.partial(
      self.conv,
      use_bias=False,
      # flax pads as SAME by default; a stride-2 SAME is not symmetric.
      padding=0,
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )
    first_norm, norm = batch_norms(
      self.norm,
      train=train,
      partial=self.partial_batch_norm,
      dtype=self.dtype,
      axis_name=self.axis_name,
      sync=self.sync_batch_norm,
    )
    return conv, first_norm, norm


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = functools.partial(
  ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock
)
ResNet101 = functools.partial(
  ResNet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock
)
ResNet152 = functools.partial(
  ResNet, stage_sizes=(3, 8, 36, 3), block=BottleneckBlock
)
