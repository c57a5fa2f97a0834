"""What is decoded and stored of videos, for tests."""

import numpy as np

from twostream_jax.data.video import reading


def images(path):
  """All frames of a video, without their times."""
  return [frame.rgb for frame in reading.read_frames(path)]


def first_image(path):
  """The first frame of a video."""
  return next(reading.read_frames(path)).rgb


def times(path):
  """Times of all frames, in seconds."""
  return [frame.time for frame in reading.read_frames(path)]


def rate(path):
  """Frame rate as a build stores it."""
  return reading.frame_rate(path, times(path))


def assert_same_records(found, expected):
  """Equal in every field; `times` may be arrays."""
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.keys() == theirs.keys()
    np.testing.assert_array_equal(ours["times"], theirs["times"])
    assert ours | {"times": None} == theirs | {"times": None}
