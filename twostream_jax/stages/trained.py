"""Trained stages and finished runs, opened without their dataset.

All that trained weights need stands in the metadata of their checkpoint.
Scores, features, class maps, predictions and exports open a `TrainedStage`;
only training creates a stage from settings.
"""

import dataclasses
import functools
import itertools
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from twostream_jax import checkpoints, files
from twostream_jax.data.dataset import check_facts
from twostream_jax.data.loader.eval_pipeline import (
  EvalTransform,
  FrameTransform,
)
from twostream_jax.files import json_files
from twostream_jax.files.words import printable
from twostream_jax.files.workdir import CONFIG_FILE
from twostream_jax.flow import spec as flow_spec
from twostream_jax.flow.spec import FlowSpec, FlowSpecError
from twostream_jax.scores import Origin, ScoresError
from twostream_jax.stages import (
  create,
  needs,
  stage_views,
  trained_weights,
  warm_start,
)
from twostream_jax.stages.rules import FusionRule, create_rules
from twostream_jax.stages.trained_weights import TrainedRunError

__all__ = [
  "TrainedRun",
  "TrainedRunError",
  "TrainedStage",
  "check_sources",
  "open_run",
  "open_stage",
]

_OWN_ERRORS = (
  TrainedRunError,
  checkpoints.CheckpointError,
  FlowSpecError,
  json_files.JsonError,
)


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
    protocol: Test protocol, as shown beside the run's scores.
    digest: Identity of all weights that its answers rest on: its own, and
      those of the streams whose features it reads.
    metadata: JSON facts that were saved with the weights.
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
  digest: str
  metadata: Mapping[str, Any]


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
      file is missing or does not fit the others; the message names it. So it is
      where rules would be fitted on scores of other weights, another protocol
      or other videos than those of the run.
    CheckpointError: a checkpoint can't be read.
    JsonError: a file of facts can't be used.
    FlowSpecError: checkpoints and settings speak of different flow.
  """
  workdir = Path(workdir)
  config, dataset = _read_settings(workdir)
  try:
    tested = config.copy_and_resolve_references()
    if protocol is not None:
      with config.unlocked():
        config.eval.protocol = protocol
    spec = flow_spec.from_dict(dataset["flow_spec"])
    found = {}
    for name in map(files.name_from_file, config.stages):
      found[name] = open_stage(config, name, workdir)
      _check_facts(config, found[name], workdir, dataset)
    for stage in found.values():
      for source in _began_with(stage):
        if source in found:
          _check_source(stage, found[source], workdir)
    with json_files.told(workdir / CONFIG_FILE):
      videos = dataset.get("digest", {}).get(config.fusion.fit_split, "")
    origins = {
      name: Origin(stage_views.protocol(tested, name), stage.digest, videos)
      for name, stage in found.items()
    }
    rules = create_rules(config, workdir, origins)
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
  try:
    path = files.inside(workdir, CONFIG_FILE)
  except ValueError as error:
    raise TrainedRunError(str(error)) from error
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


def open_stage(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  *,
  step: int | None = None,
  finished: bool = True,
) -> TrainedStage:
  """Opens a trained stage. It only reads.

  Args:
    config: Settings of the run; its test protocol is that of the stage.
    name: Name of the stage.
    workdir: Folder of the run.
    step: Step of another checkpoint than the selected one.
    finished: Whether a half-trained stage is refused.

  Raises:
    TrainedRunError: The stage is not trained to its end, or its weights do not
      fit the settings.
    CheckpointError: A checkpoint can't be read.
    JsonError: The facts that a checkpoint states can't be used.
  """
  create.check_kind(config, name)
  weights = trained_weights.read(
    config, name, workdir, step=step, finished=finished
  )
  facts = weights.metadata
  num_classes = len(facts["class_names"])
  views = frames = None
  feature, sources, widths, rested_on = "", (), {}, []
  flow = flow_spec.from_dict(facts["flow_spec"])
  if config[name].kind == "features":
    sources = tuple(config[name].sources)
    read = _sources(facts, name, workdir)
    with json_files.told(trained_weights.folder(workdir, name)):
      widths = {source: len(read[source]["mean"]) for source in sources}
      rested_on = [str(read[source]["weights"]) for source in sources]
  else:
    spec = stage_views.input_spec(config, name, flow)
    views = stage_views.create_views(config, spec)
    dense = needs.is_dense(config)
    frames = stage_views.create_frames(config, spec, dense=dense)
    feature = config[name].feature
  with json_files.told(trained_weights.folder(workdir, name)):
    preprocess = create.read_preprocess(facts["inputs"], flow.bound)
  example = _example(views, widths)
  num_outputs = facts.get("num_outputs", num_classes)
  expected = _shapes(config, name, preprocess, example, num_outputs)
  _check_shapes(name, workdir, expected, weights.variables)
  return TrainedStage(
    name=name,
    kind=config[name].kind,
    step=weights.step,
    model=create.create_model(config, name, num_outputs),
    preprocess=preprocess,
    variables=weights.variables,
    num_classes=num_classes,
    num_outputs=num_outputs,
    views=views,
    frames=frames,
    feature=feature,
    sources=sources,
    example=example,
    protocol=stage_views.protocol(config, name),
    digest=trained_weights.combined([weights.digest, *rested_on]),
    metadata=facts,
  )


def _sources(
  facts: Mapping[str, Any], name: str, workdir: Path
) -> Mapping[str, Any]:
  """What a checkpoint says of the features that its stage read, by stream."""
  try:
    return facts["inputs"]["sources"]
  except KeyError as error:
    raise TrainedRunError(
      f"the checkpoint of stage {name!r} of {workdir} is of an earlier version,"
      f" which did not write down the features that it read: remove"
      f" {workdir / name} and give the command of the run again"
    ) from error


def check_sources(
  config: ml_collections.ConfigDict, stage: TrainedStage, workdir: Path
) -> None:
  """Refuses a stage whose streams have other weights than it was trained on.

  They are the streams whose features it reads, and the towers of a joint stage.
  Streams without checkpoints are passed over: somebody has removed them.

  Raises:
    TrainedRunError: A stream has been trained again since.
  """
  for source in _began_with(stage):
    if source in config.stages and trained_weights.is_begun(source, workdir):
      _check_source(stage, open_stage(config, source, workdir), workdir)


def _began_with(stage: TrainedStage) -> Mapping[str, str]:
  """Digests of the stages of the run that a stage was trained on, by name."""
  if stage.kind == "features":
    read = stage.metadata["inputs"]["sources"]
    return {name: str(read[name]["weights"]) for name in stage.sources}
  return warm_start.towers_of(stage.metadata)


def _check_source(stage: TrainedStage, source: TrainedStage, workdir) -> None:
  if _began_with(stage)[source.name] == source.digest:
    return
  if stage.kind == "features":
    began = f"was trained on features of {source.name!r} that had other weights"
  else:
    began = f"began with other weights of {source.name!r} than it has now"
  raise TrainedRunError(
    f"stage {stage.name!r} of {workdir} {began}: remove"
    f" {workdir / stage.name} and give the command of the run again"
  )


def _check_facts(config, stage: TrainedStage, workdir, dataset) -> None:
  """Compares a checkpoint with what config.json says of the dataset."""
  path = trained_weights.folder(workdir, stage.name)
  for key in ("class_names", "multi_label"):
    if stage.metadata[key] != dataset[key]:
      raise TrainedRunError(
        f"the {key} of {path} and of {workdir / CONFIG_FILE} differ:"
        f" {_first_difference(stage.metadata[key], dataset[key])}"
      )
  if needs.uses_flow(config, stage.name):
    trained, stated = (
      flow_spec.from_dict(facts["flow_spec"])
      for facts in (stage.metadata, dataset)
    )
    differing = flow_spec.differences(trained, stated)
    if differing:
      raise FlowSpecError(
        f"{path} was trained on other flow than {workdir / CONFIG_FILE} says:"
        f" {'; '.join(differing)}"
      )


def _first_difference(ours: Any, theirs: Any) -> str:
  """Two values that differ, short; of two lists the first different items."""
  if not isinstance(ours, list) or not isinstance(theirs, list):
    return f"{reprlib.repr(ours)} and {reprlib.repr(theirs)}"
  pairs = enumerate(itertools.zip_longest(ours, theirs, fillvalue="nothing"))
  place, pair = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
  return (
    f"{' and '.join(map(reprlib.repr, pair))} at place {place} of"
    f" {len(ours)} and {len(theirs)}"
  )


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
  init = create.create_model(config, name, num_outputs).init
  rng = jax.random.key(0)
  return _by_path(
    jax.eval_shape(lambda: init(rng, preprocess(example), train=False))
  )


def _by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


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
