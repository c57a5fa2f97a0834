"""The backbones once more, in plain torch.nn, for comparison.

Written from the papers and from torchvision's definitions, not from this
project's modules. VGG and ResNet have torchvision's names, so that their state
dicts are what torchvision stores. Images are [b c h w]; every `forward` returns
logits [b n]. Nothing drops units.

Common arguments:
  width: factor on channels and hidden units; it must divide them.
  classes: n.
  size: height and width of the images, where fc6 depends on it.
"""

import torch
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
