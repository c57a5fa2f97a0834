"""Times of frames, rates, and resampling to a constant rate."""

import numpy as np
import pytest

from twostream_jax.data.video.frame_times import (
  Frame,
  at_constant_rate,
  mean_rate,
)
from twostream_jax.data.video.frames import VideoError

_IMAGE = np.zeros((2, 2, 3), np.uint8)


def frames(times, *, last=0.04, damaged=()):
  ends = [*times[1:], times[-1] + last]
  return [
    Frame(np.full_like(_IMAGE, i), t, end - t, damaged=int(i in damaged))
    for i, (t, end) in enumerate(zip(times, ends, strict=True))
  ]


def resampled(times, fps, **kwargs):
  found = list(at_constant_rate(iter(frames(times, **kwargs)), fps))
  numbers = np.arange(len(found))
  np.testing.assert_allclose([f.time for f in found], numbers / fps, atol=1e-6)
  assert all(frame.duration == 1 / fps for frame in found)
  return [int(frame.rgb[0, 0, 0]) for frame in found], found


def test_every_second_frame_at_half_the_rate():
  times = [i / 30 for i in range(10)]
  assert resampled(times, 15, last=1 / 30)[0] == [0, 2, 4, 6, 8]
  # Matroska's milliseconds are not other frames.
  assert resampled([round(t, 3) for t in times], 15, last=0.033)[0] == [
    0,
    2,
    4,
    6,
    8,
  ]


def test_frames_are_shown_again_until_the_next_one():
  assert resampled([0, 0.1, 0.5], 10, last=0.1)[0] == [0, 1, 1, 1, 1, 2]
  assert resampled([0, 0.1], 20, last=0.1)[0] == [0, 0, 1, 1]


def test_a_video_has_at_least_one_frame():
  assert resampled([0, 0.01, 0.02], 1, last=0.01)[0] == [0]
  assert list(at_constant_rate(iter([]), 5)) == []


def test_rates_of_a_thousand_take_every_frame():
  times = [i / 1000 for i in range(50)]
  assert resampled(times, 1000, last=0.001)[0] == [*range(50)]
  assert resampled(times, 500, last=0.001)[0] == [*range(0, 50, 2)]


def test_what_can_not_be_resampled():
  with pytest.raises(VideoError, match="1 frame decoded, which has no motion"):
    resampled([0], 50, last=10)
  with pytest.raises(VideoError, match="frame 2 is shown for 4999 s"):
    resampled([0, 1, 5000], 1)


def test_no_damage_is_lost_with_a_frame_that_is_left_out():
  times = [i / 25 for i in range(10)]
  shown, found = resampled(times, 5, damaged={0, 3, 7, 9})
  assert shown == [0, 5]
  assert sum(frame.damaged for frame in found) == 4


@pytest.mark.parametrize(
  "times, stated, expected",
  [
    ([], None, 25.0),
    ([0.0], 9e4, 25.0),
    ([0.0], 0.0, 25.0),
    ([0.0], 50.0, 50.0),
    ([0.0, 0.1, 0.2], None, 10.0),
    ([0.0, 0.1, 0.2], 1000.0, 10.0),
    (np.arange(1000) / 30.0, 29.97, 29.97),
    (np.arange(1000) / 30.0, 25.0, 30.0),
  ],
)
def test_mean_rate(times, stated, expected):
  assert mean_rate(times, stated) == pytest.approx(expected)
