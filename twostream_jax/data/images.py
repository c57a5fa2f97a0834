"""The stored JPEGs of a dataset, decoded.

By OpenCV, which lets other threads run all the while: simplejpeg, which gives
the same pixels, is faster in one thread and slower in two.
"""

import cv2
import numpy as np


def decode_rgb(data: bytes) -> np.ndarray:
  """Decodes a frame.

  Returns:
    RGB uint8 [h, w, 3].

  Raises:
    ValueError: `data` is no image.
  """
  return _decode(data, cv2.IMREAD_COLOR_RGB)


def decode_flow(data: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a field.

  Returns:
    Codes of x and of y, uint8 [h, w] each.

  Raises:
    ValueError: `data` is no image.
  """
  image = _decode(data, cv2.IMREAD_GRAYSCALE)
  width = image.shape[1] // 2
  return image[:, :width], image[:, width:]


def decode_flow_codes(data: bytes) -> np.ndarray:
  """Decodes a field; `dequantise` turns it into pixels.

  Returns:
    uint8 [h, w, 2], x then y.

  Raises:
    ValueError: `data` is no image.
  """
  return np.stack(decode_flow(data), axis=-1)


def _decode(data: bytes, mode: int) -> np.ndarray:
  codes = np.frombuffer(data, np.uint8)
  image = cv2.imdecode(codes, mode) if codes.size else None
  if image is None:
    raise ValueError(f"{len(data)} bytes that are no image")
  return image
