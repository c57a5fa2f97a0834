"""The flow contract: what a stored flow field means, and its quantisation.

Optical flow from another algorithm, bound or channel order ruins a temporal
stream without any error, so everything that gives stored flow its meaning is
one value, `FlowSpec`. It is written into the dataset's metadata, checked when
the dataset is read, and copied into every checkpoint.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

ENCODING = "jpeg, gray, x left of y"
CHANNEL_ORDER = "x1 y1 x2 y2 ..."
DIRECTIONS = ("forward", "bidirectional")
# Names no algorithm of this package: another program computed the fields.
EXTRACTED = "extracted"
LARGEST_FPS = 1000.0


# Types that JSON gives back, by field; files may hold any.
_KINDS = {
  **dict.fromkeys(("algorithm", "direction", "encoding"), (str,)),
  "channel_order": (str,),
  **dict.fromkeys(("step", "short_side", "quality"), (Integral,)),
  "bound": (Real,),
  "fps": (Real, type(None)),
  "parameters": (Mapping,),
}
_WORDS = {
  str: "a text",
  Integral: "a whole number",
  Real: "a finite number",
  Mapping: "a set of values by name",
}


class FlowSpecError(ValueError):
  """Stored flow does not mean what the reader expects."""


@dataclasses.dataclass(frozen=True)
class FlowSpec:
  """How flow was computed and stored.

  Attributes:
    algorithm: name of the algorithm, a key of `twostream_jax.flow.FLOWS`, or
      "extracted" where another program computed the fields.
    parameters: the algorithm's own parameters, by name. One that the algorithm
      had not yet when the fields were computed is not named, and is then at the
      value that changes nothing.
    step: frames between the two images of a field (1: consecutive frames).
    direction: "forward": fields from each frame to a later one.
      "bidirectional": also the fields back (Simonyan & Zisserman 2014, §3.1),
      which makes the stacks of a video bidirectional.
    short_side: shorter side, in pixels, of the images it was computed at.
    bound: largest stored magnitude of a component, in pixels per step.
    quality: JPEG quality (0..100) of the stored fields.
    encoding: how one field is stored as one image.
    channel_order: order of the channels of a stack.
    fps: constant rate that videos are resampled to before flow, frames per
      second; None: all frames of a file, at the times that they have.
  """

  algorithm: str
  parameters: Mapping[str, Any]
  step: int = 1
  direction: str = "forward"
  short_side: int = 256
  bound: float = 20.0
  quality: int = 95
  encoding: str = ENCODING
  channel_order: str = CHANNEL_ORDER
  fps: float | None = None

  def __post_init__(self):
    for name, kinds in _KINDS.items():
      value = getattr(self, name)
      # A bool is an int; NaN compares with nothing.
      fits = isinstance(value, kinds) and not isinstance(value, bool)
      if not fits or (isinstance(value, Real) and not math.isfinite(value)):
        raise FlowSpecError(f"{name}={value!r:.80} is not {_WORDS[kinds[0]]}")
    if not 0 <= self.quality <= 100:
      raise FlowSpecError(f"quality must be in 0..100: {self.quality}")
    if not _are_plain(self.parameters):
      raise FlowSpecError("parameters must be numbers or texts by name")
    if self.fps is not None and not 0 < self.fps <= LARGEST_FPS:
      raise FlowSpecError(
        f"fps must be above 0 and at most {LARGEST_FPS:g}: {self.fps}"
      )
    if self.fps is not None and self.algorithm == EXTRACTED:
      raise FlowSpecError(
        "extracted flow belongs to the frames beside it, which have no times:"
        " it can't be resampled to another rate (fps)"
      )
    if self.bound <= 0:
      raise FlowSpecError(f"bound must be positive, in pixels: {self.bound}")
    if self.step < 1:
      raise FlowSpecError(f"step must be at least 1 frame: {self.step}")
    if self.direction not in DIRECTIONS:
      raise FlowSpecError(
        f"direction={self.direction!r:.80} is not in {DIRECTIONS}"
      )
    if self.encoding != ENCODING or self.channel_order != CHANNEL_ORDER:
      raise FlowSpecError(
        f"flow stored as {self.encoding!r:.80}, {self.channel_order!r:.80}"
        f" can't be read; this version reads {ENCODING!r}, {CHANNEL_ORDER!r}."
        " Build the dataset again."
      )


def _are_plain(parameters: Mapping[str, Any]) -> bool:
  return all(
    isinstance(name, str)
    and isinstance(value, str | Real | None)
    and not (isinstance(value, Real) and math.isnan(value))
    for name, value in parameters.items()
  )


def to_dict(spec: FlowSpec) -> dict[str, Any]:
  """Returns `spec` as JSON-ready values; without `fps` where it is None.

  So the values are those of datasets and checkpoints from before there was one.
  """
  values = dataclasses.asdict(spec) | {"parameters": dict(spec.parameters)}
  if spec.fps is None:
    del values["fps"]
  return values


def from_dict(values: Mapping[str, Any]) -> FlowSpec:
  """Returns the spec that `to_dict` gave `values` for.

  Raises:
    FlowSpecError: a field is missing or not known.
  """
  if not isinstance(values, Mapping):
    raise FlowSpecError(f"not a flow specification: {values!r:.80}")
  known = {field.name for field in dataclasses.fields(FlowSpec)}
  missing, unknown = known - set(values) - {"fps"}, set(values) - known
  if missing or unknown:
    raise FlowSpecError(
      f"not a flow specification: missing {sorted(missing)},"
      f" not known {sorted(unknown)}"
    )
  return FlowSpec(**values)


def differences(ours: FlowSpec, theirs: FlowSpec) -> list[str]:
  """Names the fields in which two specs differ, with both values."""
  a, b = dataclasses.asdict(ours), dataclasses.asdict(theirs)
  return [f"{key}: {a[key]!r} != {b[key]!r}" for key in a if a[key] != b[key]]


def require_equal(
  trained: FlowSpec, stored: FlowSpec, *, model: str, dataset: str
) -> None:
  """Refuses flow of another kind than a model was trained on.

  Args:
    trained: what the model was trained on.
    stored: what the dataset holds.
    model: path of the model's checkpoint, for the message.
    dataset: path of the dataset, for the message.

  Raises:
    FlowSpecError: the two differ; the message names both, and every field in
      which they do.
  """
  differing = differences(trained, stored)
  if differing:
    raise FlowSpecError(
      "the model was trained on flow of another kind than the dataset holds\n"
      f"  model {model}: {json.dumps(to_dict(trained))}\n"
      f"  dataset {dataset}: {json.dumps(to_dict(stored))}\n"
      "They differ (model != dataset) in\n"
      + "".join(f"  {line}\n" for line in differing)
      + "Use the dataset that the model was trained on, build one with the"
      " model's values (data_prep/build_tfds.py), or train again in another"
      " --workdir."
    )


def quantise(flow: np.ndarray, bound: float) -> np.ndarray:
  """Maps flow in pixels, clipped to [-bound, bound], to uint8 linearly.

  `q = round((clip(f, -B, B) + B) 255 / 2B)` (Simonyan & Zisserman 2014, §5,
  with an explicit, fixed bound). It is symmetric: the code of -f is 255 minus
  the code of f, up to one step where f falls between two codes.

  Args:
    flow: pixels per step, any shape. Not-a-number is refused.
    bound: pixels.

  Returns:
    uint8 array of the same shape.

  Raises:
    ValueError: a component is not a number.
  """
  if np.isnan(flow).any():
    raise ValueError("flow holds values that are not a number")
  clipped = np.clip(flow, -bound, bound)
  return np.round((clipped + bound) * (255.0 / (2.0 * bound))).astype(np.uint8)


def dequantise(codes, bound: float):
  """Inverse of `quantise` to within half a step, which is bound / 255 px.

  Args:
    codes: 0..255, any shape; a NumPy or a JAX array, integer or float. Integer
      arrays become float32.
    bound: pixels.

  Returns:
    Flow in pixels per step, of the same kind and shape.
  """
  if codes.dtype.kind in "ui":
    codes = codes.astype(np.float32)
  return codes * (2.0 * bound / 255.0) - bound


def flip_codes(codes):
  """Mirrors quantised flow left to right: moves pixels and negates x.

  Args:
    codes: uint8 [..., 2l, h, w], planes in the order x1 y1 x2 y2 ...; a NumPy
      or a JAX array.

  Returns:
    uint8, of the same kind and shape; applying it twice gives `codes` back, to
    the bit.
  """
  # x with all bits turned is 255 - x. JAX wants the rank of the codes.
  bits = np.where(np.arange(codes.shape[-3]) % 2, 0, 255).astype(np.uint8)
  return codes[..., ::-1] ^ bits.reshape((1,) * (codes.ndim - 3) + (-1, 1, 1))
