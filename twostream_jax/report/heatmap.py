"""Confusion matrices as SVG, which the page's script can sort."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from twostream_jax.report.plots import data_uri, shorten, ticks
from twostream_jax.report.templates import render

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
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  cells = [
    (int(t), int(p), int(counts[t, p]))
    for t, p in zip(*np.nonzero(counts), strict=True)
  ]
  if len(names) > MAX_NAMED:
    drawn = _image_map(shares)
  else:
    drawn = _cell_map(cells, shares, names)
  return render(
    "heatmap.html",
    **drawn,
    widest=f"{_SCALE * drawn['width']:.0f}",
    counts=json.dumps(cells, separators=(",", ":")),
    description=description,
  )


def _image_map(shares: np.ndarray) -> dict[str, Any]:
  n, left, top, size = len(shares), 34, 4, 320
  # The same colours (`fixed` in the sheet) in both themes: the page shows
  # through where the image is transparent.
  pixels = np.zeros((n, n, 4), np.uint8)
  pixels[..., :3] = (213, 102, 28)
  pixels[np.arange(n), np.arange(n), :3] = (43, 123, 196)
  pixels[..., 3] = np.round(255 * opacity(shares))
  middles = [(tick, (tick + 0.5) / n * size) for tick in ticks(0, n)]
  return {
    "width": left + size + 6,
    "height": top + size + 20,
    "left": left,
    "top": top,
    "size": size,
    "image": data_uri(pixels, ".png"),
    "ticks": [(f"{tick:g}", at) for tick, at in middles if tick < n],
  }


def _cell_map(
  cells: Sequence[tuple[int, int, int]],
  shares: np.ndarray,
  names: Sequence[str],
) -> dict[str, Any]:
  n = len(names)
  cell = 22 if n <= MAX_COUNTED else 14
  labels = [shorten(name, 16) for name in names]
  left = 10 + round(5.6 * max(len(label) for label in labels))
  size = n * cell
  return {
    "width": left + size + 2,
    "height": left + size,
    "left": left,
    "top": 0,
    "size": size,
    "image": "",
    "labels": labels,
    "cell": cell,
    "counted": n <= MAX_COUNTED,
    "filled": [
      {
        "true": t,
        "guess": p,
        "count": count,
        "opacity": float(opacity(shares[t, p])),
        "hint": f"{names[t]} \N{RIGHTWARDS ARROW} {names[p]}: {count}"
        f" ({shares[t, p]:.0%})",
      }
      for t, p, count in cells
    ],
  }
