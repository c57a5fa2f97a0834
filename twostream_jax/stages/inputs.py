"""Where a stage's batches come from: videos, or features of earlier stages.

Both kinds answer the same calls, so that the loop and the evaluation need not
know which it is.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from twostream_jax.data.dataset import VideoDataset
from twostream_jax.data.loader import (
  augment,
  eval_pipeline,
  input_pipeline,
  protocols,
  sampling,
)
from twostream_jax.data.loader.combine import CombinedSource
from twostream_jax.data.loader.eval_pipeline import (
  EvalRows,
  EvalTransform,
  FrameTransform,
  SequenceTransform,
)
from twostream_jax.data.loader.features import (
  FeatureError,
  FeatureSource,
  read_features,
)
from twostream_jax.data.loader.input_pipeline import TrainTransform
from twostream_jax.files.workdir import features_path
from twostream_jax.stages import stage_views
from twostream_jax.stages.needs import (
  is_dense,
  second_dataset,
  splits,
  splits_to_score,
)


@dataclasses.dataclass(frozen=True)
class VideoInputs:
  """Frames and stacks of flow, sampled and decoded from the dataset.

  Attributes:
    sources: random access to the records of each split.
    second: records to train on as well, for a second head; None: none.
    train: how a training sample is drawn.
    evaluation: the views of the test protocol.
    frames: the windows whose features later stages read.
    threads: that decode.
    processes: that make training batches instead; 0: the threads.
    balanced: whether classes are drawn uniformly for training, see
      `sampling.BalancedOrder`.
  """

  sources: Mapping[str, Any]
  train: TrainTransform
  evaluation: EvalTransform
  frames: FrameTransform
  threads: int
  processes: int = 0
  second: Any = None
  balanced: bool = False

  def example(self) -> dict[str, np.ndarray]:
    """A batch of one sample: zeros of the shapes that training sees."""
    empty = functools.partial(np.zeros, dtype=np.uint8)
    batch = self.train.spec.empty(1, self.train.num_segments, empty=empty)
    if self.train.flip:
      batch["flip"] = np.zeros(1, bool)
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

  def eval_rows(
    self, split: str, *, quick: bool = False, **part: Any
  ) -> EvalRows:
    """The views of the test protocol; a row is a window seen by all crops.

    Args:
      split: of the dataset.
      quick: one centre view, for curves, instead of the test protocol.
      **part: see `eval_pipeline.eval_rows`.
    """
    return self._rows(split, self._views(quick), part)

  def frame_rows(
    self, split: str, *, dense: bool = False, **part: Any
  ) -> EvalRows:
    """Evenly spaced windows, to compute features of; a row is a sequence.

    Args:
      split: of the dataset.
      dense: see `FrameTransform`.
      **part: see `eval_pipeline.eval_rows`.
    """
    transform = dataclasses.replace(self.frames, dense=dense)
    return self._rows(split, transform, part)

  def _rows(self, split: str, transform, part: dict[str, Any]) -> EvalRows:
    source = self.sources[split]
    labels = [
      input_pipeline.label_array(label, self.train.num_classes)
      for label in source.labels
    ]
    return eval_pipeline.eval_rows(
      source, transform, np.stack(labels), threads=self.threads, **part
    )

  def protocol(self, *, quick: bool = False) -> str:
    """Describes the test protocol, as shown beside every number."""
    views = self._views(quick)
    return views.protocol.describe(views.crop_fraction, views.spec.image_size)

  def _views(self, quick: bool) -> EvalTransform:
    if quick:
      return dataclasses.replace(self.evaluation, protocol=protocols.SINGLE)
    return self.evaluation


@dataclasses.dataclass(frozen=True)
class FeatureInputs:
  """Sequences of features of one or more trained streams.

  Attributes:
    sources: random access to the features of each split.
    scored: The same of the test protocol, and the splits it applies to.
    description: Description of the features.
    balanced: as in `VideoInputs`.
  """

  sources: Mapping[str, FeatureSource]
  scored: Mapping[str, FeatureSource]
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

  def eval_rows(
    self, split: str, *, quick: bool = False, **part: Any
  ) -> EvalRows:
    """The sequences; a row is one of them, which is one view.

    Args:
      split: of the dataset.
      quick: one sequence a video, for curves, instead of the test protocol.
      **part: see `eval_pipeline.eval_rows`.
    """
    source = (self.sources if quick else self.scored)[split]
    return eval_pipeline.eval_rows(
      source, SequenceTransform(), source.labels, threads=1, **part
    )

  def protocol(self, *, quick: bool = False) -> str:
    """Describes what is scored."""
    del quick
    return self.description


Inputs = VideoInputs | FeatureInputs


def _order(source, seed: int, balanced: bool) -> Callable[[int], int] | None:
  """The order of training videos; None is that of shuffled epochs."""
  return sampling.BalancedOrder(source.labels, seed) if balanced else None


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

  def read(split: str, dense: bool) -> FeatureSource:
    sets = {}
    for source in config[name].sources:
      feature = config[source].feature
      path = features_path(workdir, source, feature, split, dense)
      sets[source] = read_features(path)
      if sets[source] is None:
        raise FeatureError(f"no features in {path}; run {source!r} first")
    return FeatureSource(sets)

  sources = {split: read(split, False) for split in splits(config)}
  scored = sources
  if is_dense(config):
    scored = {split: read(split, True) for split in splits_to_score(config)}
  return FeatureInputs(
    sources,
    scored,
    stage_views.protocol(config, name),
    balanced=config[name].balanced,
  )


def create_video_inputs(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> VideoInputs:
  """How a stage samples the videos."""
  stage = config[name]
  spec = stage_views.input_spec(config, name, data.flow_spec)
  second = second_dataset(config, name, data)
  split = config.data.train_split
  if second is not None and split not in second.sources:
    raise ValueError(f"{second.path} has no split {split!r}")
  return VideoInputs(
    sources=data.sources,
    second=second.sources[split] if second else None,
    train=input_pipeline.TrainTransform(
      spec=spec,
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
      num_classes=len(data.class_names),
    ),
    evaluation=stage_views.create_views(config, spec),
    frames=stage_views.create_frames(config, spec),
    threads=config.data.threads,
    processes=config.data.processes,
    balanced=stage.balanced,
  )
