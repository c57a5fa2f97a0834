"""From records to the views of a test protocol, in batches of one shape.

A *row* is what is decoded in one piece: a window of a video seen by all crops
of the protocol, or a sequence of windows. The rows of a split are counted
through from the first video to the last, and cut into batches: a batch holds
rows of several videos or a part of one, and memory is bounded whatever the
protocol and however long a video.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from twostream_jax.data.loader import augment, protocols
from twostream_jax.data.loader.buffers import new_array
from twostream_jax.data.loader.sampling import ALL, Share
from twostream_jax.data.loader.views import InputSpec, load_views


class Rows(NamedTuple):
  """Some rows of a split, in their order.

  Attributes:
    number: int [b], counted from the first of the split.
    video: int [b]: index of the video.
    place: int [b]: counted from the first of the video.
  """

  number: np.ndarray
  video: np.ndarray
  place: np.ndarray

  def by_video(self):
    """Yields a video, the places in it, and the slice of these rows."""
    begins = np.flatnonzero(np.diff(self.video, prepend=-1))
    for begin, end in zip(begins, [*begins[1:], len(self.video)], strict=True):
      here = slice(int(begin), int(end))
      yield int(self.video[begin]), self.place[here], here


@dataclasses.dataclass(frozen=True)
class EvalTransform:
  """Records to the views of a test protocol; a row is a window.

  Gives {"rgb": uint8 [b v 1 h w 3], "flow": uint8 [b v 1 2l h w], "flip": bool
  [b v]} with v crops; "flip" tells which of them the device mirrors, see
  `preprocess`, and is there where the protocol has such.

  Attributes:
    spec: what a view shows.
    protocol: which windows and crops.
    crop_fraction: side of a crop, as a share of the short side.
  """

  spec: InputSpec
  protocol: protocols.Protocol
  crop_fraction: float

  def __post_init__(self):
    _check_crops(self.crop_fraction, self.protocol.num_crops)

  @property
  def views(self) -> int:
    """Views a row, v."""
    return self.protocol.num_crops

  def counts(self, source) -> np.ndarray:
    """Rows of each video: int [videos]."""
    if self.protocol.num_windows is not None:
      return np.full(len(source), self.protocol.num_windows)
    return np.array([self.spec.num_starts(n) for n in _lengths(source)])

  def load(self, source, rows: Rows, size: int) -> dict[str, np.ndarray]:
    """Decodes rows; the last is repeated up to `size`."""
    arrays = self.spec.empty(size, self.views, empty=new_array)
    for video, places, here in rows.by_video():
      record = source[video]
      available = self.spec.num_starts(int(record["num_frames"]))
      crops = _crops(record, self.crop_fraction, self.views)
      out = {name: x[here].swapaxes(0, 1) for name, x in arrays.items()}
      starts = self.protocol.starts(available)[places]
      load_views(record, starts, crops, self.spec, out=out)
    _repeat_last(arrays, len(rows.number))
    batch = {name: x[:, :, None] for name, x in arrays.items()}
    flips = augment.eval_flips(self.views)
    if flips.any():
      batch["flip"] = np.tile(flips, (size, 1))
    return batch


@dataclasses.dataclass(frozen=True)
class FrameTransform:
  """Records to sequences of windows, to compute features of.

  Gives {"rgb": uint8 [b f 1 h w 3], "flow": uint8 [b f 1 2l h w], "length":
  int32 [b]} with f = num_frames centre crops; of a video with fewer frames
  "length" is their number, and beyond it the last window comes again.

  Attributes:
    spec: what a view shows.
    num_frames: windows of a sequence, f.
    crop_fraction: side of a crop, as a share of the short side.
    dense: not one sequence, but as many as it takes to show every window. They
      are as many for all networks, so that several can be read together.
  """

  spec: InputSpec
  num_frames: int
  crop_fraction: float
  dense: bool = False

  def __post_init__(self):
    if self.num_frames < 1:
      raise ValueError(
        f"config.features.num_frames must be positive: {self.num_frames}"
      )
    _check_crops(self.crop_fraction, 1)

  @property
  def views(self) -> int:
    """Views a row, f."""
    return self.num_frames

  def counts(self, source) -> np.ndarray:
    """Rows of each video: int [videos]."""
    if not self.dense:
      return np.ones(len(source), int)
    return np.array([self._count(n) for n in _lengths(source)])

  def load(self, source, rows: Rows, size: int) -> dict[str, np.ndarray]:
    """Decodes rows; the last is repeated up to `size`."""
    arrays = self.spec.empty(size, self.num_frames, empty=new_array)
    lengths = np.ones(size, np.int32)
    for video, places, here in rows.by_video():
      record = source[video]
      crops = _crops(record, self.crop_fraction, 1)
      sequences = self._sequences(int(record["num_frames"]))
      chosen = np.stack([sequences[place] for place in places])
      count, length = chosen.shape
      # All in one call, for sequences share fields of flow.
      seen = load_views(record, chosen.ravel(), crops, self.spec)
      for name, x in seen.items():
        array = arrays[name][here]
        array[:, :length] = x[0].reshape(count, length, *x.shape[2:])
        array[:, length:] = array[:, length - 1 : length]
      lengths[here] = length
    _repeat_last(arrays | {"length": lengths}, len(rows.number))
    arrays = {name: x[:, :, None] for name, x in arrays.items()}
    return arrays | {"length": lengths}

  def _sequences(self, num_frames: int) -> list[np.ndarray]:
    available = self.spec.num_starts(num_frames)
    # Of all networks the same, for several may be read together: a stack of
    # flow leaves a short video fewer windows than it has frames.
    length = min(self.num_frames, num_frames)
    count = self._count(num_frames) if self.dense else 1
    return protocols.sequence_starts(available, length, count)

  def _count(self, num_frames: int) -> int:
    # No video has more windows than frames, whatever the stack.
    return -(-num_frames // self.num_frames)


class SequenceTransform:
  """Stored sequences as they are; a row is one of them, and one view.

  Gives {name: array [b 1 ...]} of what the source holds.
  """

  views = 1

  def counts(self, source) -> np.ndarray:
    """Rows of each video: int [videos]."""
    return source.counts

  def load(self, source, rows: Rows, size: int) -> dict[str, np.ndarray]:
    """Reads rows; the last is repeated up to `size`."""
    samples = [source[number] for number in rows.number.tolist()]
    samples += [samples[-1]] * (size - len(samples))
    return {
      name: np.stack([sample[name] for sample in samples])[:, None]
      for name in samples[0]
      if name not in ("label", "mask", "video_id")
    }


Transform = EvalTransform | FrameTransform | SequenceTransform


def _lengths(source) -> Iterator[int]:
  """Frames of each video; no image is read."""
  return (int(source[i]["num_frames"]) for i in range(len(source)))


def _check_crops(fraction: float, count: int) -> None:
  # Any frame will do: this refuses what no frame could be cropped by.
  augment.eval_crops(64, 64, fraction=fraction, count=count)


def _crops(record, fraction: float, count: int) -> list[augment.Box]:
  height, width = int(record["height"]), int(record["width"])
  return augment.eval_crops(height, width, fraction=fraction, count=count)


def _repeat_last(arrays: dict[str, np.ndarray], count: int) -> None:
  for array in arrays.values():
    array[count:] = array[count - 1]


def batch_size(
  num_rows: int, views: int, *, views_per_pass: int, replicas: int
) -> int:
  """Rows a batch, over all replicas.

  Args:
    num_rows: of the split.
    views: of a row.
    views_per_pass: views that pass through the network together on a replica.
    replicas: devices of all processes.

  Returns:
    A multiple of the replicas: as many rows on each as make `views_per_pass`
    views, at least one, and no more than there are.
  """
  of_each = max(1, views_per_pass // views)
  return min(of_each, -(-num_rows // replicas)) * replicas


class EvalRows(NamedTuple):
  """What is scored of a split.

  Attributes:
    ids: of the videos, in the order of the split.
    labels: of each: int32 [videos], or float32 [videos n] in a multi-label set.
    counts: rows of each: int [videos].
    batches: every row once, in this order. Dicts of what the transform gives,
      "video": int32 [b], the index of each row's video, and "mask": bool [b].
    num_batches: how many they are.
  """

  ids: tuple[str, ...]
  labels: np.ndarray
  counts: np.ndarray
  batches: grain.IterDataset
  num_batches: int


def eval_rows(
  source: Any,
  transform: Transform,
  labels: np.ndarray,
  *,
  views_per_pass: int,
  replicas: int,
  threads: int,
  share: Share = ALL,
) -> EvalRows:
  """Every row of every video once, in the order of the split.

  The last batch is padded: it repeats the last row with mask False, so that all
  batches have one shape. All processes get as many batches, a late one of them
  maybe of padding alone.

  Args:
    source: random access to what `transform` reads, with `video_ids`.
    transform: how a row is made.
    labels: see `EvalRows`.
    views_per_pass: see `batch_size`.
    replicas: The same for replicas.
    threads: that decode; each prepares a whole batch.
    share: the part of every batch that this process reads.
  """
  counts = transform.counts(source)
  ends = np.cumsum(counts)
  num_rows = int(ends[-1])
  size = batch_size(
    num_rows,
    transform.views,
    views_per_pass=views_per_pass,
    replicas=replicas,
  )
  part = size // share.count

  def load(number: int) -> dict[str, np.ndarray]:
    rows = np.arange(part) + (number * share.count + share.index) * part
    mask = rows < num_rows
    rows = np.minimum(rows, num_rows - 1)
    videos = np.searchsorted(ends, rows, side="right").astype(np.int32)
    # One of padding will do for all.
    n = max(1, int(mask.sum()))
    places = rows[:n] - (ends - counts)[videos[:n]]
    batch = transform.load(source, Rows(rows[:n], videos[:n], places), part)
    return batch | {"video": videos, "mask": mask}

  # Batches in flight are what costs memory: hold no more than are being made.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2, threads)
  )
  num_batches = -(-num_rows // size)
  numbers = grain.MapDataset.range(num_batches)
  batches = numbers.map(load).to_iter_dataset(options)
  return EvalRows(source.video_ids, labels, counts, batches, num_batches)
