"""Stages: from settings to the parts that training and evaluation need."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from twostream_jax import losses, models, optim, parallel, steps
from twostream_jax.data import input_pipeline
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.models.stream import Stream


@dataclasses.dataclass(frozen=True)
class Stage:
  """All that the loop needs to train one stage."""

  name: str
  seed: int
  batch_size: int
  total_steps: int
  model: nn.Module
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  loss_fn: Callable[[jax.Array, jax.Array], jax.Array]
  preprocess: steps.Preprocess
  transform: input_pipeline.TrainTransform

  def init_state(self) -> steps.TrainState:
    """Fresh parameters and optimiser state; a function of the seed."""
    spec = self.transform.spec
    shape = (1, self.transform.num_segments, spec.image_size, spec.image_size)
    channels = {"rgb": 3, "flow": 2 * spec.stack_length}
    batch = {
      name: np.zeros(shape + (channels[name],), np.uint8)
      for name in spec.modalities
    }
    return steps.create_train_state(
      jax.random.key(self.seed), self.model, self.tx, self.preprocess, batch
    )


def create_stage(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> Stage:
  """Builds a stage from its settings.

  Raises:
    ValueError: a setting is not known or out of range; the message names it.
  """
  stage = config[name]
  if stage.kind != "stream":
    raise ValueError(f"config.{name}.kind={stage.kind!r} must be 'stream'")
  parallel.check_batch_size(f"config.{name}.batch_size", stage.batch_size)
  backbone = models.create_model(
    stage.model.name,
    num_classes=len(data.class_names),
    width=stage.model.width,
    dropout_rate=stage.model.dropout_rate,
    axis_name=parallel.AXIS,
    **stage.model.fields.to_dict(),
  )
  optimiser = stage.optim
  schedule = optim.create_schedule(
    optimiser.schedule,
    learning_rate=optimiser.learning_rate,
    total_steps=stage.total_steps,
    warmup_steps=optimiser.warmup_steps,
    boundaries=optimiser.boundaries,
    decay_factor=optimiser.decay_factor,
  )
  return Stage(
    name=name,
    seed=config.seed,
    batch_size=stage.batch_size,
    total_steps=stage.total_steps,
    model=Stream(modality=stage.modality, backbone=backbone),
    tx=optim.create_optimizer(
      schedule,
      momentum=optimiser.momentum,
      nesterov=optimiser.nesterov,
      weight_decay=optimiser.weight_decay,
      max_grad_norm=optimiser.max_grad_norm,
    ),
    schedule=schedule,
    loss_fn=functools.partial(
      losses.softmax_cross_entropy, label_smoothing=optimiser.label_smoothing
    ),
    preprocess=create_preprocess(stage, data),
    transform=create_transform(stage, data),
  )


def create_preprocess(
  stage: ml_collections.ConfigDict, data: VideoDataset
) -> steps.Preprocess:
  """How a stage's uint8 batches become inputs."""
  return steps.Preprocess(
    rgb_mean=stage.input.rgb_mean,
    rgb_std=stage.input.rgb_std,
    flow_bound=data.flow_spec.bound,
    flow_scale=stage.input.flow_scale,
    subtract_mean_flow=stage.input.subtract_mean_flow,
  )


def create_transform(
  stage: ml_collections.ConfigDict, data: VideoDataset
) -> input_pipeline.TrainTransform:
  """How a stage samples a training video."""
  spec = input_pipeline.InputSpec(
    modalities=(stage.modality,),
    image_size=stage.input.image_size,
    stack_length=stage.input.stack_length,
    flow_step=data.flow_spec.step,
    short_clip=stage.input.short_clip,
    direction=data.flow_spec.direction,
  )
  return input_pipeline.TrainTransform(
    spec=spec,
    num_segments=stage.input.num_segments,
    scale=stage.input.crop_scale,
    max_ratio=stage.input.max_ratio,
    flip=stage.input.flip,
  )
