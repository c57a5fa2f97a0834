"""Where a view looks inside a frame: crops and scale jitter; and colours.

A crop box is (y, x, height, width) in pixels of the stored frame. The same box
serves all frames and fields of a sample. Resizing a crop of flow resamples the
field; its values stay pixels a frame *of the stored size*.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import cv2
import numpy as np

CROP_COUNTS = (1, 5, 10)

# Of the R, G, B of ImageNet's pixels in 0..1, as fb.resnet.torch publishes
# them (datasets/imagenet.lua) and others have taken them over.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
# An eigenvector a column.
_EIGENVECTORS = np.array(
  [
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
  ]
)


class Box(NamedTuple):
  """Part of a frame, in pixels: top, left, height, width."""

  y: int
  x: int
  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """A crop of random size, aspect ratio and place.

  With scale (a, a) and max_ratio 1 only the place is random (Simonyan &
  Zisserman 2014, section 5, with a = 224 / 256).

  Attributes:
    scale: smallest and largest side of the crop, as a share of the frame's
      shorter side, in (0, 1].
    max_ratio: largest ratio of the crop's sides; 1 keeps it square.
  """

  scale: tuple[float, float]
  max_ratio: float = 1.0
  # Random numbers that a crop takes.
  num_draws: ClassVar[int] = 4

  def __post_init__(self):
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
      raise ValueError(
        "input.crop_scale must be two shares of the short side, 0 < low <="
        f" high <= 1: {tuple(self.scale)}"
      )
    if not self.max_ratio >= 1:
      raise ValueError(f"input.max_ratio must be at least 1: {self.max_ratio}")

  def box(self, draws: Sequence[float], height: int, width: int) -> Box:
    """A crop of a frame of `height` times `width` pixels.

    Args:
      draws: `num_draws` numbers from [0, 1).
      height: pixels.
      width: pixels.
    """
    size, ratio, y, x = draws
    low, high = self.scale
    side = (low + size * (high - low)) * min(height, width)
    stretch = self.max_ratio ** (ratio - 0.5)
    box_height = min(max(round(side * stretch), 1), height)
    box_width = min(max(round(side / stretch), 1), width)
    return Box(
      int(y * (height - box_height + 1)),
      int(x * (width - box_width + 1)),
      box_height,
      box_width,
    )


@dataclasses.dataclass(frozen=True)
class CornerCrop:
  """A crop at a corner or the centre, of a height and a width from a list.

  Wang et al. 2015 (1507.02159), section 3: crops anywhere rarely show the
  border. From frames of 340 x 256 both sides are drawn from 256, 224, 192 and
  168, independently: aspect ratios change with scales.

  Attributes:
    scales: sides to draw from, as shares of the frame's shorter side, in
      (0, 1], largest first.
    max_distort: how far apart in `scales` the height and the width may be;
      1 in the code of Wang et al. 2016 (1608.00859), len(scales) - 1 or more
      for independent draws.
  """

  scales: tuple[float, ...]
  max_distort: int
  num_draws: ClassVar[int] = 2

  def __post_init__(self):
    inside = self.scales and self.scales[0] <= 1 and self.scales[-1] > 0
    if not inside or not (np.diff(self.scales) < 0).all():
      raise ValueError(
        "input.corner_scales must be shares of the short side in (0, 1],"
        f" largest first: {tuple(self.scales)}"
      )
    if self.max_distort < 0:
      raise ValueError(
        f"input.max_distort must be at least 0: {self.max_distort}"
      )

  def box(self, draws: Sequence[float], height: int, width: int) -> Box:
    """A crop of a frame; see `RandomCrop.box`."""
    sides = [max(1, round(s * min(height, width))) for s in self.scales]
    pairs = [
      (box_height, box_width)
      for i, box_height in enumerate(sides)
      for j, box_width in enumerate(sides)
      if abs(i - j) <= self.max_distort
    ]
    of_pairs, of_places = draws
    box_height, box_width = pairs[int(of_pairs * len(pairs))]
    places = _fixed_places(height - box_height, width - box_width)
    y, x = places[int(of_places * len(places))]
    return Box(y, x, box_height, box_width)


Crop = RandomCrop | CornerCrop


def create_crop(
  kind: str,
  *,
  scale: tuple[float, float],
  max_ratio: float,
  corner_scales: tuple[float, ...],
  max_distort: int,
) -> Crop:
  """How training crops are drawn.

  Args:
    kind: "random" or "corner".
    scale: see `RandomCrop`.
    max_ratio: Largest of the same.
    corner_scales: see `CornerCrop`.
    max_distort: Largest of the same.

  Raises:
    ValueError: the kind is not known, or a setting of it is out of range.
  """
  if kind == "random":
    return RandomCrop(scale, max_ratio)
  if kind == "corner":
    return CornerCrop(corner_scales, max_distort)
  raise ValueError(f"input.crop={kind!r} is not in ('random', 'corner')")


def random_rgb_shift(rng: np.random.Generator, sigma: float) -> np.ndarray:
  """Draws what the colours of a sample are moved by.

  Krizhevsky et al. 2012, section 4.1: to every pixel the same sum of the
  principal components of ImageNet's colours is added, each times its
  eigenvalue and a normal number. The paper does not state the unit of the
  eigenvalues; these are for pixels in 0..1 (255 times them for 0..255).

  Args:
    rng: source of randomness.
    sigma: standard deviation of the normal numbers; 0.1 in the paper.

  Returns:
    float32 [3], to be added to R, G and B in 0..1.
  """
  alpha = rng.normal(0.0, sigma, 3)
  return (_EIGENVECTORS @ (alpha * _EIGENVALUES)).astype(np.float32)


def eval_crops(
  height: int, width: int, *, fraction: float, count: int
) -> list[Box]:
  """The fixed crops of a test protocol.

  Args:
    height: of the frame, pixels.
    width: of the frame, pixels.
    fraction: side of the square crop over the frame's shorter side, in (0, 1];
      224 / 256 in Simonyan & Zisserman 2014, §5.
    count: 1 (centre), 5 (centre and corners) or 10 (these, and again to be
      mirrored, Simonyan & Zisserman 2014, §5).

  Raises:
    ValueError: a setting is out of its range.
  """
  if count not in CROP_COUNTS:
    raise ValueError(f"number of crops {count} is not in {CROP_COUNTS}")
  if not 0 < fraction <= 1:
    raise ValueError(f"crop fraction must be in (0, 1]: {fraction}")
  side = max(1, round(fraction * min(height, width)))
  places = _fixed_places(height - side, width - side)
  boxes = [Box(y, x, side, side) for y, x in places[: min(count, 5)]]
  return boxes * (count // len(boxes))


def eval_flips(count: int) -> np.ndarray:
  """Which of `count` fixed crops are mirrored: bool [count]."""
  return np.arange(count) >= 5


def _fixed_places(bottom: int, right: int) -> list[tuple[int, int]]:
  """Top and left of the centre and of the corners, of a crop that may move.

  Args:
    bottom: pixels that the crop is less high than the frame.
    right: pixels that it is less wide.
  """
  corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
  return [(bottom // 2, right // 2), *corners]


def crop_and_resize(
  image: np.ndarray, box: Box, size: int, out: np.ndarray | None = None
) -> np.ndarray:
  """Cuts `box` out of an image and resizes it to a square.

  Args:
    image: uint8 [h w] or [h w c], c at most 4.
    box: inside the image.
    size: side of the result, pixels.
    out: contiguous array for a crop that has to be resized; None: a new one.

  Returns:
    uint8 [size size] or [size size c]: a view where the crop has that size;
    area-averaged where it shrinks to half or less, bilinear otherwise, as in
    the papers' code.
  """
  crop = image[box.y : box.y + box.height, box.x : box.x + box.width]
  if crop.shape[:2] == (size, size):
    return crop
  # At ratios between 1 and 2, averaging costs 7 times what interpolating does
  # (more than to decode the field), and hardly any pixel would be skipped.
  halves = min(box.height, box.width) >= 2 * size
  method = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
  return cv2.resize(crop, (size, size), dst=out, interpolation=method)
