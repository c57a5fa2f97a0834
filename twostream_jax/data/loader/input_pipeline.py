"""From records to training batches: sample, decode, crop.

Only the frames that a sample shows are decoded. Everything random is drawn from
a generator that is a function of (seed, position in the sequence of samples),
so that a batch depends on the seed and the step alone: not on threads, and not
on where training was interrupted.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twostream_jax.data.loader import augment, sampling
from twostream_jax.data.loader.batch_processes import ProcessBatches
from twostream_jax.data.loader.buffers import Buffers, Empty, new_array
from twostream_jax.data.loader.sampling import ALL, Share
from twostream_jax.data.loader.views import InputSpec, Look, load_looks

# Batches: more than any training takes.
_ENDLESS = 2**40


class Sample(NamedTuple):
  """A random sample; nothing of it is read yet.

  Attributes:
    look: at its video.
    flip: whether it is mirrored.
    rgb_shift: see `augment.random_rgb_shift`; None: no shift.
  """

  look: Look
  flip: bool
  rgb_shift: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """Records to random training samples.

  Gives {"rgb": uint8 [b t h w 3], "flow": uint8 [b t 2l h w], "label": int32
  [b], or float32 [b n] with n = num_classes in a multi-label set, "mask": bool
  [b], "video_id": [b]}, with t = num_segments. What the device shall do, see
  `preprocess`, comes with them: "flip" bool [b], which samples it mirrors; with
  `rgb_jitter`, "rgb_shift" float32 [b 3], what it adds to R, G and B in 0..1.

  Attributes:
    spec: what a sample shows.
    num_segments: windows a sample, t.
    crop: how the part of the frame is drawn that all windows show.
    flip: whether every other sample is mirrored. Off where labels name a
      direction.
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

  def draw(self, element, rng: np.random.Generator) -> Sample:
    """Draws a sample of a record."""
    windows, crop = self.num_segments, self.crop
    # In one call: each costs as much as copying a tenth of a frame.
    draws = rng.random(windows + crop.num_draws + self.flip).tolist()
    available = self.spec.num_starts(int(element["num_frames"]))
    starts = sampling.random_starts(draws[:windows], available)
    box = crop.box(
      draws[windows : windows + crop.num_draws],
      int(element["height"]),
      int(element["width"]),
    )
    flip = self.flip and draws[-1] < 0.5
    shift = None
    if self.shifts_rgb:
      shift = augment.random_rgb_shift(rng, self.rgb_jitter)
    return Sample(Look(element, starts, box), flip, shift)

  def load(
    self, samples: Sequence[Sample], empty: Empty = new_array
  ) -> dict[str, np.ndarray]:
    """Decodes what `draw` gave, in arrays from `empty`."""
    looks, flips, shifts = zip(*samples, strict=True)
    batch = load_looks(looks, self.spec, empty)
    if self.flip:
      batch["flip"] = np.array(flips)
    if self.shifts_rgb:
      batch["rgb_shift"] = np.stack(shifts)
    return batch | _labels(looks, self.num_classes)


def _labels(looks: Sequence[Look], num_classes: int):
  """Label, mask and name of the samples of a batch."""
  labels = [label_array(look.record["label"], num_classes) for look in looks]
  return {
    "label": np.stack(labels),
    "mask": np.ones(len(looks), bool),
    "video_id": np.array([text(look.record["video_id"]) for look in looks]),
  }


def label_array(label, num_classes: int) -> np.ndarray:
  """A label as training and evaluation take it.

  Args:
    label: class of a video, or a list of any number of them.
    num_classes: n, of a multi-label set.

  Returns:
    int32 [], or of a list float32 [n], 1 for each of its classes.
  """
  label = np.asarray(label, np.int32)
  if not label.ndim:
    return label
  return np.isin(np.arange(num_classes), label).astype(np.float32)


def text(value: bytes | str) -> str:
  """A record's text, whichever way it was read."""
  return value.decode() if isinstance(value, bytes) else str(value)


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
  return _threaded(lambda n: load(n, buffers.empty), start, threads)


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
    records = [self.source[self.order(position)] for position in positions]
    if self.transform is None:
      return _stack(records) | {"index": self.index}
    rngs = sampling.generators(self.seed, positions)
    samples = [*map(self.transform.draw, records, rngs)]
    batch = self.transform.load(samples, empty)
    return batch | {"index": self.index}


def _stack(samples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  return {name: np.stack([s[name] for s in samples]) for name in samples[0]}


def _threaded(
  load: Callable[[int], dict[str, np.ndarray]], start: int, threads: int
) -> Iterable[dict[str, np.ndarray]]:
  # Not for processes that make batches: it takes longer than all they import.
  import grain

  # Batches in flight are what costs memory: hold no more than are being made.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2, threads)
  )
  numbers = grain.MapDataset.range(start, _ENDLESS)
  return numbers.map(load).to_iter_dataset(options)
