"""Where a stage's batches come from: videos, or features of earlier stages.

Both kinds answer the same calls, so that the loop and the evaluation need not
know which it is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from twostream_jax.data import input_pipeline
from twostream_jax.data.features import FeatureSource
from twostream_jax.data.input_pipeline import (
  EvalTransform,
  FrameTransform,
  TrainTransform,
)

_CROPS = {1: "centre crop", 5: "5 crops", 10: "10 crops"}


@dataclasses.dataclass(frozen=True)
class VideoInputs:
  """Frames and stacks of flow, sampled and decoded from the dataset.

  Attributes:
    sources: random access to the records of each split.
    train: how a training sample is drawn.
    evaluation: the views of the test protocol.
    threads: that decode.
  """

  sources: Mapping[str, Any]
  train: TrainTransform
  evaluation: EvalTransform
  threads: int

  def example(self) -> dict[str, np.ndarray]:
    """A batch of one sample: zeros of the shapes that training sees."""
    spec = self.train.spec
    shape = (1, self.train.num_segments, spec.image_size, spec.image_size)
    channels = {"rgb": 3, "flow": 2 * spec.stack_length}
    return {
      name: np.zeros(shape + (channels[name],), np.uint8)
      for name in spec.modalities
    }

  def train_batches(
    self, split: str, *, batch_size: int, seed: int
  ) -> grain.IterDataset:
    """Endless shuffled batches; see `input_pipeline.train_batches`."""
    return input_pipeline.train_batches(
      self.sources[split],
      self.train,
      batch_size=batch_size,
      seed=seed,
      threads=self.threads,
    )

  def eval_batches(
    self, split: str, *, batch_size: int, quick: bool = False
  ) -> grain.IterDataset:
    """Every video once, with a view axis; see `input_pipeline.eval_batches`.

    Args:
      split: of the dataset.
      batch_size: videos a batch.
      quick: one centre view, for curves, instead of the test protocol.
    """
    return input_pipeline.eval_batches(
      self.sources[split],
      self._views(quick),
      batch_size=batch_size,
      threads=self.threads,
    )

  def frame_batches(
    self, split: str, *, num_frames: int, batch_size: int
  ) -> grain.IterDataset:
    """Every video once, as evenly spaced windows: see `FrameTransform`."""
    transform = FrameTransform(
      spec=self.train.spec,
      num_frames=num_frames,
      crop_fraction=self.evaluation.crop_fraction,
      num_classes=self.evaluation.num_classes,
    )
    return input_pipeline.eval_batches(
      self.sources[split],
      transform,
      batch_size=batch_size,
      threads=self.threads,
    )

  def num_videos(self, split: str) -> int:
    """Videos of a split."""
    return len(self.sources[split])

  def protocol(self, *, quick: bool = False) -> str:
    """The test protocol in words, as it stands beside every number."""
    views = self._views(quick)
    return (
      f"{views.num_clips}x{views.num_crops}: {views.num_clips} equally spaced"
      f" clips, {_CROPS[views.num_crops]} of {views.crop_fraction:g} of the"
      f" short side at {views.spec.image_size} px, mean of logits"
    )

  def _views(self, quick: bool) -> EvalTransform:
    if quick:
      return dataclasses.replace(self.evaluation, num_clips=1, num_crops=1)
    return self.evaluation


@dataclasses.dataclass(frozen=True)
class FeatureInputs:
  """Sequences of features of one or more trained streams.

  Attributes:
    sources: random access to the features of each split.
    description: of the features, in words.
  """

  sources: Mapping[str, FeatureSource]
  description: str

  def example(self) -> dict[str, np.ndarray]:
    """A batch of one sample: zeros of the shapes that training sees."""
    sample = next(iter(self.sources.values()))[0]
    return {
      name: np.zeros((1,) + np.shape(value), value.dtype)
      for name, value in sample.items()
      if name not in ("label", "mask", "video_id")
    }

  def train_batches(
    self, split: str, *, batch_size: int, seed: int
  ) -> grain.IterDataset:
    """Endless shuffled batches; see `input_pipeline.train_batches`."""
    return input_pipeline.train_batches(
      self.sources[split], None, batch_size=batch_size, seed=seed, threads=1
    )

  def eval_batches(
    self, split: str, *, batch_size: int, quick: bool = False
  ) -> grain.IterDataset:
    """Every video once, its sequence as the one view."""
    del quick  # There is one view of a sequence.
    return input_pipeline.eval_batches(
      self.sources[split], _as_view, batch_size=batch_size, threads=1
    )

  def num_videos(self, split: str) -> int:
    """Videos of a split."""
    return len(self.sources[split])

  def protocol(self, *, quick: bool = False) -> str:
    """What is scored, in words."""
    del quick
    return self.description


Inputs = VideoInputs | FeatureInputs


def _as_view(sample: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the view axis to what a model reads."""
  return {
    name: value
    if name in ("label", "mask", "video_id")
    else np.asarray(value)[None]
    for name, value in sample.items()
  }
