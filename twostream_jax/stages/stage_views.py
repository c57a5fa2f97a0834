"""What a stage is shown of a video to score it, by its settings.

No dataset is needed, so that a run that is opened later sees a video as it did.
"""

import ml_collections

from twostream_jax.data.loader import protocols
from twostream_jax.data.loader.eval_pipeline import (
  EvalTransform,
  FrameTransform,
)
from twostream_jax.data.loader.views import InputSpec
from twostream_jax.flow.spec import FlowSpec
from twostream_jax.stages.needs import is_dense, modalities


def input_spec(
  config: ml_collections.ConfigDict, name: str, flow_spec: FlowSpec
) -> InputSpec:
  """What one look at a video gives a stage of videos."""
  stage = config[name]
  return InputSpec(
    modalities=modalities(stage),
    image_size=stage.input.image_size,
    stack_length=stage.input.stack_length,
    flow_step=flow_spec.step,
    short_clip=stage.input.short_clip,
    direction=flow_spec.direction,
  )


def create_views(
  config: ml_collections.ConfigDict, spec: InputSpec
) -> EvalTransform:
  """The views of the test protocol."""
  return EvalTransform(
    spec=spec,
    protocol=protocols.parse(config.eval.protocol),
    crop_fraction=config.eval.crop_fraction,
  )


def create_frames(
  config: ml_collections.ConfigDict, spec: InputSpec, *, dense: bool = False
) -> FrameTransform:
  """The windows whose features later stages read."""
  return FrameTransform(
    spec=spec,
    num_frames=config.features.num_frames,
    crop_fraction=config.features.crop_fraction,
    dense=dense,
  )


def protocol(config: ml_collections.ConfigDict, name: str) -> str:
  """Describes the test protocol of a stage, as shown beside its scores."""
  stage = config[name]
  if stage.kind != "features":
    named = protocols.parse(config.eval.protocol)
    return named.describe(config.eval.crop_fraction, stage.input.image_size)
  of = ", ".join(
    f"{source} {config[source].feature}" for source in stage.sources
  )
  clips = f"{config.features.num_frames} equally spaced clips"
  if is_dense(config):
    windows = f"dense: sequences of {clips} that show every clip"
  else:
    windows = f"sequence: {clips}"
  first = config[stage.sources[0]].input
  return (
    f"{windows}, centre crop of {config.features.crop_fraction:g} of the short"
    f" side at {first.image_size} px, features {of}"
  )
