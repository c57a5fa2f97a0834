"""Counts of a stored dataset, and sample clips of it."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from twostream_jax.data.dataset import (
  VideoDataset,
  decode_flow_codes,
  decode_rgb,
)
from twostream_jax.data.datasets.clips import SPLITS
from twostream_jax.files import words
from twostream_jax.flow.spec import dequantise
from twostream_jax.report.pictures import shrink


class DamagedDatasetError(ValueError):
  """A stored clip can't be read."""


@dataclasses.dataclass(frozen=True)
class SplitSurvey:
  """What a split holds.

  Attributes:
    labels: the classes of each clip, as indices, in stored order. One a clip,
      any number in a multi-label dataset.
    by_class: clips of each class, int [n].
    seconds: of video, by the frame rates that the files' headers state.
  """

  labels: tuple[tuple[int, ...], ...]
  by_class: np.ndarray
  seconds: float


@dataclasses.dataclass(frozen=True)
class Moment:
  """A frame of a clip and the motion to a later one, in thumbnail size.

  Attributes:
    frame: index of the frame.
    rgb: RGB uint8 [h w 3].
    flow: pixels of the stored size per step, x then y, float64 [h w 2].
    backward: The same, from the later frame to this one; None where the
      dataset has forward fields only.
  """

  frame: int
  rgb: np.ndarray
  flow: np.ndarray
  backward: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Sample:
  """A stored clip to be shown; the fields are those of `dataset.Record`."""

  split: str
  labels: tuple[str, ...]
  video_id: str
  group: str
  fps: float
  num_frames: int
  height: int
  width: int
  moments: tuple[Moment, ...]


def survey(
  data: VideoDataset, *, progress: bool = False
) -> dict[str, SplitSurvey]:
  """Counts the clips of each split: train, validation, test.

  No image is decoded, and one record is in memory at a time. Records can only
  be read whole, though, so every byte of the dataset is read once: it takes as
  long as the disk does.

  Args:
    data: the dataset.
    progress: whether to draw a progress bar on stderr.

  Raises:
    DamagedDatasetError: a clip can't be read.
  """
  order = sorted(data.sources, key=(*SPLITS, *data.sources).index)
  return {
    split: _survey_split(data, split, progress=progress) for split in order
  }


def _survey_split(
  data: VideoDataset, split: str, *, progress: bool
) -> SplitSurvey:
  labels, seconds = [], 0.0
  for i in tqdm(
    _indices(data, split),
    words.printable(split),
    unit="clip",
    disable=not progress,
  ):
    record = _read(data, split, i)
    labels.append(_labels(record))
    seconds += record["num_frames"] / record["fps"]
  every = np.array([label for clip in labels for label in clip], np.int64)
  counts = np.bincount(every, minlength=len(data.class_names))
  return SplitSurvey(tuple(labels), counts, float(seconds))


def choose_clips(
  labels: Mapping[str, Sequence[tuple[int, ...]]], *, count: int, seed: int
) -> list[tuple[str, int]]:
  """Draws clips that are spread over the classes, then over the splits.

  A clip of several classes is listed by the first of them here.

  Args:
    labels: the classes of each clip, by split; see `SplitSurvey`.
    count: how many clips to draw, fewer if there are fewer.
    seed: of the draw.

  Returns:
    Distinct (split, index); the same for the same arguments. In the order of
    the splits, then of the classes.
  """
  rng = np.random.default_rng(seed)
  waiting, by_class, by_split = {}, Counter(), Counter()
  for split, clips in labels.items():
    for i in rng.permutation(len(clips)).tolist():
      waiting.setdefault((split, clips[i][:1]), []).append(i)
  taken, chosen = Counter(), []
  while waiting and len(chosen) < count:
    kind = min(
      waiting, key=lambda k: (by_class[k[1]], taken[k], by_split[k[0]])
    )
    split, label = kind
    chosen.append((split, waiting[kind].pop()))
    if not waiting[kind]:
      del waiting[kind]
    taken[kind] += 1
    by_class[label] += 1
    by_split[split] += 1
  splits = list(labels)
  return sorted(chosen, key=lambda c: (splits.index(c[0]), labels[c[0]][c[1]]))


def read_sample(
  data: VideoDataset, split: str, index: int, *, num_moments: int = 3
) -> Sample:
  """Reads a clip and decodes some moments, evenly spaced over its fields.

  Args:
    data: the dataset.
    split: one of its splits.
    index: of the clip in the split.
    num_moments: how many, fewer where the clip has fewer fields.

  Raises:
    DamagedDatasetError: the clip, or one of the images, can't be read.
  """
  record = _read(data, split, index)
  fields = len(record["flow"])
  middles = (np.arange(num_moments) + 0.5) * fields / num_moments
  with _located(data, split, index):
    moments = tuple(
      _moment(record, frame, data.flow_spec.bound)
      for frame in sorted(set(middles.astype(int).tolist()))
    )
  return Sample(
    split=split,
    labels=tuple(data.class_names[label] for label in _labels(record)),
    video_id=record["video_id"].decode(),
    group=record["group"].decode(),
    fps=record["fps"],
    num_frames=record["num_frames"],
    height=record["height"],
    width=record["width"],
    moments=moments,
  )


def _moment(record: Mapping[str, Any], frame: int, bound: float) -> Moment:
  def field(images: Sequence[bytes]) -> np.ndarray:
    return shrink(dequantise(decode_flow_codes(images[frame]), bound))

  rgb = np.round(shrink(decode_rgb(record["rgb"][frame]))).astype(np.uint8)
  back = record["flow_backward"]
  return Moment(
    frame, rgb, field(record["flow"]), field(back) if len(back) else None
  )


def _labels(record: Mapping[str, Any]) -> tuple[int, ...]:
  return tuple(np.atleast_1d(record["label"]).astype(int).tolist())


def _indices(data: VideoDataset, split: str) -> range:
  with _located(data, split):
    return range(len(data.sources[split]))


def _read(data: VideoDataset, split: str, index: int) -> dict[str, Any]:
  with _located(data, split, index):
    return data.sources[split][index]


@contextlib.contextmanager
def _located(
  data: VideoDataset, split: str, index: int | None = None
) -> Iterator[None]:
  """Says of an error in reading what was read."""
  try:
    yield
  # What the readers raise: of a file, of a record, of an image.
  except (RuntimeError, ValueError, IndexError) as error:
    what = "the clips" if index is None else f"clip {index}"
    reason = " ".join(str(error).split())
    raise DamagedDatasetError(
      f"{what} of the {split} split of {data.path} can't be read: {reason}."
      " The files are damaged: copy or build the dataset again"
    ) from error
