"""Both streams in one network, trained end to end."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from twostream_jax.models.layers import classifier

FUSIONS = ("average", "concat", "sum", "max", "conv_concat", "conv")
_MODALITIES = ("rgb", "flow")


class TwoStream(nn.Module):
  """A spatial and a temporal network that are fused and trained together.

  Late fusion keeps both networks whole:

    average: the mean of their logits.
    concat: one classifier on what their own classifiers would read (fc7 of
      CNN-M and VGG, pool of ResNet), concatenated.

  Convolutional fusion (Feichtenhofer et al. 2016, arXiv 1604.06573, §3.1)
  joins the maps x^a, x^b of the last convolutions, pixel by pixel. The spatial
  network continues with the fused map; the temporal one ends there:

    sum: x^a + x^b.
    max: the larger of both.
    conv_concat: both, one after the other in channel. The next layer of the
      spatial network has twice the inputs, so published weights do not fit it.
    conv: conv_concat, then a 1 x 1 convolution back to the channels of one
      map. It starts as two identity matrices, that is, as the sum; training
      finds which channels correspond.

  The sum and the max presume that equal channels of both networks mean the
  same from the start. Several segments are classified one by one; their
  logits are averaged, as in `stream.Stream`.

  Attributes:
    spatial, temporal: backbones with the methods `trunk`, `embed` and `head`.
      Their parameters are named 'spatial/...' and 'temporal/...'.
    fusion: one of FUSIONS.
    dtype: compute dtype of the layers that fuse.
  """

  spatial: nn.Module
  temporal: nn.Module
  fusion: str = "average"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, inputs: Mapping[str, Array], *, train: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies clips.

    Args:
      inputs: "rgb" float [b t h w 3] and "flow" float [b t h w 2l].
      train: as the backbones.

    Returns:
      Logits [b n] float32 and features [b t ...]: those of the spatial and
      the temporal network as 'spatial_<name>' and 'temporal_<name>'; with
      convolutional fusion 'spatial_conv', 'temporal_conv', 'fused_conv' and
      'fused_<name>' of the layers that follow.

    Raises:
      ValueError: an input is missing, rgb and flow differ in b or t, the maps
        or the classes do not fit each other, or a field is wrong.
    """
    if self.fusion not in FUSIONS:
      raise ValueError(
        f"fusion must be one of {', '.join(FUSIONS)}, got {self.fusion!r}"
      )
    if self.spatial is self.temporal:
      raise ValueError(
        "spatial and temporal are the same module and would share their"
        " parameters: create one for each"
      )
    b, t = _batch_and_segments(inputs)
    rgb, flow = (
      inputs[name].reshape((b * t,) + inputs[name].shape[2:])
      for name in _MODALITIES
    )
    if self.fusion in ("average", "concat"):
      logits, features = self._late(rgb, flow, train)
    else:
      logits, features = self._convolutional(rgb, flow, train)
    features = {
      name: value.reshape((b, t) + value.shape[1:])
      for name, value in features.items()
    }
    return logits.reshape((b, t, -1)).mean(axis=1), features

  def _late(self, rgb, flow, train):
    outputs, features = [], {}
    for name, net, x in (
      ("spatial", self.spatial, rgb),
      ("temporal", self.temporal, flow),
    ):
      conv = net.trunk(x, train=train)
      finish = net.head if self.fusion == "average" else net.embed
      output, more = finish(conv, train=train)
      outputs.append(output)
      features |= _prefixed(name, {"conv": conv} | more)
    if self.fusion == "average":
      _check_classes(*outputs)
      return (outputs[0] + outputs[1]) / 2, features
    x = jnp.concatenate(outputs, axis=-1)
    return classifier(x, self.spatial.num_classes), features

  def _convolutional(self, rgb, flow, train):
    a = self.spatial.trunk(rgb, train=train)
    b = self.temporal.trunk(flow, train=train)
    fused = self._fuse(a, b)
    logits, features = self.spatial.head(fused, train=train)
    return logits, {
      "spatial_conv": a,
      "temporal_conv": b,
      "fused_conv": fused,
    } | _prefixed("fused", features)

  def _fuse(self, a: Array, b: Array) -> Array:
    _check_maps(a, b, same_channels=self.fusion != "conv_concat")
    if self.fusion == "sum":
      return a + b
    if self.fusion == "max":
      return jnp.maximum(a, b)
    both = jnp.concatenate([a, b], axis=-1)
    if self.fusion == "conv_concat":
      return both
    return nn.Conv(
      a.shape[-1],
      (1, 1),
      dtype=self.dtype,
      kernel_init=_stacked_identities,
      name="fusion",
    )(both)


def _stacked_identities(key, shape, dtype=jnp.float32):
  del key
  identity = jnp.eye(shape[-1], dtype=dtype)
  return jnp.concatenate([identity, identity]).reshape(shape)


def _batch_and_segments(inputs: Mapping[str, Array]) -> tuple[int, int]:
  missing = [name for name in _MODALITIES if name not in inputs]
  if missing:
    raise ValueError(
      f"no input {', '.join(missing)}; the inputs are {', '.join(inputs)}"
    )
  shapes = {name: inputs[name].shape for name in _MODALITIES}
  if any(len(shape) != 5 for shape in shapes.values()):
    raise ValueError(f"rgb and flow must be [b t h w c], got {shapes}")
  if shapes["rgb"][:2] != shapes["flow"][:2]:
    raise ValueError(
      f"rgb and flow must have as many clips b and segments t, got {shapes}"
    )
  b, t = shapes["rgb"][:2]
  return b, t


def _check_maps(a: Array, b: Array, *, same_channels: bool) -> None:
  if a.shape[1:3] != b.shape[1:3]:
    raise ValueError(
      f"the last maps are {a.shape[1]} x {a.shape[2]} (spatial) and"
      f" {b.shape[1]} x {b.shape[2]} (temporal): convolutional fusion joins"
      " them pixel by pixel; use backbones and image sizes with equal maps"
    )
  if same_channels and a.shape[-1] != b.shape[-1]:
    raise ValueError(
      f"the last maps have {a.shape[-1]} (spatial) and {b.shape[-1]}"
      " (temporal) channels: use equal backbones and widths, or conv_concat"
    )


def _check_classes(spatial: Array, temporal: Array) -> None:
  if spatial.shape != temporal.shape:
    raise ValueError(
      f"the spatial network has {spatial.shape[-1]} classes, the temporal one"
      f" {temporal.shape[-1]}: set num_classes of both to the same"
    )


def _prefixed(prefix: str, features: Mapping[str, Array]) -> dict[str, Array]:
  return {f"{prefix}_{name}": value for name, value in features.items()}
