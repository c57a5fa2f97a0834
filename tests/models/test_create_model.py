import functools
import math

import jax
import jax.numpy as jnp
import pytest

from twostream_jax.models import BACKBONES, create_model

# Published counts for 224 x 224 RGB images and 1000 classes, except CNN-M:
#   conv1    7 * 7 *   3 *   96 +   96 =     14 208
#   conv2    5 * 5 *  96 *  256 +  256 =    614 656
#   conv3    3 * 3 * 256 *  512 +  512 =  1 180 160
#   conv4    3 * 3 * 512 *  512 +  512 =  2 359 808
#   conv5    3 * 3 * 512 *  512 +  512 =  2 359 808
#   fc6      6 * 6 * 512 * 4096 + 4096 = 75 501 568
#   fc7            4096 * 2048 + 2048 =  8 390 656
#   logits         2048 * 1000 + 1000 =  2 049 000
NUM_PARAMS = {
  "cnn_m": 92_469_864,
  "vgg11": 132_863_336,
  "vgg16": 138_357_544,
  "vgg19": 143_667_240,
  "vgg11_bn": 132_868_840,
  "vgg16_bn": 138_365_992,
  "vgg19_bn": 143_678_248,
  "resnet18": 11_689_512,
  "resnet34": 21_797_672,
  "resnet50": 25_557_032,
  "resnet101": 44_549_160,
  "resnet152": 60_192_808,
}


@functools.cache
def _shapes(name, size, channels, num_classes):
  model = create_model(name, num_classes=num_classes)
  x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  return jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
  )


def test_every_backbone_is_listed():
  assert set(NUM_PARAMS) == set(BACKBONES)


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_number_of_parameters_is_the_published_one(name):
  _, variables = _shapes(name, 224, 3, 1000)
  params = jax.tree.leaves(variables["params"])
  assert sum(math.prod(p.shape) for p in params) == NUM_PARAMS[name]


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_smallest_flow_stack_gives_logits_and_features(name):
  (logits, features), variables = _shapes(name, 64, 20, 11)
  assert logits.shape == (2, 11)
  assert logits.dtype == jnp.float32
  vectors = {"pool"} if name.startswith("resnet") else {"fc6", "fc7"}
  assert set(features) == {"conv"} | vectors
  assert features["conv"].ndim == 4
  assert all(features[vector].ndim == 2 for vector in vectors)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_images_below_the_minimum_are_refused(name):
  with pytest.raises(ValueError, match="minimum is 64"):
    _shapes(name, 63, 3, 2)


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_every_backbone_has_the_shared_fields(name):
  model = create_model(
    name,
    num_classes=3,
    width=0.5,
    dropout_rate=0.25,
    dtype=jnp.bfloat16,
    axis_name="replica",
    sync_batch_norm=True,
  )
  assert (model.num_classes, model.width) == (3, 0.5)
  assert model.dropout_rate == 0.25
  assert model.dtype == jnp.bfloat16
  assert (model.axis_name, model.sync_batch_norm) == ("replica", True)


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="'vgg12'.*cnn_m, vgg11, vgg16"):
    create_model("vgg12", num_classes=5)


def test_an_unknown_field_is_refused_with_the_known_ones():
  with pytest.raises(
    ValueError, match="resnet18 has no field second_lrn.*width"
  ):
    create_model("resnet18", num_classes=5, second_lrn=True)


@pytest.mark.parametrize("field", ["stage_sizes", "use_batch_norm", "parent"])
def test_what_a_name_fixes_is_no_field(field):
  with pytest.raises(ValueError, match=f"no field {field}; it has width"):
    create_model("vgg16", num_classes=5, **{field: None})


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_one_class_is_no_choice(num_classes):
  with pytest.raises(ValueError, match="at least 2"):
    create_model("cnn_m", num_classes=num_classes)
