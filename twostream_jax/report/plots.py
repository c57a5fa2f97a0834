"""Geometry of charts, and texts and pictures that stand in a page."""

import base64
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# Classes of the style sheet for streams, in their order; see marks.html.
STYLES = ("s0", "s1", "s2", "s3", "s4", "s5")
_LONG_NAME = 20  # In characters: what fits beside a plot on a phone.


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve: `x` and `y` float [points]; `style` is a class of the sheet."""

  name: str
  style: str
  x: np.ndarray
  y: np.ndarray


def data_uri(image: np.ndarray, extension: str) -> str:
  """An RGB or RGBA uint8 image [h w c] as a data: URI.

  Args:
    image: 3 or 4 channels; alpha needs ".png".
    extension: ".png" or ".jpg".

  Raises:
    ValueError: OpenCV can't encode the image.
  """
  order = (2, 1, 0, 3)[: image.shape[-1]]
  done, code = cv2.imencode(
    extension, np.ascontiguousarray(image[..., order]), _quality(extension)
  )
  if not done:
    raise ValueError(f"can't encode an image of shape {image.shape}")
  kind = {".png": "png", ".jpg": "jpeg"}[extension]
  return f"data:image/{kind};base64,{base64.b64encode(code.data).decode()}"


def _quality(extension: str) -> list[int]:
  return [cv2.IMWRITE_JPEG_QUALITY, 85] if extension == ".jpg" else []


def ticks(low: float, high: float, count: int = 4) -> np.ndarray:
  """Round numbers [about `count`] from at most `low` to at least `high`."""
  if not high > low:
    high = low + 1
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
  step *= power
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return np.arange(first, last + 1) * step


def line_chart(lines: Sequence[Line], *, percent: bool) -> dict[str, Any]:
  """Curves over training steps, on a y axis that starts at zero.

  Args:
    lines: at least one, each with at least one finite point.
    percent: y runs from 0 to 1 and is shown in per cent.

  Returns:
    Of a drawing 360 wide and 222 high: "rows" (y, label), "columns" (x, label)
    and "curves", each with "name", "style", "points" and "dots" (x, y).
  """
  x_ticks = ticks(0, max(line.x.max() for line in lines))
  low = min(0.0, *(line.y.min() for line in lines))
  high = 1.0 if percent else max(line.y.max() for line in lines)
  y_ticks = ticks(low, high)

  def across(x):
    return 42 + 304 * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

  def down(y):
    return 182 - 152 * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

  curves = []
  for line in lines:
    points = [
      (f"{across(x):.1f}", f"{down(y):.1f}")
      for x, y in zip(line.x, line.y, strict=True)
    ]
    curves.append(
      {
        "name": line.name,
        "style": line.style,
        "points": " ".join(map(",".join, points)),
        # A single point has no line; the last of many is where training ended.
        "dots": points if len(points) <= 12 else points[-1:],
      }
    )
  return {
    "rows": [
      (down(y), f"{100 * y:.0f}%" if percent else _short(y)) for y in y_ticks
    ],
    "columns": [(across(x), _short(x)) for x in x_ticks],
    "curves": curves,
  }


def _short(value: float) -> str:
  """A tick's label: 2000 is 2k, 1500000 is 1.5M."""
  value = round(float(value), 9)
  for size, suffix in ((1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:g}{suffix}"
  return f"{value:g}"


def are_long(names: Sequence[str], length: int = _LONG_NAME) -> bool:
  """Whether class names need a line of their own on a narrow screen."""
  return max(len(name) for name in names) > length


def shorten(text: str, length: int) -> str:
  """`text` in at most `length` characters, an ellipsis for what is cut."""
  return text if len(text) <= length else text[: length - 1].rstrip() + "…"
