"""The stored JPEGs of a dataset, decoded.

The pixels are the ones that OpenCV decodes; they are there sooner, and a
damaged image is an error instead of gray.
"""

import struct

import numpy as np
import simplejpeg

# 8192x4096: 8K video, and a field of the largest stored size, x left of y.
_MOST_PIXELS = 2**25
# Pixels times scans; about three seconds.
_MOST_WORK = 2**31
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# Markers of frame headers, SOF0 to SOF15 without DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}
_DEFLATED = 1032


def decode_rgb(data: bytes, memory: np.ndarray | None = None) -> np.ndarray:
  """Decodes a frame.

  Args:
    data: of a JPEG file.
    memory: to decode in, uint8 and large enough; None: new memory.

  Returns:
    RGB uint8 [h, w, 3].

  Raises:
    ValueError: `data` is not an image, or larger than the memory.
  """
  return _decode(data, "RGB", memory)


def decode_flow(data: bytes, memory: np.ndarray | None = None) -> np.ndarray:
  """Decodes a field.

  Args:
    data: as in `decode_rgb`.
    memory: The same for memory.

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
    ValueError: `data` is not an image.
  """
  return np.ascontiguousarray(decode_flow(data).transpose(1, 2, 0))


def _decode(
  data: bytes, colours: str, memory: np.ndarray | None = None
) -> np.ndarray:
  try:
    if data.startswith(_JPEG):
      check(data)
    return simplejpeg.decode_jpeg(data, colours, buffer=memory)
  except ValueError as error:
    raise ValueError(
      f"{len(data)} bytes that are not an image: {error}"
    ) from error


def check(data: bytes) -> None:
  """Refuses an image that is far larger than its bytes or than any frame.

  What its header says is compared with its bytes before anything is decoded:
  decoders take the memory and the time that a header asks for.

  Args:
    data: of a file.

  Raises:
    ValueError: it is not a JPEG, PNG, WebP, BMP or GIF image, or a hostile one.
  """
  height, width, smallest, passes = _declared(data)
  if not 0 < height * width <= _MOST_PIXELS:
    raise ValueError(
      f"an image of {width}x{height} pixels; at most {_MOST_PIXELS} are read"
    )
  if len(data) < smallest:
    raise ValueError(f"{len(data)} bytes can't be {width}x{height} pixels")
  if passes * height * width > _MOST_WORK:
    raise ValueError(f"{width}x{height} pixels in {passes} scans")
  if data.startswith(_PNG):
    _check_chunks(data)


def _check_chunks(data: bytes) -> None:
  """Refuses a PNG image whose chunks end after it (RFC 2083, section 3.2).

  A reader takes the memory of the length that a chunk claims.
  """
  at = len(_PNG)
  while at + 12 <= len(data):
    at += 12 + int.from_bytes(data[at : at + 4], "big")
    if at > len(data):
      raise ValueError("a PNG image that is cut off, or claims to be longer")


def _declared(data: bytes) -> tuple[int, int, int, int]:
  """Height, width, the fewest bytes that can hold them, and passes."""
  if data.startswith(_JPEG):
    return _declared_by_jpeg(data)
  if data.startswith(_PNG) and len(data) > 26:
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    bits = width * depth * _PNG_CHANNELS.get(colours, 1)
    # Deflate makes at most 1032 bytes of one (RFC 1951).
    return height, width, height * (bits // 8) // _DEFLATED, 1
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) > 30:
    return *_declared_by_webp(data), 0, 1
  if data[:2] == b"BM" and len(data) > 26:
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(height), abs(width), 0, 1
  if data[:6] in (b"GIF87a", b"GIF89a") and len(data) > 10:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width, 0, 1
  raise ValueError("it is not a JPEG, PNG, WebP, BMP or GIF image")


def _declared_by_jpeg(data: bytes) -> tuple[int, int, int, int]:
  """As `_declared`; ITU-T T.81, annex B: markers and lengths up to a frame."""
  at = 2
  while at + 9 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if marker in _FRAMES:
      height, width = struct.unpack_from(">HH", data, at + 5)
      if marker <= 0xC1:
        # A block of 64 values takes two bits or more.
        return height, width, height * width // 256, 1
      # Progressive or arithmetic: a scan takes next to no bytes and passes
      # over the whole image.
      return height, width, 0, data.count(b"\xff\xda")
    # Fill bytes stand before a marker, and some markers have no length.
    if marker == 0xFF:
      at += 1
    elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
      at += 2
    else:
      at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
  raise ValueError("a JPEG image without a frame header")


def _declared_by_webp(data: bytes) -> tuple[int, int]:
  """Height and width; RFC 9649 and 6386, section 9.1."""
  kind = data[12:16]
  if kind == b"VP8X":
    width, height = (
      1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)
    )
  elif kind == b"VP8L":
    bits = int.from_bytes(data[21:25], "little")
    width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
  else:
    width, height = (x & 0x3FFF for x in struct.unpack_from("<HH", data, 26))
  return height, width
