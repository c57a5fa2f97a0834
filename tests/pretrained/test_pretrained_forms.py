"""Files of torch as people have them: wrapped, prefixed, with other things."""

import argparse
import collections
import functools
import mmap
import pickle
import zipfile

import jax
import numpy as np
import pytest

from twostream_jax.models.resnet import BasicBlock, ResNet
from twostream_jax.pretrained import (
  Choice,
  WeightsError,
  load_pretrained,
  read_source,
)

pytestmark = pytest.mark.optional

torch = pytest.importorskip("torch")
nn = torch.nn

_CLASSES = 5


@functools.cache
def _template():
  """Shapes of a ResNet of two blocks."""
  model = ResNet(
    num_classes=_CLASSES, stage_sizes=(1, 1), block=BasicBlock, width=0.02
  )
  images = np.zeros((1, 64, 64, 3), np.float32)
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )


class _Block(nn.Module):
  def __init__(self, before, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(before, 8, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(8)
    self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(8)
    if stride > 1:
      self.downsample = nn.Sequential(
        nn.Conv2d(before, 8, 1, stride, bias=False), nn.BatchNorm2d(8)
      )


class _Network(nn.Module):
  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(8)
    self.layer1 = nn.Sequential(_Block(8, 1))
    self.layer2 = nn.Sequential(_Block(8, 2))
    self.fc = nn.Linear(8, _CLASSES)


@functools.cache
def _network():
  torch.manual_seed(0)
  return _Network().eval()


def _state(prefix="", head=True):
  return collections.OrderedDict(
    (prefix + key, value)
    for key, value in _network().state_dict().items()
    if head or not key.startswith("fc.")
  )


def _other(prefix=""):
  """Weights of the same network that are not those asked for."""
  return {key: value + 1 for key, value in _state(prefix).items()}


def _headed(prefix, head):
  fc = _network().fc
  return _state(prefix, head=False) | {
    f"{head}.weight": fc.weight.detach(),
    f"{head}.bias": fc.bias.detach(),
  }


class _Config(dict):
  """A class that whoever reads the file does not have."""


def _settings():
  config = _Config(lr=0.1)
  config.parent = config
  return {
    "args": argparse.Namespace(lr=0.1, names=["a"], device=torch.device("cpu")),
    "cfg": config,
    "epoch": 3,
    "best": np.float64(0.5),
    "model_name": "resnet18",
    "scaler": None,
    "groups": {1, 2},
    ("a", 1): 2,
  }


def _optimizer():
  """The state of Adam; torch.optim itself takes seconds to import."""
  moments = {"exp_avg": torch.zeros(2, 3), "exp_avg_sq": torch.zeros(2, 3)}
  state = collections.defaultdict(dict, {0: {"step": torch.tensor(1.0)}})
  state[0] |= moments
  return {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}


def _whole():
  return nn.DataParallel(_network())


_WRAPPERS = (
  *("state_dict", "model_state", "model_state_dict", "model", "net"),
  *("network", "weights", "params", "module", "ema_state_dict"),
)
_PREFIXES = (
  *("module.", "model.", "backbone.", "base_model.", "encoder.", "net."),
  *("_orig_mod.", "module.backbone.", "_orig_mod.module.", "a.b.c.d."),
)
_FORMS = {
  "plain": lambda: _state(),
  **{
    f"wrapper {name}": functools.partial(lambda n: {n: _state()}, name)
    for name in _WRAPPERS
  },
  **{f"prefix {name}": functools.partial(_state, name) for name in _PREFIXES},
  "nested": lambda: {"model": {"state_dict": _state()}, "epoch": 1},
  "nested and prefixed": lambda: {
    "checkpoint": {"model": {"state_dict": _state("module.encoder.")}}
  },
  "optimizer": lambda: {"state_dict": _state(), "optimizer": _optimizer()},
  "settings": lambda: {
    "state_dict": _state(),
    "history": np.ones(3),
    "rng": torch.zeros(4, dtype=torch.uint8),
    **_settings(),
  },
  "settings beside keys": lambda: {**_state(), **_settings()},
  "head of OpenMMLab": lambda: {
    "meta": {"epoch": 3},
    "state_dict": _headed("backbone.", "cls_head.fc_cls"),
  },
  "head in a sequence": lambda: _headed("0.", "head.1"),
  "averaged": lambda: {"n_averaged": torch.tensor(3), **_state("module.")},
  "parallel features": lambda: {
    key.replace("layer1.", "layer1.module."): x for key, x in _state().items()
  },
  "whole network": lambda: _network(),
  "whole network, wrapped": lambda: {"model": _whole(), "epoch": 3},
  "parameters": lambda: (
    dict(_network().named_parameters()) | dict(_network().named_buffers())
  ),
  "arrays of NumPy": lambda: {
    "model": {key: x.numpy() for key, x in _state().items()}
  },
  "views": lambda: {key: _view(x) for key, x in _state().items()},
  "double": lambda: {key: x.double() for key, x in _state().items()},
}


def _view(x):
  """The same values as every other column of a larger, transposed tensor."""
  if x.ndim < 2:
    return x
  return torch.stack([x.transpose(0, 1)] * 2, -1)[..., 0].transpose(0, 1)


def _load(path, partial=False, **choice):
  return load_pretrained(
    path,
    backbone="resnet18",
    variables=_template(),
    partial=partial,
    choice=Choice(**choice),
  )


def _assert_loaded(variables):
  params = variables["params"]
  network = _network()
  for ours, theirs in (
    (params["conv1"]["kernel"], network.conv1.weight.permute(2, 3, 1, 0)),
    (params["layer2_0"]["bn2"]["bias"], network.layer2[0].bn2.bias),
    (params["logits"]["kernel"], network.fc.weight.T),
  ):
    np.testing.assert_array_equal(ours, theirs.detach().numpy())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("form", _FORMS)
def test_the_network_is_found_in_every_form(form, zipped, tmp_path):
  path = tmp_path / "file.pth"
  torch.save(_FORMS[form](), path, _use_new_zipfile_serialization=zipped)
  variables, _, report = _load(path)
  _assert_loaded(variables)
  assert len(report.of("used")) == 32
  if form == "head of OpenMMLab":
    assert "cls_head.fc_cls.weight" in report.table("used")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_tensors(protocol, tmp_path):
  path = tmp_path / "file.pkl"
  path.write_bytes(pickle.dumps({"model": _state("module.")}, protocol))
  variables, _, _ = _load(path)
  _assert_loaded(variables)


def test_a_head_that_does_not_fit_is_left_out(tmp_path):
  path = tmp_path / "file.pth"
  state = _state("backbone.", head=False)
  state["cls_head.fc_cls.weight"] = torch.zeros(5, 9)
  state["cls_head.fc_cls.bias"] = torch.zeros(5)
  torch.save(state, path)
  with pytest.raises(WeightsError, match="partial"):
    _load(path)
  _, _, report = _load(path, partial=True)
  assert report.summary() == "30 used, 2 fresh, 8 left out"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
  path = tmp_path / "network.pt"

  class Scripted(_Network):
    def forward(self, x):
      return self.fc(self.conv1(x).mean((2, 3)))

  torch.manual_seed(0)
  torch.jit.trace(Scripted().eval(), torch.zeros(1, 3, 64, 64)).save(path)
  variables, _, _ = _load(path)
  assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 3, 8)


_AMBIGUOUS = {
  "ema beside": (
    lambda: {"model": _state(), "model_ema": _other()},
    {"wrapper": "model"},
    "--wrapper=model or --wrapper=model_ema",
  ),
  "ema nested": (
    lambda: {"model": _state(), "ema": {"decay": 1, "module": _other()}},
    {"wrapper": "model"},
    "--wrapper=ema.module or --wrapper=model",
  ),
  "nested": (
    lambda: {"a": {"state_dict": _state()}, "b": {"state_dict": _other()}},
    {"wrapper": "a.state_dict"},
    "--wrapper=a.state_dict or --wrapper=b.state_dict",
  ),
  "outer name is enough": (
    lambda: {"a": {"state_dict": _state()}, "b": {"state_dict": _other()}},
    {"wrapper": "a"},
    "--wrapper=a.state_dict",
  ),
  "teacher and student": (
    lambda: {"teacher": _other("module."), "student": _state("module.")},
    {"wrapper": "student"},
    "--wrapper=student or --wrapper=teacher",
  ),
  "two encoders": (
    lambda: _state("module.encoder_q.") | _other("module.encoder_k."),
    {"prefix": "module.encoder_q."},
    "--prefix=encoder_k. or --prefix=encoder_q.",
  ),
  "twice, with and without": (
    lambda: _state() | _other("module."),
    {"prefix": ""},
    "--prefix= or --prefix=module.",
  ),
  "with, asked for": (
    lambda: _other() | _state("module."),
    {"prefix": "module."},
    "--prefix= or --prefix=module.",
  ),
  "both": (
    lambda: {"net": _state("a.") | _other("b."), "ema": _other("a.")},
    {"wrapper": "net", "prefix": "a."},
    "--wrapper=ema or --wrapper=net",
  ),
}


@pytest.mark.parametrize("name", _AMBIGUOUS)
def test_two_networks_are_not_guessed_between(name, tmp_path):
  write, choice, message = _AMBIGUOUS[name]
  path = tmp_path / "file.pth"
  torch.save(write(), path)
  with pytest.raises(WeightsError) as caught:
    _load(path)
  assert message in str(caught.value)
  variables, _, report = _load(path, **choice)
  _assert_loaded(variables)
  assert "outside of" in report.table("left out")


def test_a_choice_that_is_not_in_the_file_is_refused(tmp_path):
  path = tmp_path / "file.pth"
  torch.save({"model": _state()}, path)
  for choice, told in (
    ({"wrapper": "ema"}, "--wrapper=ema"),
    ({"prefix": "backbone."}, "--prefix=backbone."),
  ):
    with pytest.raises(WeightsError, match=f"model/conv1.weight.*{told}"):
      _load(path, **choice)


class _Evil:
  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    import os

    return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_would_run_is_skipped_beside_the_weights(zipped, tmp_path):
  marker, path = tmp_path / "ran", tmp_path / "file.pth"
  content = {"state_dict": _state(), "hook": _Evil(marker)}
  torch.save(content, path, _use_new_zipfile_serialization=zipped)
  variables, _, _ = _load(path)
  _assert_loaded(variables)
  content["state_dict"]["layer2.0.bn1.bias"] = _Evil(marker)
  torch.save(content, path, _use_new_zipfile_serialization=zipped)
  with pytest.raises(
    WeightsError, match=r"wrong +state_dict/layer2.0.bn1.bias.*posix.system"
  ):
    _load(path)
  assert not marker.exists()


def test_more_of_a_tensor_than_is_stored_is_refused(tmp_path):
  path = tmp_path / "file.pth"
  torch.save({"a": torch.zeros(1).expand(10**12)}, path)
  with pytest.raises(WeightsError, match="larger than its storage"):
    read_source(path)


def test_a_repacked_archive_is_refused(tmp_path):
  path = tmp_path / "file.pth"
  torch.save(_state(), path)
  packed = tmp_path / "packed.pth"
  with (
    zipfile.ZipFile(path) as archive,
    zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other,
  ):
    for name in archive.namelist():
      other.writestr(name, archive.read(name))
  with pytest.raises(WeightsError, match="packed.pth.*zip -0"):
    read_source(packed)


def test_what_torch_stores_is_read_as_torch_reads_it(tmp_path):
  tensors = {
    "a": torch.arange(24.0).reshape(2, 3, 4)[:, 1:, ::2],
    "b": torch.tensor(3),
    "c": torch.zeros(0, 3),
    "d": torch.tensor([True, False]),
    "e": torch.arange(5, dtype=torch.float16),
    "f": torch.arange(5, dtype=torch.bfloat16),
    "g": torch.arange(5).to(torch.uint16),
    "h": torch.arange(5).to(torch.float8_e4m3fn),
  }
  path = tmp_path / "file.pth"
  for zipped in (True, False):
    kept = tensors if zipped else {k: tensors[k] for k in "abcdef"}
    torch.save(kept, path, _use_new_zipfile_serialization=zipped)
    arrays = read_source(path).arrays
    assert set(arrays) == set(kept)
    for key, tensor in kept.items():
      assert arrays[key].shape == tensor.shape
      np.testing.assert_array_equal(
        arrays[key].astype(np.float64), tensor.double().numpy()
      )


def test_tensors_are_mapped_and_not_read(tmp_path):
  path = tmp_path / "file.pth"
  for zipped in (True, False):
    torch.save(
      {"a": torch.zeros(100)}, path, _use_new_zipfile_serialization=zipped
    )
    owner = read_source(path).arrays["a"]
    while not isinstance(owner, memoryview):
      owner = owner.base
    owner = owner.obj
    assert isinstance(owner, mmap.mmap)
