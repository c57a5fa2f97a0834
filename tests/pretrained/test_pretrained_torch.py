"""torchvision's files: the logits here equal those of torch's own layers.

The modules have torchvision's names; the packages' sizes are shrunk.
"""

import functools

import jax
import numpy as np
import pytest

from twostream_jax.models import create_model
from twostream_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet
from twostream_jax.models.vgg import VGG
from twostream_jax.pretrained import WeightsError, load_pretrained

pytestmark = pytest.mark.optional

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
nn = torch.nn

_SIZE = 96
_WIDTH = 0.02
_CLASSES = 5


def _zeros(model, size=_SIZE):
  images = np.zeros((1, size, size, 3), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


class _VGG(nn.Module):
  def __init__(self, stages, channels, hidden, batch_norm):
    super().__init__()
    layers, before = [], 3
    for size, count in zip(stages, channels, strict=True):
      for _ in range(size):
        layers.append(nn.Conv2d(before, count, 3, padding=1))
        layers += [nn.BatchNorm2d(count)] * batch_norm
        layers.append(nn.ReLU())
        before = count
      layers.append(nn.MaxPool2d(2))
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(
      *(nn.Linear(before * 9, hidden), nn.ReLU(), nn.Dropout()),
      *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()),
      nn.Linear(hidden, _CLASSES),
    )

  def forward(self, x):
    return self.classifier(self.features(x).flatten(1))


class _Block(nn.Module):
  def __init__(self, before, channels, stride, is_bottleneck):
    super().__init__()
    after = channels * (4 if is_bottleneck else 1)
    conv = functools.partial(nn.Conv2d, bias=False)
    if is_bottleneck:
      convs = [
        conv(before, channels, 1),
        conv(channels, channels, 3, stride, 1),
        conv(channels, after, 1),
      ]
    else:
      convs = [
        conv(before, channels, 3, stride, 1),
        conv(channels, after, 3, 1, 1),
      ]
    for i, layer in enumerate(convs, start=1):
      setattr(self, f"conv{i}", layer)
      setattr(self, f"bn{i}", nn.BatchNorm2d(layer.out_channels))
    self.count = len(convs)
    self.downsample = None
    if stride > 1 or before != after:
      self.downsample = nn.Sequential(
        conv(before, after, 1, stride), nn.BatchNorm2d(after)
      )

  def forward(self, x):
    y = x
    for i in range(1, self.count + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      y = y.relu() if i < self.count else y
    return (y + (self.downsample(x) if self.downsample else x)).relu()


class TorchResNet(nn.Module):
  def __init__(self, stages, widths, is_bottleneck):
    super().__init__()
    self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(widths[0])
    self.count, before = len(stages), widths[0]
    for i, (size, width) in enumerate(zip(stages, widths, strict=True)):
      blocks = []
      for j in range(size):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(_Block(before, width, stride, is_bottleneck))
        before = width * (4 if is_bottleneck else 1)
      setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
    self.fc = nn.Linear(before, _CLASSES)

  def forward(self, x):
    x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
    for i in range(self.count):
      x = getattr(self, f"layer{i + 1}")(x)
    return self.fc(x.mean((2, 3)))


def _randomise(module):
  """Random weights and statistics, of a size that keeps activations alive."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, x in module.state_dict().items():
      if name.endswith("num_batches_tracked"):
        continue
      if x.ndim > 1:
        std = (2 / x[0].numel()) ** 0.5
        x.copy_(std * torch.randn(x.shape, generator=generator))
      else:
        x.copy_(0.5 + torch.rand(x.shape, generator=generator))
  return module.eval()


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, variables, images):
  return model.apply(variables, images, train=False)[0]


def _assert_same_logits(model, variables, module):
  images = np.random.default_rng(3).normal(size=(2, _SIZE, _SIZE, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    expected = module(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
  scale = np.abs(expected).max()
  assert np.std(expected, axis=0).max() > 1e-3 * scale
  np.testing.assert_allclose(
    _apply(model, variables, images), expected, atol=2e-5 * scale
  )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_vgg(batch_norm, suffix, tmp_path):
  # Two convolutions in a stage, so that the count of layers before matters.
  stages = (1, 2, 1, 1, 2)
  module = _randomise(_VGG(stages, (8, 8, 8, 10, 10), 82, batch_norm))
  path = tmp_path / f"vgg.{suffix}"
  if suffix == "pth":
    torch.save(module.state_dict(), path)
  else:
    safetensors_torch.save_file(module.state_dict(), path)
  model = VGG(
    num_classes=_CLASSES,
    stage_sizes=stages,
    use_batch_norm=batch_norm,
    width=_WIDTH,
  )
  variables, _, report = load_pretrained(
    path,
    backbone="vgg11_bn" if batch_norm else "vgg11",
    variables=_zeros(model),
  )
  assert report.layout == "torchvision"
  assert len(report.of("left out")) == 7 * batch_norm
  _assert_same_logits(model, variables, module)


@pytest.mark.parametrize(
  "backbone, stages, block",
  [
    ("resnet18", (2, 2, 2, 2), BasicBlock),
    ("resnet50", (1, 2), BottleneckBlock),
  ],
)
def test_resnet(backbone, stages, block, tmp_path):
  module = _randomise(
    TorchResNet(stages, (8, 8, 8, 10)[: len(stages)], block is BottleneckBlock)
  )
  path = tmp_path / "resnet.pth"
  torch.save(module.state_dict(), path)
  model = ResNet(
    num_classes=_CLASSES, stage_sizes=stages, block=block, width=_WIDTH
  )
  variables, _, report = load_pretrained(
    path, backbone=backbone, variables=_zeros(model)
  )
  assert not report.of("fresh")
  _assert_same_logits(model, variables, module)


def test_what_training_programs_wrap_around_weights(tmp_path):
  module = _randomise(TorchResNet((1, 1), (8, 8), False))
  state = {f"module.{key}": x for key, x in module.state_dict().items()}
  path = tmp_path / "checkpoint.pth.tar"
  torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, path)
  model = ResNet(
    num_classes=_CLASSES, stage_sizes=(1, 1), block=BasicBlock, width=_WIDTH
  )
  variables, _, _ = load_pretrained(
    path, backbone="resnet18", variables=_zeros(model)
  )
  _assert_same_logits(model, variables, module)


def test_half_precision_becomes_float32(tmp_path):
  module = _randomise(TorchResNet((1, 1), (8, 8), False))
  model = ResNet(
    num_classes=_CLASSES, stage_sizes=(1, 1), block=BasicBlock, width=_WIDTH
  )
  for dtype in (torch.float16, torch.bfloat16):
    path = tmp_path / "half.pth"
    torch.save(module.to(dtype).state_dict(), path)
    variables, _, _ = load_pretrained(
      path, backbone="resnet18", variables=_zeros(model)
    )
    kernel = variables["params"]["logits"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, module.fc.weight.detach().float().T)


# Numbers of entries of torchvision's state dicts.
_ENTRIES = {
  **{"vgg11": 22, "vgg11_bn": 62, "vgg16": 32, "vgg16_bn": 97},
  **{"vgg19": 38, "vgg19_bn": 118, "resnet18": 122, "resnet34": 218},
  **{"resnet50": 320, "resnet101": 626, "resnet152": 932},
}


@pytest.mark.parametrize("backbone", _ENTRIES)
def test_every_backbone_asks_for_as_many_entries_as_torchvision_has(
  backbone, tmp_path
):
  model = create_model(backbone, num_classes=_CLASSES, width=_WIDTH)
  path = tmp_path / "empty.pth"
  torch.save({"nothing": torch.zeros(1)}, path)
  with pytest.raises(WeightsError) as caught:
    load_pretrained(
      path, backbone=backbone, variables=_zeros(model), layout="torchvision"
    )
  lines = str(caught.value).splitlines()
  missing = {line.split()[1] for line in lines if line.startswith("missing")}
  counters = sum(key.endswith("running_mean") for key in missing)
  assert len(missing) + counters == _ENTRIES[backbone]


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
  marker = tmp_path / "ran"

  class Evil:
    def __reduce__(self):
      import os

      return os.system, (f"touch {marker}",)

  for zipped in (True, False):
    path = tmp_path / "evil.pth"
    torch.save(
      {"fc.weight": Evil()}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(WeightsError, match="evil.pth.*might run code"):
      load_pretrained(path, backbone="resnet18", variables={})
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_named(zipped, tmp_path):
  path = tmp_path / "cut.pth"
  torch.save(
    {"fc.weight": torch.zeros(100, 100)},
    path,
    _use_new_zipfile_serialization=zipped,
  )
  content = path.read_bytes()
  for size in (len(content) // 2, len(content) - 10):
    path.write_bytes(content[:size])
    with pytest.raises(WeightsError, match="cut.pth"):
      load_pretrained(path, backbone="resnet18", variables={})
