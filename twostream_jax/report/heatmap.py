"""Confusion matrices as SVG, which the page's script can sort."""

import html
import json
from collections.abc import Sequence

import numpy as np

from twostream_jax.report.plots import data_uri, shorten, ticks

# Above these numbers of classes a confusion matrix drops its counts, then its
# class names.
MAX_COUNTED, MAX_NAMED = 15, 30
# Pixels of the page, at most, for one of a matrix: few classes stay small.
_SCALE = 1.6


def opacity(share: np.ndarray | float) -> np.ndarray:
  """How strongly a share (0..1) is drawn in a heat map.

  The square root, so that a mistake made in 1 of 100 clips can be seen at all.
  """
  return np.sqrt(share)


def heat_map(counts: np.ndarray, names: Sequence[str], description: str) -> str:
  """A confusion matrix, each row shaded by its share of the true class.

  Up to 15 classes show their counts and names, up to 30 their names; above
  that the matrix is one small image with class numbers at its edge.

  Args:
    counts: int [n, n]; row is the true class, column the predicted one.
    names: n class names.
    description: for readers who can't see the chart.
  """
  totals = counts.sum(axis=1, keepdims=True)
  shares = counts / np.maximum(totals, 1)
  if len(names) > MAX_NAMED:
    width, height, body = _image_map(shares)
  else:
    width, height, body = _cell_map(counts, shares, names)
  filled = [
    [int(t), int(p), int(counts[t, p])]
    for t, p in zip(*np.nonzero(counts), strict=True)
  ]
  cells = json.dumps(filled, separators=(",", ":"))
  return (
    f'<svg class="heat" viewBox="0 0 {width} {height}" style="max-width:'
    f' {_SCALE * width:.0f}px" role="img" data-cells="{cells}" aria-label='
    f'"{html.escape(description)}">{body}</svg>'
  )


def _image_map(shares: np.ndarray) -> tuple[int, int, str]:
  n, left, size = len(shares), 34, 320
  # The same colours (`fixed` in the sheet) in both themes: the page shows
  # through where the image is transparent.
  pixels = np.zeros((n, n, 4), np.uint8)
  pixels[..., :3] = (213, 102, 28)
  pixels[np.arange(n), np.arange(n), :3] = (43, 123, 196)
  pixels[..., 3] = np.round(255 * opacity(shares))
  parts = [
    f'<rect class="frame" x="{left}" y="4" width="{size}" height="{size}"/>'
    f'<image x="{left}" y="4" width="{size}" height="{size}"'
    f' preserveAspectRatio="none" href="{data_uri(pixels, ".png")}"/>'
  ]
  for tick in ticks(0, n):
    if tick < n:
      at = (tick + 0.5) / n * size + 4
      parts.append(
        f'<text x="{left - 5}" y="{at + 4:.1f}" text-anchor="end">{tick:g}'
        f'</text><text x="{left - 4 + at:.1f}" y="{size + 18}"'
        f' text-anchor="middle">{tick:g}</text>'
      )
  return size + left + 6, size + 24, "".join(parts)


def _cell_map(
  counts: np.ndarray, shares: np.ndarray, names: Sequence[str]
) -> tuple[int, int, str]:
  n = len(names)
  cell = 22 if n <= MAX_COUNTED else 14
  labels = [shorten(name, 16) for name in names]
  left = 10 + round(5.6 * max(len(label) for label in labels))
  size = n * cell
  parts = [f'<rect class="frame" x="{left}" y="0" width="{size}"']
  parts.append(f' height="{size}"/>')
  for i, label in enumerate(labels):
    parts.append(
      f'<g class="row" transform="translate(0 {i * cell})"><text'
      f' x="{left - 5}" y="{cell / 2 + 3.5}" text-anchor="end">'
      f"{html.escape(label)}</text></g>"
      f'<g class="column" transform="translate({i * cell} 0)"><text'
      f' transform="translate({left + cell / 2 + 3.5} {size + 5}) rotate(-90)"'
      f' text-anchor="end">{html.escape(label)}</text></g>'
    )
  for true, guess in zip(*np.nonzero(counts), strict=True):
    parts.append(
      _cell(
        x=left + guess * cell,
        y=true * cell,
        size=cell,
        count=int(counts[true, guess]),
        share=float(shares[true, guess]),
        hint=f"{names[true]} \N{RIGHTWARDS ARROW} {names[guess]}",
        counted=n <= MAX_COUNTED,
        kind="cell" if true == guess else "cell miss",
      )
    )
  return left + size + 2, left + size, "".join(parts)


def _cell(*, x, y, size, count, share, hint, counted, kind) -> str:
  strength = float(opacity(share))
  text = ""
  if counted:
    # Where both themes need dark text on a middling shade.
    ink = "off" if strength < 0.6 else "mid" if strength < 0.75 else "on"
    text = (
      f'<text class="{ink}" x="{size / 2}" y="{size / 2 + 3.5}"'
      f' text-anchor="middle">{count}</text>'
    )
  return (
    f'<g class="filled" transform="translate({x} {y})">'
    f"<title>{html.escape(hint)}: {count} ({share:.0%})</title><rect"
    f' class="{kind}" width="{size}" height="{size}"'
    f' fill-opacity="{strength:.3f}"/>{text}</g>'
  )
