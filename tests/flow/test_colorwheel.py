"""Flow as colour, against the Middlebury convention."""

import math

import numpy as np
import pytest

from twostream_jax.flow.colorwheel import color_wheel, flow_to_rgb


def _reference(x, y, max_speed):
  """One pixel, written again from Baker et al. 2011's computeColor."""
  wheel = []
  lengths = {"RY": 15, "YG": 6, "GC": 4, "CB": 11, "BM": 13, "MR": 6}
  for name, n in lengths.items():
    for i in range(n):
      rising, falling = i / n, 1 - i / n
      wheel.append(
        {
          "RY": (1, rising, 0),
          "YG": (falling, 1, 0),
          "GC": (0, 1, rising),
          "CB": (0, falling, 1),
          "BM": (rising, 0, 1),
          "MR": (1, 0, falling),
        }[name]
      )
  speed = math.hypot(x, y) / max_speed
  angle = math.atan2(-y, -x) / math.pi
  position = (angle + 1) / 2 * len(wheel)
  first = int(position) % len(wheel)
  part = position - int(position)
  second = (first + 1) % len(wheel)
  color = []
  for a, b in zip(wheel[first], wheel[second], strict=True):
    hue = (1 - part) * a + part * b
    color.append(1 - speed * (1 - hue) if speed <= 1 else 0.75 * hue)
  return [255 * value for value in color]


def test_agrees_with_an_independent_implementation():
  flow = np.random.default_rng(0).normal(0, 4, (20, 30, 2))
  expected = [[_reference(x, y, 5.0) for x, y in row] for row in flow]
  drawn = flow_to_rgb(flow, 5.0)
  assert drawn.dtype == np.uint8
  np.testing.assert_allclose(drawn, expected, atol=0.51)


def test_no_motion_is_white():
  np.testing.assert_array_equal(flow_to_rgb(np.zeros((2, 3, 2)), 1.0), 255)


def test_motion_to_the_right_is_red():
  np.testing.assert_array_equal(
    flow_to_rgb(np.array([2.0, 0.0]), 2.0), [255, 0, 0]
  )


def test_slower_motion_is_paler_and_too_fast_is_darker():
  half, full, fast = flow_to_rgb(np.array([[1.0, 0], [2, 0], [9, 0]]), 2.0)
  np.testing.assert_array_equal(half, [255, 128, 128])
  np.testing.assert_array_equal(full, [255, 0, 0])
  np.testing.assert_array_equal(fast, [191, 0, 0])


def test_wheel_has_55_distinct_saturated_colours():
  wheel = color_wheel()
  assert len(np.unique(wheel, axis=0)) == len(wheel) == 55
  np.testing.assert_array_equal(wheel.max(axis=1), 1)
  np.testing.assert_array_equal(wheel.min(axis=1), 0)


@pytest.mark.parametrize(
  "shape, max_speed, message",
  [((4, 3), 1.0, "last axis"), ((4, 2), 0.0, "positive")],
)
def test_refuses_wrong_arguments(shape, max_speed, message):
  with pytest.raises(ValueError, match=message):
    flow_to_rgb(np.zeros(shape), max_speed)
