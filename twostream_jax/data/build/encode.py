"""A clip to a record: decode, flow, JPEG."""

from collections.abc import Iterator

import cv2
import numpy as np

from twostream_jax.data.build.check import (
  Rejection,
  done_or_rejected,
  too_few_frames,
)
from twostream_jax.data.dataset import Record, encode_flow, encode_rgb
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.data.video.frames import VideoError
from twostream_jax.data.video.reading import (
  frame_rate,
  read_extracted_flow,
  read_resized,
)
from twostream_jax.flow import compute_flows
from twostream_jax.flow.spec import EXTRACTED, FlowSpec

# An example of 2 GiB or more can't be serialised (protocol buffers), and every
# worker holds one in memory.
MAX_CLIP_BYTES = 1 << 30


def process_clip(
  clip: Clip,
  flow_spec: FlowSpec,
  rgb_quality: int,
  *,
  max_bytes: int = MAX_CLIP_BYTES,
) -> Record | Rejection:
  """Decodes a clip, computes its flow and encodes both.

  Flow is computed between frames of the stored size, before their JPEG
  encoding; or read, where another program extracted it.

  Args:
    clip: the clip.
    flow_spec: how to compute and store flow; its short side holds for the
      frames too.
    rgb_quality: JPEG quality (0..100) of the frames.
    max_bytes: a clip that needs more, encoded, is rejected.

  Returns:
    A record with t frames and t - step fields, or why there is none: see
    `done_or_rejected`.
  """
  return done_or_rejected(
    clip,
    lambda: _Encoder(clip, flow_spec, rgb_quality, max_bytes).record(),
  )


class _Encoder:
  """Collects the images of one record, up to a number of bytes."""

  def __init__(
    self, clip: Clip, spec: FlowSpec, rgb_quality: int, max_bytes: int
  ):
    self._clip = clip
    self._spec = spec
    self._rgb_quality = rgb_quality
    self._bytes_left = self._max_bytes = max_bytes
    self._rgb, self._flow, self._backward = [], [], []
    self._times = []
    self._pixel_aspect, self._damaged = 1.0, 0
    self._size = (0, 0)

  def record(self) -> Record:
    if self._spec.algorithm == EXTRACTED:
      fields = self._extracted_fields()
    else:
      fields = compute_flows(self._spec, self._gray_frames())
    for directions in fields:
      stored = (self._flow, self._backward)
      for field, images in zip(directions, stored, strict=False):
        self._store(images, encode_flow(field, self._spec))
    num_frames = len(self._rgb)
    if not self._flow:
      raise VideoError(too_few_frames(num_frames, self._spec.step + 1).reason)
    return Record(
      video_id=self._clip.video_id,
      label=self._clip.label,
      group=self._clip.group,
      fps=self._spec.fps or frame_rate(self._clip.path, self._times),
      times=[round(time * 1e6) for time in self._times],
      pixel_aspect=self._pixel_aspect,
      num_damaged=self._damaged,
      num_frames=num_frames,
      height=self._size[0],
      width=self._size[1],
      rgb=self._rgb,
      flow=self._flow,
      flow_backward=self._backward,
    )

  def _gray_frames(self) -> Iterator[np.ndarray]:
    """Stores each frame as it comes, and gives it to who computes flow."""
    for frame in read_resized(
      self._clip.path, self._spec.short_side, self._spec.fps
    ):
      self._size = frame.rgb.shape[:2]
      self._times.append(frame.time)
      self._pixel_aspect = frame.pixel_aspect
      self._damaged += frame.damaged
      self._store(self._rgb, encode_rgb(frame.rgb, self._rgb_quality))
      yield cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)

  def _extracted_fields(self) -> Iterator[np.ndarray]:
    for _ in self._gray_frames():
      pass
    num_frames = len(self._rgb)
    if num_frames > self._spec.step:
      for field in read_extracted_flow(
        self._clip.path, self._spec, num_frames, self._size
      ):
        yield field[None]

  def _store(self, images: list[bytes], image: bytes) -> None:
    images.append(image)
    self._bytes_left -= len(image)
    if self._bytes_left < 0:
      raise VideoError(
        f"longer than a record can be: above {self._max_bytes >> 20} MiB after"
        f" {len(self._rgb)} frames; cut it into clips, or use a smaller short"
        " side"
      )
