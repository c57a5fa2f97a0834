"""Where in an image a network finds its answer: class activation maps."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def class_maps(
  variables: Mapping[str, Any],
  inputs: Mapping[str, Array],
  classes: Array,
  *,
  model: nn.Module,
) -> dict[str, Array]:
  """Grad-CAM of a class at the last convolutions.

  Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2: each channel of
  the last map is weighted by the mean gradient of the class's logit over its
  positions; the positive part of the weighted sum is evidence for the class.
  Where the network ends in a global mean and a linear layer, that is CAM (Zhou
  et al. 2016, arXiv 1512.04150, equation 2) divided by the number of positions,
  without its negative part.

  Args:
    variables: params and batch_stats of `model`.
    inputs: what `model` reads, by modality, float [b t h w c].
    classes: int [b], the class to be explained of each clip.
    model: a network that calls the `trunk` of one or more image networks:
      `models.stream.Stream` or `models.two_stream.TwoStream`, however fused.

  Returns:
    float32 [b t h' w'] >= 0 by the name of each image network in `model`
    ("backbone"; "spatial" and "temporal"), in units of the logit.

  Raises:
    ValueError: no image network is called.
  """

  def score(offsets):
    maps = {}
    logits = _apply(model, variables, inputs, offsets, maps)
    chosen = jnp.take_along_axis(logits, classes[:, None], axis=1)
    # Clips do not see each other, so the sum has the gradients of each.
    return chosen.sum(), maps

  def shapes():
    maps = {}
    _apply(model, variables, inputs, {}, maps)
    return maps

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(shapes)
  )
  if not zeros:
    raise ValueError(
      f"{type(model).__name__} calls no image network: it has no map to explain"
    )
  gradients, maps = jax.grad(score, has_aux=True)(zeros)
  b, t = next(iter(inputs.values())).shape[:2]
  return {
    name: _weighted(maps[name], gradients[name]).reshape(
      (b, t) + maps[name].shape[1:3]
    )
    for name in maps
  }


def _apply(model, variables, inputs, offsets, maps) -> Array:
  """Logits where `offsets` are added to the last maps, which go into `maps`."""

  def watch(function, args, kwargs, context):
    output = function(*args, **kwargs)
    if context.method_name != "trunk":
      return output
    name = context.module.name
    maps[name] = output
    return output + offsets[name] if name in offsets else output

  with nn.intercept_methods(watch):
    logits, _ = model.apply(variables, inputs, train=False)
  return logits


def _weighted(maps: Array, gradients: Array) -> Array:
  """Equations 1 and 2 on [k h w c]: [k h w], float32."""
  maps, gradients = maps.astype(jnp.float32), gradients.astype(jnp.float32)
  weights = gradients.mean(axis=(1, 2), keepdims=True)
  return nn.relu((weights * maps).sum(axis=-1))
