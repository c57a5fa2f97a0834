"""Weights of each other project give the logits that the project computes.

The networks are small fakes; their files are written with the libraries that
the projects use, and their logits are computed here, in the project's own
conventions, from what is in the file.
"""

import functools

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.signal

from twostream_jax.models import create_model
from twostream_jax.pretrained import IMAGENET, load_pretrained
from twostream_jax.stages.preprocess import Preprocess

_CLASSES = 5
_SIZE = 96  # 3 x 3 positions before fc6 of VGG.
_STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


@functools.cache
def _template(name, size=_SIZE, channels=3, num_classes=_CLASSES, **fields):
  """A small backbone and its variables, all zero."""
  model = create_model(name, num_classes=num_classes, width=0.02, **fields)
  images = np.zeros((1, size, size, channels), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  return model, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _random_images(size=_SIZE):
  return np.random.default_rng(7).integers(0, 256, (2, size, size, 3), np.uint8)


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, variables, inputs):
  return model.apply(variables, inputs, train=False)[0]


def _our_logits(model, variables, images, convention):
  preprocess = Preprocess(
    convention.rgb_mean, convention.rgb_std, 1.0, 1.0, False
  )
  return _apply(model, variables, preprocess({"rgb": images})["rgb"])


def _assert_same(logits, expected):
  scale = np.abs(expected).max()
  assert np.std(expected) > 0.01 * scale
  np.testing.assert_allclose(logits, expected, atol=1e-4 * scale)


def _draw(rng, shape):
  """A kernel that keeps the scale of activations, and a bias."""
  kernel = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
  bias = rng.uniform(0, 0.2, shape[-1])
  return kernel.astype(np.float32), bias.astype(np.float32)


# A fake VGG in HWIO and [in, out], to be written in any layout.


def _vgg_arrays(name):
  """[(name, kernel, bias)] of the layers of a VGG, in order."""
  rng = np.random.default_rng(0)
  _, template = _template(name)
  layers = []
  order = sorted(template["params"], key=lambda n: (n == "logits", n))
  for layer in order:
    shape = template["params"][layer]["kernel"].shape
    layers.append((layer, *_draw(rng, shape)))
  return layers


def _correlate(x, kernel, bias):
  """x [b h w c] with an HWIO kernel."""
  patches = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 3), axis=(1, 2)
  )
  return np.einsum("bhwcij,ijcn->bhwn", patches, kernel, optimize=True) + bias


def _convolve(x, kernel, bias):
  """x [b h w c] with an [out, in, h, w] kernel, which it mirrors."""
  x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
  maps = [
    [
      sum(
        scipy.signal.convolve2d(image[..., i], k, "valid")
        for i, k in enumerate(kernels)
      )
      for kernels in kernel
    ]
    for image in x
  ]
  return np.transpose(maps, (0, 2, 3, 1)) + bias


def _vgg_logits(x, layers, stages, convolve, flatten):
  """x [b h w c] through layers of (kernel, bias)."""
  layers = iter(layers)
  for size in stages:
    for _ in range(size):
      x = np.maximum(convolve(x, *next(layers)), 0)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
  x = flatten(x).reshape(len(x), -1)
  for kernel, bias in layers:
    x = x @ kernel + bias
    x = np.maximum(x, 0) if kernel.shape[1] != _CLASSES else x
  return x


def _as_hwc(x):
  return x


def _as_chw(x):
  return x.transpose(0, 3, 1, 2)


def _caffe_pixels(images):
  return images[..., ::-1] - np.array([103.939, 116.779, 123.68])


def _torch_pixels(images):
  return (images / 255 - IMAGENET.mean) / np.array(IMAGENET.std)


def _keras_2016(path, layers):
  """`layer_<k>` counts padding, pooling, flattening and dropout layers too."""
  positions = [1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29, 32, 34, 36]
  with h5py.File(path, "w") as file:
    file.attrs["nb_layers"] = 37
    for k in range(37):
      file.create_group(f"layer_{k}").attrs["nb_params"] = 0
    for k, (_, *arrays) in zip(positions, layers, strict=True):
      file[f"layer_{k}"].attrs["nb_params"] = 2
      for i, array in enumerate(arrays):
        file[f"layer_{k}/param_{i}"] = array


def _keras_name(name):
  heads = {"fc6": "fc1", "fc7": "fc2", "logits": "predictions"}
  return heads.get(name) or f"block{name[4]}_conv{name[6]}"


def _keras(path, layers, kernel="{0}/kernel:0", bias="{0}/bias:0", top=""):
  with h5py.File(path, "w") as file:
    for ours, *arrays in layers:
      group = _keras_name(ours)
      for name, array in zip((kernel, bias), arrays, strict=True):
        file[f"{top}{group}/{name.format(group)}"] = array
    if top:
      file["optimizer_weights/SGD/block1_conv1/kernel:0"] = np.zeros(3)


_keras_application = functools.partial(
  _keras, kernel="{0}_W_1:0", bias="{0}_b_1:0"
)
_keras_model = functools.partial(_keras, top="model_weights/")


def _caffe_name(name):
  return "fc8" if name == "logits" else name


def _keras_3(path, layers):
  """Keras 3's .weights.h5 counts the layers of a kind."""
  counts = {"conv2d": 0, "dense": 0}
  with h5py.File(path, "w") as file:
    for _, *arrays in layers:
      kind = "conv2d" if arrays[0].ndim == 4 else "dense"
      group = f"{kind}_{counts[kind]}".removesuffix("_0")
      counts[kind] += 1
      for i, array in enumerate(arrays):
        file[f"layers/{group}/vars/{i}"] = array


def _npy(path, layers, entries):
  content = {}
  for name, *arrays in layers:
    content |= entries(_caffe_name(name), *arrays)
  np.save(path, content, allow_pickle=True)


def _npy_entries(entries):
  return functools.partial(_npy, entries=entries)


@pytest.mark.parametrize(
  "layout, write, suffix",
  [
    ("keras", _keras, "h5"),
    ("keras", _keras_application, "h5"),
    ("keras", _keras_model, "h5"),
    ("keras_3", _keras_3, "h5"),
    ("npy", _npy_entries(lambda n, k, b: {n: [k, b]}), "npy"),
    ("npy", _npy_entries(lambda n, k, b: {n: {0: k, 1: b}}), "npy"),
    (
      "npy",
      _npy_entries(lambda n, k, b: {f"{n}_weights": k, f"{n}_biases": b}),
      "npy",
    ),
  ],
)
def test_copies_of_caffe_s_vgg16(layout, write, suffix, tmp_path):
  layers = _vgg_arrays("vgg16")
  path = tmp_path / f"vgg16.{suffix}"
  write(path, layers)
  model, template = _template("vgg16")
  variables, convention, report = load_pretrained(
    path, backbone="vgg16", variables=template
  )
  assert report.layout == layout
  assert len(report.of("used")) == 32
  images = _random_images()
  expected = _vgg_logits(
    _caffe_pixels(images),
    [layer[1:] for layer in layers],
    _STAGES["vgg16"],
    _correlate,
    _as_hwc,
  )
  _assert_same(_our_logits(model, variables, images, convention), expected)


def test_keras_vgg16_of_2016_convolves_and_flattens_channels_first(tmp_path):
  layers = [
    (n, k.transpose(3, 2, 0, 1) if k.ndim == 4 else k, b)
    for n, k, b in _vgg_arrays("vgg16")
  ]
  path = tmp_path / "vgg16_weights.h5"
  _keras_2016(path, layers)
  model, template = _template("vgg16")
  variables, convention, report = load_pretrained(
    path, backbone="vgg16", variables=template
  )
  assert report.layout == "keras_theano"
  images = _random_images()
  expected = _vgg_logits(
    _caffe_pixels(images),
    [layer[1:] for layer in layers],
    _STAGES["vgg16"],
    _convolve,
    _as_chw,
  )
  _assert_same(_our_logits(model, variables, images, convention), expected)


def test_timm_vgg11_has_convolutions_for_fully_connected_layers(tmp_path):
  layers = _vgg_arrays("vgg11")
  names = {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2"}
  positions = iter((0, 3, 6, 8, 11, 13, 16, 18))
  arrays = {}
  for name, kernel, bias in layers:
    group = names.get(name, "head.fc")
    if kernel.ndim == 4:
      group = f"features.{next(positions)}"
      kernel = kernel.transpose(3, 2, 0, 1)
    elif name == "fc6":
      kernel = kernel.T.reshape(-1, 3, 3, 10).transpose(0, 3, 1, 2)
    elif name == "fc7":
      kernel = kernel.T[:, :, None, None]
    else:
      kernel = kernel.T
    arrays[f"{group}.weight"] = np.ascontiguousarray(kernel)
    arrays[f"{group}.bias"] = bias
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
  model, template = _template("vgg11")
  variables, convention, report = load_pretrained(
    path, backbone="vgg11", variables=template
  )
  assert report.layout == "timm" and convention == IMAGENET
  images = _random_images()
  expected = _vgg_logits(
    _torch_pixels(images),
    [layer[1:] for layer in layers],
    _STAGES["vgg11"],
    _correlate,
    _as_hwc,
  )
  _assert_same(_our_logits(model, variables, images, convention), expected)
