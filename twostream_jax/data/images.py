"""The stored JPEGs of a dataset, decoded.

The pixels are the ones that OpenCV decodes; they are there sooner, and a
damaged image is an error instead of gray.
"""

import numpy as np
import simplejpeg


def decode_rgb(data: bytes) -> np.ndarray:
  """Decodes a frame.

  Returns:
    RGB uint8 [h, w, 3].

  Raises:
    ValueError: `data` is no image.
  """
  return _decode(data, "RGB")


def decode_flow(data: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a field.

  Returns:
    Codes of x and of y, uint8 [h, w] each.

  Raises:
    ValueError: `data` is no image.
  """
  image = _decode(data, "GRAY")[..., 0]
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


def _decode(data: bytes, colours: str) -> np.ndarray:
  try:
    return simplejpeg.decode_jpeg(data, colours)
  except ValueError as error:
    raise ValueError(f"{len(data)} bytes that are no image: {error}") from error
