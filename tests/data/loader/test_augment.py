"""Crops stay inside, protocols are what the papers say."""

import numpy as np
import pytest

from twostream_jax.data.loader import augment
from twostream_jax.data.loader.augment import Box, CornerCrop, RandomCrop

# 256, 224, 192 and 168 of 256 pixels: Wang et al. 2015, section 3.
WANG = (1.0, 0.875, 0.75, 0.65625)


@pytest.mark.parametrize("height, width", [(64, 64), (72, 128), (256, 340)])
def test_random_crops_are_inside_and_within_the_settings(height, width):
  rng = np.random.default_rng(0)
  crop = RandomCrop((0.5, 1.0), max_ratio=4 / 3)
  for _ in range(300):
    y, x, h, w = crop.box(rng.random(4), height, width)
    assert y >= 0 and y + h <= height and x >= 0 and x + w <= width
    assert 0.5 * 0.85 * min(height, width) < min(h, w)
    assert max(h / w, w / h) < 4 / 3 + 0.05


@pytest.mark.parametrize(
  "name, make",
  [
    ("crop_scale", lambda: RandomCrop((0, 1))),
    ("crop_scale", lambda: RandomCrop((0.9, 0.5))),
    ("crop_scale", lambda: RandomCrop((0.5, 1.1))),
    ("crop_scale", lambda: RandomCrop((0.5,))),
    ("max_ratio", lambda: RandomCrop((0.5, 1.0), 0.9)),
    ("corner_scales", lambda: CornerCrop((), 1)),
    ("corner_scales", lambda: CornerCrop((1.1, 0.5), 1)),
    ("corner_scales", lambda: CornerCrop((0.5, 0.0), 1)),
    ("corner_scales", lambda: CornerCrop((0.75, 0.875), 1)),
    ("max_distort", lambda: CornerCrop((1.0, 0.875), -1)),
  ],
)
def test_impossible_crops_are_refused_by_the_name_of_the_setting(name, make):
  with pytest.raises(ValueError, match=f"input.{name}"):
    make()


def test_a_fixed_crop_moves_and_keeps_its_size():
  rng = np.random.default_rng(0)
  crop = RandomCrop((0.875, 0.875))
  boxes = [crop.box(draws, 256, 340) for draws in rng.random((2000, 4))]
  assert {(box.height, box.width) for box in boxes} == {(224, 224)}
  assert {box.y for box in boxes} == set(range(33))
  assert {box.x for box in boxes} == set(range(117))


@pytest.mark.parametrize("max_distort, pairs", [(3, 16), (1, 10), (0, 4)])
def test_corner_crops_are_those_of_the_paper(max_distort, pairs):
  """All places and pairs of sides that are allowed, and equally often."""
  rng = np.random.default_rng(0)
  crop = CornerCrop(WANG, max_distort)
  boxes = [crop.box(draws, 256, 340) for draws in rng.random((8000, 2))]
  sides = [256, 224, 192, 168]
  expected = {
    (y, x, h, w)
    for i, h in enumerate(sides)
    for j, w in enumerate(sides)
    if abs(i - j) <= max_distort
    for y, x in (
      (0, 0),
      (0, 340 - w),
      (256 - h, 0),
      (256 - h, 340 - w),
      ((256 - h) // 2, (340 - w) // 2),
    )
  }
  found, counts = np.unique(boxes, axis=0, return_counts=True)
  assert set(map(tuple, found.tolist())) == expected
  # At the full height the frame has three places, two of them twice as often.
  sizes, draws = np.unique(np.array(boxes)[:, 2:], axis=0, return_counts=True)
  assert len(sizes) == pairs
  np.testing.assert_allclose(draws / 8000, 1 / pairs, rtol=0.25)
  small = found[:, 2] < 256
  np.testing.assert_allclose(counts[small] / 8000, 0.2 / pairs, rtol=0.5)


def test_corner_crops_are_shares_of_any_stored_size():
  rng = np.random.default_rng(1)
  crop = CornerCrop(WANG, 3)
  boxes = [crop.box(draws, 72, 54) for draws in rng.random((400, 2))]
  assert {box.height for box in boxes} == {54, 47, 40, 35}
  assert all(box.y + box.height <= 72 for box in boxes)
  assert all(box.x + box.width <= 54 for box in boxes)
  tiny = CornerCrop((0.01,), 0).box(rng.random(2), 8, 8)
  assert (tiny.height, tiny.width) == (1, 1)


def test_colours_move_along_the_principal_components():
  """Mean and covariance of the shifts, against the definition."""
  rng = np.random.default_rng(0)
  shifts = np.stack([augment.random_rgb_shift(rng, 0.1) for _ in range(20_000)])
  assert shifts.dtype == np.float32
  # Krizhevsky et al. 2012, section 4.1: a sum of p_i alpha_i lambda_i.
  values, vectors = np.linalg.eigh(np.cov(shifts.T.astype(float)))
  np.testing.assert_allclose(
    np.sqrt(values[::-1]), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.03
  )
  # Brightness varies most, then red against blue.
  np.testing.assert_allclose(
    np.abs(vectors[:, 2]), [0.5675, 0.5808, 0.5836], atol=0.01
  )
  assert vectors[0, 1] * vectors[2, 1] < -0.4
  assert abs(vectors[1, 1]) < 0.1
  np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=5e-4)
  assert not augment.random_rgb_shift(rng, 0.0).any()


def test_ten_crops_are_centre_corners_and_mirrors():
  boxes = augment.eval_crops(256, 340, fraction=224 / 256, count=10)
  assert boxes[:5] == [
    Box(16, 58, 224, 224),
    Box(0, 0, 224, 224),
    Box(0, 116, 224, 224),
    Box(32, 0, 224, 224),
    Box(32, 116, 224, 224),
  ]
  assert boxes[5:] == boxes[:5]
  assert augment.eval_flips(10).tolist() == [False] * 5 + [True] * 5
  assert not augment.eval_flips(5).any()


def test_unknown_numbers_of_crops_are_refused():
  with pytest.raises(ValueError, match="3"):
    augment.eval_crops(64, 64, fraction=1, count=3)


def test_a_crop_of_the_right_size_is_the_image_itself():
  image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
  cropped = augment.crop_and_resize(image, Box(3, 5, 32, 32), 32)
  np.testing.assert_array_equal(cropped, image[3:35, 5:37])


def test_shrinking_by_two_averages_areas():
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 2), np.uint8)
  small = augment.crop_and_resize(image, Box(0, 0, 64, 64), 32)
  mean = image.reshape(32, 2, 32, 2, 2).mean(axis=(1, 3))
  np.testing.assert_allclose(small, mean, atol=0.51)


@pytest.mark.parametrize("side", [20, 45, 60, 63])
def test_resizing_keeps_pixels_where_they_are(side):
  x = np.tile(4 * np.arange(64, dtype=np.uint8), (64, 1))
  image = np.stack([x, x.T], axis=-1)
  resized = augment.crop_and_resize(image, Box(1, 0, side, side), 32)
  # The centre of pixel i of the result, in pixels of the image.
  centre = (np.arange(32) + 0.5) * side / 32 - 0.5
  inside = (centre >= 0) & (centre <= side - 1)
  ramp = np.tile(4 * centre, (32, 1))
  np.testing.assert_allclose(
    resized[inside][:, inside],
    np.stack([ramp, ramp.T + 4], axis=-1)[inside][:, inside],
    atol=0.8,
  )
