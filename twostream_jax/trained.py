"""A finished run, opened from its workdir alone: no dataset is needed."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from twostream_jax import (
  checkpoints,
  json_files,
  logging,
  stage_data,
  stage_views,
  stages,
)
from twostream_jax.data.dataset import check_facts
from twostream_jax.data.eval_pipeline import EvalTransform, FrameTransform
from twostream_jax.data.features import FeatureError, read_statistics
from twostream_jax.flow import spec as flow_spec
from twostream_jax.flow.spec import FlowSpec, FlowSpecError
from twostream_jax.preprocess import Preprocess, standardise
from twostream_jax.rules import FusionRule, create_rules
from twostream_jax.scores import ScoresError
from twostream_jax.selection import Selection
from twostream_jax.words import printable
from twostream_jax.workdir import CONFIG_FILE, features_path


class TrainedRunError(ValueError):
  """A folder is not a finished run, or not a whole one."""


_OWN_ERRORS = (TrainedRunError, checkpoints.CheckpointError, FlowSpecError)


@dataclasses.dataclass(frozen=True)
class TrainedStage:
  """A stage, ready to predict.

  Attributes:
    name: of the stage.
    kind: "stream", "joint" or "features".
    step: of the checkpoint that counts.
    model: maps preprocessed inputs to logits [b num_outputs] and features.
    preprocess: a batch to the network's inputs: `Preprocess`, or a partial of
      `standardise`.
    variables: "params" and "batch_stats", NumPy arrays.
    num_classes: that are scored; the network's first outputs.
    num_outputs: of the network; more where it has a second head.
    views: of the run's test protocol; None for features.
    frames: windows whose features later stages read; None for features.
    feature: that later stages read of a stream; "" for features.
    sources: streams that it reads the features of, in order; () for others.
    example: a batch of one sample of one window or one feature: zeros.
    protocol: in words, as it stands beside the run's scores.
  """

  name: str
  kind: str
  step: int
  model: nn.Module
  preprocess: Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]
  variables: Mapping[str, Any]
  num_classes: int
  num_outputs: int
  views: EvalTransform | None
  frames: FrameTransform | None
  feature: str
  sources: tuple[str, ...]
  example: Mapping[str, np.ndarray]
  protocol: str


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """All that is needed to predict as a run does.

  Attributes:
    workdir: its folder.
    config: its settings, locked.
    name: of the dataset that it was trained on.
    class_names: a label is an index into them.
    multi_label: whether a clip has any number of classes, not one.
    flow_spec: the flow that it was trained on.
    rgb_quality: JPEG quality of the frames that it was trained on; None where
      a run of an earlier version does not say it.
    stages: by name, in order.
    rules: of fusion by name, in order; none where there is one stage.
  """

  workdir: Path
  config: ml_collections.ConfigDict
  name: str
  class_names: tuple[str, ...]
  multi_label: bool
  flow_spec: FlowSpec
  rgb_quality: int | None
  stages: Mapping[str, TrainedStage]
  rules: Mapping[str, FusionRule]


def open_run(
  workdir: str | os.PathLike, protocol: str | None = None
) -> TrainedRun:
  """Opens a finished run to predict with it. It only reads.

  Weights are those of the checkpoints that count, and pixels and motion become
  numbers as the checkpoints say: files of imported weights may be gone.

  Args:
    workdir: of the run.
    protocol: test protocol, see `data.protocols`; None: the run's own.

  Raises:
    ValueError: there is no such protocol.
    TrainedRunError: there is no run, a stage is not trained to its end, or a
      file is missing or does not fit the others; the message names it.
    CheckpointError: a checkpoint can't be read.
    FlowSpecError: checkpoints and settings speak of different flow.
  """
  workdir = Path(workdir)
  config, dataset = _read_settings(workdir)
  try:
    if protocol is not None:
      with config.unlocked():
        config.eval.protocol = protocol
    spec = flow_spec.from_dict(dataset["flow_spec"])
    found = {
      name: _open(config, name, workdir, dataset) for name in config.stages
    }
    rules = create_rules(config, workdir)
  except ScoresError as error:
    raise TrainedRunError(f"fusion of {workdir}: {error}") from error
  except (AttributeError, KeyError) as error:
    raise TrainedRunError(
      f"{workdir / CONFIG_FILE} lacks a setting of this version of"
      f" twostream_jax: {printable(str(error))}"
    ) from error
  except _OWN_ERRORS:
    raise
  # Networks and libraries have words of their own for settings that they can't
  # use; these came from a file.
  except Exception as error:
    raise TrainedRunError(
      f"{workdir / CONFIG_FILE} can't be used: {printable(str(error))[:300]}"
    ) from error
  return TrainedRun(
    workdir=workdir,
    config=config,
    name=dataset["name"],
    class_names=tuple(dataset["class_names"]),
    multi_label=dataset["multi_label"],
    flow_spec=spec,
    rgb_quality=dataset.get("rgb_quality"),
    stages=found,
    rules=rules,
  )


def _read_settings(
  workdir: Path,
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """The config and the facts of the dataset that config.json holds."""
  path = workdir / CONFIG_FILE
  if not path.is_file():
    raise TrainedRunError(
      f"no run in {workdir.absolute()}: it has no {CONFIG_FILE}"
    )
  try:
    settings = json_files.read(path)
    config = ml_collections.ConfigDict(_tuples(settings["config"]))
    check_facts(settings["dataset"], path)
    return config.lock(), settings["dataset"]
  except (json_files.JsonError, FlowSpecError) as error:
    raise TrainedRunError(str(error)) from error
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise TrainedRunError(
      f"{path} can't be read: {printable(repr(error))}"
    ) from error


def _tuples(value: Any) -> Any:
  """JSON has no tuples; settings have no lists."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return value


def _open(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  dataset: Mapping[str, Any],
) -> TrainedStage:
  """Opens a stage; see `open_run`."""
  stages.check_kind(config, name)
  step, variables, metadata = _read_checkpoint(config, name, workdir)
  _check_facts(config, name, workdir, dataset, metadata)
  num_classes = len(dataset["class_names"])
  views = frames = None
  feature, sources, statistics = "", (), {}
  if config[name].kind == "features":
    sources = tuple(config[name].sources)
    statistics = {s: _statistics(config, s, workdir) for s in sources}
    preprocess = functools.partial(standardise, statistics=statistics)
  else:
    flow = flow_spec.from_dict(dataset["flow_spec"])
    spec = stage_views.input_spec(config, name, flow)
    views = stage_views.create_views(config, spec)
    dense = stage_data.is_dense(config)
    frames = stage_views.create_frames(config, spec, dense=dense)
    feature = config[name].feature
    preprocess = _preprocess(metadata["inputs"], flow)
  widths = {source: len(mean) for source, (mean, _) in statistics.items()}
  example = _example(views, widths)
  shapes = functools.partial(_shapes, config, name, preprocess, example)
  num_outputs = num_classes
  if config.data.second_dir and config[name].kind != "features":
    num_outputs = _num_outputs(shapes, num_classes, variables)
  _check_shapes(name, workdir, shapes(num_outputs), variables)
  return TrainedStage(
    name=name,
    kind=config[name].kind,
    step=step,
    model=stages.create_model(config, name, num_outputs),
    preprocess=preprocess,
    variables=variables,
    num_classes=num_classes,
    num_outputs=num_outputs,
    views=views,
    frames=frames,
    feature=feature,
    sources=sources,
    example=example,
    protocol=stage_views.protocol(config, name),
  )


def _read_checkpoint(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> tuple[int, dict[str, Any], dict[str, Any]]:
  """Step, variables and metadata of a stage that is trained to its end."""
  directory = workdir / name / "checkpoints"
  found = checkpoints.read_metadata(directory)
  if found is None:
    raise TrainedRunError(
      f"stage {name!r} of {workdir} is not trained: nothing in {directory}"
    )
  with checkpoints.open_reader(directory) as manager:
    newest, step = manager.latest_step(), checkpoints.chosen_step(manager)
    selection = Selection(
      config.selection.metric,
      config.selection.patience,
      logging.read_metrics(workdir / name),
      last_step=newest,
    )
    total = config[name].total_steps
    if newest < total and not selection.is_over():
      raise TrainedRunError(
        f"stage {name!r} of {workdir} is trained to step {newest} of {total};"
        " give the command of the run again to finish it"
      )
    variables = checkpoints.restore_variables(manager)
  # Orbax gives back an empty tree as None.
  return step, {k: v or {} for k, v in variables.items()}, found[1]


def _check_facts(config, name, workdir, dataset, metadata) -> None:
  path = workdir / name / "checkpoints"
  for key in ("class_names", "multi_label"):
    if metadata[key] != dataset[key]:
      raise TrainedRunError(
        f"the {key} of {path} and of {workdir / CONFIG_FILE} differ:"
        f" {metadata[key]} and {dataset[key]}"
      )
  if stage_data.uses_flow(config, name):
    trained, stated = (
      flow_spec.from_dict(facts["flow_spec"]) for facts in (metadata, dataset)
    )
    differing = flow_spec.differences(trained, stated)
    if differing:
      raise FlowSpecError(
        f"{path} was trained on other flow than {workdir / CONFIG_FILE} says:"
        f" {'; '.join(differing)}"
      )


def _statistics(config, source: str, workdir: Path):
  folder = features_path(
    workdir, source, config[source].feature, config.data.train_split
  )
  try:
    found = read_statistics(folder)
  except FeatureError as error:
    raise TrainedRunError(str(error)) from error
  if found is None:
    raise TrainedRunError(
      f"no statistics of the features of {source!r} in {folder}"
    )
  return found


def _preprocess(numbers: Mapping[str, Any], spec: FlowSpec) -> Preprocess:
  """How pixels and motion become numbers, as a checkpoint says.

  A stage of one modality states only its numbers; the others are not used.
  """
  unused = {
    "rgb_mean": (0.0, 0.0, 0.0),
    "rgb_std": (1.0, 1.0, 1.0),
    "flow_bound": spec.bound,
    "flow_scale": 1.0,
    "subtract_mean_flow": False,
  }
  return Preprocess(**unused | {k: _tuples(v) for k, v in numbers.items()})


def _example(
  views: EvalTransform | None, widths: Mapping[str, int]
) -> dict[str, np.ndarray]:
  if views is not None:
    zeros = functools.partial(np.zeros, dtype=np.uint8)
    return views.spec.empty(1, 1, empty=zeros)
  sequence = {k: np.zeros((1, 1, d), np.float32) for k, d in widths.items()}
  return sequence | {"length": np.ones(1, np.int32)}


def _shapes(config, name, preprocess, example, num_outputs: int):
  """Shapes of a network's arrays by path."""
  init = stages.create_model(config, name, num_outputs).init
  rng = jax.random.key(0)
  return _by_path(
    jax.eval_shape(lambda: init(rng, preprocess(example), train=False))
  )


def _by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _num_outputs(shapes, num_classes: int, variables) -> int:
  """Outputs of a network with two heads, by the shapes of its arrays.

  The second dataset, which gave the second head its classes, may be gone.
  """
  fewer, more = shapes(num_classes + 1), shapes(num_classes + 2)
  saved = _by_path(variables)
  for path, shape in fewer.items():
    for axis, sizes in enumerate(zip(shape, more[path], strict=True)):
      if sizes[0] != sizes[1] and len(saved.get(path, ())) > axis:
        return saved[path][axis] - sizes[0] + num_classes + 1
  return num_classes


def _check_shapes(name, workdir, expected, variables) -> None:
  saved = _by_path(variables)
  differing = [
    f"{path}: {saved.get(path, 'not there')} in the checkpoint,"
    f" {expected.get(path, 'not there')} by the settings"
    for path in sorted(expected.keys() | saved.keys())
    if expected.get(path) != saved.get(path)
  ]
  if differing:
    raise TrainedRunError(
      f"the checkpoint of stage {name!r} does not fit {workdir / CONFIG_FILE}:"
      f" {len(differing)} arrays differ, first {differing[0]}"
    )
