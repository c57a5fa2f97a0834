"""The networks of a recipe by its settings alone: no dataset, no weights."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from twostream_jax import parallel, steps
from twostream_jax.data.loader.views import image_shapes
from twostream_jax.stages import create, needs
from twostream_jax.stages.flops import count_flops
from twostream_jax.stages.preprocess import Preprocess, standardise

# What a FlowSpec has where nothing else is said; it changes no operation.
_BOUND = 20.0


@dataclasses.dataclass(frozen=True)
class Network:
  """A stage's network, and what it is given.

  Attributes:
    name: of the network, as in the settings.
    model: maps preprocessed inputs to logits and features.
    preprocess: a batch to the network's inputs.
    example: a batch of one sample: zeros.
    variables: shapes of its arrays.
    num_outputs: of the network.
  """

  name: str
  model: nn.Module
  preprocess: Callable[[Mapping[str, Any]], dict[str, jax.Array]]
  example: Mapping[str, np.ndarray]
  variables: Any
  num_outputs: int

  def forward(self, variables: Any, batch: Mapping[str, Any]) -> Any:
    """Logits and features."""
    return self.model.apply(variables, self.preprocess(batch), train=False)


@dataclasses.dataclass(frozen=True)
class Row:
  """What is said of a stage.

  Attributes:
    stage: its name.
    model: its network, as in the settings.
    inputs: Description of the inputs.
    parameters: their number.
    flops: operations of a forward pass of a clip, see `count_flops`.
    clips_per_second: on this machine; None where it was not measured.
  """

  stage: str
  model: str
  inputs: str
  parameters: int
  flops: int
  clips_per_second: float | None


def create_network(
  config: ml_collections.ConfigDict, name: str, num_outputs: int
) -> Network:
  """The network of a stage, by the settings alone; no array is made.

  Raises:
    ValueError: a setting is not known or out of range; the message names it.
  """
  stage = config[name]
  create.check_kind(config, name)
  example: dict[str, Any]
  if stage.kind == "features":
    widths = {source: feature_width(config, source) for source in stage.sources}
    blank = {s: (np.zeros(d), np.ones(d)) for s, d in widths.items()}
    preprocess = functools.partial(standardise, statistics=blank)
    frames = config.features.num_frames
    example = {
      source: np.zeros((1, frames, width), np.float32)
      for source, width in widths.items()
    } | {"length": np.full(1, frames, np.int32)}
  else:
    preprocess = Preprocess(
      rgb_mean=tuple(stage.input.rgb_mean),
      rgb_std=tuple(stage.input.rgb_std),
      flow_bound=_BOUND,
      flow_scale=stage.input.flow_scale,
      subtract_mean_flow=stage.input.subtract_mean_flow,
    )
    example = video_example(stage)
  model = create.create_model(config, name, num_outputs)

  def init():
    return model.init(jax.random.key(0), preprocess(example), train=False)

  label = stage.model.name
  if stage.kind == "joint":
    towers = " + ".join(config[tower].model.name for tower in stage.towers)
    label = f"{towers}, {label}"
  variables = jax.eval_shape(init)
  return Network(label, model, preprocess, example, variables, num_outputs)


def video_example(stage: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """A training sample of a stage of videos: zeros, uint8 [1 t ...]."""
  shapes = image_shapes(
    needs.modalities(stage),
    stage.input.image_size,
    stage.input.stack_length,
  )
  leading = (1, stage.input.num_segments)
  return {
    modality: np.zeros((*leading, *shape), np.uint8)
    for modality, shape in shapes.items()
  }


def feature_width(config: ml_collections.ConfigDict, source: str) -> int:
  """Numbers in the feature of a stream that later stages read."""
  network = create_network(config, source, num_outputs=2)
  _, found = jax.eval_shape(network.forward, network.variables, network.example)
  return found[config[source].feature].shape[-1]


def describe_inputs(
  config: ml_collections.ConfigDict, name: str, network: Network
) -> str:
  """Describes what a network reads of a clip."""
  parts = []
  read = jax.eval_shape(network.preprocess, network.example)
  for key, array in read.items():
    if key == "length":
      continue
    _, t, *rest = array.shape
    size = " x ".join(map(str, rest))
    if config[name].kind == "features":
      parts.append(f"{t} x {config[key].feature} of {key} ({size})")
    else:
      parts.append(f"{f'{t} x ' * (t > 1)}{key} {size}")
  return " + ".join(parts)


def measure(network: Network, batch_size: int, seconds: float = 1.0) -> float:
  """Clips a second of the forward pass on all devices of this process.

  From codes in memory to logits on the host, as in an evaluation, without
  reading and decoding videos. Weights and codes are random.

  Args:
    network: what to measure.
    batch_size: clips a device.
    seconds: to measure for; at least three batches, whatever they take. The
      median batch counts.
  """
  rng = np.random.default_rng(0)

  def random(x):
    # Statistics of batch norm must be positive; others may be.
    return (0.01 * rng.random(x.shape, np.float32) + 1e-3).astype(x.dtype)

  predict = parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=network.model,
      preprocess=network.preprocess,
      views_per_pass=batch_size,
      num_classes=network.num_outputs,
    )
  )
  variables = parallel.replicate(
    {"batch_stats": {}} | jax.tree.map(random, network.variables)
  )
  devices = jax.local_device_count()
  batch = {
    key: np.broadcast_to(array, (devices, batch_size, 1, *array.shape[1:]))
    if key == "length"
    else rng.integers(
      256, size=(devices, batch_size, 1, *array.shape[1:])
    ).astype(array.dtype)
    for key, array in network.example.items()
  }

  def run() -> float:
    begin = time.perf_counter()
    parallel.gather(predict(variables, batch))
    return time.perf_counter() - begin

  run()  # Compiles.
  times = []
  while len(times) < 3 or sum(times) < seconds:
    times.append(run())
  return devices * batch_size / statistics.median(times)


def summarise(
  config: ml_collections.ConfigDict,
  *,
  num_classes: int,
  second_classes: int = 0,
  batch_size: int = 0,
) -> list[Row]:
  """A row for each stage.

  Args:
    config: of the recipe.
    num_classes: of its dataset.
    second_classes: of the dataset of a second head.
    batch_size: clips a device to measure the throughput with; 0: not measured.

  Raises:
    ValueError: a setting is not known or out of range; the message names it.
  """
  rows = []
  for name in config.stages:
    has_two = config[name].kind != "features"
    outputs = num_classes + second_classes * has_two
    network = create_network(config, name, outputs)
    params = jax.tree.leaves(network.variables["params"])
    rows.append(
      Row(
        stage=name,
        model=network.name,
        inputs=describe_inputs(config, name, network),
        parameters=sum(x.size for x in params),
        flops=count_flops(network.forward, network.variables, network.example),
        clips_per_second=measure(network, batch_size) if batch_size else None,
      )
    )
  return rows
