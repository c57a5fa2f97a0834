"""When a long video shows what: segments, as a table and as a picture."""

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostream_jax.files.words import csv_cell, printable
from twostream_jax.predict.following import Seen

# Rows of the picture: the classes that are seen longest.
_MOST_ROWS = 12


class Segment(NamedTuple):
  """A part of a video that shows one class.

  Attributes:
    start: seconds.
    end: seconds.
    label: name of the class.
    score: mean of its probability over the segment's windows, 0..1.
  """

  start: float
  end: float
  label: str
  score: float


@dataclasses.dataclass(frozen=True)
class Track:
  """Probabilities along a video.

  Attributes:
    edges: seconds [w + 1], rising: window i tells what is between edge i
      and edge i + 1, halfway to its neighbours (in frames).
    probabilities: float [w n].
  """

  edges: np.ndarray
  probabilities: np.ndarray


class Recorder:
  """Keeps the probabilities of windows that pass by, and lets images go.

  Attributes:
    frames: number of those that passed by.
  """

  def __init__(self):
    self.frames = 0
    self._edges, self._probabilities, self._end = [0.0], [], 0.0

  def __call__(self, windows: Iterable[Seen]) -> Iterator[Seen]:
    """The same windows."""
    before = None
    for seen in windows:
      if before is not None:
        # Frames, not seconds: where a video stands still, it keeps showing
        # its last frame.
        middle = before.boundary_with(seen)
        shows_it = seen if middle >= seen.first else before
        self._edges.append(shows_it.time_of(middle))
      before = seen
      self._probabilities.append(seen.probabilities)
      self._end = seen.end
      self.frames = seen.first + len(seen.frames)
      yield seen

  def track(self) -> Track:
    """What passed by, in seconds; at least one window must have."""
    edges = np.array([*self._edges, self._end])
    return Track(edges, np.stack(self._probabilities))


def check_smooth(width: int) -> None:
  """Raises ValueError unless a number of windows has one in the middle."""
  if width < 1 or width % 2 == 0:
    raise ValueError(f"--smooth={width} must be odd: 1, 3, 5, ...")


def threshold_of(given: float | None, multi_label: bool) -> float:
  """The probability from which a class is shown.

  Args:
    given: by the user, or None: 0 where the most probable class alone is shown,
      0.5 (more likely than not) where every class above it is.
    multi_label: whether a video has any number of classes.

  Raises:
    ValueError: It is not in 0..1, or 0 where all classes would be shown always.
  """
  if given is None:
    return 0.5 if multi_label else 0.0
  if not 0 <= given <= 1:
    raise ValueError(f"--threshold={given:g} must be in 0..1, a probability")
  if multi_label and not given:
    raise ValueError(
      "--threshold=0 would show every class all the time, because a video of"
      " this run has any number of them: give one above 0, such as 0.5"
    )
  return given


def smoothed(probabilities: np.ndarray, width: int) -> np.ndarray:
  """The mean of each window and its neighbours, as far as there are any.

  Args:
    probabilities: [w n].
    width: windows that are averaged, odd; 1 changes nothing.

  Raises:
    ValueError: it is not odd.
  """
  check_smooth(width)
  half = width // 2
  return np.stack(
    [
      probabilities[max(0, i - half) : i + half + 1].mean(axis=0)
      for i in range(len(probabilities))
    ]
  )


def find_segments(
  found: Track,
  class_names: Sequence[str],
  *,
  smooth: int = 1,
  threshold: float | None = None,
  multi_label: bool = False,
) -> list[Segment]:
  """Merges windows that show the same class.

  Args:
    found: probabilities along the video.
    class_names: n names.
    smooth: windows that are averaged first, see `smoothed`.
    threshold: a class with a smaller probability is not shown; see
      `threshold_of`.
    multi_label: whether every class above the threshold is shown, not only the
      most probable one.

  Returns:
    Segments by their start, then by class.

  Raises:
    ValueError: see `smoothed` and `threshold_of`.
  """
  values = smoothed(found.probabilities, smooth)
  shown = values >= threshold_of(threshold, multi_label)
  if not multi_label:
    best = values.argmax(axis=1)
    shown &= np.arange(values.shape[1]) == best[:, None]
  segments = []
  for c in np.flatnonzero(shown.any(axis=0)).tolist():
    steps = np.diff(shown[:, c].astype(int), prepend=0, append=0)
    for begin, end in zip(
      np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True
    ):
      segments.append(
        Segment(
          float(found.edges[begin]),
          float(found.edges[end]),
          class_names[c],
          float(values[begin:end, c].mean()),
        )
      )
  return sorted(segments)


def write_csv(path: Path, segments: Iterable[Segment]) -> None:
  """Writes segments as start, end, label, score; labels are not formulas."""
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(Segment._fields)
    for segment in segments:
      times = (f"{segment.start:.3f}", f"{segment.end:.3f}")
      label = csv_cell(printable(segment.label))
      writer.writerow([*times, label, f"{segment.score:.4f}"])


def draw(
  path: Path,
  found: Track,
  segments: Sequence[Segment],
  class_names: Sequence[str],
  *,
  title: str,
  smooth: int = 1,
) -> None:
  """Writes a picture: a row a class with its segments and its probability."""
  import matplotlib

  # A file matplotlibrc of the current folder could ask for TeX.
  matplotlib.rcdefaults()
  matplotlib.use("Agg")
  from matplotlib import pyplot

  spent = dict.fromkeys(class_names, 0.0)
  for segment in segments:
    spent[segment.label] += segment.end - segment.start
  rows = sorted(
    (name for name in spent if spent[name]), key=lambda name: -spent[name]
  )[:_MOST_ROWS]
  values = smoothed(found.probabilities, smooth)
  figure, axes = pyplot.subplots(figsize=(12, 1.2 + 0.45 * max(1, len(rows))))
  for row, name in enumerate(rows):
    colour = f"C{row % 10}"
    spans = [(s.start, s.end - s.start) for s in segments if s.label == name]
    axes.broken_barh(spans, (row - 0.4, 0.8), color=colour, alpha=0.35)
    curve = row + 0.4 - 0.8 * values[:, list(class_names).index(name)]
    axes.stairs(curve, found.edges, color=colour, baseline=None)
  # Names as they are: matplotlib would read what stands between two $ as TeX.
  axes.set_yticks(range(len(rows)), rows, parse_math=False)
  axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
  axes.set_xlim(0, found.edges[-1])
  axes.set_xlabel("seconds")
  axes.set_title(title, fontsize=10, parse_math=False)
  figure.tight_layout()
  figure.savefig(path, format="png", dpi=100)
  pyplot.close(figure)
