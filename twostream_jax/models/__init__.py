"""The networks: backbones of the streams, and models of their features.

Every backbone is a flax module with the same call:

    logits, features = model.apply(variables, x, train=False)

x is [b h w c] float with any number of channels (3 for RGB, 2l for a stack of
l flow fields); logits are [b n] float32, without softmax; features is a dict
of named intermediates.

Models of features are called as stages are, with a dict of inputs: the features
[b t d] of each source by its name, and "length" int [b].
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from twostream_jax.models.cnn_m import CNNM
from twostream_jax.models.fusion import (
  ConcatFusion,
  JointHybrid,
  RegularisedFusion,
)
from twostream_jax.models.lstm import LSTMClassifier
from twostream_jax.models.resnet import (
  ResNet,
  ResNet18,
  ResNet34,
  ResNet50,
  ResNet101,
  ResNet152,
)
from twostream_jax.models.vgg import VGG, VGG11, VGG16, VGG19

__all__ = [
  "BACKBONES",
  "CNNM",
  "FEATURE_MODELS",
  "VGG",
  "ResNet",
  "create_feature_model",
  "create_model",
]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
  "cnn_m": CNNM,
  "vgg11": functools.partial(VGG11, use_batch_norm=False),
  "vgg16": functools.partial(VGG16, use_batch_norm=False),
  "vgg19": functools.partial(VGG19, use_batch_norm=False),
  "vgg11_bn": functools.partial(VGG11, use_batch_norm=True),
  "vgg16_bn": functools.partial(VGG16, use_batch_norm=True),
  "vgg19_bn": functools.partial(VGG19, use_batch_norm=True),
  "resnet18": ResNet18,
  "resnet34": ResNet34,
  "resnet50": ResNet50,
  "resnet101": ResNet101,
  "resnet152": ResNet152,
}


FEATURE_MODELS: dict[str, Callable[..., nn.Module]] = {
  "lstm": LSTMClassifier,
  "concat": ConcatFusion,
  "regularised": RegularisedFusion,
  "joint_hybrid": JointHybrid,
}


def create_model(name: str, *, num_classes: int, **fields: Any) -> nn.Module:
  """Builds a backbone, without its parameters.

  Args:
    name: a key of BACKBONES.
    num_classes: number of classes, at least 2.
    **fields: other fields of the backbone, such as width or dropout_rate;
      see the docstring of its class.

  Raises:
    ValueError: name is unknown, num_classes is below 2, or the backbone has
      no such field (what a name fixes, as the depth of vgg16, is not a field).
  """
  if name not in BACKBONES:
    raise ValueError(
      f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}"
    )
  if num_classes < 2:
    raise ValueError(f"num_classes must be at least 2, got {num_classes}")
  backbone = BACKBONES[name]
  known = _free_fields(backbone)
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise ValueError(
      f"{name} has no field {', '.join(unknown)}; it has {', '.join(known)}"
    )
  return backbone(num_classes=num_classes, **fields)


def create_feature_model(
  name: str, *, num_classes: int, sources: tuple[str, ...], **fields: Any
) -> nn.Module:
  """Creates a model of the features of earlier streams.

  Args:
    name: a key of FEATURE_MODELS.
    num_classes: number of classes, at least 2.
    sources: names of the streams whose features it reads.
    **fields: other fields of the model.

  Raises:
    ValueError: the name is unknown, or the model has no such field or takes
      another number of sources.
  """
  if name not in FEATURE_MODELS:
    raise ValueError(
      f"unknown model of features {name!r}; choose one of"
      f" {', '.join(FEATURE_MODELS)}"
    )
  model = FEATURE_MODELS[name]
  known = _free_fields(model)
  if name == "lstm":
    if len(sources) != 1:
      raise ValueError(f"an lstm reads one stream, not {sources}")
    fields["source"] = sources[0]
  else:
    fields["sources"] = tuple(sources)
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise ValueError(
      f"{name} has no field {', '.join(unknown)}; it has {', '.join(known)}"
    )
  return model(num_classes=num_classes, **fields)


def _free_fields(backbone: Callable[..., nn.Module]) -> list[str]:
  # parent and name are flax's own, create_model passes num_classes itself, and
  # what layers are made of is not a setting.
  fixed = {"parent", "name", "num_classes", "conv", "norm", "pool"}
  module: Any = backbone
  if isinstance(backbone, functools.partial):
    fixed |= set(backbone.keywords)
    module = backbone.func
  names = [field.name for field in dataclasses.fields(module)]
  return [name for name in names if name not in fixed]
