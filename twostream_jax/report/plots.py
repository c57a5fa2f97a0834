"""Small charts as inline SVG: numbers in, strings out.

Colours come from the page's style sheet (classes `s0` ... `s5` and `fused`
set `--c`), so that one chart serves light, dark and print. Every text that is
passed in is escaped here.
"""

import base64
import dataclasses
import html
import math
from collections.abc import Sequence

import cv2
import numpy as np

# Shape as well as colour tells the series apart; the last is the fusion's.
MARKERS = {
  "s0": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
  "s1": "M-3.5 -3.5h7v7h-7z",
  "s2": "M0 -5l5 9h-10z",
  "s3": "M0 5l5 -9h-10z",
  "s4": "M-5 -1.5h10v3h-10z",
  "s5": "M-1.5 -5h3v10h-3z",
  "fused": "M0 -6l6 6l-6 6l-6 -6z",
}
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


def marker(style: str) -> str:
  """The mark of a series, for a legend."""
  return (
    f'<svg class="key {style}" width="14" height="14" viewBox="-7 -7 14 14"'
    f' aria-hidden="true"><path d="{MARKERS[style]}"/></svg>'
  )


def bar(
  share: float,
  style: str,
  guide: float | None = None,
  ends: Sequence[float] | None = None,
) -> str:
  """A bar as wide as its box times `share`, all in 0..1.

  Args:
    share: NaN draws an empty bar.
    style: class of the style sheet.
    guide: where to draw a line across; None draws none.
    ends: of a confidence interval, drawn as a line along the bar.
  """
  width = 0 if math.isnan(share) else 100 * share
  more = ""
  if guide is not None:
    x = f"{100 * guide:.2f}%"
    more = f'<line class="guide" x1="{x}" x2="{x}" y1="0" y2="100%"/>'
  if ends is not None:
    low, high = (f"{100 * end:.2f}%" for end in ends)
    more += "".join(
      f'<line class="ends" x1="{a}" x2="{b}" y1="{top}" y2="{bottom}"/>'
      for a, b, top, bottom in (
        (low, high, "50%", "50%"),
        (low, low, "10%", "90%"),
        (high, high, "10%", "90%"),
      )
    )
  kind = "bar long" if ends is not None else "bar"
  return (
    f'<svg class="{kind} {style}" aria-hidden="true"><rect class="track"'
    f' width="100%" height="100%"/><rect width="{width:.2f}%" height="100%"/>'
    f"{more}</svg>"
  )


def dots(shares: Sequence[tuple[str, float]]) -> str:
  """Marks on a 0..1 axis, joined by a line: (style, share), NaN left out."""
  known = [(style, 100 * x) for style, x in shares if not math.isnan(x)]
  axis = "".join(
    f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>'
    for x in (0, 25, 50, 75, 100)
  )
  span = ""
  if known:
    low, high = min(x for _, x in known), max(x for _, x in known)
    span = (
      f'<line class="span" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
    )
  # A nested svg is the one element that takes a percentage as its position
  # and leaves the size of what it holds alone.
  marks = "".join(
    f'<svg class="mark {style}" x="{x:.2f}%" y="50%">'
    f'<path d="{MARKERS[style]}"/></svg>'
    for style, x in known
  )
  return f'<svg class="dots" aria-hidden="true">{axis}{span}{marks}</svg>'


def line_chart(
  lines: Sequence[Line],
  *,
  title: str,
  description: str,
  percent: bool = False,
) -> str:
  """Curves over training steps, on a y axis that starts at zero.

  Args:
    lines: at least one, each with at least one finite point.
    title: short, shown above the axis.
    description: for readers who can't see the chart.
    percent: y runs from 0 to 1 and is shown in per cent.
  """
  x_ticks = ticks(0, max(line.x.max() for line in lines))
  low = min(0.0, *(line.y.min() for line in lines))
  high = 1.0 if percent else max(line.y.max() for line in lines)
  y_ticks = ticks(low, high)

  def place(x, y):
    across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
    up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
    return 42 + 304 * across, 182 - 152 * up

  parts = [f'<text class="title" x="0" y="14">{html.escape(title)}</text>']
  for tick in y_ticks:
    _, y = place(0, tick)
    label = f"{100 * tick:.0f}%" if percent else _short(tick)
    parts.append(f'<line class="grid" x1="42" x2="346" y1="{y:.1f}"')
    parts.append(f' y2="{y:.1f}"/><text x="36" y="{y + 4:.1f}"')
    parts.append(f' text-anchor="end">{label}</text>')
  for tick in x_ticks:
    x, _ = place(tick, 0)
    parts.append(f'<text x="{x:.1f}" y="200" text-anchor="middle">')
    parts.append(f"{_short(tick)}</text>")
  parts.append('<text x="194" y="217" text-anchor="middle">step</text>')
  parts += [_curve(line, place) for line in lines]
  return (
    '<svg class="chart" viewBox="0 0 360 222" role="img" aria-label='
    f'"{html.escape(description)}">{"".join(parts)}</svg>'
  )


def _curve(line: Line, place) -> str:
  points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
  path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
  # A single point has no line; the last one of many is where training ended.
  shown = points if len(points) <= 12 else points[-1:]
  ends = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in shown)
  return (
    f'<g class="{line.style}"><title>{html.escape(line.name)}</title>'
    f'<polyline points="{path}"/>{ends}</g>'
  )


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
