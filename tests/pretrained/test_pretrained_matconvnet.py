"""MatConvNet's files: the logits here equal its own, computed from the file."""

import functools

import jax
import numpy as np
import pytest
import scipy.io

from tests.paths import SHARED
from twostream_jax.models import create_model
from twostream_jax.models.layers import (
  local_response_normalisation,
  max_pool_ceil,
)
from twostream_jax.pretrained import (
  WeightsError,
  load_pretrained,
  matconvnet,
)
from twostream_jax.pretrained.readers import read_source
from twostream_jax.stages.preprocess import Preprocess

_HOSTILE = SHARED / "cases/31-hostile"
_SIZE = 96  # 2 x 2 positions before fc6 of CNN-M, 3 x 3 of VGG.


@functools.cache
def _template(name):
  """A small backbone and its variables, all zero."""
  model = create_model(name, num_classes=5, width=0.02)
  images = np.zeros((1, _SIZE, _SIZE, 3), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  return model, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _draw(rng, shape):
  """A kernel that keeps the scale of activations, and a bias."""
  kernel = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
  bias = rng.uniform(0, 0.2, shape[-1])
  return kernel.astype(np.float32), bias.astype(np.float32)


def _published_name(name):
  return "fc8" if name == "logits" else name


def _correlate(x, kernel, bias, stride, padding):
  """x [b h w c] with an HWIO kernel."""
  pad = (padding, padding)
  patches = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, [(0, 0), pad, pad, (0, 0)]), kernel.shape[:2], axis=(1, 2)
  )[:, ::stride, ::stride]
  return np.einsum("bhwcij,ijcn->bhwn", patches, kernel, optimize=True) + bias


def _matconvnet(path, layers, mean, *, old):
  """Layers as cells of structs, with others that have no weights between."""
  cells = []
  for name, kernel, bias in layers:
    name = _published_name(name)
    fields = {"type": "conv", "name": name}
    row = bias[None]
    if old:
      cells.append(fields | {"filters": kernel, "biases": row})
    else:
      pair = np.empty((1, 2), object)
      pair[0, 0], pair[0, 1] = kernel, row
      cells.append(fields | {"weights": pair})
    cells.append({"type": "relu", "name": f"relu_{name}"})
  content = np.empty((1, len(cells)), object)
  content[0] = cells
  normalization = {"averageImage": mean, "imageSize": [_SIZE, _SIZE, 3]}
  meta = {"normalization": normalization}
  scipy.io.savemat(
    path, {"layers": content} | (meta if old else {"meta": meta})
  )


def _cnn_m_arrays():
  rng = np.random.default_rng(1)
  _, template = _template("cnn_m")
  layers = []
  order = sorted(template["params"], key=lambda n: (n == "logits", n))
  for name in order:
    shape = template["params"][name]["kernel"].shape
    if name == "fc6":
      shape = (2, 2, shape[0] // 4, shape[1])
    elif name in ("fc7", "logits"):
      shape = (1, 1, *shape)
    layers.append((name, *_draw(rng, shape)))
  return layers


def _cnn_m_logits(x, layers):
  strides = {"conv1": (2, 0), "conv2": (2, 1), "conv5": (1, 1)}
  for name, kernel, bias in layers:
    is_full = not name.startswith("conv")
    x = _correlate(
      x, kernel, bias, *((1, 0) if is_full else strides.get(name, (1, 1)))
    )
    x = x if name == "logits" else np.maximum(x, 0)
    if name in ("conv1", "conv2"):
      x = np.asarray(local_response_normalisation(x))
    if name in ("conv1", "conv2", "conv5"):
      x = np.asarray(max_pool_ceil(x))
  return x[:, 0, 0]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("mean_of_pixels", [True, False])
def test_matconvnet_cnn_m(old, mean_of_pixels, tmp_path):
  layers = _cnn_m_arrays()
  mean = np.full((1, 1, 3), (123.0, 117.0, 104.0), np.float32)
  if mean_of_pixels:
    mean = np.broadcast_to(mean, (_SIZE, _SIZE, 3))
  path = tmp_path / "imagenet-vgg-m-2048.mat"
  _matconvnet(path, layers, mean, old=old)
  model, template = _template("cnn_m")
  variables, convention, report = load_pretrained(
    path, backbone="cnn_m", variables=template
  )
  assert report.layout == "matconvnet"
  assert [row.key for row in report.of("left out")] == ["averageImage"]
  images = np.random.default_rng(7).integers(
    0, 256, (2, _SIZE, _SIZE, 3), np.uint8
  )
  expected = _cnn_m_logits(images - mean[:1, :1], layers)
  preprocess = Preprocess(
    convention.rgb_mean, convention.rgb_std, 1.0, 1.0, False
  )
  inputs = preprocess({"rgb": images})["rgb"]
  logits, _ = jax.jit(model.apply, static_argnames="train")(
    variables, inputs, train=False
  )
  scale = np.abs(expected).max()
  assert np.std(expected) > 0.01 * scale
  np.testing.assert_allclose(logits, expected, atol=1e-4 * scale)


def test_vgg16_has_the_papers_names(tmp_path):
  _, template = _template("vgg16")
  rng = np.random.default_rng(0)
  layers = []
  for name, arrays in template["params"].items():
    shape = arrays["kernel"].shape
    if name == "fc6":
      shape = (3, 3, shape[0] // 9, shape[1])
    elif len(shape) == 2:
      shape = (1, 1, *shape)
    layers.append((name, *_draw(rng, shape)))
  path = tmp_path / "imagenet-vgg-verydeep-16.mat"
  _matconvnet(path, layers, np.ones((1, 1, 3)), old=False)
  loaded, _, report = load_pretrained(
    path, backbone="vgg16", variables=template
  )
  assert report.summary() == "32 used, 1 left out"
  for name, kernel, bias in layers:
    ours = loaded["params"][name]
    np.testing.assert_array_equal(ours["kernel"].ravel(), kernel.ravel())
    np.testing.assert_array_equal(ours["bias"], bias)


def test_without_its_mean_a_network_is_refused(tmp_path):
  path = tmp_path / "net.mat"
  cells = np.empty((1, 1), object)
  cells[0, 0] = {"name": "conv1", "filters": np.eye(3), "biases": np.ones(3)}
  scipy.io.savemat(path, {"layers": cells})
  with pytest.raises(WeightsError, match="net.mat.*averageImage"):
    load_pretrained(path, backbone="cnn_m", variables=_template("cnn_m")[1])


def test_a_file_that_crashes_the_reader_is_told(tmp_path, monkeypatch):
  path = tmp_path / "net.mat"
  scipy.io.savemat(path, {"layers": np.zeros(3)})
  program = tmp_path / "crash.py"
  program.write_text("import os\nos.abort()\n")
  monkeypatch.setattr(matconvnet, "__file__", str(program))
  with pytest.raises(
    WeightsError, match="net.mat: damaged: its reader crashed on it"
  ):
    read_source(path)


@pytest.mark.parametrize("name", ["mat-4c578ecb.mat", "mat-619415d3.mat"])
def test_damaged_files_that_crash_scipy(name):
  path = _HOSTILE / name
  if not path.exists():
    pytest.skip(f"no file {path}")
  with pytest.raises(WeightsError, match="damaged"):
    read_source(path)
