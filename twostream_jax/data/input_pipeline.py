"""From records to batches, with grain: sample, decode, crop, flip.

Only the frames that a sample shows are decoded. Everything random is drawn from
a generator that is a function of (seed, position in the sequence of samples),
so that a batch depends on the seed and the step alone: not on threads, and not
on where training was interrupted.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from twostream_jax.data import augment, sampling
from twostream_jax.data.batch_processes import ProcessBatches
from twostream_jax.data.buffers import Buffers, Empty, new_array
from twostream_jax.data.views import InputSpec, Look, load_looks

# Batches: more than any training takes.
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """Records to random training samples.

  Gives {"rgb": uint8 [b t h w 3], "flow": uint8 [b t h w 2l], "label": int32
  [b], or float32 [b n] with n = num_classes in a multi-label set, "mask": bool
  [b], "video_id": [b]}, with t = num_segments. With `rgb_jitter`, frames come
  with "rgb_shift": float32 [b 3], what is to be added to R, G and B in 0..1.

  Attributes:
    spec: what a sample shows.
    num_segments: windows a sample, t.
    crop: how the part of the frame is drawn that all windows show.
    flip: whether every other sample is mirrored.
    rgb_jitter: see `augment.random_rgb_shift`; 0 is none.
    num_classes: n, of a multi-label set.
  """

  spec: InputSpec
  num_segments: int
  crop: augment.Crop
  flip: bool
  rgb_jitter: float = 0.0
  num_classes: int = 0

  def __post_init__(self):
    if self.num_segments < 1:
      raise ValueError(
        f"input.num_segments must be positive: {self.num_segments}"
      )
    if not 0 <= self.rgb_jitter < np.inf:
      raise ValueError(f"input.rgb_jitter must be >= 0: {self.rgb_jitter}")

  @property
  def shifts_rgb(self) -> bool:
    """Whether samples have "rgb_shift"."""
    return "rgb" in self.spec.modalities and self.rgb_jitter > 0

  def draw(self, element, rng: np.random.Generator):
    """Draws a sample of a record: a look, and the shift of its colours."""
    available = self.spec.num_starts(int(element["num_frames"]))
    starts = sampling.random_starts(rng, available, self.num_segments)
    view = augment.random_view(
      rng,
      int(element["height"]),
      int(element["width"]),
      crop=self.crop,
      flip=self.flip,
    )
    shift = None
    if self.shifts_rgb:
      shift = augment.random_rgb_shift(rng, self.rgb_jitter)
    return Look(element, starts, [view]), shift

  def load(
    self,
    samples: Iterable[tuple[Look, np.ndarray | None]],
    size: int,
    empty: Empty = new_array,
  ) -> dict[str, np.ndarray]:
    """Decodes what `draw` gave `size` times, in arrays from `empty`."""
    looks, shifts = [], []

    def next_looks() -> Iterator[Look]:
      for look, shift in samples:
        looks.append(look)
        shifts.append(shift)
        yield look

    shape = {"windows": self.num_segments, "views": 1, "size": size}
    arrays = load_looks(next_looks(), self.spec, **shape, empty=empty)
    batch = {name: array[:, :, 0] for name, array in arrays.items()}
    if self.shifts_rgb:
      batch["rgb_shift"] = np.stack(shifts)
    return batch | _labels(looks, self.num_classes, len(looks))


@dataclasses.dataclass(frozen=True)
class EvalTransform:
  """Records to all views of a test protocol.

  Gives {"rgb": uint8 [b v t h w 3], "flow": uint8 [b v t h w 2l], "label",
  "mask", "video_id"}, with t = 1 and v = num_clips times num_crops: clips
  outermost, crops innermost.
  """

  spec: InputSpec
  num_clips: int
  num_crops: int
  crop_fraction: float
  num_classes: int = 0

  def __post_init__(self):
    if self.num_clips < 1:
      raise ValueError(f"num_clips must be positive: {self.num_clips}")
    # Any frame will do: this refuses what no frame could be cropped by.
    augment.eval_views(
      64, 64, fraction=self.crop_fraction, count=self.num_crops
    )

  def load(self, records: Sequence[Mapping[str, Any]], size: int):
    """Decodes a batch; the last record is repeated up to `size`."""
    looks = [
      _even_look(
        record, self.spec, self.num_clips, self.crop_fraction, self.num_crops
      )
      for record in records
    ]
    shape = {"windows": self.num_clips, "views": self.num_crops, "size": size}
    arrays = load_looks(looks, self.spec, **shape)
    return _one_window(arrays) | _labels(looks, self.num_classes, size)


@dataclasses.dataclass(frozen=True)
class FrameTransform:
  """Records to evenly spaced windows, to compute features of.

  Gives {"rgb": uint8 [b f 1 h w 3], "flow": uint8 [b f 1 h w 2l], "length":
  int32 [b], "label", "mask", "video_id"} with f = num_frames centre crops; a
  video that has fewer windows gives each of them once, and then the last again
  beyond "length".
  """

  spec: InputSpec
  num_frames: int
  crop_fraction: float
  num_classes: int = 0

  def load(self, records: Sequence[Mapping[str, Any]], size: int):
    """Decodes a batch; the last record is repeated up to `size`."""
    looks = []
    for record in records:
      available = self.spec.num_starts(int(record["num_frames"]))
      windows = min(available, self.num_frames)
      looks.append(
        _even_look(record, self.spec, windows, self.crop_fraction, 1)
      )
    shape = {"windows": self.num_frames, "views": 1, "size": size}
    arrays = load_looks(looks, self.spec, **shape)
    lengths = np.array([len(look.starts) for look in looks], np.int32)
    return (
      _one_window(arrays)
      | {"length": _padded(lengths, size)}
      | _labels(looks, self.num_classes, size)
    )


def _even_look(record, spec, windows: int, fraction: float, crops: int) -> Look:
  """Evenly spaced windows, all seen by the crops of a protocol."""
  available = spec.num_starts(int(record["num_frames"]))
  starts = sampling.even_starts(available, windows)
  height, width = int(record["height"]), int(record["width"])
  views = augment.eval_views(height, width, fraction=fraction, count=crops)
  return Look(record, starts, views)


def _one_window(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """[b t v h w c] to [b t * v 1 h w c]: each window of each crop is a view."""
  return {
    name: x.reshape(len(x), -1, 1, *x.shape[3:]) for name, x in arrays.items()
  }


def _labels(looks: Sequence[Look], num_classes: int, size: int):
  """Label, mask and name of a batch; the last ones are repeated up to `size`"""
  labels = [_label(look.record["label"], num_classes) for look in looks]
  names = [text(look.record["video_id"]) for look in looks]
  return {
    "label": _padded(np.stack(labels), size),
    "mask": np.arange(size) < len(looks),
    "video_id": _padded(np.array(names), size),
  }


def _label(label, num_classes: int) -> np.ndarray:
  label = np.asarray(label, np.int32)
  if not label.ndim:
    return label
  # Any number of classes: 1 for each, 0 for the others.
  return np.isin(np.arange(num_classes), label).astype(np.float32)


def _padded(array: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last of an array, up to `size`."""
  return array[np.minimum(np.arange(size), len(array) - 1)]


def text(value: bytes | str) -> str:
  """A record's text, whichever way it was read."""
  return value.decode() if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(frozen=True)
class Share:
  """Which part of every batch this process reads.

  Attributes:
    index: of the process, in 0..count - 1.
    count: of the processes; each reads as many examples.
  """

  index: int = 0
  count: int = 1


ALL = Share()


def train_batches(
  source,
  transform: TrainTransform | None,
  *,
  batch_size: int,
  seed: int,
  threads: int,
  processes: int = 0,
  start: int = 0,
  share: Share = ALL,
  micro_batches: int = 1,
  order: Callable[[int], int] | None = None,
) -> Iterable[dict[str, np.ndarray]]:
  """Endless shuffled batches; every epoch shows every video once.

  A batch is a function of the seed and its number: neither of threads, nor of
  where training was interrupted, nor of how many processes read their parts.

  Args:
    source: random access to records.
    transform: a record to a sample; None where records are samples.
    batch_size: videos a batch, over all devices of all processes; a multiple
      of the processes times the micro-batches.
    seed: of the order and of the samples.
    threads: decoding threads; each prepares a whole batch.
    processes: that do it instead, see `batch_processes`; 0: the threads.
    start: number of the first batch, from 0: those before were seen already.
    share: the part that this process reads.
    micro_batches: parts that a batch is taken in. The process gets its share
      of the first, then of the second and so on.
    order: position in the endless sequence of samples to the index of a video,
      instead of shuffled epochs.

  Returns:
    Batches of stacked samples of this process. "index" int32 is each one's
    place in the whole batch.

  Raises:
    ValueError: the split has no video.
  """
  if not len(source):
    raise ValueError("the training split has no video")
  index = np.arange(batch_size, dtype=np.int32)
  index = index.reshape(micro_batches, share.count, -1)[:, share.index].ravel()
  load = _TrainLoader(
    source=source,
    transform=transform,
    seed=seed,
    batch_size=batch_size,
    index=index,
    order=order or sampling.EpochOrder(len(source), seed),
  )
  if processes:
    return ProcessBatches(load, start, processes)
  buffers = Buffers()
  numbers = grain.MapDataset.range(start, _ENDLESS)
  return _threaded(numbers.map(lambda n: load(n, buffers.empty)), threads)


@dataclasses.dataclass(frozen=True)
class _TrainLoader:
  """The number of a training batch to the batch; see `train_batches`.

  Attributes:
    index: which places of the batch this process has, int32.
  """

  source: Any
  transform: TrainTransform | None
  seed: int
  batch_size: int
  index: np.ndarray
  order: Callable[[int], int]

  def __call__(self, number: int, empty: Empty) -> dict[str, np.ndarray]:
    places = number * self.batch_size + self.index.astype(np.int64)
    positions = places.tolist()
    records = (self.source[self.order(position)] for position in positions)
    if self.transform is None:
      return _stack([*records]) | {"index": self.index}
    rngs = sampling.generators(self.seed, positions)
    samples = map(self.transform.draw, records, rngs)
    batch = self.transform.load(samples, len(positions), empty)
    return batch | {"index": self.index}


def _stack(samples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  return {name: np.stack([s[name] for s in samples]) for name in samples[0]}


def eval_batches(
  source,
  transform: EvalTransform | FrameTransform | Callable[[Any], Any],
  *,
  batch_size: int,
  threads: int,
  share: Share = ALL,
) -> grain.IterDataset:
  """Every video once, in the order of the split; the last batch is padded.

  Padding repeats the last video with mask False, so that all batches have one
  shape and every video counts exactly once. All processes get as many batches,
  a late one of them maybe of padding alone.

  Args:
    source: random access to records.
    transform: a record to its views.
    batch_size: videos a batch, over all devices of all processes; a multiple
      of the processes.
    threads: that decode; each prepares a whole batch.
    share: the part of every batch that this process reads.
  """
  part = batch_size // share.count
  num_batches = -(-len(source) // batch_size)

  def load(number: int) -> dict[str, np.ndarray]:
    first = (number * share.count + share.index) * part
    indices = range(first, min(first + part, len(source)))
    # Any video serves as padding, where the split ends before this part.
    records = [source[i] for i in indices or (0,)]
    if isinstance(transform, EvalTransform | FrameTransform):
      batch = transform.load(records, part)
    else:
      views = _stack([transform(record) for record in records])
      batch = {name: _padded(array, part) for name, array in views.items()}
    return batch | {"mask": np.arange(part) < len(indices)}

  return _threaded(grain.MapDataset.range(num_batches).map(load), threads)


def _threaded(batches: grain.MapDataset, threads: int) -> grain.IterDataset:
  # Batches in flight are what costs memory: hold no more than are being made.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2, threads)
  )
  return batches.to_iter_dataset(options)
