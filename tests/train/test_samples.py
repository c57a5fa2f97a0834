"""Batches drawn as images."""

import numpy as np

from twostream_jax.flow.spec import quantise
from twostream_jax.train import samples


def test_the_first_frame_and_field_of_each_clip_are_drawn():
  # Two devices, two micro-batches, three clips, two segments.
  rgb = np.random.default_rng(0).integers(
    0, 256, (2, 2, 3, 2, 5, 4, 3), np.uint8
  )
  flow = np.zeros((2, 2, 3, 2, 6, 5, 4), np.float32)
  flow[1, 0, 2, 0, 0] = 5.0  # x of the first field of the ninth clip
  flow[0, 1, 0, 0, 1] = 5.0  # y of the first field of the fourth
  flow[0, 0, 0, 1] = 5.0  # another segment
  flow[0, 0, 1, 0, 2:] = 5.0  # another field
  images = samples.draw(
    {"rgb": rgb, "flow": quantise(flow, 20.0), "label": np.zeros(3)},
    flow_bound=20.0,
  )
  assert images["rgb"].shape == images["flow"].shape == (5, 8 * 4, 3)
  np.testing.assert_array_equal(images["rgb"][:, 16:20], rgb[0, 1, 1, 0])
  moving = (images["flow"].min(axis=(0, 2)) < 128).reshape(8, 4)
  # No motion is white; only the fourth clip moves in what is drawn.
  assert moving.all(axis=1).tolist() == [i == 3 for i in range(8)]


def test_what_the_device_mirrors_is_drawn_mirrored():
  rng = np.random.default_rng(0)
  rgb = rng.integers(0, 256, (1, 2, 1, 5, 4, 3), np.uint8)
  flow = np.zeros((1, 2, 1, 2, 5, 4), np.float32)
  flow[0, :, 0, 0, :, 0] = 5.0  # the left column moves to the right
  batch = {"rgb": rgb, "flow": quantise(flow, 20.0)}
  flip = {"flip": np.array([[False, True]])}
  images = samples.draw(batch | flip, flow_bound=20.0)
  np.testing.assert_array_equal(images["rgb"][:, :4], rgb[0, 0, 0])
  np.testing.assert_array_equal(images["rgb"][:, 4:], rgb[0, 1, 0][:, ::-1])
  # By hand: the right column moves to the left.
  left = np.zeros((1, 1, 1, 2, 5, 4), np.float32)
  left[..., 0, :, 3] = -5.0
  expected = samples.draw({"flow": quantise(left, 20.0)}, flow_bound=20.0)
  # Codes have no exact zero: a mirrored one is on its other side.
  np.testing.assert_allclose(
    images["flow"][:, 4:].astype(int), expected["flow"].astype(int), atol=6
  )
  plain = samples.draw(batch, flow_bound=20.0)
  np.testing.assert_array_equal(images["flow"][:, :4], plain["flow"][:, :4])


def test_only_what_is_there_is_drawn():
  assert samples.draw({"label": np.zeros(2)}, flow_bound=1.0) == {}
