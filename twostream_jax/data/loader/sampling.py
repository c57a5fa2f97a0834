"""Which frames and flow fields of a video a model sees.

A *window* is what one look at a video needs: for flow, a stack of consecutive
fields (Simonyan & Zisserman 2014, §3.1); for RGB, one frame. It is named by its
start. Field i is the motion from frame i to frame i + step, so that a stack of
l fields from start s takes fields s, s + step, ..., s + (l - 1) step, and the
motion runs on without a gap or an overlap. A bidirectional stack spans the same
frames, s to s + l step, but its motion runs from the frame in the middle to
either end; backward field i is the motion from frame i + step to frame i.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

SHORT_CLIP_RULES = ("loop", "hold")


def num_starts(num_frames: int, stack_length: int, step: int = 1) -> int:
  """Number of windows of a video; 1 where it is too short for a whole one.

  Args:
    num_frames: frames of the video, at least 1 (step + 1 where flow is used).
    stack_length: flow fields a stack; 0 where only single frames are used.
    step: frames a field spans.
  """
  if stack_length == 0:
    return num_frames
  return max(1, num_frames - stack_length * step)


def random_starts(draws: Sequence[float], available: int) -> list[int]:
  """One random start in each of equal segments of the video.

  With one segment this is Simonyan & Zisserman 2014, §5 (a random position);
  with several, Wang et al. 2016 (temporal segment networks), §3.

  Args:
    draws: a number from [0, 1) for each segment.
    available: what `num_starts` gave.

  Returns:
    As many starts, not decreasing, in 0..available - 1.
  """
  count = len(draws)
  starts = []
  for segment, place in enumerate(draws):
    low = segment * available // count
    high = -((segment + 1) * available // -count)
    start = low + int(place * max(high - low, 1))
    starts.append(min(start, available - 1))
  return starts


def even_starts(available: int, count: int) -> np.ndarray:
  """Equally spaced starts: the middles of `count` equal parts of the video.

  Returns:
    int [count] in 0..available - 1; all distinct where available >= count.
  """
  return np.floor((np.arange(count) + 0.5) * available / count).astype(int)


def stack_fields(
  starts: Sequence[int],
  num_frames: int,
  stack_length: int,
  step: int = 1,
  short_clip: str = "loop",
) -> np.ndarray:
  """Flow fields of the stacks that begin at `starts`.

  Args:
    starts: t of them.
    num_frames: frames of the video, at least step + 1.
    stack_length: fields a stack, l.
    step: frames a field spans.
    short_clip: what follows after the last field of a video that is shorter
      than a stack: "loop" begins again, "hold" repeats the last field.

  Returns:
    int [t l], in 0..num_frames - step - 1.

  Raises:
    ValueError: the rule is not known or the video has no field.
  """
  fields = np.asarray(starts)[:, None] + step * np.arange(stack_length)
  return _within(fields, num_frames, step, short_clip)


def bidirectional_fields(
  centres: Sequence[int],
  num_frames: int,
  half_length: int,
  step: int = 1,
  short_clip: str = "loop",
) -> tuple[np.ndarray, np.ndarray]:
  """Flow fields of the bidirectional stacks around `centres`.

  Simonyan & Zisserman 2014, §3.1, "Bi-directional optical flow": with centre c,
  forward fields c, c + step, ... take the motion on from frame c, and backward
  fields c - step, c - 2 step, ... take it back from frame c.

  Args:
    centres: frames in the middle of t stacks, in 0..num_frames - 1.
    num_frames: frames of the video, at least step + 1.
    half_length: fields in each direction, l / 2.
    step: frames a field spans.
    short_clip: what follows in either half after the video's last field in that
      direction: "loop" begins again at the other end, "hold" repeats it.

  Returns:
    Forward and backward fields, both int [t l/2], in 0..num_frames - step - 1.

  Raises:
    ValueError: the rule is not known or the video has no field.
  """
  offsets = step * np.arange(half_length)
  forward = np.asarray(centres)[:, None] + offsets
  backward = np.asarray(centres)[:, None] - step - offsets
  return (
    _within(forward, num_frames, step, short_clip),
    _within(backward, num_frames, step, short_clip),
  )


def _within(fields, num_frames, step, short_clip) -> np.ndarray:
  """Brings `fields` in the range of the video's, by the rule for short clips.

  Backward fields run down to 0, forward fields up: either rule serves both.
  """
  if short_clip not in SHORT_CLIP_RULES:
    raise ValueError(f"short_clip={short_clip!r} is not in {SHORT_CLIP_RULES}")
  num_fields = num_frames - step
  if num_fields < 1:
    raise ValueError(
      f"{num_frames} frames have no flow field that spans {step} frames"
    )
  if short_clip == "loop":
    return fields % num_fields
  return np.clip(fields, 0, num_fields - 1)


def centre_frames(
  starts: Sequence[int] | np.ndarray,
  num_frames: int,
  stack_length: int,
  step: int = 1,
) -> list[int]:
  """The RGB frame of each window: the one in the middle of its stack.

  Returns:
    As many frames, in 0..num_frames - 1; the starts themselves without a stack.
  """
  # No array: most calls are for one window of a training sample.
  offset, last = stack_length * step // 2, num_frames - 1
  return [min(start + offset, last) for start in starts]


def generators(
  seed: int, positions: Iterable[int]
) -> Iterator[np.random.Generator]:
  """Yields a source of randomness for each position, a function of it alone.

  It is one counter-based generator that is set to another place each time: to
  make a new one takes eight times as long. So each serves until the next.

  Args:
    seed: 0..2**128 - 1.
    positions: 0..2**64 - 1.
  """
  bits = np.random.Philox(key=seed)
  rng, state = np.random.Generator(bits), bits.state
  for position in positions:
    # Of four words; the lower two count the numbers that are drawn.
    state["state"]["counter"][2] = position
    bits.state = state
    yield rng


@dataclasses.dataclass(frozen=True)
class Share:
  """Which part of every batch this process reads.

  Attributes:
    index: of the process, in 0..count - 1.
    count: of the processes; each reads as many examples.
  """

  index: int = 0
  count: int = 1


ALL = Share()


@dataclasses.dataclass(frozen=True)
class EpochOrder:
  """An endless order of videos: each once per epoch, reshuffled every epoch.

  Like `BalancedOrder` a function of position and seed alone. Permutations of
  whole epochs are faster than grain's shuffle, which takes as long for an
  index as it takes to decode a frame.

  Attributes:
    count: of the videos.
    seed: of the order, at least 0.
  """

  count: int
  seed: int

  def __call__(self, position: int) -> int:
    """The video at a position >= 0: an index below the count."""
    epoch, place = divmod(position, self.count)
    return _epoch(self.count, self.seed, epoch).item(place)


# Batches of two epochs may be in the making at once, of two stages' data.
@functools.lru_cache(maxsize=4)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(count)


class BalancedOrder:
  """An endless order of videos in which all classes are equally frequent.

  Simonyan & Zisserman 2014, section 5, draw the videos of a batch "uniformly
  across the classes". Here the draws are spread: of n classes that have
  videos, every n positions from a multiple of n on hold each once, in a random
  order; and of a class, every video comes once before any comes again, in an
  order that is new each time.

  The order is a function of position and seed alone, so that it can be entered
  anywhere, and split over processes. A look-up costs O(1) on average: the
  permutations in use are remembered.
  """

  def __init__(self, labels: np.ndarray, seed: int):
    """Sorts the videos by class.

    Args:
      labels: class of each video, int [v].
      seed: of the order, at least 0.

    Raises:
      ValueError: there is no video, or videos have several labels or none.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
      raise ValueError(
        "balanced sampling is for sets with one label a clip: labels are"
        f" {labels.dtype} {list(labels.shape)}; set balanced=False"
      )
    if not len(labels):
      raise ValueError("the training split has no video")
    self._seed = int(seed)
    self._videos = [np.flatnonzero(labels == c) for c in np.unique(labels)]

  def __call__(self, position: int) -> int:
    """The video at a position >= 0: an index into the labels."""
    block, place = divmod(int(position), len(self._videos))
    order = _permutation(len(self._videos), self._seed, 0, block)
    chosen = int(order[place])
    videos = self._videos[chosen]
    # A block has each class once: it is the class's own clock.
    epoch, place = divmod(block, len(videos))
    order = _permutation(len(videos), self._seed, 1 + chosen, epoch)
    return int(videos[order[place]])


# Of each class and of the blocks that are being read: a few thousand at most.
@functools.lru_cache(maxsize=8192)
def _permutation(count: int, *key: int) -> np.ndarray:
  """A random order of 0..count - 1 for a key of integers >= 0."""
  return np.random.default_rng(key).permutation(count)
