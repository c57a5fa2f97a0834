"""When a long video shows what: segments, as a table and as a picture."""

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from twostream_jax.files.words import csv_cell, printable
from twostream_jax.predict.following import Seen
from twostream_jax.report import plots

# Rows of the picture: the classes that are seen longest.
_MOST_ROWS = 12
# In pixels of the picture: its width, a row, a letter.
_WIDTH, _ROW, _LETTER = 1200, 52, 14
_WEIGHT = 400  # Of a regular font.
_LONGEST_LABEL, _LONGEST_TITLE = 40, 150  # Letters.
_INK = (40, 40, 40)
# Bits of a pixel's parts in the coordinates of lines.
_SHIFT = 4
_COLOURS = (
  (31, 119, 180),
  (255, 127, 14),
  (44, 160, 44),
  (214, 39, 40),
  (148, 103, 189),
  (140, 86, 75),
  (227, 119, 194),
  (127, 127, 127),
  (188, 189, 34),
  (23, 190, 207),
)


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
  """Writes a PNG: a row a class with its segments and its probability."""
  spent = dict.fromkeys(class_names, 0.0)
  for segment in segments:
    spent[segment.label] += segment.end - segment.start
  rows = sorted(
    (name for name in spent if spent[name]), key=lambda name: -spent[name]
  )[:_MOST_ROWS]
  labels = [plots.shorten(printable(name), _LONGEST_LABEL) for name in rows]
  left = 30 + max((_width(label) for label in labels), default=0)
  right, top = _WIDTH - 20, 35
  bottom = top + _ROW * max(1, len(rows))
  image = np.full((bottom + 50, _WIDTH, 3), 255, np.uint8)

  def across(seconds):
    return left + np.asarray(seconds) * ((right - left) / found.edges[-1])

  values = smoothed(found.probabilities, smooth)
  for row, (name, label) in enumerate(zip(rows, labels, strict=True)):
    middle = top + _ROW * (row + 0.5)
    colour = np.array(_COLOURS[row % len(_COLOURS)])
    pale = 255 - 0.35 * (255 - colour)
    high, low = round(middle - 0.4 * _ROW), round(middle + 0.4 * _ROW)
    for segment in segments:
      if segment.label == name:
        begin, end = np.rint(across([segment.start, segment.end])).astype(int)
        image[high:low, begin : max(end, begin + 1)] = pale
    heights = low - values[:, list(class_names).index(name)] * (low - high)
    # Two corners a window: a step at each edge.
    steps = across(found.edges).repeat(2)[1:-1], heights.repeat(2)
    points = np.rint(np.stack(steps, axis=-1) * 2**_SHIFT).astype(np.int32)
    line = colour.tolist()
    cv2.polylines(image, [points], False, line, 1, cv2.LINE_AA, _SHIFT)
    _write(image, label, left - 10 - _width(label), round(middle) + 5)
  for tick in plots.ticks(0, found.edges[-1], 8):
    if tick <= found.edges[-1]:
      x, text = round(float(across(tick))), f"{tick:g}"
      cv2.line(image, (x, bottom), (x, bottom + 4), _INK)
      _write(image, text, x - _width(text) // 2, bottom + 20)
  cv2.rectangle(image, (left, top), (right, bottom), _INK)
  middle = (left + right) // 2
  title = plots.shorten(title, _LONGEST_TITLE)
  for text, y in ((title, top - 12), ("seconds", bottom + 40)):
    _write(image, text, max(10, middle - _width(text) // 2), y)
  done, code = cv2.imencode(".png", image[..., ::-1])
  if not done:
    raise ValueError(f"can't encode an image of shape {image.shape}")
  path.write_bytes(code.data)


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
  """Draws a text whose first letter stands at (x, y)."""
  font = cv2.FontFace("sans")
  cv2.putText(image, text, (x, y), _INK, font, _LETTER, _WEIGHT)


def _width(text: str) -> int:
  """Pixels that a text takes."""
  font = cv2.FontFace("sans")
  return cv2.getTextSize((0, 0), text, (0, 0), font, _LETTER, _WEIGHT)[2]
