"""Prefixes in every format, shards, archives of Keras, and hostile files."""

import functools
import io
import json
import os
import pickle
import tracemalloc
import zipfile

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy

from twostream_jax.models import create_model
from twostream_jax.pretrained import (
  Choice,
  WeightsError,
  apart,
  fit_layout,
  load_pretrained,
  read_source,
)

_CLASSES = 5


@functools.cache
def _template(backbone):
  model = create_model(backbone, num_classes=_CLASSES, width=0.02)
  images = np.zeros((1, 64, 64, 3), np.float32)
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )


def _load(path, backbone, partial=False, **choice):
  return load_pretrained(
    path,
    backbone=backbone,
    variables=_template(backbone),
    partial=partial,
    choice=Choice(**choice),
  )


@functools.cache
def _layers(backbone):
  """[(name, kernel, bias)] of a VGG, in order, with different values."""
  params = _template(backbone)["params"]
  order = sorted(params, key=lambda name: (name == "logits", name))
  return [
    (
      name,
      np.full(params[name]["kernel"].shape, i + 1, np.float32),
      np.full(params[name]["bias"].shape, -i - 1, np.float32),
    )
    for i, name in enumerate(order)
  ]


def _torchvision(prefix):
  """The arrays of a VGG-11 by torchvision's names."""
  names = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)]
  names += [f"classifier.{i}" for i in (0, 3, 6)]
  arrays = {}
  for name, (_, kernel, bias) in zip(names, _layers("vgg11"), strict=True):
    axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    arrays[f"{prefix}{name}.weight"] = np.ascontiguousarray(
      kernel.transpose(axes)
    )
    arrays[f"{prefix}{name}.bias"] = bias
  return arrays


def _assert_loaded(variables, backbone):
  for name, kernel, bias in _layers(backbone):
    np.testing.assert_array_equal(variables["params"][name]["kernel"], kernel)
    np.testing.assert_array_equal(variables["params"][name]["bias"], bias)


def _write_hdf5(path, arrays):
  with h5py.File(path, "w") as file:
    for key, array in arrays.items():
      file[key] = array


@pytest.mark.parametrize("length", [0x80, 0x280, 0x4B50, ord("{")])
def test_the_length_of_a_header_does_not_look_like_a_format(length, tmp_path):
  path = tmp_path / "a.safetensors"
  header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
  path.write_bytes(
    length.to_bytes(8, "little") + header.ljust(length) + bytes(4)
  )
  assert read_source(path).arrays["a"].shape == (1,)


@pytest.fixture
def read_here(monkeypatch):
  """A function after whose call no other process reads HDF5 files first.

  The process takes most of the time, and is the same for all files.
  """
  return lambda: monkeypatch.setattr(apart, "call", lambda *_: b"")


def _nest(arrays):
  return {"weights": {"best": arrays}, "epoch": 3}


_WRITERS = {
  "safetensors": lambda path, x: safetensors.numpy.save_file(x, path),
  "npz": lambda path, x: np.savez(path, **x),
  "h5": _write_hdf5,
  "npy": lambda path, x: np.save(path, x, allow_pickle=True),
  "pkl": lambda path, x: path.write_bytes(pickle.dumps(_nest(x))),
}


@pytest.mark.parametrize("prefix", ["", "module.backbone.", "_orig_mod.net."])
@pytest.mark.parametrize("suffix", _WRITERS)
def test_prefixes_are_found_in_every_format(
  suffix, prefix, tmp_path, read_here
):
  if prefix:
    read_here()
  path = tmp_path / f"weights.{suffix}"
  _WRITERS[suffix](path, _torchvision(prefix))
  variables, _, report = _load(path, "vgg11")
  _assert_loaded(variables, "vgg11")
  assert f"{prefix}features.0.weight" in report.table("used")


@pytest.mark.parametrize("suffix", _WRITERS)
def test_two_prefixes_are_refused_in_every_format(suffix, tmp_path, read_here):
  read_here()
  path = tmp_path / f"weights.{suffix}"
  other = {key: array + 1 for key, array in _torchvision("flow.").items()}
  _WRITERS[suffix](path, _torchvision("rgb.") | other)
  with pytest.raises(WeightsError, match="--prefix=flow. or --prefix=rgb."):
    _load(path, "vgg11")
  variables, _, _ = _load(path, "vgg11", prefix="rgb.")
  _assert_loaded(variables, "vgg11")


def _shard(folder, name="model.safetensors.index.json", prefix=""):
  """Two shards and their index."""
  arrays = _torchvision(prefix)
  weight_map = {}
  for i, keys in enumerate((list(arrays)[:9], list(arrays)[9:])):
    file = f"model-{i}.safetensors"
    safetensors.numpy.save_file(
      {key: arrays[key] for key in keys}, folder / file
    )
    weight_map |= dict.fromkeys(keys, file)
  index = folder / name
  index.write_text(
    json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
  )
  return index


def test_shards_are_read_by_their_index_or_folder(tmp_path):
  index = _shard(tmp_path, prefix="model.")
  for path in (index, tmp_path):
    variables, _, _ = _load(path, "vgg11")
    _assert_loaded(variables, "vgg11")
  (tmp_path / "other.index.json").write_text("{}")
  with pytest.raises(WeightsError, match="2 indices"):
    read_source(tmp_path)
  with pytest.raises(WeightsError, match="other.index.json.*weight_map"):
    read_source(tmp_path / "other.index.json")


@pytest.mark.parametrize("stale", [0, 1])
def test_older_copies_in_other_shards_are_not_taken(tmp_path, stale):
  index = _shard(tmp_path)
  arrays = _torchvision("")
  keys = list(arrays)
  own, other = (keys[:9], keys[9:])[:: 1 - 2 * stale]
  content = {key: arrays[key] for key in own}
  content |= {key: np.zeros_like(arrays[key]) for key in other}
  safetensors.numpy.save_file(content, tmp_path / f"model-{stale}.safetensors")
  variables, _, _ = _load(index, "vgg11")
  _assert_loaded(variables, "vgg11")


@pytest.mark.optional
def test_shards_of_torch(tmp_path):
  torch = pytest.importorskip("torch")
  arrays = {key: torch.tensor(x) for key, x in _torchvision("").items()}
  keys = list(arrays)
  for i, part in enumerate((keys[:5], keys[5:])):
    torch.save({key: arrays[key] for key in part}, tmp_path / f"{i}.bin")
  index = {key: f"{int(i >= 5)}.bin" for i, key in enumerate(keys)}
  path = tmp_path / "pytorch_model.bin.index.json"
  path.write_text(json.dumps({"weight_map": index}))
  variables, _, _ = _load(path, "vgg11")
  _assert_loaded(variables, "vgg11")


@pytest.mark.parametrize(
  "name, message",
  [
    ("../secret.safetensors", "not the name of a file beside"),
    ("/etc/passwd", "not the name of a file beside"),
    ("sub/model.safetensors", "not the name of a file beside"),
    ("..\\secret.safetensors", "not the name of a file beside"),
    ("..", "not the name of a file beside"),
    (["model-0.safetensors"], "not the name of a file beside"),
    (3, "not the name of a file beside"),
    ("link.safetensors", "link out of the folder"),
    ("gone.safetensors", r"gone.safetensors is not beside"),
    ("gone\x1b[2J.safetensors", r"gone\\x1b\[2J.safetensors' is not the name"),
    ("model-1.safetensors", "features.0.weight is not in model-1"),
    ("model.safetensors.index.json", "known format"),
  ],
)
def test_an_index_leads_nowhere_else(name, message, tmp_path):
  folder = tmp_path / "model"
  folder.mkdir()
  index = _shard(folder)
  secret = tmp_path / "secret.safetensors"
  secret.write_bytes((folder / "model-0.safetensors").read_bytes())
  (folder / "link.safetensors").symlink_to(secret)
  content = json.loads(index.read_text())
  content["weight_map"]["features.0.weight"] = name
  index.write_text(json.dumps(content))
  with pytest.raises(WeightsError, match=message) as caught:
    read_source(folder)
  assert "\x1b" not in str(caught.value)


# Archives of Keras, as its versions wrote them: the numbers of groups count
# layers of a kind, by ones or by twos.

_KERAS_NAMES = {"fc6": "fc1", "fc7": "fc2", "logits": "predictions"}


def _keras_name(name):
  return _KERAS_NAMES.get(name) or f"block{name[4]}_conv{name[6]}"


def _bgr(name, kernel):
  return kernel[:, :, ::-1] if name == "conv1_1" else kernel


def _keras_weights(top="layers/", step=1, named=False, first=0, separator="/"):
  """The bytes of model.weights.h5 of a VGG-16."""
  content = io.BytesIO()
  counts = {"conv2d": first, "dense": first}
  with h5py.File(content, "w") as file:
    file["optimizer/vars/0"] = np.ones(3, np.float32)
    file[f"{top}dropout/seed_generator/vars/0"] = np.ones(2, np.uint32)
    for name, kernel, bias in _layers("vgg16"):
      kind = "conv2d" if kernel.ndim == 4 else "dense"
      group = f"{top}{kind}_{counts[kind]}".removesuffix("_0")
      counts[kind] += step
      for i, array in enumerate((_bgr(name, kernel), bias)):
        file[f"{group}/vars/{i}".replace("/", separator)] = array
      if named:
        file[f"{group}/vars"].attrs["name"] = _keras_name(name)
  return content.getvalue()


def _keras_config(inside=False):
  layers = [
    {
      "class_name": "Conv2D" if kernel.ndim == 4 else "Dense",
      "config": {"name": _keras_name(name)},
    }
    for name, kernel, _ in _layers("vgg16")
  ]
  layers.insert(0, {"class_name": "InputLayer", "config": {"name": "input_1"}})
  network = {
    "class_name": "Functional",
    "config": {"name": "vgg16", "layers": layers},
  }
  if inside:
    head = {"class_name": "Dense", "config": {"name": "dense"}}
    layers = [network, head]
    network = {"class_name": "Sequential", "config": {"layers": layers}}
  return json.dumps(network)


def _keras_archive(path, weights, config="{}", compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
    archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
    archive.writestr("config.json", config)
    archive.writestr("model.weights.h5", weights)


_OLD = "_layer_checkpoint_dependencies/"
_NETWORK = "layers/functional/layers/"


@pytest.mark.parametrize(
  "layout, weights, config",
  [
    ("keras", {"named": True}, {}),
    ("keras", {}, {}),
    ("keras", {"top": _OLD, "step": 2}, {}),
    ("keras", {"top": _OLD, "separator": "\\"}, {}),
    ("keras", {"named": True, "top": _NETWORK}, {"inside": True}),
    ("keras", {"top": _NETWORK}, {"inside": True}),
    ("keras_3", {}, None),
    ("keras_3", {"top": _OLD, "step": 2}, None),
  ],
)
@pytest.mark.parametrize("form", ["stored", "deflated", "h5"])
def test_keras_archives(layout, weights, config, form, tmp_path, read_here):
  if weights != {"named": True}:
    read_here()
  path = tmp_path / "vgg16.bin"
  content = _keras_weights(**weights)
  config = '{"config": {}}' if config is None else _keras_config(**config)
  if form == "h5":
    path.write_bytes(content)
    layout = "keras" if weights.get("named") else "keras_3"
  else:
    compression = {
      "stored": zipfile.ZIP_STORED,
      "deflated": zipfile.ZIP_DEFLATED,
    }
    _keras_archive(path, content, config, compression[form])
  variables, convention, report = _load(path, "vgg16")
  assert report.layout == layout
  assert convention.rgb_std == (1 / 255,) * 3
  _assert_loaded(variables, "vgg16")
  assert os.listdir(tmp_path) == [path.name]


def test_resnets_of_keras_are_told_apart(tmp_path):
  path = tmp_path / "resnet50.h5"
  _write_hdf5(path, {"conv2_block1_1_conv/kernel:0": np.ones((1, 1, 3, 3))})
  with pytest.raises(WeightsError, match="ResNet of Keras.*torchvision"):
    fit_layout(read_source(path), "resnet50")


def test_the_message_tells_the_kind_of_an_archive(tmp_path):
  path = tmp_path / "tiny.keras"
  _keras_archive(path, b"0")
  with pytest.raises(WeightsError, match="tiny.keras: its model.weights.h5"):
    read_source(path)
  for name in ("a.pth", "b.keras", "c.npz"):
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("readme\x1b[2J.txt", "")
    with pytest.raises(WeightsError, match=f"{name}: a zip archive") as caught:
      read_source(path)
    assert r"readme\x1b[2J.txt" in str(caught.value)
    assert "pip install" not in str(caught.value)
  for content, message in (
    (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs"),
    (b"\n<!DOCTYPE html><html>", "web page"),
  ):
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
      read_source(path)


def test_names_of_a_file_are_escaped(tmp_path):
  path = tmp_path / "esc.safetensors"
  evil = "\x1b]0;OWNED\x07\x1b[2J\x1b[1;1HAll arrays used\u202e" + "x" * 10**4
  one = np.ones(1, np.float32)
  safetensors.numpy.save_file({evil: one}, path)
  messages = []
  with pytest.raises(WeightsError) as caught:
    _load(path, "vgg11")
  messages.append(str(caught.value))
  assert "features.0.weight (torchvision)" in messages[0]
  assert all(
    f"--{flag}" in messages[0] for flag in ("layout", "wrapper", "prefix")
  )
  safetensors.numpy.save_file(_torchvision("") | {evil: one}, path)
  with pytest.raises(WeightsError) as caught:
    _load(path, "vgg11")
  messages.append(str(caught.value))
  safetensors.numpy.save_file(_torchvision(f"{evil}.") | {evil: one}, path)
  _, _, report = _load(path, "vgg11")
  messages.append(report.table())
  metadata = {"backbone": evil, "num_classes": None, "convention": None}
  safetensors.numpy.save_file(
    {"a": one},
    path,
    metadata={"format": "twostream_jax", "metadata": json.dumps(metadata)},
  )
  with pytest.raises(WeightsError) as caught:
    _load(path, "vgg11")
  messages.append(str(caught.value))
  for message in messages:
    assert r"\x1b]0;OWNED\x07" in message
    assert message.replace("\n", "").isprintable() and len(message) < 10**5


# Files of a few bytes that would fill the memory or never end.


def _nested_references():
  levels = [b"]q\x00K\x01a0"]
  for i in range(1, 40):
    levels.append(b"]q" + bytes([i]) + b"(" + b"h%c" % (i - 1) * 10 + b"e0")
  return b"\x80\x02" + b"".join(levels) + b"h\x27."


def _nested_keys():
  content = b"\x80\x02}K\x01\x85q\x00"
  for i in range(1, 60):
    content += b"0h%c" % (i - 1) + b"h%c" % (i - 1) + b"\x86q" + bytes([i])
  return content + b"K\x01s."


_HOSTILE = {
  "memo": (b"\x80\x02Nr\xff\xff\xff\x1f.", "no array"),
  "references": (_nested_references(), "contain each other"),
  "keys": (_nested_keys(), "no array"),
  "length": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
  "itself": (b"\x80\x02]q\x00h\x00a.", "no array"),
  "deep": (b"\x80\x02" + b"(" * 10**4 + b"l" * 10**4 + b".", "no array"),
  "stack": (b"\x80\x02ea.", "damaged"),
  "extension": (b"\x80\x02\x82\x01.", "EXT1 has no place"),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_small_files_do_not_fill_memory_or_time(name, tmp_path):
  content, message = _HOSTILE[name]
  path = tmp_path / "weights.pkl"
  path.write_bytes(content)
  if name == "memo":
    tracemalloc.start()
  try:
    with pytest.raises(WeightsError, match=f"weights.pkl.*{message}"):
      read_source(path)
    assert tracemalloc.get_traced_memory()[1] < 2**28
  finally:
    tracemalloc.stop()


def test_a_damaged_list_of_an_archive_is_told(tmp_path):
  path = tmp_path / "a.npz"
  np.savez(path, café=np.ones(2))
  content = path.read_bytes()
  path.write_bytes(content.replace("é".encode(), b"\xff\xff"))
  with pytest.raises(WeightsError, match="a.npz: a damaged or incomplete"):
    read_source(path)


def test_bombs_are_refused(tmp_path):
  bomb = bytes(100 * 2**20)
  deflated = zipfile.ZIP_DEFLATED
  with zipfile.ZipFile(
    tmp_path / "a.npz", "w", deflated, compresslevel=1
  ) as archive:
    archive.writestr("a.npy", bomb)
  _keras_archive(tmp_path / "b.keras", bomb, compression=deflated)
  with zipfile.ZipFile(
    tmp_path / "c.pth", "w", deflated, compresslevel=1
  ) as archive:
    archive.writestr("c/data.pkl", bomb)
  with h5py.File(tmp_path / "d.h5", "w") as file:
    # Nothing of it is stored.
    file.create_dataset("a", (10**6, 10**6), "f4", chunks=(100, 100))
  for name in ("a.npz", "b.keras", "c.pth", "d.h5"):
    with pytest.raises(WeightsError, match=f"{name}.*would unpack"):
      read_source(tmp_path / name)


def test_arrays_of_hdf5_in_other_files_are_refused(tmp_path):
  (tmp_path / "secret").write_bytes(bytes(400))
  layout = h5py.VirtualLayout((10,), "f4")
  layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a", (10,))
  with h5py.File(tmp_path / "a.h5", "w") as file:
    file.create_dataset(
      "a", (100,), "f4", external=[(str(tmp_path / "secret"), 0, 400)]
    )
  with h5py.File(tmp_path / "b.h5", "w") as file:
    file.create_virtual_dataset("a", layout)
  for name in ("a.h5", "b.h5"):
    with pytest.raises(WeightsError, match=f"{name}.*lies in another file"):
      read_source(tmp_path / name)


@pytest.mark.parametrize(
  "link", [h5py.ExternalLink("secret.h5", "/a"), h5py.SoftLink("/layer/a")]
)
def test_links_of_hdf5_are_refused(link, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with h5py.File("secret.h5", "w") as file:
    file["a"] = np.ones((2, 2), "f4")
  with h5py.File("weights.h5", "w") as file:
    file["layer/a"] = np.ones((2, 2), "f4")
    file["layer/b"] = link
  with zipfile.ZipFile("weights.keras", "w") as archive:
    archive.write("weights.h5", "model.weights.h5")
  for name in ("weights.h5", "weights.keras"):
    with pytest.raises(WeightsError, match=f"{name}.*'layer/b' is a link"):
      read_source(tmp_path / name)
