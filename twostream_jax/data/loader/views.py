"""What a model sees of a video: the windows it shows, decoded and cropped.

All images that are wanted are read before the first is decoded, and between two
of them nothing runs but what copies their pixels: what decodes an image throws
the code and the data of all else out of the caches, and to fetch them back for
every image takes longer than to run them. What the device does at no cost is
left to it, see `preprocess`: to mirror, and to interleave the planes of flow.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twostream_jax.data.loader import augment, sampling
from twostream_jax.data.loader.buffers import Empty, new_array
from twostream_jax.data.video import images
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

  def empty(self, *leading: int, empty: Empty) -> dict[str, np.ndarray]:
    """Arrays for `load_views` to write in.

    Args:
      *leading: axes before those of an image.
      empty: gives an array of a shape.

    Returns:
      uint8, not initialised, for each modality.
    """
    shapes = image_shapes(self.modalities, self.image_size, self.stack_length)
    return {name: empty((*leading, *shape)) for name, shape in shapes.items()}


def image_shapes(
  modalities: Sequence[str], size: int, stack_length: int
) -> dict[str, tuple[int, int, int]]:
  """Of a frame, [h w 3], and of a stack, [2l h w], by modality."""
  shapes = {"rgb": (size, size, 3), "flow": (2 * stack_length, size, size)}
  return {name: shapes[name] for name in modalities}


class Look(NamedTuple):
  """What is to be shown of a video; nothing of it is read yet.

  Attributes:
    record: one example of the dataset, images encoded.
    starts: of the t windows.
    box: the part of the frame that all of them show.
  """

  record: Mapping[str, Any]
  starts: Sequence[int]
  box: augment.Box


def load_looks(
  looks: Sequence[Look], spec: InputSpec, empty: Empty = new_array
) -> dict[str, np.ndarray]:
  """Decodes looks at several videos, straight into the arrays of a batch.

  Args:
    looks: b of them, at least one, at t windows each.
    spec: what to load.
    empty: gives the arrays, uint8, of a shape.

  Returns:
    "rgb": uint8 [b t h w 3] and "flow": uint8 [b t 2l h w], as far as
    `spec.modalities` names them.

  Raises:
    ValueError: as `load_views`.
  """
  batch = spec.empty(len(looks), len(looks[0].starts), empty=empty)
  encoded = []
  for i, look in enumerate(looks):
    out = {name: array[i, None] for name, array in batch.items()}
    encoded += _read(look.record, look.starts, [look.box], spec, out)
  _decode(encoded)
  return batch


def load_views(
  record: Mapping[str, Any],
  starts: Sequence[int] | np.ndarray,
  boxes: Sequence[augment.Box],
  spec: InputSpec,
  out: Mapping[str, np.ndarray] | None = None,
) -> Mapping[str, np.ndarray]:
  """Decodes the windows at `starts`, each as seen through every box.

  Args:
    record: one example of the dataset, images encoded.
    starts: of the t windows.
    boxes: v crops.
    spec: what to load.
    out: arrays to write the result in, contiguous over an image; None: new
      ones.

  Returns:
    "rgb": uint8 [v t h w 3] and "flow": uint8 [v t 2l h w], planes in the
    order x1 y1 x2 y2 ..., as far as `spec.modalities` names them.

  Raises:
    ValueError: the video has no flow field, or an image can't be decoded.
  """
  out = out or spec.empty(len(boxes), len(starts), empty=new_array)
  _decode(_read(record, starts, boxes, spec, out))
  return out


class _Encoded(NamedTuple):
  """A frame or field that is read and not decoded.

  Attributes:
    jpeg: its bytes.
    pixels: of the frame.
    decode: (bytes, memory) to the image.
    show: writes what shows of the image through a box in an array.
    targets: boxes, and the array that each is written in first; then copies.
  """

  jpeg: bytes
  pixels: int
  decode: Callable[[bytes, np.ndarray], np.ndarray]
  show: Callable[[np.ndarray, augment.Box, np.ndarray], None]
  targets: list[tuple[augment.Box, np.ndarray, list[np.ndarray]]]


def _read(
  record,
  starts: Sequence[int] | np.ndarray,
  boxes: Sequence[augment.Box],
  spec: InputSpec,
  out: Mapping[str, np.ndarray],
) -> list[_Encoded]:
  """Reads what windows show through boxes; see `load_views`."""
  num_frames = int(record["num_frames"])
  pixels = int(record["height"]) * int(record["width"])
  encoded = []
  if "rgb" in spec.modalities:
    length = spec.stack_length if "flow" in spec.modalities else 0
    shown = sampling.centre_frames(starts, num_frames, length, spec.flow_step)
    for t, i in enumerate(shown):
      targets = [(box, out["rgb"][v, t], []) for v, box in enumerate(boxes)]
      jpeg = record["rgb"][i]
      encoded.append(
        _Encoded(jpeg, pixels, images.decode_rgb, _show_frame, targets)
      )
  if "flow" in spec.modalities:
    # Windows overlap: a field is decoded once however many stacks show it.
    places = {}
    for t, stack in enumerate(_stored_fields(starts, num_frames, spec)):
      for k, field in enumerate(stack):
        places.setdefault(field, []).append((t, k))
    stacks = out["flow"]
    v, t, planes, height, width = stacks.shape
    stacks = stacks.reshape(v, t, planes // 2, 2, height, width)
    for field, jpeg in _read_fields(record, list(places)):
      targets = []
      for box, of_view in zip(boxes, stacks, strict=True):
        first, *copies = [of_view[place] for place in places[field]]
        targets.append((box, first, copies))
      encoded.append(
        _Encoded(jpeg, pixels, images.decode_flow, _show_field, targets)
      )
  return encoded


def _decode(encoded: Sequence[_Encoded]) -> None:
  """Writes every image where it goes."""
  memory = np.empty(3 * max(image.pixels for image in encoded), np.uint8)
  for jpeg, _, decode, show, targets in encoded:
    image = decode(jpeg, memory)
    for box, first, copies in targets:
      show(image, box, first)
      for copy in copies:
        copy[...] = first


def _read_fields(
  record, fields: Sequence[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int], bytes]]:
  """Distinct fields with their JPEGs; those of one direction in one piece."""
  for name in ("flow", "flow_backward"):
    wanted = sorted(i for direction, i in fields if direction == name)
    if wanted and wanted[-1] - wanted[0] == len(wanted) - 1:
      jpegs = record[name][wanted[0] : wanted[-1] + 1]
    else:
      jpegs = [record[name][i] for i in wanted]
    for i, jpeg in zip(wanted, jpegs, strict=True):
      yield (name, i), jpeg


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


def _show_field(field: np.ndarray, box: augment.Box, out: np.ndarray) -> None:
  """Writes what shows of a field, [2 h w], in `out`."""
  y, x, height, width = box
  if height == width == out.shape[-1]:
    out[...] = field[:, y : y + height, x : x + width]
  else:
    for component, plane in zip(field, out, strict=True):
      augment.crop_and_resize(component, box, out.shape[-1], plane)


def _show_frame(image: np.ndarray, box: augment.Box, out: np.ndarray) -> None:
  """Writes what shows of a frame, [h w 3], in `out`."""
  y, x, height, width = box
  if height == width == len(out):
    out[...] = image[y : y + height, x : x + width]
  else:
    augment.crop_and_resize(image, box, len(out), out)
