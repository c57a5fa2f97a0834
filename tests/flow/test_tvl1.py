"""TV-L1: known motions, invariants, and its parts against NumPy."""

import cv2
import jax
import numpy as np
import pytest

from tests.paths import SHARED
from twostream_jax.flow import brightness, pyramid, stencils
from twostream_jax.flow.opencv import dis, farneback
from twostream_jax.flow.tvl1 import FAST, tvl1

# Most pairs have this height and width, and this preset: every new shape, type
# or parameter is compiled for seconds. Those of test_opencv.py are not square.
SIDE = 48
MIDDLEBURY = SHARED / "flow_gt/RubberWhale"


def texture(seed=0, h=SIDE, w=SIDE, margin=8):
  """Smooth random gray image, float32 [h + 2 margin, w + 2 margin]."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, size=(h // 4 + 4, w // 4 + 4))
  size = (w + 2 * margin, h + 2 * margin)
  image = cv2.resize(coarse.astype(np.float32), size, None, 0, 0, 2)
  return np.clip(image, 0, 255)


def moved(x, y, margin=8):
  """A square pair in which everything moves by x to the right and y down."""
  image = texture()
  h, w = (side - 2 * margin for side in image.shape)
  columns, rows = np.meshgrid(
    np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)
  )
  first, second = (
    cv2.remap(
      image, columns + margin - dx, rows + margin - dy, cv2.INTER_LANCZOS4
    )
    for dx, dy in ((0, 0), (x, y))
  )
  return first, second


@pytest.mark.parametrize(
  "x, y", [(2, 0), (0, -2), (-3, 1), (0.5, 0.25), (3, -2)]
)
def test_a_translation_is_recovered(x, y):
  flow = np.asarray(tvl1(*moved(x, y), **FAST))
  assert flow.shape == (SIDE, SIDE, 2) and flow.dtype == np.float32
  inner = flow[6:-6, 6:-6]
  np.testing.assert_allclose(inner.mean(axis=(0, 1)), [x, y], atol=0.05)
  assert np.hypot(*np.moveaxis(inner - [x, y], -1, 0)).mean() < 0.1


def test_nothing_that_moves_gives_exactly_zero():
  image = texture()[8:-8, 8:-8]
  np.testing.assert_array_equal(tvl1(image, image, **FAST), 0)


def test_swapped_images_give_the_opposite_flow():
  first, second = moved(1.5, -1)
  there = np.asarray(tvl1(first, second, **FAST))[6:-6, 6:-6]
  back = np.asarray(tvl1(second, first, **FAST))[6:-6, 6:-6]
  assert np.abs(there + back).mean() < 0.05


def test_transposed_images_give_the_transposed_flow():
  first, second = moved(1, 2)
  flow = np.asarray(tvl1(first, second, **FAST))
  turned = np.asarray(tvl1(first.T, second.T, **FAST))
  np.testing.assert_allclose(
    turned, flow.transpose(1, 0, 2)[..., ::-1], atol=2e-3
  )


def test_a_batch_of_bytes_gives_what_its_pairs_give_as_floats():
  pairs = [np.round(moved(1, 0)), np.round(moved(0, 2))]
  first, second = np.stack(pairs, axis=1).astype(np.uint8)
  together = tvl1(first[None], second[None], **FAST)
  assert together.shape == (1, 2, SIDE, SIDE, 2)
  for i, pair in enumerate(pairs):
    alone = tvl1(*pair.astype(np.float32), **FAST)
    np.testing.assert_allclose(together[0, i], alone, atol=1e-3)


def test_the_pair_is_not_smoothed_into_its_neighbours():
  first, second = (
    np.stack([image, image * 0])[None].astype(np.uint8) for image in moved(2, 0)
  )
  flow = np.asarray(tvl1(first, second, **FAST))[0]
  np.testing.assert_array_equal(flow[1], 0)
  assert flow[0].mean() > 0.5


@pytest.mark.parametrize(
  "shapes, settings, match",
  [
    (((8, 8), (8, 9)), {}, r"\(8, 9\)"),
    (((8,), (8,)), {}, r"\(8,\)"),
    (((1, 8), (1, 8)), {}, "2 x 2"),
    (((8, 8), (8, 8)), {"scale_step": 1.0}, "scale_step"),
    (((8, 8), (8, 8)), {"warps": 0}, "warps"),
    (((8, 8), (8, 8)), {"texture": 1.5}, "texture"),
  ],
)
def test_what_can_not_work_is_refused(shapes, settings, match):
  with pytest.raises(ValueError, match=match):
    tvl1(*(np.zeros(shape, np.float32) for shape in shapes), **settings)


def test_small_images_have_small_pyramids():
  assert pyramid.pyramid_sizes(256, 340, 5, 0.5) == (
    (256, 340),
    (128, 170),
    (64, 85),
    (32, 42),
    (16, 21),
  )
  assert pyramid.pyramid_sizes(20, 20, 5, 0.5) == ((20, 20),)
  smallest = np.zeros((2, 2), np.float32)
  assert tvl1(smallest, smallest, **FAST).shape == (2, 2, 2)


def test_divergence_is_minus_the_adjoint_of_the_differences():
  rng = np.random.default_rng(0)
  field, dual_x, dual_y = rng.normal(size=(3, 2, 7, 9)).astype(np.float32)
  # The dual variable is zero where the forward difference is.
  dual_x[..., -1] = 0
  dual_y[:, -1] = 0

  @jax.jit
  def products(field, dual_x, dual_y):
    left = (stencils.forward_x(field) * dual_x).sum()
    left += (stencils.forward_y(field) * dual_y).sum()
    return left, -(field * stencils.divergence(dual_x, dual_y)).sum()

  left, right = products(field, dual_x, dual_y)
  np.testing.assert_allclose(left, right, rtol=1e-4)


def test_the_median_is_the_median():
  values = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
  padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  expected = np.median(windows, axis=(-2, -1))
  np.testing.assert_array_equal(jax.jit(stencils.median)(values), expected)


def test_derivatives_are_exact_for_cubics():
  x = np.arange(12, dtype=np.float32)
  image = np.tile(0.01 * x**3 - 0.2 * x**2 + x, (10, 1))
  got_x, got_y = jax.jit(stencils.derivatives)(image)
  expected = 0.03 * x**2 - 0.4 * x + 1
  np.testing.assert_allclose(
    got_x[:, 2:-2], np.tile(expected[2:-2], (10, 1)), atol=1e-4
  )
  np.testing.assert_allclose(got_y, 0, atol=1e-4)


def test_sampling_is_bilinear():
  image = np.random.default_rng(0).normal(size=(5, 6, 1)).astype(np.float32)
  x = np.array([[0.0, 1.5, 5.0, -3.0]], np.float32)
  y = np.array([[0.0, 2.25, 4.0, 9.0]], np.float32)
  (got,) = jax.jit(stencils.sample)(image, x, y)
  between = image[2:4, 1:3, 0].mean(axis=1) @ [0.75, 0.25]
  expected = [image[0, 0, 0], between, image[4, 5, 0], image[4, 0, 0]]
  np.testing.assert_allclose(got[0], expected, rtol=1e-5)


CHANGES = {
  "+60": lambda image: image + 60,
  "x 0.7": lambda image: image * 0.7,
  "x 1.3": lambda image: image * 1.3,
  "flash": lambda image: image * 0.6 + 100,
  "fade": lambda image: image * 0.97,
}


def changed(image, change):
  """`image` as a camera would store it after a change of brightness."""
  return np.clip(np.round(CHANGES[change](image)), 0, 255).astype(np.float32)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_brightness_is_not_motion(change):
  image = np.round(texture()[8:-8, 8:-8] * 0.5 + 40)
  flow = np.asarray(tvl1(image, changed(image, change), **FAST))
  assert np.hypot(*np.moveaxis(flow, -1, 0)).mean() < 0.1


@pytest.mark.parametrize("change", CHANGES)
def test_motion_is_found_through_a_change_of_brightness(change):
  first, second = (image * 0.5 + 40 for image in moved(2, -1))
  flow = np.asarray(tvl1(first, changed(second, change), **FAST))
  inner = flow[6:-6, 6:-6] - [2, -1]
  assert np.hypot(*np.moveaxis(inner, -1, 0)).mean() < 0.2


@pytest.mark.parametrize("shape", [(2, 2), (33, 5), (SIDE, SIDE)])
@pytest.mark.parametrize("levels", [(0, 255), (200, 90), (128, 129)])
def test_flat_images_have_no_flow(shape, levels):
  first, second = (np.full(shape, level, np.float32) for level in levels)
  flow = tvl1(first, second, **FAST)
  assert flow.shape == (*shape, 2)
  np.testing.assert_allclose(flow, 0, atol=1e-2)


texture_pyramids = jax.jit(brightness.texture_pyramids)


def numpy_texture(image, share, strength):
  """Texture of [h w], by one window of 9 x 9 instead of four of 5."""
  weights = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
  padded = np.pad(image.astype(np.float64), 4, mode="edge")
  around = np.lib.stride_tricks.sliding_window_view(padded, (9, 9))
  mean = np.einsum("hwij,i,j->hw", around, weights, weights)
  return strength * (image - share * mean)


@pytest.mark.parametrize("shape", [(2, 3), (17, 30)])
def test_texture_is_what_a_local_mean_leaves(shape):
  rng = np.random.default_rng(0)
  first = rng.uniform(50, 150, (3, *shape)).astype(np.float32)
  # A change of 1.125 gray levels is half way from none to all texture.
  second = first + np.float32([60, 1.125, -0.75])[:, None, None]
  ((found, other),) = texture_pyramids([(first, second)], 0.8)
  for i, (share, strength) in enumerate([(0.8, 2), (0.4, 1.5), (0, 1)]):
    a, b = (numpy_texture(x[i], share, strength) for x in (first, second))
    ratio = np.sqrt((a**2).sum() / (b**2).sum())
    np.testing.assert_allclose(found[i], a, rtol=1e-4, atol=2e-3)
    expected = b * (1 + share * (ratio - 1))
    np.testing.assert_allclose(other[i], expected, rtol=1e-4, atol=2e-3)


def test_an_exposure_is_taken_out_of_what_is_not_clipped():
  first = np.round(texture()[None, 8:-8, 8:-8] * 0.5 + 60)
  second = 1.5 * first - 20
  second[:, :10] = 255
  ((a, b),) = texture_pyramids([(first, second)], 1.0)
  np.testing.assert_allclose(a[:, 14:], b[:, 14:], rtol=1e-3, atol=2)


def test_pairs_of_constant_brightness_are_matched_as_they_are():
  bright, dark = moved(2, 0), [image * 0.5 for image in moved(0, 1)]
  dark[1] = dark[1] + 60
  first, second = (np.stack(z) for z in zip(bright, dark, strict=True))
  half = jax.jit(lambda image: pyramid.resize(image, (SIDE // 2, SIDE // 2)))
  coarse = [half(image) for image in (first, second)]
  pairs = [(first, second), tuple(coarse)]
  for old, new in zip(pairs, texture_pyramids(pairs, 1.0), strict=True):
    for a, b in zip(old, new, strict=True):
      np.testing.assert_array_equal(a[0], b[0])
      assert np.abs(a[1] - b[1]).mean() > 10


def test_what_enters_an_image_does_not_change_its_brightness():
  first = texture()[None, 8:-8, 8:-8]
  second = first.copy()
  second[:, :, :8] = 255
  assert (
    abs(brightness.brightness_change(first, second)[0]) < brightness._CHANGE[0]
  )


def energy(flow, first, second, lambda_=0.3):
  """The energy of Zach et al. 2007, eq. 6, in NumPy, for images of 0..255."""
  h, w = first.shape
  smoothness = 0.0
  for component in np.moveaxis(flow.astype(np.float64), -1, 0):
    across = np.diff(component, axis=1, append=component[:, -1:])
    down = np.diff(component, axis=0, append=component[-1:])
    smoothness += np.hypot(across, down).sum()
  rows, columns = np.mgrid[:h, :w]
  x, y = columns + flow[..., 0], rows + flow[..., 1]
  inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
  left = np.clip(np.floor(x).astype(int), 0, w - 2)
  top = np.clip(np.floor(y).astype(int), 0, h - 2)
  part_x, part_y = x - left, y - top
  warped = (1 - part_y) * (
    (1 - part_x) * second[top, left] + part_x * second[top, left + 1]
  ) + part_y * (
    (1 - part_x) * second[top + 1, left] + part_x * second[top + 1, left + 1]
  )
  data = np.abs(warped - first)[inside].sum()
  return smoothness + lambda_ * data


@pytest.mark.parametrize("preset, w", [({}, 64), (FAST, SIDE)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_energy_is_lower_than_that_of_other_flows(preset, w, seed):
  rng = np.random.default_rng(seed)
  second = texture(seed, SIDE, w, margin=0)
  coarse = rng.uniform(-3, 3, (2, 3, 4)).astype(np.float32)
  x, y = (cv2.resize(c, (w, SIDE), None, 0, 0, cv2.INTER_CUBIC) for c in coarse)
  rows, columns = np.mgrid[:SIDE, :w].astype(np.float32)
  first = cv2.remap(second, columns + x, rows + y, cv2.INTER_LANCZOS4)
  first, second = (np.clip(m, 0, 255).astype(np.uint8) for m in (first, second))
  images = first.astype(np.float32), second.astype(np.float32)
  if preset:
    flow = np.asarray(tvl1(*images, **preset))
  else:
    # The program of compute_flow.
    flow = np.asarray(tvl1(first[None], second[None]))[0]
  ours = energy(flow, *images)
  assert ours < 0.2 * energy(np.zeros_like(flow), *images)
  for other in (dis(first, second), farneback(first, second)):
    assert ours < energy(other, *images)


@pytest.mark.optional
@pytest.mark.skipif(
  not MIDDLEBURY.is_dir(), reason="the Middlebury pair is not at hand"
)
@pytest.mark.parametrize("preset, bound", [({}, 0.148), (FAST, 0.165)])
def test_error_on_rubberwhale(preset, bound):
  """OpenCV's DualTVL1, with its defaults, has 0.156."""
  images = [
    cv2.imread(str(MIDDLEBURY / name), cv2.IMREAD_GRAYSCALE)
    for name in ("frame10.png", "frame11.png")
  ]
  raw = (MIDDLEBURY / "flow10.flo").read_bytes()
  truth = np.frombuffer(raw, np.float32, offset=12)
  truth = truth.reshape(*images[0].shape, 2)
  known = (np.abs(truth) < 1e9).all(axis=-1)
  error = np.asarray(tvl1(*images, **preset)) - truth
  assert np.hypot(error[..., 0], error[..., 1])[known].mean() <= bound


@pytest.mark.parametrize("change", [60.0, -60.0])
def test_what_is_clipped_is_not_taken_for_motion(change):
  rng = np.random.default_rng(5)
  first = cv2.GaussianBlur(rng.uniform(0, 255, (96, 96)), (0, 0), 3)
  first = np.clip(127 + 6 * (first - first.mean()), 0, 255).astype(np.float32)
  second = np.clip(first + change, 0, 255)
  assert np.mean((second == 0) | (second == 255)) > 0.03
  flow = np.asarray(tvl1(first[None], second[None]))
  assert np.linalg.norm(flow, axis=-1).mean() < 0.05
