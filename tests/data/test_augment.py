"""Crops stay inside, protocols are what the papers say."""

import numpy as np
import pytest

from twostream_jax.data import augment
from twostream_jax.data.augment import Box


@pytest.mark.parametrize("height, width", [(64, 64), (72, 128), (256, 340)])
def test_random_crops_are_inside_and_within_the_settings(height, width):
  rng = np.random.default_rng(0)
  flips = 0
  for _ in range(300):
    view = augment.random_view(
      rng, height, width, scale=(0.5, 1.0), max_ratio=4 / 3, flip=True
    )
    y, x, h, w = view.box
    assert y >= 0 and y + h <= height and x >= 0 and x + w <= width
    assert 0.5 * 0.85 * min(height, width) < min(h, w)
    assert max(h / w, w / h) < 4 / 3 + 0.05
    flips += view.flip
  assert 100 < flips < 200


def test_flips_are_off_where_labels_are_directional():
  rng = np.random.default_rng(0)
  views = [
    augment.random_view(rng, 64, 64, scale=(1, 1), flip=False)
    for _ in range(50)
  ]
  assert not any(view.flip for view in views)


@pytest.mark.parametrize("scale", [(0, 1), (0.9, 0.5), (0.5, 1.1)])
def test_impossible_scales_are_refused(scale):
  with pytest.raises(ValueError, match="scale"):
    augment.random_view(
      np.random.default_rng(0), 64, 64, scale=scale, flip=False
    )


def test_ten_crops_are_centre_corners_and_mirrors():
  views = augment.eval_views(256, 340, fraction=224 / 256, count=10)
  boxes = [view.box for view in views]
  assert boxes[:5] == [
    Box(16, 58, 224, 224),
    Box(0, 0, 224, 224),
    Box(0, 116, 224, 224),
    Box(32, 0, 224, 224),
    Box(32, 116, 224, 224),
  ]
  assert boxes[5:] == boxes[:5]
  assert [view.flip for view in views] == [False] * 5 + [True] * 5


def test_unknown_numbers_of_crops_are_refused():
  with pytest.raises(ValueError, match="3"):
    augment.eval_views(64, 64, fraction=1, count=3)


def test_a_crop_of_the_right_size_is_the_image_itself():
  image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
  cropped = augment.crop_and_resize(image, Box(3, 5, 32, 32), 32)
  np.testing.assert_array_equal(cropped, image[3:35, 5:37])


def test_shrinking_by_two_averages_areas():
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 2), np.uint8)
  small = augment.crop_and_resize(image, Box(0, 0, 64, 64), 32)
  mean = image.reshape(32, 2, 32, 2, 2).mean(axis=(1, 3))
  np.testing.assert_allclose(small, mean, atol=0.51)
