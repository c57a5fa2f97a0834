"""A stage as a program that is read back without this package."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from twostream_jax.data.loader.eval_pipeline import FrameTransform
from twostream_jax.stages.preprocess import standardise
from twostream_jax.stages.trained import TrainedRun, TrainedStage

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
  """A stage from codes to logits, as a pure function of its weights.

  Attributes:
    name: of the stage.
    kind: "stream", "joint" or "features".
    network: its name, as in the settings.
    function: (weights by path, codes by input) to logits float32 [b n].
    parts: stages whose weights it takes, itself first.
    inputs: by name the modality and the shape, in which "b" and "t" are any
      number of videos and of windows.
  """

  name: str
  kind: str
  network: str
  function: Callable[[Arrays, Arrays], jax.Array]
  parts: tuple[str, ...]
  inputs: Mapping[str, dict[str, Any]]


def create_program(run: TrainedRun, name: str) -> Program:
  """The program of a stage.

  One that reads features begins with the codes of the windows that the features
  are of: their networks are part of it.
  """
  stage = run.stages[name]
  features = stage.kind == "features"
  return Program(
    name=name,
    kind=stage.kind,
    network=run.config[name].model.name,
    function=_of_features(run, stage) if features else _of_videos(stage),
    parts=(name, *stage.sources),
    inputs=_describe_features(run, stage) if features else _describe(stage),
  )


def flat_weights(run: TrainedRun) -> dict[str, np.ndarray]:
  """The arrays of all stages by path, such as spatial/params/backbone/...

  Those of a stage that reads features include the mean and the standard
  deviation that its features are standardised with.
  """
  weights = {}
  for name, stage in run.stages.items():
    tree = dict(stage.variables)
    if stage.kind == "features":
      tree["statistics"] = {
        source: {"mean": mean, "std": std}
        for source, (mean, std) in stage.preprocess.keywords[
          "statistics"
        ].items()
      }
    flat = traverse_util.flatten_dict(tree, sep="/")
    weights |= {
      f"{name}/{path}": np.ascontiguousarray(array)
      for path, array in flat.items()
    }
  return weights


def weights_of(weights: Arrays, parts: Sequence[str]) -> dict[str, Any]:
  """The arrays that a program takes."""
  return {
    path: array
    for path, array in weights.items()
    if path.split("/")[0] in parts
  }


def export_program(
  program: Program, weights: Arrays, platform: str
) -> jax.export.Exported:
  """Lowers a program for a platform, which need not be there.

  Each platform has a program of its own, so that what is written in a special
  way for CPUs stays there.

  Args:
    program: of a stage.
    weights: all arrays by path; only their shapes matter.
    platform: one of PLATFORMS.
  """
  scope = jax.export.SymbolicScope()
  inputs = {}
  for key, spec in program.inputs.items():
    text = ",".join(map(str, spec["shape"]))
    shape = jax.export.symbolic_shape(text, scope=scope)
    inputs[key] = jax.ShapeDtypeStruct(shape, jnp.uint8)
  if program.kind == "features":
    (b,) = jax.export.symbolic_shape("b", scope=scope)
    inputs["length"] = jax.ShapeDtypeStruct((b,), jnp.int32)
  shapes = {
    path: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for path, array in weights_of(weights, program.parts).items()
  }
  # No options of a compiler: they would be those of this machine.
  function = jax.jit(program.function)
  return jax.export.export(function, platforms=[platform])(shapes, inputs)


def _tree(weights: Arrays, name: str) -> dict[str, Any]:
  """The nested arrays of a stage."""
  own = {
    path.partition("/")[2]: array
    for path, array in weights.items()
    if path.split("/")[0] == name
  }
  return traverse_util.unflatten_dict(own, sep="/")


def _of_videos(stage: TrainedStage) -> Callable[[Arrays, Arrays], jax.Array]:
  def run(weights, inputs):
    variables = _tree(weights, stage.name)
    logits, _ = stage.model.apply(
      variables, stage.preprocess(_planes(inputs)), train=False
    )
    return logits[:, : stage.num_classes].astype(jnp.float32)

  return run


def _of_features(
  run: TrainedRun, stage: TrainedStage
) -> Callable[[Arrays, Arrays], jax.Array]:
  def program(weights, inputs):
    features = {"length": inputs["length"]}
    for source in stage.sources:
      stream = run.stages[source]
      (modality,) = _frames(stream).spec.modalities
      batch = stream.preprocess(_planes({modality: inputs[source]}))
      found: Any  # Flax declares what changed collections would be.
      _, found = stream.model.apply(_tree(weights, source), batch, train=False)
      values = found[stream.feature].astype(jnp.float32)
      # The run stores features in half precision; a cast there and back again
      # is what compilers remove.
      features[source] = jax.lax.reduce_precision(values, 5, 10)
    variables = _tree(weights, stage.name)
    statistics = {
      source: (found["mean"], found["std"])
      for source, found in variables.pop("statistics").items()
    }
    logits, _ = stage.model.apply(
      variables, standardise(features, statistics=statistics), train=False
    )
    return logits[:, : stage.num_classes].astype(jnp.float32)

  return program


def _planes(inputs: Arrays) -> Arrays:
  """Inputs as the loader gives them: flow in planes, not interleaved."""
  planes = dict(inputs)
  if "flow" in inputs:
    planes["flow"] = jnp.moveaxis(inputs["flow"], -1, -3)
  return planes


def _describe(stage: TrainedStage) -> dict[str, dict[str, Any]]:
  assert stage.views is not None
  spec = stage.views.spec
  return {modality: _input(modality, "t", spec) for modality in spec.modalities}


def _frames(stream: TrainedStage) -> FrameTransform:
  """Windows whose features other stages read."""
  assert stream.frames is not None
  return stream.frames


def _describe_features(
  run: TrainedRun, stage: TrainedStage
) -> dict[str, dict[str, Any]]:
  found = {}
  for source in stage.sources:
    frames = _frames(run.stages[source])
    (modality,) = frames.spec.modalities
    found[source] = _input(modality, frames.num_frames, frames.spec)
  return found


def _input(modality: str, windows: int | str, spec) -> dict[str, Any]:
  side = spec.image_size
  channels = 3 if modality == "rgb" else 2 * spec.stack_length
  return {"modality": modality, "shape": ["b", windows, side, side, channels]}
