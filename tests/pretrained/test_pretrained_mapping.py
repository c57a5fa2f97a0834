"""What fits, what is reported, and what is refused."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.paths import SHARED
from twostream_jax.models import create_model
from twostream_jax.models.stream import Stream
from twostream_jax.pretrained import (
  CAFFE,
  IMAGENET,
  InputConvention,
  WeightsError,
  cross_modality,
  load_pretrained,
)
from twostream_jax.stages.preprocess import Preprocess

_REAL = SHARED / "weights/vgg16_imagenet_conv.npz"


def _variables(name="vgg11", size=64, channels=3, num_classes=5, **fields):
  """Variables of a small backbone, filled with -1."""
  fields = {"width": 0.02} | fields
  model = create_model(name, num_classes=num_classes, **fields)
  images = np.zeros((1, size, size, channels), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  return jax.tree.map(lambda x: np.full(x.shape, -1, x.dtype), shapes)


def _torchvision(variables):
  """State dict of torchvision for VGG-11 variables, with random values."""
  rng = np.random.default_rng(0)
  params = variables["params"]
  positions = iter((0, 3, 6, 8, 11, 13, 16, 18))
  heads = {"fc6": 0, "fc7": 3, "logits": 6}
  arrays = {}
  for name in sorted(params):
    shape = params[name]["kernel"].shape
    group = f"classifier.{heads.get(name)}"
    order = (1, 0)
    if name.startswith("conv"):
      group, order = f"features.{next(positions)}", (3, 2, 0, 1)
    kernel = rng.normal(size=shape).astype(np.float32).transpose(order)
    arrays[f"{group}.weight"] = np.ascontiguousarray(kernel)
    arrays[f"{group}.bias"] = rng.normal(size=shape[-1]).astype(np.float32)
  return arrays


def _save(tmp_path, arrays):
  path = tmp_path / "weights.safetensors"
  safetensors.numpy.save_file(arrays, path)
  return path


def _load(path, variables, backbone="vgg11", **options):
  return load_pretrained(
    path, backbone=backbone, variables=variables, **options
  )


def test_every_array_of_both_sides_is_in_the_report(tmp_path):
  fresh = _variables()
  arrays = _torchvision(fresh)
  arrays["features.1.num_batches_tracked"] = np.array(7)
  loaded, convention, report = _load(_save(tmp_path, arrays), fresh)
  assert convention == IMAGENET
  assert report.summary() == "22 used, 1 left out"
  assert {row.key for row in report.rows} == set(arrays)
  assert jax.tree.structure(loaded) == jax.tree.structure(fresh)
  assert all((x != -1).all() for x in jax.tree.leaves(loaded))
  first = report.table().splitlines()[0].split()
  assert first == ["used", "features.0.bias", "params/conv1_1/bias", "8"]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
  fresh = _variables()
  arrays = _torchvision(fresh)
  del arrays["features.3.weight"], arrays["classifier.3.bias"]
  arrays["features.99.weight"] = np.zeros((2, 3), np.float32)
  arrays["features.6.weight"] = np.zeros((8, 8, 5, 5), np.float32)
  arrays["features.8.weight"] = np.zeros((8, 72), np.float32)
  arrays["features.11.bias"][1] = np.nan
  arrays["features.13.bias"] = np.zeros(10, np.int32)
  path = _save(tmp_path, arrays)
  with pytest.raises(WeightsError) as caught:
    _load(path, fresh)
  headline, *lines, hint = str(caught.value).splitlines()
  assert "keys begin " in hint and "--prefix" in hint
  assert headline.startswith(str(path))
  assert "vgg11: 16 used, 2 missing, 1 extra, 4 wrong" in headline
  cells = {tuple(line.split()[:2]): line for line in lines}
  assert set(cells) == {
    ("missing", "features.3.weight"),
    ("missing", "classifier.3.bias"),
    ("extra", "features.99.weight"),
    ("wrong", "features.6.weight"),
    ("wrong", "features.8.weight"),
    ("wrong", "features.11.bias"),
    ("wrong", "features.13.bias"),
  }
  assert "5 x 5 x 8 x 8 in the file" in cells["wrong", "features.6.weight"]
  assert "not finite" in cells["wrong", "features.11.bias"]
  assert "int32" in cells["wrong", "features.13.bias"]


def test_a_classifier_of_other_classes_is_not_taken(tmp_path):
  path = _save(tmp_path, _torchvision(_variables(num_classes=7)))
  loaded, _, report = _load(path, _variables(num_classes=5))
  fresh = report.of("fresh")
  assert [row.path for row in fresh] == [
    "params/logits/bias",
    "params/logits/kernel",
  ]
  assert {row.note for row in fresh} == {"7 classes in the file, 5 here"}
  assert (loaded["params"]["logits"]["kernel"] == -1).all()
  assert (loaded["params"]["fc7"]["kernel"] != -1).all()


def test_another_image_size_says_so_and_leaves_fc_layers_only_in_part(tmp_path):
  path = _save(tmp_path, _torchvision(_variables(size=96)))
  fresh = _variables(size=64)
  with pytest.raises(WeightsError, match="map of side 3, here 2"):
    _load(path, fresh)
  loaded, _, report = _load(path, fresh, partial=True)
  assert {row.path.split("/")[1] for row in report.of("fresh")} == {
    "fc6",
    "fc7",
    "logits",
  }
  assert (loaded["params"]["fc7"]["kernel"] == -1).all()
  assert (loaded["params"]["conv5_2"]["kernel"] != -1).all()


def test_convolutions_alone_are_taken_only_in_part(tmp_path):
  fresh = _variables()
  arrays = {
    key: x for key, x in _torchvision(fresh).items() if "features" in key
  }
  path = _save(tmp_path, arrays)
  with pytest.raises(WeightsError, match="convolutions only.*partial"):
    _load(path, fresh)
  loaded, _, report = _load(path, fresh, partial=True)
  assert report.summary() == "16 used, 6 fresh"
  assert (loaded["params"]["fc6"]["bias"] == -1).all()


def test_in_part_still_refuses_a_missing_convolution_or_half_a_layer(tmp_path):
  fresh = _variables()
  for key in ("features.3.bias", "classifier.3.bias"):
    arrays = _torchvision(fresh)
    del arrays[key]
    with pytest.raises(WeightsError, match=f"missing *{key}"):
      _load(_save(tmp_path, arrays), fresh, partial=True)


def test_a_flow_stream_takes_the_mean_of_the_first_kernel(tmp_path):
  arrays = _torchvision(_variables())
  path = _save(tmp_path, arrays)
  fresh = _variables(channels=20)
  with pytest.raises(WeightsError, match="3 input channels, not 20.*cross-mod"):
    _load(path, fresh)
  loaded, _, _ = _load(path, fresh, from_images=True)
  kernel = loaded["params"]["conv1_1"]["kernel"]
  mean = arrays["features.0.weight"].mean(axis=1).transpose(1, 2, 0)
  assert kernel.shape == (3, 3, 20, 8)
  np.testing.assert_allclose(kernel, np.stack([mean] * 20, 2), rtol=1e-5)


def test_a_first_kernel_for_flow_is_not_averaged_again(tmp_path):
  arrays = _torchvision(_variables(channels=20))
  path = _save(tmp_path, arrays)
  loaded, _, _ = _load(path, _variables(channels=20), from_images=True)
  np.testing.assert_array_equal(
    loaded["params"]["conv1_1"]["kernel"].transpose(3, 2, 0, 1),
    arrays["features.0.weight"],
  )
  with pytest.raises(WeightsError, match="20 input channels, not 10"):
    _load(path, _variables(channels=10), from_images=True)


def test_cross_modality_keeps_the_response_to_equal_channels():
  kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 4))
  kernel = kernel.astype(np.float32)
  flow = cross_modality(kernel, 6)
  assert flow.dtype == np.float32
  np.testing.assert_allclose(
    flow.sum(axis=2), 2 * kernel.sum(axis=2), rtol=1e-4, atol=1e-6
  )
  for wrong in (kernel[:, :, :2], kernel[0]):
    with pytest.raises(ValueError, match="h w 3 n"):
      cross_modality(wrong, 6)
  with pytest.raises(ValueError, match="got 0"):
    cross_modality(kernel, 0)


def test_flow_is_scaled_to_the_range_of_the_pixels():
  # 8-bit flow of bound 20, minus 128, as Caffe's users fed it.
  assert 1 / CAFFE.flow_scale(20.0) == pytest.approx(255 / 40)
  # ((flow / 40 + 0.5) - 0.5) / 0.226, as torchvision's.
  assert 1 / IMAGENET.flow_scale(20.0) == pytest.approx(1 / 40 / 0.226)


def test_caffe_s_input_is_the_same_in_rgb_and_0_to_1():
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  preprocess = Preprocess(CAFFE.rgb_mean, CAFFE.rgb_std, 1.0, 1.0, False)
  ours = np.asarray(preprocess({"rgb": images})["rgb"])
  caffe = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
  np.testing.assert_allclose(ours[..., ::-1], caffe, atol=1e-4)
  assert CAFFE.as_rgb().rgb_mean == CAFFE.rgb_mean


@pytest.mark.parametrize(
  "change, message",
  [
    ({"channel_order": "GBR"}, "RGB or BGR"),
    ({"max_value": 256}, "1 or 255"),
    ({"std": (1.0, 0.0, 1.0)}, "above 0"),
    ({"mean": (1.0,)}, "three values"),
  ],
)
def test_a_convention_must_make_sense(change, message):
  fields = {"channel_order": "RGB", "max_value": 1}
  fields |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
  with pytest.raises(ValueError, match=message):
    InputConvention(**fields | change)


def test_wrong_names_and_pairs_are_refused(tmp_path):
  fresh = _variables()
  path = _save(tmp_path, _torchvision(fresh))
  with pytest.raises(WeightsError, match="unknown layout 'onnx'.*torchvision"):
    _load(path, fresh, layout="onnx")
  with pytest.raises(WeightsError, match="unknown backbone 'vgg12'.*vgg11"):
    _load(path, fresh, backbone="vgg12")
  with pytest.raises(WeightsError, match="vgg11.*not for cnn_m"):
    _load(path, fresh, backbone="cnn_m")
  path = _save(tmp_path, {"a.b": np.zeros(3), "c": np.zeros(2)})
  with pytest.raises(WeightsError, match=r"2 arrays \(a.b, c\).*no known"):
    _load(path, fresh)


def test_variables_of_a_stream_hold_those_of_its_backbone(tmp_path):
  fresh = _variables()
  path = _save(tmp_path, _torchvision(fresh))
  backbone = create_model("vgg11", num_classes=5, width=0.02)
  stream = Stream(modality="rgb", backbone=backbone)
  inputs = {"rgb": np.zeros((1, 2, 64, 64, 3), np.float32)}
  variables = jax.eval_shape(
    lambda: stream.init(jax.random.key(0), inputs, train=False)
  )
  with pytest.raises(ValueError, match="below 'backbone'"):
    _load(path, variables)
  inner = {name: tree["backbone"] for name, tree in variables.items()}
  loaded, _, _ = _load(path, inner)
  assert jax.tree.structure(loaded) == jax.tree.structure(fresh)


@pytest.mark.skipif(not _REAL.exists(), reason=f"needs {_REAL}")
def test_real_convolutions_of_vgg16():
  model = create_model("vgg16", num_classes=101)
  images = np.zeros((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  loaded, convention, report = _load(_REAL, shapes, "vgg16", partial=True)
  assert convention == IMAGENET
  assert report.summary() == "26 used, 6 fresh, 5 left out"
  with np.load(_REAL) as file:
    np.testing.assert_array_equal(
      loaded["params"]["conv5_3"]["kernel"], file["VGG16_0/Conv_12/kernel"]
    )
  assert isinstance(
    loaded["params"]["fc6"]["kernel"], jax.ShapeDtypeStruct
  )  # What was given is given back.
