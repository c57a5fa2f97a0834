"""Windows are in range, spread and run on without a gap."""

import pickle

import numpy as np
import pytest

from twostream_jax.data.loader import sampling

LENGTHS = [2, 3, 10, 11, 25, 100, 301]


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("stack_length", [0, 1, 5, 10])
@pytest.mark.parametrize("num_segments", [1, 3, 7])
def test_random_windows_are_in_range(num_frames, stack_length, num_segments):
  available = sampling.num_starts(num_frames, stack_length)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    starts = sampling.random_starts(rng.random(num_segments), available)
    assert len(starts) == num_segments
    assert (np.diff(starts) >= 0).all()
    assert min(starts) >= 0 and max(starts) < available
    frames = sampling.centre_frames(starts, num_frames, stack_length)
    assert min(frames) >= 0 and max(frames) < num_frames
    if stack_length:
      fields = sampling.stack_fields(starts, num_frames, stack_length)
      assert fields.min() >= 0 and fields.max() < num_frames - 1


def test_random_starts_reach_every_position():
  rng = np.random.default_rng(0)
  seen = {sampling.random_starts(rng.random(1), 7)[0] for _ in range(500)}
  assert seen == set(range(7))


def test_each_segment_has_its_own_part():
  rng = np.random.default_rng(0)
  draws = rng.random((200, 3))
  starts = np.array([sampling.random_starts(row, 30) for row in draws])
  np.testing.assert_array_equal(starts // 10, np.tile([0, 1, 2], (200, 1)))


@pytest.mark.parametrize("available", [1, 5, 25, 26, 77, 500])
def test_even_starts_are_distinct_symmetric_and_in_range(available):
  starts = sampling.even_starts(available, 25)
  assert starts.min() >= 0 and starts.max() < available
  if available >= 25:
    assert len(set(starts.tolist())) == 25
  if available % 25 == 0 and (available // 25) % 2:
    np.testing.assert_array_equal(starts, available - 1 - starts[::-1])


def test_a_whole_stack_is_consecutive():
  fields = sampling.stack_fields(np.array([4, 9]), 30, 5)
  np.testing.assert_array_equal(fields, [[4, 5, 6, 7, 8], [9, 10, 11, 12, 13]])


def test_the_last_window_ends_with_the_last_field():
  last = sampling.num_starts(30, 10) - 1
  assert sampling.stack_fields(np.array([last]), 30, 10)[0, -1] == 28


def test_fields_of_a_longer_step_chain():
  # Fields that span 3 frames: 0-3, 3-6, 6-9.
  fields = sampling.stack_fields(np.array([0]), 10, 3, step=3)
  np.testing.assert_array_equal(fields, [[0, 3, 6]])
  assert sampling.num_starts(10, 3, step=3) == 1


@pytest.mark.parametrize(
  "rule, expected", [("loop", [0, 1, 2, 0, 1]), ("hold", [0, 1, 2, 2, 2])]
)
def test_short_clips_follow_the_rule(rule, expected):
  fields = sampling.stack_fields(np.array([0]), 4, 5, short_clip=rule)
  np.testing.assert_array_equal(fields, [expected])


def test_an_unknown_rule_is_named():
  with pytest.raises(ValueError, match="mirror"):
    sampling.stack_fields(np.array([0]), 4, 5, short_clip="mirror")


def test_a_single_frame_has_no_field():
  with pytest.raises(ValueError, match="1 frames have no flow field"):
    sampling.stack_fields(np.array([0]), 1, 5)


def test_the_frame_is_in_the_middle_of_its_stack():
  frames = sampling.centre_frames(np.array([0, 5]), 30, 10)
  np.testing.assert_array_equal(frames, [5, 10])


@pytest.mark.parametrize(
  "centre, half, step, forward, backward",
  [
    (5, 2, 1, [5, 6], [4, 3]),
    (5, 5, 1, [5, 6, 7, 8, 9], [4, 3, 2, 1, 0]),
    (24, 5, 1, [24, 25, 26, 27, 28], [23, 22, 21, 20, 19]),
    (9, 1, 3, [9], [6]),
    (9, 3, 3, [9, 12, 15], [6, 3, 0]),
  ],
)
def test_bidirectional_stacks_leave_the_centre_both_ways(
  centre, half, step, forward, backward
):
  for rule in sampling.SHORT_CLIP_RULES:
    found = sampling.bidirectional_fields(
      np.array([centre]), 30, half, step, rule
    )
    np.testing.assert_array_equal(found, [[forward], [backward]])


@pytest.mark.parametrize(
  "num_frames, centre, rule, forward, backward",
  [
    # Two frames have one field each way.
    (2, 1, "loop", [0, 0, 0], [0, 0, 0]),
    (2, 1, "hold", [0, 0, 0], [0, 0, 0]),
    (2, 0, "hold", [0, 0, 0], [0, 0, 0]),
    (6, 3, "loop", [3, 4, 0], [2, 1, 0]),
    (6, 3, "hold", [3, 4, 4], [2, 1, 0]),
    # No field begins at the last frame, none goes back from the first.
    (4, 3, "loop", [0, 1, 2], [2, 1, 0]),
    (4, 3, "hold", [2, 2, 2], [2, 1, 0]),
    (4, 1, "loop", [1, 2, 0], [0, 2, 1]),
    (4, 1, "hold", [1, 2, 2], [0, 0, 0]),
  ],
)
def test_both_halves_of_a_short_clip_follow_the_rule(
  num_frames, centre, rule, forward, backward
):
  found = sampling.bidirectional_fields(
    np.array([centre]), num_frames, 3, short_clip=rule
  )
  np.testing.assert_array_equal(found, [[forward], [backward]])


@pytest.mark.parametrize("num_frames", [4, *LENGTHS[2:]])
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("rule", sampling.SHORT_CLIP_RULES)
def test_bidirectional_windows_span_the_frames_of_forward_ones(
  num_frames, step, rule
):
  length = 6
  available = sampling.num_starts(num_frames, length, step)
  starts = np.arange(available)
  centres = sampling.centre_frames(starts, num_frames, length, step)
  forward, backward = sampling.bidirectional_fields(
    centres, num_frames, length // 2, step, rule
  )
  assert forward.shape == backward.shape == (available, length // 2)
  for fields in (forward, backward):
    assert fields.min() >= 0 and fields.max() < num_frames - step
  if num_frames > length * step:
    # Field i touches frames i and i + step.
    np.testing.assert_array_equal(backward[:, -1], starts)
    np.testing.assert_array_equal(forward[:, -1] + step, starts + length * step)
    assert forward[-1, -1] + step == num_frames - 1


def test_bidirectional_fields_refuse_what_stacks_refuse():
  with pytest.raises(ValueError, match="mirror"):
    sampling.bidirectional_fields(np.array([0]), 4, 1, short_clip="mirror")
  with pytest.raises(ValueError, match="3 frames have no .* spans 3 frames"):
    sampling.bidirectional_fields(np.array([0]), 3, 1, step=3)


def unequal_labels():
  """Classes 0, 2, 3 and 7 with 1, 3, 10 and 26 videos, mixed."""
  labels = np.repeat([0, 2, 3, 7], [1, 3, 10, 26])
  return np.random.default_rng(0).permutation(labels)


def test_every_block_of_a_balanced_order_has_each_class_once():
  labels = unequal_labels()
  order = sampling.BalancedOrder(labels, seed=0)
  classes = labels[[order(i) for i in range(4 * 2400)]].reshape(2400, 4)
  np.testing.assert_array_equal(
    np.sort(classes), np.tile([0, 2, 3, 7], (2400, 1))
  )
  # In all 24 orders, about equally often.
  _, counts = np.unique(classes, axis=0, return_counts=True)
  assert len(counts) == 24 and counts.min() > 60 and counts.max() < 140


def test_a_balanced_order_shows_all_videos_of_a_class_before_any_again():
  labels = unequal_labels()
  order = sampling.BalancedOrder(labels, seed=0)
  drawn = np.array([order(i) for i in range(4 * 26 * 5)])
  for label, count in ((0, 1), (2, 3), (3, 10), (7, 26)):
    of_class = drawn[labels[drawn] == label]
    epochs = of_class[: len(of_class) // count * count].reshape(-1, count)
    videos = np.flatnonzero(labels == label)
    np.testing.assert_array_equal(
      np.sort(epochs), np.tile(videos, (len(epochs), 1))
    )
    # An order of its own each time: 10! and 26! are many.
    if count >= 10:
      assert len(np.unique(epochs, axis=0)) == len(epochs)


def test_a_balanced_order_is_a_function_of_seed_and_position():
  labels = unequal_labels()
  order = sampling.BalancedOrder(labels, seed=3)
  forward = [order(i) for i in range(200)]
  other = pickle.loads(pickle.dumps(sampling.BalancedOrder(labels, seed=3)))
  assert [other(i) for i in reversed(range(200))] == forward[::-1]
  assert all(isinstance(i, int) for i in forward)
  assert 0 <= order(10**12) < len(labels)
  differs = sampling.BalancedOrder(labels, seed=4)
  assert [differs(i) for i in range(200)] != forward


@pytest.mark.parametrize(
  "labels", [np.zeros((3, 4), np.int32), np.zeros(3, np.float32)]
)
def test_a_balanced_order_needs_one_label_a_video(labels):
  with pytest.raises(ValueError, match="one label a clip.*balanced=False"):
    sampling.BalancedOrder(labels, seed=0)


def test_a_balanced_order_needs_a_video():
  with pytest.raises(ValueError, match="no video"):
    sampling.BalancedOrder(np.zeros(0, np.int32), seed=0)


def test_generators_are_functions_of_seed_and_position():
  def draws(seed, positions):
    return [
      rng.integers(1000, size=3).tolist()
      for rng in sampling.generators(seed, positions)
    ]

  whole = draws(7, range(50))
  assert len({tuple(numbers) for numbers in whole}) == 50
  assert draws(7, [31, 2**40, 4]) == [whole[31], draws(7, [2**40])[0], whole[4]]
  assert draws(8, range(50)) != whole


def test_epochs_show_every_video_once_in_an_order_of_their_own():
  order = sampling.EpochOrder(30, seed=5)
  epochs = [[order(30 * e + i) for i in range(30)] for e in range(4)]
  assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert [order(i) for i in (95, 3)] == [epochs[3][5], epochs[0][3]]
  other = sampling.EpochOrder(30, seed=6)
  assert [other(i) for i in range(30)] != epochs[0]
