"""The backbones and the LSTM once more, in plain torch.nn, for comparison.

Written from the papers and from torchvision's definitions, not from this
project's modules. VGG and ResNet have torchvision's names, so that their state
dicts are what torchvision stores. Images are [b c h w]; every `forward` returns
logits [b n]. Nothing drops units.

Common arguments:
  width: factor on channels and hidden units; it must divide them.
  classes: n.
  size: height and width of the images, where fc6 depends on it.
"""

import numpy as np
import torch
from flax import traverse_util
from torch import nn

VGG_STAGES = {
  11: (1, 1, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}
# Blocks of each stage, and whether they are bottlenecks.
RESNET_STAGES = {
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}


class VGG(nn.Module):
  """VGG as torchvision has it, but without its average pooling to 7 x 7.

  At 224 x 224 pixels that pooling is the identity.
  """

  def __init__(self, depth, *, batch_norm, width, classes, size):
    super().__init__()
    layers, before = [], 3
    for stage, count in enumerate(VGG_STAGES[depth]):
      channels = int(min(64 * 2**stage, 512) * width)
      for _ in range(count):
        layers.append(nn.Conv2d(before, channels, 3, padding=1))
        if batch_norm:
          layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.ReLU())
        before = channels
      layers.append(nn.MaxPool2d(2, 2))
    self.features = nn.Sequential(*layers)
    hidden = int(4096 * width)
    inputs = before * (size[0] // 32) * (size[1] // 32)
    self.classifier = nn.Sequential(
      *(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.0)),
      *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.0)),
      nn.Linear(hidden, classes),
    )

  def forward(self, x):
    return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
  def __init__(self, before, channels, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.downsample = _downsample(before, channels, stride)

  def forward(self, x):
    y = self.bn1(self.conv1(x)).relu()
    y = self.bn2(self.conv2(y))
    return (y + self.downsample(x)).relu()


class Bottleneck(nn.Module):
  """Version 1.5: the stride is in the 3 x 3 convolution."""

  def __init__(self, before, channels, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(before, channels, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * channels)
    self.downsample = _downsample(before, 4 * channels, stride)

  def forward(self, x):
    y = self.bn1(self.conv1(x)).relu()
    y = self.bn2(self.conv2(y)).relu()
    y = self.bn3(self.conv3(y))
    return (y + self.downsample(x)).relu()


def _downsample(before, after, stride):
  if stride == 1 and before == after:
    return nn.Identity()
  return nn.Sequential(
    nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
  )


class ResNet(nn.Module):
  def __init__(self, depth, *, width, classes):
    super().__init__()
    stages, has_bottlenecks = RESNET_STAGES[depth]
    block, expansion = (Bottleneck, 4) if has_bottlenecks else (BasicBlock, 1)
    before = int(64 * width)
    self.conv1 = nn.Conv2d(3, before, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(before)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    for i, count in enumerate(stages):
      channels = int(64 * 2**i * width)
      blocks = []
      for j in range(count):
        blocks.append(block(before, channels, 2 if i > 0 and j == 0 else 1))
        before = expansion * channels
      setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
    self.avgpool = nn.AdaptiveAvgPool2d(1)
    self.fc = nn.Linear(before, classes)

  def forward(self, x):
    x = self.maxpool(self.bn1(self.conv1(x)).relu())
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.fc(self.avgpool(x).flatten(1))


class CNNM(nn.Module):
  """CNN-M-2048 (Chatfield et al. 2014, table 1), pooling 3 x 3 rounded up.

  Args:
    normalisation: 'lrn', 'batch' or 'none'.
    second_lrn: whether 'lrn' is also after conv2.
  """

  def __init__(self, *, normalisation, second_lrn, width, classes, size):
    super().__init__()
    c1, c2, c3 = (int(channels * width) for channels in (96, 256, 512))
    batch = normalisation == "batch"
    self.conv1 = nn.Conv2d(3, c1, 7, 2, bias=not batch)
    self.conv2 = nn.Conv2d(c1, c2, 5, 2, 1, bias=not batch)
    self.conv3 = nn.Conv2d(c2, c3, 3, 1, 1, bias=not batch)
    self.conv4 = nn.Conv2d(c3, c3, 3, 1, 1, bias=not batch)
    self.conv5 = nn.Conv2d(c3, c3, 3, 1, 1, bias=not batch)
    for i, channels in enumerate((c1, c2, c3, c3, c3), start=1):
      norm = nn.BatchNorm2d(channels) if batch else nn.Identity()
      self.add_module(f"bn{i}", norm)
    # PyTorch divides alpha by the size: 1e-4 in the equation of Krizhevsky et
    # al. is 5e-4 here, what Caffe's definition of CNN-M says as well.
    lrn = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    has_lrn = normalisation == "lrn"
    self.lrn1 = lrn if has_lrn else nn.Identity()
    self.lrn2 = lrn if has_lrn and second_lrn else nn.Identity()
    self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    units = int(4096 * width), int(2048 * width)
    with torch.no_grad():
      inputs = self._map(torch.zeros(1, 3, *size)).numel()
    self.fc6 = nn.Linear(inputs, units[0])
    self.fc7 = nn.Linear(*units)
    self.logits = nn.Linear(units[1], classes)

  def _map(self, x):
    x = self.pool(self.lrn1(self.bn1(self.conv1(x)).relu()))
    x = self.pool(self.lrn2(self.bn2(self.conv2(x)).relu()))
    x = self.bn3(self.conv3(x)).relu()
    x = self.bn4(self.conv4(x)).relu()
    return self.pool(self.bn5(self.conv5(x)).relu())

  def forward(self, x):
    x = self.fc6(self._map(x).flatten(1)).relu()
    return self.logits(self.fc7(x).relu())


class LSTMClassifier(nn.Module):
  """torch.nn.LSTM on packed sequences, then a linear layer.

  Args:
    output: 'last', the state after the whole sequence was read, or 'mean'.
  """

  def __init__(self, *, inputs, hidden, layers, bidirectional, output, classes):
    super().__init__()
    self.lstm = nn.LSTM(
      inputs, hidden, layers, batch_first=True, bidirectional=bidirectional
    )
    directions = 2 if bidirectional else 1
    self.directions, self.output = directions, output
    self.logits = nn.Linear(directions * hidden, classes)

  def forward(self, x, length):
    """Maps x [b t d] and length int [b] to logits [b n]."""
    packed = nn.utils.rnn.pack_padded_sequence(
      x, length, batch_first=True, enforce_sorted=False
    )
    states, (last, _) = self.lstm(packed)
    if self.output == "last":
      # The directions of the last layer.
      return self.logits(torch.cat(list(last[-self.directions :]), dim=1))
    states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
    return self.logits(states.sum(dim=1) / length[:, None])


def randomise(module, seed):
  """Random weights and statistics; kernels keep the activations' size."""
  generator = torch.Generator().manual_seed(seed)
  # A residual branch as large as its shortcut would double the variance in
  # every block: rounding errors of 1e-7 would become 1e-3 in 50 blocks.
  last_norms = set(
    f"{name}.{'bn3' if hasattr(block, 'bn3') else 'bn2'}.weight"
    for name, block in module.named_modules()
    if isinstance(block, (BasicBlock, Bottleneck))
  )
  for name, x in module.state_dict().items():
    if x.ndim > 1:
      x.normal_(0.0, (2 / x[0].numel()) ** 0.5, generator=generator)
    elif name.endswith("num_batches_tracked"):
      continue
    elif name.endswith(("bias", "running_mean")):
      x.normal_(0.0, 0.1, generator=generator)
    else:  # Scales and variances of batch norm.
      x.uniform_(0.5, 1.5, generator=generator)
      if name in last_norms:
        x *= 0.2
  return module


def path_of(name, module):
  """Where the layer that PyTorch calls `name` is in the variables here."""
  if isinstance(module, VGG):
    group, index = name.split(".")
    if group == "classifier":
      return ({"0": "fc6", "3": "fc7", "6": "logits"}[index],)
    before = list(module.features[: int(index) + 1])
    pools = [i for i, x in enumerate(before) if isinstance(x, nn.MaxPool2d)]
    stage = before[pools[-1] + 1 if pools else 0 :]
    count = sum(isinstance(x, nn.Conv2d) for x in stage)
    kind = "conv" if isinstance(before[-1], nn.Conv2d) else "bn"
    return (f"{kind}{len(pools) + 1}_{count}",)
  if name == "fc":
    return ("logits",)
  if name.startswith("layer"):
    stage, block, layer = name.split(".", 2)
    layer = {
      "downsample.0": "downsample_conv",
      "downsample.1": "downsample_bn",
    }.get(layer, layer)
    return f"{stage}_{block}", layer
  return (name,)


def numpy_of(tensor):
  """The tensor's values now."""
  # A copy: PyTorch updates running statistics in place.
  return tensor.detach().numpy().copy()


def hwio(weight):
  """A convolution's weight [o i h w] as a kernel [h w i o]."""
  return np.einsum("oihw->hwio", numpy_of(weight))


def _from_chw(weight, height, width):
  """[n c*h*w] to [h*w*c n]."""
  maps = weight.reshape(len(weight), -1, height, width)
  return np.einsum("nchw->hwcn", maps).reshape(-1, len(weight))


def variables_of(module, map_size=None):
  """A backbone's weights as variables of the model here.

  Args:
    module: VGG, ResNet or CNNM.
    map_size: height and width of the map that fc6 reads; not for ResNet.
  """
  flat = {}
  for name, layer in module.named_modules():
    if isinstance(layer, nn.Conv2d):
      leaves = {"kernel": hwio(layer.weight)}
    elif isinstance(layer, nn.Linear):
      leaves = {"kernel": numpy_of(layer.weight).T}
    elif isinstance(layer, nn.BatchNorm2d):
      leaves = {"scale": numpy_of(layer.weight)}
    else:
      continue
    path = path_of(name, module)
    if path == ("fc6",):
      leaves = {"kernel": _from_chw(numpy_of(layer.weight), *map_size)}
    if layer.bias is not None:
      leaves["bias"] = numpy_of(layer.bias)
    flat |= {("params", *path, leaf): x for leaf, x in leaves.items()}
    if isinstance(layer, nn.BatchNorm2d):
      flat["batch_stats", *path, "mean"] = numpy_of(layer.running_mean)
      flat["batch_stats", *path, "var"] = numpy_of(layer.running_var)
  return traverse_util.unflatten_dict(flat)


def lstm_variables_of(module):
  """An LSTMClassifier's weights as variables of the one here."""
  weights = {key: numpy_of(x) for key, x in module.state_dict().items()}

  def layer(suffix):
    kernel, recurrent, *biases = (
      weights[f"lstm.{kind}_{suffix}"]
      for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    # PyTorch has two biases, which only ever act as their sum.
    return {
      "input": {"kernel": kernel.T, "bias": sum(biases)},
      "recurrent": {"kernel": recurrent.T},
    }

  layers = {}
  for index in range(module.lstm.num_layers):
    layers[f"layer{index + 1}"] = layer(f"l{index}")
    if module.lstm.bidirectional:
      layers[f"layer{index + 1}_backward"] = layer(f"l{index}_reverse")
  logits = {
    "kernel": weights["logits.weight"].T,
    "bias": weights["logits.bias"],
  }
  return {"params": {"lstm": layers, "logits": logits}}
