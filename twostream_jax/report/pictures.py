"""Pictures of a page: frames, flow, maps, all of bounded size."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from twostream_jax.flow import colorwheel
from twostream_jax.report import plots

# Longer side of a picture, pixels, and the least that many pictures shrink to.
THUMBNAIL, _SMALLEST = 320, 48
# What all pictures of a page together may have: beyond, they get smaller, so
# that a page can be sent by mail.
_PIXELS = 10_000_000


class Picture(NamedTuple):
  """An image of the page, as a data: URI, with its words."""

  uri: str
  width: int
  height: int
  alt: str


class Wheel(NamedTuple):
  """The colour wheel as a data: URI, and the speed at its rim."""

  uri: str
  scale: float
  unit: str


def longest_side(count: int) -> int:
  """Longer side of each of so many pictures, pixels."""
  return int(np.clip((_PIXELS / max(count, 1)) ** 0.5, _SMALLEST, THUMBNAIL))


def shrink(image: np.ndarray, longest: int = THUMBNAIL) -> np.ndarray:
  """Makes the longer side at most `longest`, by means over areas.

  Args:
    image: [h w c].
    longest: pixels.

  Returns:
    float64 [h w c].
  """
  height, width, channels = image.shape
  part = longest / max(height, width)
  image = image.astype(np.float64)
  if part >= 1:
    return image
  size = max(1, round(width * part)), max(1, round(height * part))
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  return small.reshape(size[1], size[0], channels)


def heat_over(image: np.ndarray, heat: np.ndarray, longest: int) -> np.ndarray:
  """Draws a map over an image: gray where it is zero, hot where it is largest.

  Args:
    image: RGB uint8 [h w 3].
    heat: >= 0, float [h' w'], of the same view in any resolution. Its own
      maximum becomes the hottest; zeros leave the gray image.
    longest: side of the result, pixels, at most.

  Returns:
    RGB uint8.
  """
  image = np.round(shrink(image, longest)).astype(np.uint8)
  height, width = image.shape[:2]
  part = heat / heat.max() if heat.max() > 0 else heat
  # A coarse map has no edges of its own to keep.
  part = cv2.resize(
    part.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
  ).clip(0, 1)[..., None]
  colour = cv2.applyColorMap(
    np.round(255 * part).astype(np.uint8), cv2.COLORMAP_INFERNO
  )[..., ::-1]
  gray = image.astype(np.float64).mean(axis=2, keepdims=True)
  # Dark frames are lightened: the map hides what is left of them.
  gray = (gray * (220 / np.clip(np.percentile(gray, 99), 60, 220))).clip(0, 255)
  mixed = gray * (1 - 0.7 * part) + colour * 0.7 * part
  return np.round(mixed).astype(np.uint8)


def flow_scale(fields: Sequence[np.ndarray]) -> float:
  """A round speed that few vectors of the fields [h w 2] exceed.

  Of all fields together, so that one fast clip does not bleach the others.
  """
  if not fields:
    return 1.0
  speeds = [np.hypot(*np.moveaxis(flow, -1, 0)).ravel() for flow in fields]
  fast = np.percentile(np.concatenate(speeds), 99)
  if fast < 0.01:
    return 1.0
  power = 10.0 ** np.floor(np.log10(fast))
  steps = (1, 1.5, 2, 3, 5, 10)
  return float(next(m for m in steps if m * power >= fast * 0.999) * power)


def wheel(scale: float, unit: str = "px/frame") -> Wheel:
  """The colour wheel with the speed at its rim."""
  axis = np.linspace(-1, 1, 121)
  x, y = np.meshgrid(axis, axis)
  rgb = colorwheel.flow_to_rgb(np.stack([x, y], axis=-1), 1.0)
  inside = np.where(np.hypot(x, y) <= 1, 255, 0).astype(np.uint8)
  return Wheel(plots.data_uri(np.dstack([rgb, inside]), ".png"), scale, unit)


def picture(image: np.ndarray, alt: str) -> Picture:
  """An RGB uint8 image [h w 3] for the page."""
  height, width, _ = image.shape
  return Picture(plots.data_uri(image, ".jpg"), width, height, alt)
