"""Where a view looks inside a frame: crops, scale jitter and flips.

A crop box is (y, x, height, width) in pixels of the stored frame. The same box
serves all frames and fields of a sample. Resizing a crop of flow resamples the
field; its values stay pixels a frame *of the stored size*.
"""

from typing import NamedTuple

import cv2
import numpy as np

CROP_COUNTS = (1, 5, 10)


class Box(NamedTuple):
  """Part of a frame, in pixels: top, left, height, width."""

  y: int
  x: int
  height: int
  width: int


class View(NamedTuple):
  """A crop, and whether it is mirrored left to right."""

  box: Box
  flip: bool


def random_view(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  scale: tuple[float, float],
  max_ratio: float = 1.0,
  flip: bool,
) -> View:
  """Draws a crop of random size, aspect ratio and place, and maybe mirrors it.

  Args:
    rng: source of randomness.
    height: of the frame, pixels.
    width: of the frame, pixels.
    scale: smallest and largest side of the crop, as a share of the frame's
      shorter side, in (0, 1].
    max_ratio: largest ratio of the crop's sides (Wang et al. 2015 draw
      width and height independently); 1 keeps it square.
    flip: whether to mirror every other sample. Off where labels name a
      direction.

  Raises:
    ValueError: a setting is out of its range.
  """
  low, high = scale
  if not 0 < low <= high <= 1 or max_ratio < 1:
    raise ValueError(
      f"scale must satisfy 0 < low <= high <= 1 and max_ratio >= 1:"
      f" {scale}, {max_ratio}"
    )
  side = rng.uniform(low, high) * min(height, width)
  half_log = 0.5 * rng.uniform(-np.log(max_ratio), np.log(max_ratio))
  box_height = int(np.clip(round(side * np.exp(half_log)), 1, height))
  box_width = int(np.clip(round(side * np.exp(-half_log)), 1, width))
  box = Box(
    int(rng.integers(height - box_height + 1)),
    int(rng.integers(width - box_width + 1)),
    box_height,
    box_width,
  )
  return View(box, flip and bool(rng.integers(2)))


def eval_views(
  height: int, width: int, *, fraction: float, count: int
) -> list[View]:
  """The fixed crops of a test protocol.

  Args:
    height: of the frame, pixels.
    width: of the frame, pixels.
    fraction: side of the square crop over the frame's shorter side, in (0, 1];
      224 / 256 in Simonyan & Zisserman 2014, §5.
    count: 1 (centre), 5 (centre and corners) or 10 (these and their mirror
      images, Simonyan & Zisserman 2014, §5).

  Raises:
    ValueError: a setting is out of its range.
  """
  if count not in CROP_COUNTS:
    raise ValueError(f"number of crops {count} is not in {CROP_COUNTS}")
  if not 0 < fraction <= 1:
    raise ValueError(f"crop fraction must be in (0, 1]: {fraction}")
  side = max(1, round(fraction * min(height, width)))
  bottom, right = height - side, width - side
  corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
  places = [(bottom // 2, right // 2)] + (corners if count > 1 else [])
  boxes = [Box(y, x, side, side) for y, x in places]
  flips = (False, True) if count == 10 else (False,)
  return [View(box, flip) for flip in flips for box in boxes]


def crop_and_resize(image: np.ndarray, box: Box, size: int) -> np.ndarray:
  """Cuts `box` out of an image and resizes it to a square.

  Args:
    image: uint8 [h w c], at most 4 channels.
    box: inside the image.
    size: side of the result, pixels.

  Returns:
    uint8 [size size c]; area-averaged where it shrinks, bilinear otherwise.
  """
  crop = image[box.y : box.y + box.height, box.x : box.x + box.width]
  if crop.shape[:2] == (size, size):
    return crop
  shrinks = min(box.height, box.width) > size
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(crop, (size, size), interpolation=method)
