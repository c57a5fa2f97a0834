"""Which frames and flow fields of a video a model sees.

A *window* is what one look at a video needs: for flow, a stack of consecutive
fields (Simonyan & Zisserman 2014, §3.1); for RGB, one frame. It is named by its
start. Field i is the motion from frame i to frame i + step, so that a stack of
l fields from start s takes fields s, s + step, ..., s + (l - 1) step, and the
motion runs on without a gap or an overlap. A bidirectional stack spans the same
frames, s to s + l step, but its motion runs from the frame in the middle to
either end; backward field i is the motion from frame i + step to frame i.
"""

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


def random_starts(
  rng: np.random.Generator, available: int, num_segments: int
) -> np.ndarray:
  """One random start in each of equal segments of the video.

  With one segment this is Simonyan & Zisserman 2014, §5 (a random position);
  with several, Wang et al. 2016 (temporal segment networks), §3.

  Args:
    rng: source of randomness.
    available: what `num_starts` gave.
    num_segments: number of segments, at least 1.

  Returns:
    int [num_segments], not decreasing, in 0..available - 1.
  """
  edges = np.arange(num_segments + 1) * available / num_segments
  low = np.floor(edges[:-1]).astype(int)
  high = np.maximum(np.ceil(edges[1:]).astype(int), low + 1)
  return np.minimum(rng.integers(low, high), available - 1)


def even_starts(available: int, count: int) -> np.ndarray:
  """Equally spaced starts: the middles of `count` equal parts of the video.

  Returns:
    int [count] in 0..available - 1; all distinct where available >= count.
  """
  return np.floor((np.arange(count) + 0.5) * available / count).astype(int)


def stack_fields(
  starts: np.ndarray,
  num_frames: int,
  stack_length: int,
  step: int = 1,
  short_clip: str = "loop",
) -> np.ndarray:
  """Flow fields of the stacks that begin at `starts`.

  Args:
    starts: int [t].
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
  fields = starts[:, None] + step * np.arange(stack_length)
  return _within(fields, num_frames, step, short_clip)


def bidirectional_fields(
  centres: np.ndarray,
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
    centres: frames in the middle of the stacks, int [t], in 0..num_frames - 1.
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
  forward = centres[:, None] + offsets
  backward = centres[:, None] - step - offsets
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
  starts: np.ndarray, num_frames: int, stack_length: int, step: int = 1
) -> np.ndarray:
  """The RGB frame of each window: the one in the middle of its stack.

  Returns:
    int [t] in 0..num_frames - 1; `starts` itself without a stack.
  """
  return np.minimum(starts + stack_length * step // 2, num_frames - 1)
