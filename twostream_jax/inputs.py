"""Where a stage's batches come from: videos, or features of earlier stages.

Both kinds answer the same calls, so that the loop and the evaluation need not
know which it is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import ml_collections
import numpy as np

from twostream_jax.data import augment, input_pipeline, sampling
from twostream_jax.data.combine import CombinedSource
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.data.features import (
  FeatureError,
  FeatureSource,
  read_features,
)
from twostream_jax.data.input_pipeline import (
  ALL,
  EvalTransform,
  FrameTransform,
  Share,
  TrainTransform,
)
from twostream_jax.flow.spec import FlowSpec
from twostream_jax.stage_data import modalities, second_dataset, splits
from twostream_jax.workdir import features_path

_CROPS = {1: "centre crop", 5: "5 crops", 10: "10 crops"}


@dataclasses.dataclass(frozen=True)
class VideoInputs:
  """Frames and stacks of flow, sampled and decoded from the dataset.

  Attributes:
    sources: random access to the records of each split.
    second: records to train on as well, for a second head; None: none.
    train: how a training sample is drawn.
    evaluation: the views of the test protocol.
    threads: that decode.
    processes: that make training batches instead; 0: the threads.
    balanced: whether classes are drawn uniformly for training, see
      `sampling.BalancedOrder`.
  """

  sources: Mapping[str, Any]
  train: TrainTransform
  evaluation: EvalTransform
  threads: int
  processes: int = 0
  second: Any = None
  balanced: bool = False

  def example(self) -> dict[str, np.ndarray]:
    """A batch of one sample: zeros of the shapes that training sees."""
    spec = self.train.spec
    shape = (1, self.train.num_segments, spec.image_size, spec.image_size)
    channels = {"rgb": 3, "flow": 2 * spec.stack_length}
    batch = {
      name: np.zeros(shape + (channels[name],), np.uint8)
      for name in spec.modalities
    }
    if self.train.shifts_rgb:
      batch["rgb_shift"] = np.zeros((1, 3), np.float32)
    return batch

  def train_batches(
    self, split: str, *, batch_size: int, seed: int, **part: Any
  ) -> Iterable[dict[str, np.ndarray]]:
    """Endless shuffled batches; see `input_pipeline.train_batches`."""
    source = self.sources[split]
    if self.second is not None:
      source = CombinedSource(source, self.second, self.train.num_classes)
    return input_pipeline.train_batches(
      source,
      self.train,
      batch_size=batch_size,
      seed=seed,
      threads=self.threads,
      processes=self.processes,
      order=_order(source, seed, self.balanced),
      **part,
    )

  def eval_batches(
    self,
    split: str,
    *,
    batch_size: int,
    quick: bool = False,
    share: Share = ALL,
  ) -> grain.IterDataset:
    """Every video once, with a view axis; see `input_pipeline.eval_batches`.

    Args:
      split: of the dataset.
      batch_size: videos a batch, over all processes.
      quick: one centre view, for curves, instead of the test protocol.
      share: the part that this process reads.
    """
    return input_pipeline.eval_batches(
      self.sources[split],
      self._views(quick),
      batch_size=batch_size,
      threads=self.threads,
      share=share,
    )

  def frame_batches(
    self, split: str, *, num_frames: int, batch_size: int, share: Share = ALL
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
      share=share,
    )

  def num_videos(self, split: str) -> int:
    """Videos of a split."""
    return len(self.sources[split])

  def protocol(self, *, quick: bool = False) -> str:
    """The test protocol in words, as it stands beside every number."""
    return describe_views(self._views(quick))

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
    balanced: as in `VideoInputs`.
  """

  sources: Mapping[str, FeatureSource]
  description: str
  balanced: bool = False

  def example(self) -> dict[str, np.ndarray]:
    """A batch of one sample: zeros of the shapes that training sees."""
    sample = next(iter(self.sources.values()))[0]
    return {
      name: np.zeros((1,) + np.shape(value), value.dtype)
      for name, value in sample.items()
      if name not in ("label", "mask", "video_id")
    }

  def train_batches(
    self, split: str, *, batch_size: int, seed: int, **part: Any
  ) -> Iterable[dict[str, np.ndarray]]:
    """Endless shuffled batches; see `input_pipeline.train_batches`."""
    source = self.sources[split]
    return input_pipeline.train_batches(
      source,
      None,
      batch_size=batch_size,
      seed=seed,
      threads=1,
      order=_order(source, seed, self.balanced),
      **part,
    )

  def eval_batches(
    self,
    split: str,
    *,
    batch_size: int,
    quick: bool = False,
    share: Share = ALL,
  ) -> grain.IterDataset:
    """Every video once, its sequence as the one view."""
    del quick  # There is one view of a sequence.
    return input_pipeline.eval_batches(
      self.sources[split],
      _as_view,
      batch_size=batch_size,
      threads=1,
      share=share,
    )

  def num_videos(self, split: str) -> int:
    """Videos of a split."""
    return len(self.sources[split])

  def protocol(self, *, quick: bool = False) -> str:
    """What is scored, in words."""
    del quick
    return self.description


Inputs = VideoInputs | FeatureInputs


def _order(source, seed: int, balanced: bool) -> Callable[[int], int] | None:
  """The order of training videos; None is that of shuffled epochs."""
  return sampling.BalancedOrder(source.labels, seed) if balanced else None


def _as_view(sample: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the view axis to what a model reads."""
  return {
    name: value
    if name in ("label", "mask", "video_id")
    else np.asarray(value)[None]
    for name, value in sample.items()
  }


def create_inputs(
  config: ml_collections.ConfigDict,
  name: str,
  data: VideoDataset,
  workdir: Path,
) -> Inputs:
  """Where a stage's batches come from.

  Raises:
    ValueError: a setting is not known or out of range; the message names it.
    FeatureError: features that the stage reads are not there or do not fit.
  """
  if config[name].balanced and data.multi_label:
    raise ValueError(
      f"config.{name}.balanced is for sets with one label a clip"
    )
  if config[name].kind != "features":
    return create_video_inputs(config, name, data)
  sources = {}
  for split in splits(config):
    sets = {}
    for source in config[name].sources:
      path = features_path(workdir, source, config[source].feature, split)
      sets[source] = read_features(path)
      if sets[source] is None:
        raise FeatureError(f"no features in {path}; run {source!r} first")
    sources[split] = FeatureSource(sets)
  return FeatureInputs(
    sources, protocol(config, name, data), balanced=config[name].balanced
  )


def create_video_inputs(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> VideoInputs:
  """How a stage samples the videos."""
  stage = config[name]
  num_classes = len(data.class_names)
  evaluation = create_views(config, name, data.flow_spec, num_classes)
  second = second_dataset(config, name, data)
  split = config.data.train_split
  if second is not None and split not in second.sources:
    raise ValueError(f"{second.path} has no split {split!r}")
  return VideoInputs(
    sources=data.sources,
    second=second.sources[split] if second else None,
    train=input_pipeline.TrainTransform(
      spec=evaluation.spec,
      num_segments=stage.input.num_segments,
      crop=augment.create_crop(
        stage.input.crop,
        scale=tuple(stage.input.crop_scale),
        max_ratio=stage.input.max_ratio,
        corner_scales=tuple(stage.input.corner_scales),
        max_distort=stage.input.max_distort,
      ),
      flip=stage.input.flip,
      rgb_jitter=stage.input.rgb_jitter,
      num_classes=num_classes,
    ),
    evaluation=evaluation,
    threads=config.data.threads,
    processes=config.data.processes,
    balanced=stage.balanced,
  )


def create_views(
  config: ml_collections.ConfigDict, name: str, spec: FlowSpec, num_classes: int
) -> EvalTransform:
  """The views of a stage's test protocol; no dataset is needed."""
  stage = config[name]
  return EvalTransform(
    spec=input_pipeline.InputSpec(
      modalities=modalities(stage),
      image_size=stage.input.image_size,
      stack_length=stage.input.stack_length,
      flow_step=spec.step,
      short_clip=stage.input.short_clip,
      direction=spec.direction,
    ),
    num_clips=config.eval.num_clips,
    num_crops=config.eval.num_crops,
    crop_fraction=config.eval.crop_fraction,
    num_classes=num_classes,
  )


def describe_views(views: EvalTransform) -> str:
  """The test protocol in words, as it stands beside every number."""
  return (
    f"{views.num_clips}x{views.num_crops}: {views.num_clips} equally spaced"
    f" clips, {_CROPS[views.num_crops]} of {views.crop_fraction:g} of the"
    f" short side at {views.spec.image_size} px, mean of logits"
  )


def protocol(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> str:
  """The test protocol of a stage in words."""
  if config[name].kind == "features":
    return describe_sequence(config, name)
  classes = len(data.class_names)
  return describe_views(create_views(config, name, data.flow_spec, classes))


def describe_sequence(config: ml_collections.ConfigDict, name: str) -> str:
  """What a stage of kind "features" scores, in words."""
  stage = config[name]
  of = ", ".join(
    f"{source} {config[source].feature}" for source in stage.sources
  )
  first = config[stage.sources[0]].input
  return (
    f"sequence: {config.features.num_frames} equally spaced clips, centre crop"
    f" of {config.eval.crop_fraction:g} of the short side at"
    f" {first.image_size} px, features {of}"
  )
