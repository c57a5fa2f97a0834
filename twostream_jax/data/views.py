"""What a model sees of a video: the windows it shows, decoded and cropped.

Only the images of a window are read and decoded. Pixels are copied as seldom as
can be, and most of that by OpenCV, which lets other threads run meanwhile: all
of it may take a few per cent of the time that decoding takes.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from twostream_jax.data import augment, images, sampling
from twostream_jax.data.buffers import Empty, new_array
from twostream_jax.flow import spec as flow_spec

MODALITIES = ("rgb", "flow")


class Scratch:
  """Memory to work in, which is used again; of one thread."""

  def __init__(self):
    self._blocks = {}

  def array(self, name: str, shape: Sequence[int]) -> np.ndarray:
    """An array, uint8, not initialised; it ends the one before of the name."""
    size = math.prod(shape)
    block = self._blocks.get(name)
    if block is None or len(block) < size:
      block = self._blocks[name] = np.empty(size, np.uint8)
    return block[:size].reshape(shape)


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

  def channels(self, modality: str) -> int:
    """Channels of a frame, or of a stack."""
    return {"rgb": 3, "flow": 2 * self.stack_length}[modality]

  def empty(self, *leading: int, empty: Empty) -> dict[str, np.ndarray]:
    """Arrays for `load_views` to write in.

    Args:
      *leading: axes before those of height, width and channels.
      empty: gives an array of a shape.

    Returns:
      uint8, not initialised, for each modality.
    """
    side = self.image_size
    return {
      name: empty((*leading, side, side, self.channels(name)))
      for name in self.modalities
    }


class Look(NamedTuple):
  """What is to be shown of a video; nothing of it is read yet.

  Attributes:
    record: one example of the dataset, images encoded.
    starts: of the windows, int [t].
    views: v crops, of each window.
  """

  record: Mapping[str, Any]
  starts: np.ndarray
  views: Sequence[augment.View]


def load_looks(
  looks: Iterable[Look],
  spec: InputSpec,
  *,
  windows: int,
  views: int,
  size: int,
  empty: Empty = new_array,
) -> dict[str, np.ndarray]:
  """Decodes looks at several videos, straight into the arrays of a batch.

  Args:
    looks: at 1 to `size` videos. Each is taken when the one before is decoded:
      while one thread draws, the others can do nothing but decode, so that
      draws in a row would make them wait.
    spec: what to load.
    windows: t; a video with fewer of them shows its last one again.
    views: v, of every look.
    size: b; the last video is repeated up to it.
    empty: gives the arrays, uint8, of a shape.

  Returns:
    "rgb": uint8 [b t v h w 3] and "flow": uint8 [b t v h w 2l], as far as
    `spec.modalities` names them.

  Raises:
    ValueError: as `load_views`.
  """
  batch = spec.empty(size, windows, views, empty=empty)
  scratch = Scratch()
  count = 0
  for i, look in enumerate(looks):
    count = i + 1
    length = len(look.starts)
    shown = {n: array[i, :length].swapaxes(0, 1) for n, array in batch.items()}
    load_views(*look, spec, out=shown, scratch=scratch)
    for array in batch.values():
      array[i, length:] = array[i, length - 1]
  for array in batch.values():
    array[count:] = array[count - 1]
  return batch


def load_views(
  record: Mapping[str, Any],
  starts: np.ndarray,
  views: Sequence[augment.View],
  spec: InputSpec,
  out: Mapping[str, np.ndarray] | None = None,
  scratch: Scratch | None = None,
) -> Mapping[str, np.ndarray]:
  """Decodes the windows at `starts`, each as seen by every view.

  Args:
    record: one example of the dataset, images encoded.
    starts: int [t].
    views: v crops.
    spec: what to load.
    out: arrays to write the result in, contiguous from the height on; None:
      new ones.
    scratch: memory to work in; None: new memory.

  Returns:
    "rgb": uint8 [v t h w 3] and "flow": uint8 [v t h w 2l], interleaved
    x1 y1 x2 y2 ..., as far as `spec.modalities` names them.

  Raises:
    ValueError: the video has no flow field, or an image can't be decoded.
  """
  out = out or spec.empty(len(views), len(starts), empty=new_array)
  scratch = scratch or Scratch()
  num_frames = int(record["num_frames"])
  if "rgb" in spec.modalities:
    length = spec.stack_length if "flow" in spec.modalities else 0
    frames = sampling.centre_frames(starts, num_frames, length, spec.flow_step)
    size = 3 * int(record["height"]) * int(record["width"])
    memory = scratch.array("frame", (size,))
    for t, i in enumerate(frames.tolist()):
      image = images.decode_rgb(record["rgb"][i], memory)
      for v, view in enumerate(views):
        _see(image, view, out["rgb"][v, t])
  if "flow" in spec.modalities:
    stacks = _stored_fields(starts, num_frames, spec)
    _load_stacks(record, stacks, views, out["flow"], scratch)
  return out


def _load_stacks(
  record, stacks, views, out: np.ndarray, scratch: Scratch
) -> None:
  """Writes stacks, as seen by every view, in `out`, [v t h w 2l]."""
  # Windows overlap: a field is decoded once however many stacks show it.
  fields = list(dict.fromkeys(itertools.chain.from_iterable(stacks)))
  jpegs = _read(record, fields)
  if len(views) > 1:
    decoded = list(map(images.decode_flow, jpegs))
  else:  # Each is cropped while it is in a cache.
    size = 2 * int(record["height"]) * int(record["width"])
    memory = scratch.array("field", (size,))
    decoded = (images.decode_flow(jpeg, memory) for jpeg in jpegs)
  place = {field: i for i, field in enumerate(fields)}
  rows = [[place[field] for field in stack] for stack in stacks]
  in_order = list(range(len(fields)))
  side = out.shape[-2]
  seen = scratch.array("seen", (len(fields), 2, side, side))
  for v, view in enumerate(views):
    for planes, field in zip(seen, decoded, strict=True):
      _see_field(field, view, planes)
    if view.flip:
      # What went left goes right: see `flow_spec.flip_codes`.
      np.invert(seen[:, 0], out=seen[:, 0])
    for t, row in enumerate(rows):
      stack = seen if row == in_order else seen[row]
      # To interleave them like this is much faster than to stack them.
      cv2.transpose(
        stack.reshape(-1, side * side), dst=out[v, t].reshape(side * side, -1)
      )


def _read(record, fields: Sequence[tuple[str, int]]) -> list[bytes]:
  """The JPEGs of distinct fields; those of one direction in one piece."""
  found = {}
  for name in ("flow", "flow_backward"):
    wanted = sorted(i for direction, i in fields if direction == name)
    if wanted and wanted[-1] - wanted[0] == len(wanted) - 1:
      jpegs = record[name][wanted[0] : wanted[-1] + 1]
    else:
      jpegs = [record[name][i] for i in wanted]
    found |= {(name, i): jpeg for i, jpeg in zip(wanted, jpegs, strict=True)}
  return [found[field] for field in fields]


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


def _see_field(field: np.ndarray, view: augment.View, out: np.ndarray) -> None:
  """Writes what a view shows of a field, [2 h w], mirrored, in `out`."""
  y, x, height, width = view.box
  if height == width == out.shape[-1] and not view.flip:
    out[...] = field[:, y : y + height, x : x + width]
    return
  for component, plane in zip(field, out, strict=True):
    _see(component, view, plane)


def _see(image: np.ndarray, view: augment.View, out: np.ndarray) -> None:
  """Writes what a view shows of a frame or plane, [h w ...], in `out`."""
  y, x, height, width = view.box
  if height != len(out) or width != len(out):
    augment.crop_and_resize(image, view.box, len(out), out)
    if view.flip:
      cv2.flip(out, 1, dst=out)
  elif view.flip:
    cv2.flip(image[y : y + height, x : x + width], 1, dst=out)
  else:
    out[...] = image[y : y + height, x : x + width]
