"""The stored JPEGs of a dataset, decoded.

The pixels are the ones that OpenCV decodes; they are there sooner, and a
damaged image is an error instead of gray.
"""

import numpy as np
import simplejpeg


def decode_rgb(data: bytes, memory: np.ndarray | None = None) -> np.ndarray:
  """Decodes a frame.

  Args:
    data: of a JPEG file.
    memory: to decode in, uint8 and large enough; None: new memory.

  Returns:
    RGB uint8 [h, w, 3].

  Raises:
    ValueError: `data` is no image, or larger than the memory.
  """
  return _decode(data, "RGB", memory)


def decode_flow(data: bytes, memory: np.ndarray | None = None) -> np.ndarray:
  """Decodes a field.

  Args:
    data: as in `decode_rgb`.
    memory: likewise.

  Returns:
    Codes of x and of y, a view, uint8 [2, h, w].

  Raises:
    ValueError: as `decode_rgb`.
  """
  image = _decode(data, "GRAY", memory)[..., 0]
  return image.reshape(len(image), 2, -1).swapaxes(0, 1)


def decode_flow_codes(data: bytes) -> np.ndarray:
  """Decodes a field; `dequantise` turns it into pixels.

  Returns:
    uint8 [h, w, 2], x then y.

  Raises:
    ValueError: `data` is no image.
  """
  return np.ascontiguousarray(decode_flow(data).transpose(1, 2, 0))


def _decode(
  data: bytes, colours: str, memory: np.ndarray | None = None
) -> np.ndarray:
  try:
    return simplejpeg.decode_jpeg(data, colours, buffer=memory)
  except ValueError as error:
    raise ValueError(f"{len(data)} bytes that are no image: {error}") from error
