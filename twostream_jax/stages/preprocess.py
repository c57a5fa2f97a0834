"""From what is stored to what networks read, on the device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from twostream_jax.flow import spec as flow_spec

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """uint8 batches to the network's input, on the device.

  What a batch marks is mirrored from left to right; of flow, x changes its
  sign. RGB becomes (x / 255 + shift - mean) / std; a training batch may have a
  shift of each sample's colours. Flow is de-quantised to pixels a frame; then,
  where asked for, each field loses its own mean vector (Simonyan & Zisserman
  2014, §3.1, "mean flow subtraction": camera motion); then it is divided by
  `flow_scale`.

  Attributes:
    rgb_mean: of each channel, in 0..1.
    rgb_std: of each channel, in 0..1.
    flow_bound: of the dataset's FlowSpec, pixels.
    flow_scale: pixels that become 1.
    subtract_mean_flow: whether fields lose their mean vector.
  """

  rgb_mean: tuple[float, float, float]
  rgb_std: tuple[float, float, float]
  flow_bound: float
  flow_scale: float
  subtract_mean_flow: bool

  def __call__(self, batch: Batch) -> dict[str, jax.Array]:
    """Maps codes to float32 [b ... h w c], by modality.

    Args:
      batch: "rgb" uint8 [b ... h w 3] and / or "flow" uint8 [b ... 2l h w],
        planes in the order x1 y1 x2 y2 ... And maybe "flip" bool [b], or of
        more of the leading axes, and "rgb_shift" float [b 3] for RGB in 0..1.
        Other keys are left out.
    """
    flip = batch.get("flip")
    inputs = {}
    if "rgb" in batch:
      # Of the rank of the images: ranks are never promoted silently.
      shape = (1,) * (batch["rgb"].ndim - 1) + (3,)
      mean = jnp.asarray(self.rgb_mean, jnp.float32).reshape(shape)
      std = jnp.asarray(self.rgb_std, jnp.float32).reshape(shape)
      rgb = batch["rgb"]
      if flip is not None:
        rgb = jnp.where(_to_rank(flip, rgb.ndim), rgb[..., ::-1, :], rgb)
      rgb = rgb.astype(jnp.float32) / 255.0
      if "rgb_shift" in batch:
        rgb = rgb + _for_every_pixel(batch["rgb_shift"], rgb.ndim)
      inputs["rgb"] = (rgb - mean) / std
    if "flow" in batch:
      codes = batch["flow"]
      if flip is not None:
        mirrored = flow_spec.flip_codes(codes)
        codes = jnp.where(_to_rank(flip, codes.ndim), mirrored, codes)
      codes = jnp.moveaxis(codes, -3, -1).astype(jnp.float32)
      flow = flow_spec.dequantise(codes, self.flow_bound)
      if self.subtract_mean_flow:
        flow = flow - flow.mean(axis=(-3, -2), keepdims=True)
      inputs["flow"] = flow / self.flow_scale
    return inputs


def _for_every_pixel(shift: jax.Array, ndim: int) -> jax.Array:
  """[b 3] to [b 1 ... 1 3], of the rank of the images."""
  ones = (1,) * (ndim - shift.ndim)
  return shift.reshape(shift.shape[:-1] + ones + shift.shape[-1:])


def _to_rank(flip: jax.Array, ndim: int) -> jax.Array:
  """[b ...] to [b ... 1 ... 1], of the rank of the images."""
  return flip.reshape(flip.shape + (1,) * (ndim - flip.ndim))


def standardise(
  batch: Batch, *, statistics: Mapping[str, tuple[Any, Any]]
) -> dict[str, jax.Array]:
  """Features to the input of a network: mean 0 and standard deviation 1.

  Features after a ReLU share a large mean, which fresh units handle badly.

  Args:
    batch: float [... d] by name, and "length", which stays.
    statistics: mean and standard deviation [d] by name. A feature that does
      not vary becomes 0.
  """
  inputs = {"length": batch["length"]}
  for name, (mean, std) in statistics.items():
    shape = (1,) * (batch[name].ndim - 1) + (-1,)
    scale = jnp.where(std > 1e-6, 1.0 / jnp.maximum(std, 1e-6), 0.0)
    centred = batch[name] - jnp.asarray(mean).reshape(shape)
    inputs[name] = centred * scale.reshape(shape)
  return inputs
