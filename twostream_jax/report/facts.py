"""The report's data: what each split holds, and what could not be used."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twostream_jax.report import shell
from twostream_jax.report.templates import render


@dataclasses.dataclass(frozen=True)
class SplitFacts:
  """The clips of a split.

  Attributes:
    by_class: clips of each class, int [n].
    num_frames: frames of each clip, int [b].
    fps: mean frame rate of each clip, float [b].
    pixel_aspect: width over height of a pixel in each file, float [b].
    num_damaged: damaged or lost frames of each clip, int [b].
    height: of the stored frames, pixels, int [b].
    width: Of the frames in pixels.
  """

  by_class: np.ndarray
  num_frames: np.ndarray
  fps: np.ndarray
  pixel_aspect: np.ndarray
  num_damaged: np.ndarray
  height: np.ndarray
  width: np.ndarray


def section(
  splits: Mapping[str, SplitFacts], rejected: Sequence[Mapping[str, Any]]
) -> str:
  """The section of the data, as HTML.

  Args:
    splits: by name; may be empty.
    rejected: see `shell.rejected_files`.
  """
  found = [_facts(split) for split in splits.values()]
  return render(
    "data.html",
    splits=list(splits),
    rows=[(name, [facts[name] for facts in found]) for name in found[0]]
    if found
    else [],
    rejected=shell.rejected_files(rejected),
  )


def _facts(split: SplitFacts) -> dict[str, str]:
  """What is said of a split, by what it is about."""
  seconds = split.num_frames / np.maximum(split.fps, 1e-6)
  shown = split.by_class[split.by_class > 0]
  sizes = Counter(zip(split.width.tolist(), split.height.tolist(), strict=True))
  (width, height), most = sizes.most_common(1)[0] if sizes else ((0, 0), 0)
  size = f"{width} × {height}"
  if most < len(split.width):
    size += f" ({most / len(split.width):.0%}; {len(sizes)} sizes)"
  return {
    "Clips": f"{len(split.num_frames):,}",
    "Classes with a clip": f"{len(shown):,} of {len(split.by_class):,}",
    "Clips a class": _range(shown, "{:,.0f}"),
    "Frames a clip": _range(split.num_frames, "{:,.0f}"),
    "Seconds a clip": _range(seconds, "{:.1f}"),
    "Frames a second": _range(split.fps, "{:.4g}"),
    "Frame size, pixels": size,
    "Clips with damaged frames": f"{np.count_nonzero(split.num_damaged):,}",
    "Anamorphic clips": f"{np.count_nonzero(split.pixel_aspect != 1):,}",
    "Video in all": shell.duration(float(seconds.sum()), 1),
  }


def _range(values: np.ndarray, form: str) -> str:
  """The median, and both ends where they differ."""
  if not len(values):
    return "–"
  low, middle, high = (
    form.format(x) for x in (values.min(), np.median(values), values.max())
  )
  return middle if low == high else f"{middle} ({low} to {high})"
