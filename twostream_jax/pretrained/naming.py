"""Names and orders of other projects' arrays, as functions of ours.

For each project two functions: one names the array of a file for a path such
as "params/conv1_1/kernel", the other brings that array to this project's order
(HWIO kernels, [in, out] matrices, the map before fc6 flattened as h, w, c).
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping

import numpy as np

FULLY_CONNECTED = ("fc6", "fc7", "logits")


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
    """Names of the convolutions, in order."""
    layers = {path.split("/")[1] for path in self.shapes}
    return sorted(layer for layer in layers if layer.startswith("conv"))

  @property
  def channels(self) -> int:
    """Channels that the first dense layer flattens; 0 without such a layer."""
    shape = self.shapes.get(f"params/{self.convs[-1]}/kernel")
    return shape[-1] if shape and "params/fc6/kernel" in self.shapes else 0

  @property
  def has_batch_norm(self) -> bool:
    """Whether the network keeps batch statistics."""
    return any(path.startswith("batch_stats/") for path in self.shapes)


def _split(path: str) -> tuple[str, str]:
  """Layer and leaf of a path, such as layer1_0/conv1 and kernel."""
  layer, _, leaf = path.partition("/")[2].rpartition("/")
  return layer, leaf


def _chw_to_hwc(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Permutes the inputs of fc6, [c*h*w n], to the order h, w, c."""
  inputs, units = kernel.shape
  side = round((inputs / channels) ** 0.5)
  if side * side * channels != inputs:
    raise ValueError(
      f"{inputs} inputs are not a square map of {channels} channels"
    )
  maps = kernel.reshape(channels, side, side, units)
  return maps.transpose(1, 2, 0, 3).reshape(inputs, units)


def _expect_rank(array: np.ndarray, *ranks: int) -> None:
  if array.ndim not in ranks:
    wanted = " or ".join(map(str, ranks))
    raise ValueError(f"a kernel of {wanted} dimensions is needed")


def as_stored(path: str, array: np.ndarray, network: Network) -> np.ndarray:
  """Changes nothing: the file has this project's order."""
  return array


# torchvision and timm: OIHW kernels, [out, in] matrices, maps flattened as c,
# h, w.

_TORCH_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def torchvision_key(
  heads: Mapping[str, str], path: str, network: Network, keys: Collection[str]
) -> str:
  """features.0.weight, layer1.0.conv1.weight; `heads` names fc layers."""
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


def from_torch(path: str, array: np.ndarray, network: Network) -> np.ndarray:
  """OIHW to HWIO, [out, in] to [in, out]; inputs of fc6 permuted."""
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


def keras_theano_key(path: str, network: Network, keys: Collection[str]) -> str:
  """layer_1/param_0: the index in the list of all layers."""
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


def from_theano(path: str, array: np.ndarray, network: Network) -> np.ndarray:
  """Mirrored OIHW to HWIO; inputs of fc6 permuted."""
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
  "kernel": r"((^|[/_])(W|kernel)(_\d+)?(:\d+)?|^vars/0)$",
  "bias": r"((^|[/_])(b|bias)(_\d+)?(:\d+)?|^vars/1)$",
}
KERAS_OPTIMISER = r"^(optimizer_weights|optimizer)/"
KERAS_SEED = r"(^|/)seed_generator(_\d+)?/"


def keras_key(path: str, network: Network, keys: Collection[str]) -> str:
  """block1_conv1/block1_conv1/kernel:0 and its older forms."""
  layer, leaf = _split(path)
  group = _KERAS_HEADS.get(layer) or re.sub(
    r"^conv(\d)_(\d)$", r"block\1_conv\2", layer
  )
  # Keras has changed the rest of the name several times.
  for key in keys:
    _, named, name = f"/{key}".rpartition(f"/{group}/")
    is_leaf = named and re.search(_KERAS_LEAVES[leaf], name)
    if is_leaf and not re.search(KERAS_OPTIMISER, key):
      return key
  return f"{group}/{leaf}:0"


def keras_3_key(path: str, network: Network, keys: Collection[str]) -> str:
  """layers/conv2d/vars/0, layers/conv2d_1/vars/0: counted by kind of layer.

  Versions before 3 count by twos: conv2d, conv2d_2, conv2d_4.
  """
  layer, leaf = _split(path)
  if layer in FULLY_CONNECTED:
    kind, index = "dense", FULLY_CONNECTED.index(layer)
  else:
    kind, index = "conv2d", network.convs.index(layer)
  matches = (re.match(rf"layers/{kind}(?:_(\d+))?/vars/", key) for key in keys)
  counters = sorted({int(match[1] or 0) for match in matches if match})
  counter = counters[index] if index < len(counters) else index
  group = f"{kind}_{counter}" if counter else kind
  return f"layers/{group}/vars/{('kernel', 'bias').index(leaf)}"


# vgg16.npy and vgg19.npy, as caffe-tensorflow and its users wrote them: a dict
# of [kernel, bias], or of names, or of one name an array.


def npy_key(path: str, network: Network, keys: Collection[str]) -> str:
  """conv1_1/0, conv1_1/weights or conv1_1_weights."""
  layer, leaf = _split(path)
  layer = layer.replace("logits", "fc8")
  index, name = {"kernel": (0, "weights"), "bias": (1, "biases")}[leaf]
  for key in (f"{layer}/{name}", f"{layer}_{name}"):
    if key in keys:
      return key
  return f"{layer}/{index}"


def matconvnet_key(path: str, network: Network, keys: Collection[str]) -> str:
  """conv1/filters and conv1/biases, as the reader names them."""
  layer, leaf = _split(path)
  name = {"kernel": "filters", "bias": "biases"}.get(leaf, leaf)
  return f"{layer.replace('logits', 'fc8')}/{name}"


def from_matconvnet(
  path: str, array: np.ndarray, network: Network
) -> np.ndarray:
  """Convolutions over a whole map to matrices."""
  layer, leaf = _split(path)
  if leaf == "bias":
    return array.reshape(-1)
  if layer in FULLY_CONNECTED and leaf == "kernel":
    return array.reshape(-1, array.shape[-1])
  return array


def lpips_key(path: str, network: Network, keys: Collection[str]) -> str:
  """VGG16_0/Conv_0/kernel; it has no fully connected layers."""
  layer, leaf = _split(path)
  if layer in FULLY_CONNECTED:
    return f"VGG16_0/{layer}/{leaf}"
  return f"VGG16_0/Conv_{network.convs.index(layer)}/{leaf}"


def own_key(path: str, network: Network, keys: Collection[str]) -> str:
  """The path itself."""
  return path
