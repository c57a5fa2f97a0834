"""Flow by name: known motion, axes, and sizes that crash OpenCV itself."""

import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest

from twostream_jax.flow import FLOWS, compute_flow, default_parameters
from twostream_jax.flow.opencv import dis, farneback
from twostream_jax.flow.spec import FlowSpec, FlowSpecError


def _texture(height, width, seed=0):
  noise = np.random.default_rng(seed).random((height, width), np.float32)
  smooth = cv2.GaussianBlur(noise, (0, 0), 2)
  return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("x, y", [(3, 0), (0, 2), (-2, 1), (1, -3)])
def test_recovers_a_known_translation(name, x, y):
  image = _texture(64, 80)
  previous = image[8:-8, 8:-8]
  # What was at p is at p + (x, y): the window moves the other way.
  following = image[8 - y : -8 - y, 8 - x : 72 - x]
  flow = FLOWS[name](previous, np.ascontiguousarray(following))
  assert flow.shape == (48, 64, 2)
  assert flow.dtype == np.float32
  inner = flow[12:-12, 12:-12]
  np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [x, y], atol=0.1)


@pytest.mark.parametrize("name", FLOWS)
def test_no_motion_is_no_flow(name):
  image = _texture(48, 64)
  flow = np.abs(FLOWS[name](image, image))
  # Farneback invents motion at the border.
  assert flow[16:-16, 16:-16].max() < 1e-3
  assert flow.max() < 0.5


@pytest.mark.parametrize(
  "name, shape",
  # TV-L1 compiles each shape; test_tvl1.py has its smallest.
  [
    *itertools.product(
      ["dis", "farneback"], [(8, 8), (16, 33), (40, 7), (1, 1), (1, 50)]
    )
  ],
)
def test_flow_of_a_tiny_image_has_its_size(name, shape):
  image = _texture(*shape)
  flow = FLOWS[name](image, image)
  assert flow.shape == (*shape, 2)
  assert np.isfinite(flow).all()


def test_dis_survives_sizes_that_crash_opencv():
  # In a process of its own: what is tested for ends the process. On OpenCV 5.0
  # the bare algorithm dies at (16, 96), throws at (8, 8) and returns values
  # that are not finite at (16, 320).
  code = """
import numpy as np
from twostream_jax.flow.opencv import dis
rng = np.random.default_rng(0)
for preset in ("ultrafast", "fast", "medium"):
  for height in (1, 7, 8, 9, 12, 16, 24, 30, 31, 32, 33):
    for width in (1, 7, 8, 31, 32, 40, 96, 128, 257, 320, 513):
      for shape in ((height, width), (width, height)):
        images = rng.integers(0, 256, (2, *shape), np.uint8)
        flow = dis(*images, preset=preset)
        assert flow.shape == (*shape, 2) and np.isfinite(flow).all(), shape
print("survived")
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.stdout == "survived\n", (done.returncode, done.stderr)


def test_enlarging_for_dis_keeps_the_motion():
  image = _texture(24, 160)
  previous = np.ascontiguousarray(image[:, 8:-8])
  following = np.ascontiguousarray(image[:, 6:-10])
  inner = dis(previous, following)[4:-4, 24:-24]
  np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [2, 0], atol=0.15)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
  "previous, following, message",
  [
    (np.zeros((40, 40)), np.zeros((40, 40)), "gray uint8"),
    (*np.zeros((2, 40, 40, 3), np.uint8), "gray uint8"),
    (np.zeros((40, 40), np.uint8), np.zeros((40, 48), np.uint8), "one size"),
  ],
)
def test_refuses_wrong_images(name, previous, following, message):
  with pytest.raises(ValueError, match=message):
    FLOWS[name](previous, following)


def test_dis_refuses_an_unknown_preset():
  image = np.zeros((40, 40), np.uint8)
  with pytest.raises(ValueError, match="slow.*ultrafast, fast, medium"):
    dis(image, image, preset="slow")


def test_default_parameters_name_every_parameter():
  assert default_parameters("dis") == {"preset": "medium"}
  assert default_parameters("farneback") == {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
  }


@pytest.mark.parametrize("name", FLOWS)
def test_compute_flow_with_defaults_is_the_function(name):
  previous, following = _texture(48, 64), _texture(48, 64, seed=1)
  spec = FlowSpec(name, default_parameters(name))
  np.testing.assert_array_equal(
    compute_flow(spec, previous, following), FLOWS[name](previous, following)
  )


def test_compute_flow_uses_the_parameters():
  previous, following = _texture(48, 64), _texture(48, 64, seed=1)
  parameters = default_parameters("farneback") | {"winsize": 7}
  flow = compute_flow(FlowSpec("farneback", parameters), previous, following)
  np.testing.assert_array_equal(flow, farneback(previous, following, winsize=7))
  assert not np.array_equal(flow, farneback(previous, following))


def test_compute_flow_names_the_algorithms_there_are():
  image = np.zeros((40, 40), np.uint8)
  with pytest.raises(
    FlowSpecError, match="'flownet'; known: dis, farneback, tvl1"
  ):
    compute_flow(FlowSpec("flownet", {}), image, image)


def test_compute_flow_names_a_parameter_that_there_is_not():
  image = np.zeros((40, 40), np.uint8)
  with pytest.raises(FlowSpecError, match="no parameter winsize.*preset"):
    compute_flow(FlowSpec("dis", {"winsize": 5}), image, image)
