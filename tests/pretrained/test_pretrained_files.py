"""Formats, damaged files, pickles that would run code, and saving."""

import collections
import os
import pickle

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.io

from twostream_jax.models import create_model
from twostream_jax.pretrained import (
  CAFFE,
  Metadata,
  WeightsError,
  load_pretrained,
  read_metadata,
  read_source,
  save_weights,
)

_ARRAYS = {
  "conv1_1": [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3)],
  "fc6": {"weights": np.asfortranarray(np.eye(3, 2)), "biases": np.zeros(2)},
}
_FLAT = {
  "conv1_1/0": _ARRAYS["conv1_1"][0],
  "conv1_1/1": _ARRAYS["conv1_1"][1],
  "fc6/weights": _ARRAYS["fc6"]["weights"],
  "fc6/biases": _ARRAYS["fc6"]["biases"],
}


def _assert_equal(arrays, expected):
  assert set(arrays) == set(expected)
  for key, array in expected.items():
    np.testing.assert_array_equal(arrays[key], array)
    assert arrays[key].dtype == array.dtype


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_of_every_protocol(protocol, tmp_path):
  path = tmp_path / "weights.pkl"
  path.write_bytes(pickle.dumps(_ARRAYS, protocol))
  _assert_equal(read_source(path).arrays, _FLAT)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_big_endian_arrays_keep_their_values(protocol, tmp_path):
  path = tmp_path / "weights.pkl"
  array = np.array([1, -2.5, 3e8], ">f4")
  path.write_bytes(pickle.dumps({"a": array}, protocol))
  np.testing.assert_array_equal(read_source(path).arrays["a"], array)


def test_names_of_numpy_1_and_bytes_of_python_2(tmp_path):
  path = tmp_path / "weights.pkl"
  content = pickle.dumps({"a": np.float32([1, -2])}, 2)
  # Python 2 wrote the values as its own kind of string, not by an encoder.
  old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  path.write_bytes(old)
  _assert_equal(read_source(path).arrays, {"a": np.float32([1, -2])})
  values = np.float32([1, -2]).tobytes()
  python_2 = (
    b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    b"K\x00\x85U\x01btR(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
    b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
    + values
    + b"tbs."
  )
  path.write_bytes(python_2)
  _assert_equal(read_source(path).arrays, {"a": np.float32([1, -2])})


@pytest.mark.parametrize(
  "suffix, write",
  [
    ("npy", lambda path: np.save(path, _ARRAYS, allow_pickle=True)),
    ("npz", lambda path: np.savez(path, **_FLAT)),
    (
      "safetensors",
      lambda path: safetensors.numpy.save_file(
        {key: np.ascontiguousarray(x) for key, x in _FLAT.items()}, path
      ),
    ),
  ],
)
def test_the_content_tells_the_format(suffix, write, tmp_path):
  path = tmp_path / f"weights.{suffix}"
  write(path)
  renamed = path.rename(tmp_path / "weights.bin")
  _assert_equal(read_source(renamed).arrays, _FLAT)


class _Evil:
  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


@pytest.mark.parametrize(
  "write",
  [
    lambda path, x: path.write_bytes(pickle.dumps(x)),
    lambda path, x: path.write_bytes(pickle.dumps(x, 2)),
    lambda path, x: np.save(path, x, allow_pickle=True),
  ],
)
def test_a_pickle_that_would_run_code_is_not_opened(write, tmp_path):
  marker = tmp_path / "ran"
  path = tmp_path / "evil.npy"
  write(path, {"conv1_1": _Evil(f"touch {marker}")})
  with pytest.raises(WeightsError, match="evil.npy.*system.*might run code"):
    read_source(path)
  assert not marker.exists()


def test_npz_files_with_objects_are_refused(tmp_path):
  marker = tmp_path / "ran"
  path = tmp_path / "evil.npz"
  np.savez(path, a=np.array([_Evil(f"touch {marker}")], object))
  with pytest.raises(WeightsError, match="evil.npz"):
    read_source(path)
  assert not marker.exists()


def _global(module, name, arguments):
  """A pickle that calls module.name with arguments."""
  call = pickle.dumps(arguments, 2)[2:-1]
  return b"\x80\x02c" + f"{module}\n{name}\n".encode() + call + b"R."


@pytest.mark.parametrize(
  "content",
  [
    _global("builtins", "eval", ("1",)),
    _global("builtins", "getattr", ({}, "keys")),
    _global("numpy", "load", ("x.npy", None, True)),
    _global("numpy", "ndarray", ((1,), "O", b"12345678")),
    _global("numpy", "dtype", ([("a", "O")],)),
    _global("numpy", "dtype", ("V8",)),
    _global("numpy.core.multiarray", "_reconstruct", (dict, (0,), b"b")),
    pickle.dumps(np.zeros(2, "f4,O")),
    pickle.dumps({"a": np.float32(1)}),
    _global("_codecs", "encode", ("x", "zlib")),
    pickle.dumps(collections.OrderedDict(a=1)),
    b"\x80\x02X\x01\x00\x00\x00xQ.",  # A persistent id.
    b"\x80\x02garbage",
  ],
)
def test_nothing_but_arrays_and_containers_is_admitted(content, tmp_path):
  path = tmp_path / "weights.pkl"
  path.write_bytes(content)
  with pytest.raises(WeightsError, match="weights.pkl: (can't|a pickle)"):
    read_source(path)


def _write_npy(path):
  np.save(path, _ARRAYS, allow_pickle=True)


def _write_hdf5(path):
  with h5py.File(path, "w") as file:
    file["block1_conv1/block1_conv1/kernel:0"] = np.ones((50, 50))


def _write_mat(path):
  layer = {"name": "conv1", "filters": np.eye(30), "biases": np.ones(30)}
  cells = np.empty((1, 1), object)
  cells[0, 0] = layer
  scipy.io.savemat(path, {"layers": cells})


@pytest.mark.parametrize(
  "name, write",
  [
    ("cut.npy", _write_npy),
    ("cut.npz", lambda path: np.savez(path, **_FLAT)),
    ("cut.pkl", lambda path: path.write_bytes(pickle.dumps(_ARRAYS))),
    ("cut.h5", _write_hdf5),
    ("cut.mat", _write_mat),
    (
      "cut.safetensors",
      lambda path: safetensors.numpy.save_file({"a": np.ones(99)}, path),
    ),
  ],
)
def test_a_truncated_file_is_named(name, write, tmp_path):
  path = tmp_path / name
  write(path)
  assert read_source(path).arrays
  content = path.read_bytes()
  for size in (0, 20, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:size])
    with pytest.raises(WeightsError, match=name):
      read_source(path)


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "weights"
  for content, message in (
    (b"hello", "known format"),
    (b"MATLAB 7.3 MAT-file" + bytes(200), "7.3.*-v7"),
    (pickle.dumps({"epoch": 3}), "no array"),
  ):
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
      read_source(path)
  scipy.io.savemat(tmp_path / "weights.mat", {"x": np.eye(2)})
  with pytest.raises(WeightsError, match="without MatConvNet's `layers`"):
    read_source(tmp_path / "weights.mat")
  np.save(tmp_path / "weights.npy", np.eye(2))
  with pytest.raises(WeightsError, match="one array of numbers"):
    read_source(tmp_path / "weights.npy")
  for several in ([{}, {}], ["a"] * 0):
    array = np.array(several, object)
    np.save(tmp_path / "weights.npy", array, allow_pickle=True)
    with pytest.raises(WeightsError, match="no single dict of named arrays"):
      read_source(tmp_path / "weights.npy")
  with pytest.raises(WeightsError, match="No such file"):
    read_source(tmp_path / "nowhere.pth")


def _random_variables(seed=0, num_classes=5):
  model = create_model("vgg11_bn", num_classes=num_classes, width=0.02)
  images = np.zeros((1, 64, 64, 3), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes
  )


def test_saved_weights_come_back_bit_by_bit(tmp_path):
  saved = _random_variables(seed=0)
  # Signed zeros and the smallest numbers too.
  saved["params"]["fc7"]["bias"][:2] = -0.0, 1e-45
  path = tmp_path / "new" / "vgg.safetensors"
  metadata = Metadata(
    "vgg11_bn", 5, CAFFE.as_rgb(), {"class_names": ["a", "b"], "bound": 20.0}
  )
  save_weights(path, jax.tree.map(jax.numpy.asarray, saved), metadata)
  assert read_metadata(path) == metadata
  loaded, convention, report = load_pretrained(
    path, backbone="vgg11_bn", variables=_random_variables(seed=1)
  )
  assert convention == CAFFE.as_rgb()
  assert report.layout == "twostream_jax"
  assert jax.tree.structure(loaded) == jax.tree.structure(saved)
  for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(saved), strict=True):
    assert a.tobytes() == b.tobytes()


def test_own_files_say_what_network_they_are_of(tmp_path):
  path = tmp_path / "flow.safetensors"
  save_weights(path, _random_variables(), Metadata("vgg11_bn", 5, None))
  with pytest.raises(WeightsError, match="for vgg11_bn; not for vgg16"):
    load_pretrained(path, backbone="vgg16", variables=_random_variables())
  _, convention, report = load_pretrained(
    path, backbone="vgg11_bn", variables=_random_variables(num_classes=7)
  )
  assert convention is None
  assert len(report.of("fresh")) == 2
  safetensors.numpy.save_file({"a": np.ones(2)}, path)
  with pytest.raises(WeightsError, match="without the metadata"):
    read_metadata(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "vgg.safetensors"
  metadata = Metadata("vgg11_bn", 5, None)
  save_weights(path, _random_variables(), metadata)
  before = path.read_bytes()

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr("pathlib.Path.rename", fail)
  with pytest.raises(OSError, match="disk full"):
    save_weights(path, _random_variables(seed=1), metadata)
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == [path.name]
