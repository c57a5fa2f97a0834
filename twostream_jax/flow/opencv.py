"""Optical flow by OpenCV: DIS and Farneback."""

from typing import Any

import cv2
import numpy as np

_PRESETS = {
  "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
  "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
  "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

# Below 32 pixels a side OpenCV's DIS throws, returns values that are not
# finite or kills the process, depending on both sides and on the preset
# (OpenCV 5.0: 8..31 high and 40..513 wide, and any side below 8). No size with
# both sides of at least 32 does.
_SMALLEST_DIS_SIDE = 32


def dis(
  previous: np.ndarray, following: np.ndarray, *, preset: str = "medium"
) -> np.ndarray:
  """Dense inverse search (Kroeger et al. 2016, "Fast Optical Flow using DIS").

  Images with a side below 32 pixels are enlarged by repeating their last row
  and column, because OpenCV crashes on some of them; the flow is cropped back.

  Args:
    previous: gray uint8 [h, w], any size from 1 x 1.
    following: gray uint8 [h, w].
    preset: 'ultrafast', 'fast' or 'medium'.

  Returns:
    float32 [h, w, 2]: pixels, x (right) then y (down). The pixel of `previous`
    at p is found in `following` at p + flow(p).

  Raises:
    ValueError: the images differ in size, are not gray uint8, or the preset is
      not known.
  """
  check_images(previous, following)
  if preset not in _PRESETS:
    raise ValueError(f"no DIS preset {preset!r}; known: {', '.join(_PRESETS)}")
  height, width = previous.shape
  new_array: Any = None  # OpenCV's types leave it out.
  flow = cv2.DISOpticalFlow.create(_PRESETS[preset]).calc(
    _enlarge(previous), _enlarge(following), new_array
  )
  return np.ascontiguousarray(flow[:height, :width])


def farneback(
  previous: np.ndarray,
  following: np.ndarray,
  *,
  pyr_scale: float = 0.5,
  levels: int = 3,
  winsize: int = 15,
  iterations: int = 3,
  poly_n: int = 5,
  poly_sigma: float = 1.2,
) -> np.ndarray:
  """Polynomial expansion (Farneback 2003, "Two-Frame Motion Estimation").

  Args:
    previous: gray uint8 [h, w].
    following: gray uint8 [h, w].
    pyr_scale: scale of each pyramid level to the one below, in 0..1.
    levels: pyramid levels, the full size included.
    winsize: side of the averaging window, in pixels.
    iterations: iterations a level.
    poly_n: side of the neighbourhood of a polynomial, in pixels: 5 or 7.
    poly_sigma: standard deviation of its Gaussian weight, in pixels.

  Returns:
    float32 [h, w, 2]: pixels, x (right) then y (down).

  Raises:
    ValueError: the images differ in size or are not gray uint8.
  """
  check_images(previous, following)
  new_array: Any = None  # OpenCV's types leave it out.
  return cv2.calcOpticalFlowFarneback(
    previous,
    following,
    new_array,
    pyr_scale,
    levels,
    winsize,
    iterations,
    poly_n,
    poly_sigma,
    0,
  )


def _enlarge(image: np.ndarray) -> np.ndarray:
  missing = [max(0, _SMALLEST_DIS_SIDE - side) for side in image.shape]
  return np.pad(image, [(0, n) for n in missing], mode="edge")


def check_images(previous: np.ndarray, following: np.ndarray) -> None:
  """Raises ValueError unless both are gray uint8 [h, w] of one size."""
  for image in (previous, following):
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
      raise ValueError(
        "flow needs gray uint8 images [h, w];"
        f" got {image.dtype} {list(image.shape)}"
      )
  if previous.shape != following.shape:
    raise ValueError(
      "flow needs two images of one size;"
      f" got {list(previous.shape)} and {list(following.shape)}"
    )
