"""From records to batches, with grain: sample, decode, crop, flip.

Only the frames that a sample shows are decoded. Everything random is drawn from
a generator that is a function of (seed, position in the sequence of samples),
so that a batch depends on the seed and the step alone: not on threads, and not
on where training was interrupted.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from twostream_jax.data import augment, dataset, sampling
from twostream_jax.flow import spec as flow_spec

MODALITIES = ("rgb", "flow")


@dataclasses.dataclass(frozen=True)
class InputSpec:
  """What one look at a video gives a model.

  Attributes:
    modalities: which of "rgb" and "flow".
    image_size: side of the square input, pixels.
    stack_length: flow fields a stack, l; not used without flow.
    flow_step: frames a field spans, from the dataset's FlowSpec.
    short_clip: "loop" or "hold", see `sampling.stack_fields`.
    direction: of the stacks, from the dataset's FlowSpec: "forward", or
      "bidirectional" with l / 2 forward fields and then l / 2 backward ones,
      see `sampling.bidirectional_fields`; l must then be even.
  """

  modalities: tuple[str, ...]
  image_size: int
  stack_length: int
  flow_step: int
  short_clip: str
  direction: str = "forward"

  def __post_init__(self):
    unknown = set(self.modalities) - set(MODALITIES)
    if unknown or not self.modalities:
      raise ValueError(f"modalities {self.modalities} must be of {MODALITIES}")
    if self.image_size < 1:
      raise ValueError(f"image_size must be positive: {self.image_size}")
    if "flow" in self.modalities and self.stack_length < 1:
      raise ValueError(f"stack_length must be positive: {self.stack_length}")
    if self.short_clip not in sampling.SHORT_CLIP_RULES:
      raise ValueError(
        f"short_clip={self.short_clip!r} is not in {sampling.SHORT_CLIP_RULES}"
      )
    if self.direction not in flow_spec.DIRECTIONS:
      raise ValueError(
        f"direction={self.direction!r} is not in {flow_spec.DIRECTIONS}"
      )
    halved = "flow" in self.modalities and self.direction == "bidirectional"
    if halved and self.stack_length % 2:
      raise ValueError(
        f"input.stack_length={self.stack_length} must be even: the dataset's"
        " flow is bidirectional, and half of a stack goes each way"
      )

  def num_starts(self, num_frames: int) -> int:
    """Number of windows of a video of `num_frames` frames."""
    length = self.stack_length if "flow" in self.modalities else 0
    return sampling.num_starts(num_frames, length, self.flow_step)


def load_views(
  record: Mapping[str, Any],
  spec: InputSpec,
  starts: np.ndarray,
  views: Sequence[augment.View],
) -> dict[str, np.ndarray]:
  """Decodes the windows at `starts`, each as seen by every view.

  Args:
    record: one example of the dataset, images encoded.
    spec: what to load.
    starts: int [t].
    views: v crops.

  Returns:
    "rgb": uint8 [v t h w 3] and "flow": uint8 [v t h w 2l], interleaved
    x1 y1 x2 y2 ..., as far as `spec.modalities` names them.

  Raises:
    ValueError: the video has no flow field, or an image can't be decoded.
  """
  num_frames = int(record["num_frames"])
  loaded = {}
  stack_length = spec.stack_length if "flow" in spec.modalities else 0
  if "rgb" in spec.modalities:
    frames = sampling.centre_frames(
      starts, num_frames, stack_length, spec.flow_step
    )
    images = [dataset.decode_rgb(record["rgb"][i]) for i in frames]
    loaded["rgb"] = np.stack(
      [_see_frames(images, view, spec) for view in views]
    )
  if "flow" in spec.modalities:
    stacks = _stored_fields(starts, num_frames, spec)
    # Windows overlap: a field is decoded once however many stacks show it.
    codes = {
      (name, i): dataset.decode_flow_codes(record[name][i])
      for name, i in set(itertools.chain.from_iterable(stacks))
    }
    loaded["flow"] = np.stack(
      [_see_stacks(codes, stacks, view, spec) for view in views]
    )
  return loaded


def _stored_fields(starts, num_frames, spec) -> list[list[tuple[str, int]]]:
  """For each stack where its l fields are: name in the record, and index."""
  length, step = spec.stack_length, spec.flow_step
  if spec.direction == "forward":
    fields = sampling.stack_fields(
      starts, num_frames, length, step, spec.short_clip
    )
    return [[("flow", i) for i in row] for row in fields.tolist()]
  centres = sampling.centre_frames(starts, num_frames, length, step)
  forward, backward = sampling.bidirectional_fields(
    centres, num_frames, length // 2, step, spec.short_clip
  )
  return [
    [("flow", i) for i in onward] + [("flow_backward", i) for i in back]
    for onward, back in zip(forward.tolist(), backward.tolist(), strict=True)
  ]


def _see_frames(images, view, spec) -> np.ndarray:
  """Frames of one view, uint8 [t h w 3]."""
  seen = np.stack([_see(image, view, spec) for image in images])
  return seen[..., ::-1, :] if view.flip else seen


def _see_stacks(codes, stacks, view, spec) -> np.ndarray:
  """Stacks of one view, uint8 [t h w 2l]."""
  seen = {key: _see(field, view, spec) for key, field in codes.items()}
  channels = np.stack(
    [np.concatenate([seen[key] for key in stack], axis=-1) for stack in stacks]
  )
  return flow_spec.flip_codes(channels) if view.flip else channels


def _see(image, view, spec) -> np.ndarray:
  return augment.crop_and_resize(image, view.box, spec.image_size)


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
  """A record to a random training sample.

  Gives {"rgb": uint8 [t h w 3], "flow": uint8 [t h w 2l], "label": int32, or
  float32 [n] with n = num_classes in a multi-label set, "mask": True,
  "video_id"}, with t = num_segments. With `rgb_jitter`, frames come with
  "rgb_shift": float32 [3], what is to be added to R, G and B in 0..1.

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

  def random_map(self, element, rng: np.random.Generator):
    """Draws one sample of a record."""
    available = self.spec.num_starts(int(element["num_frames"]))
    starts = sampling.random_starts(rng, available, self.num_segments)
    view = augment.random_view(
      rng,
      int(element["height"]),
      int(element["width"]),
      crop=self.crop,
      flip=self.flip,
    )
    loaded = load_views(element, self.spec, starts, [view])
    sample = {name: array[0] for name, array in loaded.items()}
    if self.shifts_rgb:
      sample["rgb_shift"] = augment.random_rgb_shift(rng, self.rgb_jitter)
    return sample | _label(element, self.num_classes)


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.transforms.Map):
  """A record to all views of a test protocol.

  Gives {"rgb": uint8 [v t h w 3], "flow": uint8 [v t h w 2l], "label",
  "mask", "video_id"}, with t = 1 and v = num_clips times num_crops.
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

  def map(self, element):
    """Lays out the views of a record: clips outermost, crops innermost."""
    available = self.spec.num_starts(int(element["num_frames"]))
    starts = sampling.even_starts(available, self.num_clips)
    views = augment.eval_views(
      int(element["height"]),
      int(element["width"]),
      fraction=self.crop_fraction,
      count=self.num_crops,
    )
    loaded = load_views(element, self.spec, starts, views)
    return {
      name: _clips_outermost(array) for name, array in loaded.items()
    } | _label(element, self.num_classes)


@dataclasses.dataclass(frozen=True)
class FrameTransform(grain.transforms.Map):
  """A record to evenly spaced windows, to compute features of.

  Gives {"rgb": uint8 [f 1 h w 3], "flow": uint8 [f 1 h w 2l], "length",
  "label", "mask", "video_id"} with f = num_frames centre crops; a video that
  has fewer windows gives each of them once, and then the last again beyond
  "length".
  """

  spec: InputSpec
  num_frames: int
  crop_fraction: float
  num_classes: int = 0

  def map(self, element):
    """Lays out the windows of a record."""
    available = self.spec.num_starts(int(element["num_frames"]))
    length = min(available, self.num_frames)
    starts = sampling.even_starts(available, length)
    views = augment.eval_views(
      int(element["height"]),
      int(element["width"]),
      fraction=self.crop_fraction,
      count=1,
    )
    loaded = load_views(element, self.spec, starts, views)
    repeated = np.minimum(np.arange(self.num_frames), length - 1)
    frames = {
      name: _clips_outermost(array)[repeated] for name, array in loaded.items()
    }
    label = _label(element, self.num_classes)
    return frames | label | {"length": np.int32(length)}


def _clips_outermost(views: np.ndarray) -> np.ndarray:
  """[crops clips h w c] to [clips * crops 1 h w c]."""
  by_clip = views.swapaxes(0, 1)
  return by_clip.reshape((-1, 1) + by_clip.shape[2:])


def _label(record, num_classes: int) -> dict[str, Any]:
  label = np.asarray(record["label"], np.int32)
  if label.ndim:  # Any number of classes: 1 for each, 0 for the others.
    label = np.isin(np.arange(num_classes), label).astype(np.float32)
  return {
    "label": label[()],
    "mask": np.bool_(True),
    "video_id": text(record["video_id"]),
  }


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
  start: int = 0,
  share: Share = ALL,
  micro_batches: int = 1,
  order: Callable[[int], int] | None = None,
) -> grain.IterDataset:
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
  if order is None:
    samples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  else:
    # As long as an endless sequence can be; indices need no more memory.
    positions = grain.MapDataset.range(2**62).seed(seed)
    samples = positions.map(order).map(source.__getitem__)
  if transform is not None:
    samples = samples.random_map(transform)
  part = batch_size // (micro_batches * share.count)
  parts = samples.batch(part, drop_remainder=True)[share.index :: share.count]
  if micro_batches > 1:
    parts = parts.batch(micro_batches, drop_remainder=True).map(_flatten)
  index = np.arange(batch_size, dtype=np.int32)
  index = index.reshape(micro_batches, share.count, part)[:, share.index]
  batches = parts.map(lambda batch: batch | {"index": index.reshape(-1)})
  return _threaded(batches[start:], threads)


def _flatten(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """[k b ...] to [k * b ...]."""
  return {name: x.reshape((-1,) + x.shape[2:]) for name, x in batch.items()}


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
    views = [_as_sample(source[i], transform) for i in indices or (0,)]
    batch = {
      name: np.stack([view[name] for view in views]) for name in views[0]
    }
    return pad_batch(batch, part, count=len(indices))

  return _threaded(grain.MapDataset.range(num_batches).map(load), threads)


def _as_sample(record, transform) -> Mapping[str, Any]:
  if isinstance(transform, grain.transforms.Map):
    return transform.map(record)
  return transform(record)


def pad_batch(
  batch: Mapping[str, np.ndarray], batch_size: int, *, count: int
) -> dict[str, np.ndarray]:
  """Repeats the last example up to `batch_size`; mask is that of the count."""
  missing = batch_size - len(batch["mask"])
  padded = {
    name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
    for name, array in batch.items()
  }
  padded["mask"] = np.arange(batch_size) < count
  return padded


def _threaded(batches: grain.MapDataset, threads: int) -> grain.IterDataset:
  # Batches in flight are what costs memory: hold no more than are being made.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2, threads)
  )
  return batches.to_iter_dataset(options)
