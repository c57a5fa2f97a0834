"""Stages: from settings to the parts that training and evaluation need."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn
from jax.typing import DTypeLike

from twostream_jax import checkpoints, losses, models, optim, parallel, steps
from twostream_jax.data.dataset import VideoDataset, identity
from twostream_jax.models.stream import Stream
from twostream_jax.models.two_stream import TwoStream
from twostream_jax.stages import inputs, needs, trained_weights, warm_start
from twostream_jax.stages.flops import count_flops
from twostream_jax.stages.preprocess import Preprocess, standardise

KINDS = ("stream", "joint", "features")
# What networks compute in; parameters, statistics and losses are float32.
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Stage:
  """All that the loop needs to train one stage.

  Attributes:
    num_classes: that are scored; the network's first outputs.
    warm_start: fresh state to the state that training begins with.
    origins: Digests of what that reads; see `warm_start.origins`.
    num_outputs: Outputs of the network, of both heads if it has two.
    input_numbers: See `describe_preprocess`.
    second_dataset: Identity of the dataset of the second head; None without.
  """

  name: str
  seed: int
  batch_size: int
  total_steps: int
  num_classes: int
  model: nn.Module
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  loss_fn: Callable[[jax.Array, jax.Array], jax.Array]
  preprocess: Callable[[steps.Batch], dict[str, jax.Array]]
  stop_frozen: Callable[[Any], Any]
  inputs: inputs.Inputs
  warm_start: Callable[[steps.TrainState], steps.TrainState]
  origins: Callable[[], dict[str, Any]]
  micro_batches: int
  num_outputs: int
  ema_decay: float
  precision: str
  input_numbers: Mapping[str, Any] = dataclasses.field(hash=False)
  second_dataset: Mapping[str, Any] | None = dataclasses.field(hash=False)

  def init_state(self) -> steps.TrainState:
    """Fresh parameters and optimiser state; a function of the seed."""
    options = parallel.options_of_one_call(jax.default_backend())
    return jax.jit(self._create_state, compiler_options=options)()

  def state_shapes(self) -> steps.TrainState:
    """Shapes and types of what `init_state` gives; nothing is computed."""
    return jax.eval_shape(self._create_state)

  def _create_state(self) -> steps.TrainState:
    return steps.create_train_state(
      jax.random.key(self.seed),
      self.model,
      self.tx,
      self.preprocess,
      self.inputs.example(),
      keep_ema=self.ema_decay > 0.0,
    )

  def describe(self, state: steps.TrainState) -> str:
    """One line of what is trained on what, and how large it is."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    processes = jax.process_count()
    batch = f"batch {self.batch_size}"
    if self.micro_batches > 1:
      batch += f" in {self.micro_batches} micro-batches"
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return (
      f"{self.name}: {kind}, {processes} process{'es' * (processes > 1)},"
      f" {self.precision}; {batch}, {self.total_steps} steps;"
      f" {parameters / 1e6:.2f} M parameters,"
      f" {self.flops(state.variables) / 1e9:.3g} GFLOPs a clip"
    )

  def flops(self, variables: Mapping[str, Any]) -> int:
    """Operations of a forward pass of one sample, see `count_flops`."""

    def forward(variables, sample):
      return self.model.apply(variables, self.preprocess(sample), train=False)

    return count_flops(forward, variables, self.inputs.example())

  def facts(self) -> dict[str, Any]:
    """JSON-ready: what `trained.open_stage` needs beside settings and data."""
    facts = {
      "inputs": dict(self.input_numbers),
      "num_outputs": self.num_outputs,
    }
    if self.second_dataset is not None:
      facts["second_dataset"] = dict(self.second_dataset)
    return facts


def create_stage(
  config: ml_collections.ConfigDict,
  name: str,
  data: VideoDataset,
  workdir: Path,
) -> Stage:
  """Builds a stage from its settings.

  Args:
    config: of the run.
    name: of the stage.
    data: the dataset.
    workdir: of the run: features and weights of earlier stages are there.

  Raises:
    ValueError: a setting is not known or out of range; the message names it.
    WeightsError: a file of weights does not fit.
  """
  stage = config[name]
  check_kind(config, name)
  parallel.check_batch_size(
    f"config.{name}.batch_size", stage.batch_size, config.train.micro_batches
  )
  if not 0.0 <= stage.optim.ema_decay < 1.0:
    raise ValueError(
      f"config.{name}.optim.ema_decay={stage.optim.ema_decay} must be in [0, 1)"
    )
  schedule = create_schedule(stage)
  batches = inputs.create_inputs(config, name, data, workdir)
  preprocess = create_preprocess(config, name, data, batches, workdir)
  numbers = describe_preprocess(config, preprocess, batches)
  _check_same_inputs(name, workdir, numbers)
  begin = warm_start.create(config, name, data, workdir, numbers)
  second = needs.second_dataset(config, name, data)
  num_outputs = len(data.class_names)
  if second is not None:
    num_outputs += len(second.class_names)
  return Stage(
    name=name,
    seed=config.seed,
    batch_size=stage.batch_size,
    total_steps=stage.total_steps,
    num_classes=len(data.class_names),
    model=create_model(config, name, num_outputs),
    tx=create_optimizer(stage.optim, schedule),
    schedule=schedule,
    loss_fn=create_loss(config, name, data),
    preprocess=preprocess,
    stop_frozen=functools.partial(
      optim.stop_frozen, multipliers=multipliers(stage.optim)
    ),
    inputs=batches,
    warm_start=begin,
    origins=functools.partial(warm_start.origins, config, name, workdir),
    micro_batches=config.train.micro_batches,
    ema_decay=stage.optim.ema_decay,
    precision=config.precision,
    input_numbers=numbers,
    num_outputs=num_outputs,
    second_dataset=None if second is None else identity(second),
  )


def _check_same_inputs(
  name: str, workdir: Path, numbers: Mapping[str, Any]
) -> None:
  """Refuses to resume a stage on other features than it was begun with."""
  begun = checkpoints.read_metadata(trained_weights.folder(workdir, name))
  if begun is None or "sources" not in numbers:
    return
  path, metadata = begun
  if metadata["inputs"] != numbers:
    raise ValueError(
      f"{path} was trained on other features than those of stages"
      f" {list(numbers['sources'])} now: their weights have changed since."
      f" Remove {workdir / name} to train stage {name!r} again"
    )


def check_kind(config: ml_collections.ConfigDict, name: str) -> None:
  """Raises ValueError where a stage's kind or the stages it needs are wrong."""
  stage = config[name]
  if stage.kind not in KINDS:
    raise ValueError(f"config.{name}.kind={stage.kind!r} is not in {KINDS}")
  if stage.kind == "stream":
    return
  key = "towers" if stage.kind == "joint" else "sources"
  if not stage[key]:
    raise ValueError(f"config.{name}.{key} names no stage")
  for other in stage[key]:
    if other not in config or config[other].kind != "stream":
      raise ValueError(f"config.{name} needs {other!r}, which is not a stream")
    earlier = config.stages[: config.stages.index(name)]
    if stage.kind == "features" and other not in earlier:
      raise ValueError(
        f"config.{name} reads features of {other!r}, which must be a stage"
        f" before it: config.stages={tuple(config.stages)}"
      )
  if stage.kind == "joint" and [
    config[tower].modality for tower in stage.towers
  ] != ["rgb", "flow"]:
    raise ValueError(
      f"config.{name}.towers={tuple(stage.towers)} must name a stream of rgb"
      " and one of flow"
    )


def create_model(
  config: ml_collections.ConfigDict, name: str, num_classes: int
) -> nn.Module:
  """The network of a stage."""
  stage = config[name]
  if config.precision not in PRECISIONS:
    raise ValueError(
      f"config.precision={config.precision!r} is not in {tuple(PRECISIONS)}"
    )
  dtype = PRECISIONS[config.precision]
  if stage.kind == "features":
    return models.create_feature_model(
      stage.model.name,
      num_classes=num_classes,
      sources=tuple(stage.sources),
      dropout_rate=stage.model.dropout_rate,
      dtype=dtype,
      **stage.model.fields.to_dict(),
    )
  if stage.kind == "stream":
    backbone = create_backbone(stage.model, num_classes, dtype)
    return Stream(modality=stage.modality, backbone=backbone)
  spatial, temporal = (
    create_backbone(config[tower].model, num_classes, dtype)
    for tower in stage.towers
  )
  return TwoStream(
    spatial=spatial, temporal=temporal, fusion=stage.model.name, dtype=dtype
  )


def create_backbone(
  model: ml_collections.ConfigDict, num_classes: int, dtype: DTypeLike
) -> nn.Module:
  """The image network of a stream."""
  return models.create_model(
    model.name,
    num_classes=num_classes,
    width=model.width,
    dropout_rate=model.dropout_rate,
    dtype=dtype,
    axis_name=parallel.AXIS,
    sync_batch_norm=model.sync_batch_norm,
    **model.fields.to_dict(),
  )


def create_schedule(stage: ml_collections.ConfigDict) -> optax.Schedule:
  """The learning rate of a stage by step."""
  return optim.create_schedule(
    stage.optim.schedule,
    learning_rate=stage.optim.learning_rate,
    total_steps=stage.total_steps,
    warmup_steps=stage.optim.warmup_steps,
    boundaries=stage.optim.boundaries,
    decay_factor=stage.optim.decay_factor,
  )


def create_optimizer(
  settings: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The optimiser of a stage."""
  return optim.create_optimizer(
    schedule,
    name=settings.name,
    momentum=settings.momentum,
    nesterov=settings.nesterov,
    weight_decay=settings.weight_decay,
    max_grad_norm=settings.max_grad_norm,
    multipliers=multipliers(settings),
    penalised=settings.penalised,
    l1=settings.l1,
    l21=settings.l21,
  )


def multipliers(
  settings: ml_collections.ConfigDict,
) -> tuple[tuple[str, float], ...]:
  """Pairs of a regular expression and a factor on the learning rate."""
  return tuple((pattern, factor) for pattern, factor in settings.multipliers)


def create_loss(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The loss per example: of one label, any number of them, or two heads."""
  smoothing = config[name].optim.label_smoothing
  if data.multi_label:
    if smoothing:
      raise ValueError(
        f"config.{name}.optim.label_smoothing is for sets with one label a clip"
      )
    return losses.sigmoid_cross_entropy
  if needs.second_dataset(config, name, data) is not None:
    return functools.partial(
      losses.multi_task_cross_entropy,
      num_classes=len(data.class_names),
      label_smoothing=smoothing,
    )
  return functools.partial(
    losses.softmax_cross_entropy, label_smoothing=smoothing
  )


def create_preprocess(
  config: ml_collections.ConfigDict,
  name: str,
  data: VideoDataset,
  batches: inputs.Inputs,
  workdir: Path,
) -> Callable[[steps.Batch], dict[str, jax.Array]]:
  """How a stage's batches become inputs of its network.

  A stage that is resumed takes it from its checkpoint, so that files of
  weights may be gone or changed.
  """
  stage = config[name]
  begun = checkpoints.read_metadata(trained_weights.folder(workdir, name))
  if stage.kind == "features":
    trained_on = batches.sources[config.data.train_split].sets
    return functools.partial(
      standardise,
      statistics={
        k: (found.mean, found.std) for k, found in trained_on.items()
      },
    )
  if begun is not None:
    return read_preprocess(begun[1]["inputs"], data.flow_spec.bound)
  rgb_mean, rgb_std = warm_start.rgb_statistics(config, name, workdir)
  scale, subtract = warm_start.flow_numbers(
    config, name, workdir, data.flow_spec
  )
  return Preprocess(
    rgb_mean=rgb_mean,
    rgb_std=rgb_std,
    flow_bound=data.flow_spec.bound,
    flow_scale=scale,
    subtract_mean_flow=subtract,
  )


def describe_preprocess(
  config: ml_collections.ConfigDict,
  preprocess: Callable[[steps.Batch], dict[str, jax.Array]],
  batches: inputs.Inputs,
) -> dict[str, Any]:
  """JSON-ready: how a stage's pixels, motion or features become numbers.

  It is stored with the weights, which mean nothing to other numbers. Where a
  stage reads features: the name, the weights and the statistics of each.
  """
  if not isinstance(preprocess, Preprocess):
    trained_on = batches.sources[config.data.train_split].sets
    return {
      "sources": {
        source: {
          "feature": config[source].feature,
          "weights": found.weights,
          "mean": found.mean.tolist(),
          "std": found.std.tolist(),
        }
        for source, found in trained_on.items()
      }
    }
  assert isinstance(batches, inputs.VideoInputs)
  modalities = batches.train.spec.modalities
  return {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in dataclasses.asdict(preprocess).items()
    if any(modality in key for modality in modalities)
  }


def read_preprocess(
  numbers: Mapping[str, Any], flow_bound: float
) -> Callable[[steps.Batch], dict[str, jax.Array]]:
  """What `describe_preprocess` described.

  A stage of one modality states only its numbers; the others are not used.

  Args:
    numbers: As `describe_preprocess` gives them, read from JSON.
    flow_bound: Bound of the flow, pixels a frame, where they do not say it.
  """
  if "sources" in numbers:
    return functools.partial(
      standardise,
      statistics={
        source: (
          np.array(found["mean"], np.float32),
          np.array(found["std"], np.float32),
        )
        for source, found in numbers["sources"].items()
      },
    )
  unused: dict[str, Any] = {
    "rgb_mean": (0.0, 0.0, 0.0),
    "rgb_std": (1.0, 1.0, 1.0),
    "flow_bound": flow_bound,
    "flow_scale": 1.0,
    "subtract_mean_flow": False,
  }
  stated: dict[str, Any] = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in numbers.items()
  }
  return Preprocess(**unused | stated)
