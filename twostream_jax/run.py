"""A run: its stages in order, then fusion, results and report.

Whatever is finished is not done again: the newest checkpoint of a stage says
how far it is trained, and a score file that names the run's protocol stands for
its evaluation.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from twostream_jax import (
  checkpoints,
  effects,
  evaluate,
  parallel,
  results,
  scores,
  settings,
  stage_data,
  stage_views,
  stages,
  steps,
  train,
)
from twostream_jax.data import protocols
from twostream_jax.data.dataset import VideoDataset, identity
from twostream_jax.data.features import read_features, write_features
from twostream_jax.flow import spec as flow_spec
from twostream_jax.selection import Selection
from twostream_jax.workdir import (
  check_config_file,
  features_path,
  scores_path,
  write_config,
)


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  data: VideoDataset,
  only_stage: str = "",
  watch: train.Watch = train.Watch(),  # noqa: B008, it is frozen
) -> dict[str, Any] | None:
  """Trains what is not trained, evaluates, fuses and reports.

  Args:
    config: see configs/default.py.
    workdir: folder of the run; begun, resumed or found finished.
    data: the dataset.
    only_stage: name of the only stage to train and evaluate; "" is all.
    watch: how the run is watched.

  Returns:
    The contents of results.json, or None where the scores of some stage are
    still missing.

  Raises:
    ValueError: a setting is wrong; the message names it.
    ConfigMismatchError: the workdir was begun with other settings.
    FlowSpecError: a stage was trained on flow of another kind.
    Interrupted: the run was asked to end; what is done is saved.
  """
  check_config(config, data, only_stage)
  workdir = Path(workdir)
  check_trained_flow(config, workdir, data)
  begun_with = {"config": config.to_dict(), "dataset": identity(data)}
  check_config_file(workdir, begun_with)
  # Nobody writes before all have looked.
  parallel.barrier("settings")
  if parallel.is_primary():
    write_config(workdir, begun_with)
  for name in (only_stage,) if only_stage else config.stages:
    if any(missing_splits(config, name, workdir, data)):
      compute_features(config, name, workdir, data, watch)
      run_stage(config, name, workdir, data, watch)
  if any(missing_splits(config, name, workdir, data) for name in config.stages):
    return None
  if parallel.is_primary():
    results.conclude(config, workdir, data)
  parallel.barrier("results")
  return results.read_results(workdir)


def check_config(
  config: ml_collections.ConfigDict, data: VideoDataset, only_stage: str
) -> None:
  """Raises ValueError for settings that do not fit each other or the data."""
  settings.check_numbers(config)
  if not config.stages:
    raise ValueError("config.stages names no stage")
  for name in config.stages:
    if name not in config:
      raise ValueError(
        f"config.stages names {name!r}, but config.{name} is not"
      )
  if only_stage and only_stage not in config.stages:
    raise ValueError(f"--stage={only_stage} is not one of {config.stages}")
  for key in ("train_split", "validation_split", "test_split"):
    split = config.data[key]
    if split not in data.sources and (split or key != "validation_split"):
      raise ValueError(
        f"config.data.{key}={split!r}, but the dataset has the splits"
        f" {sorted(data.sources)}"
      )
  check_selection(config)
  protocol = protocols.parse(config.eval.protocol)
  results.check_fusion(config, data)
  stage_data.check_groups(config, data)
  for name in config.stages:
    stages.check_kind(config, name)
    effects.check_effects(config, name)
    weights = (
      "" if config[name].kind == "features" else config[name].init.weights
    )
    if weights and not Path(weights).is_file():
      raise ValueError(
        f"config.{name}.init.weights={weights!r} is no file; make it with"
        " data_prep/convert_weights.py, or name another"
      )
    if config[name].kind == "features":
      continue
    if protocol.num_crops == 10 and not config[name].input.flip:
      raise ValueError(
        f"config.eval.protocol={protocol.name!r} mirrors clips, but"
        f" config.{name}.input.flip is off: use"
        f" '{protocol.num_windows}x5'"
      )


def check_trained_flow(
  config: ml_collections.ConfigDict, workdir: Path, data: VideoDataset
) -> None:
  """Refuses a dataset whose flow is not what the checkpoints were trained on.

  The checkpoints speak for themselves, for config.json may be lost or edited.
  Those of all stages are asked, also where only their scores are still needed.

  Raises:
    FlowSpecError: it names the checkpoint, the dataset and the differences.
  """
  for name in config.stages:
    found = checkpoints.read_metadata(workdir / name / "checkpoints")
    if not found or not stage_data.uses_flow(config, name):
      continue
    path, metadata = found
    try:
      trained = flow_spec.from_dict(metadata["flow_spec"])
    except flow_spec.FlowSpecError as error:
      raise flow_spec.FlowSpecError(f"checkpoint {path}: {error}") from error
    flow_spec.require_equal(
      trained, data.flow_spec, model=str(path), dataset=str(data.path)
    )


def check_selection(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError where the choice of a checkpoint can't work."""
  metric = config.selection.metric
  Selection(metric, config.selection.patience)
  if not metric:
    return
  if not config.data.validation_split:
    raise ValueError(
      f"config.selection.metric={metric!r} needs config.data.validation_split"
    )
  cadence = config.train
  if cadence.checkpoint_every % cadence.validate_every:
    raise ValueError(
      f"config.train.checkpoint_every={cadence.checkpoint_every} must be a"
      f" multiple of validate_every={cadence.validate_every}, so that every"
      " checkpoint has the metric that config.selection names"
    )


def run_stage(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
  watch: train.Watch,
) -> None:
  """Trains a stage and writes its scores, as far as they are missing."""
  stage = stages.create_stage(config, name, data, workdir)
  predict = create_predict(config, stage, data)
  variables = parallel.replicate(
    train.train_stage(stage, data, config, workdir / name, predict, watch)
  )
  for split in missing_splits(config, name, workdir, data):
    write_scores(config, stage, data, split, workdir, predict, variables, watch)


def create_predict(
  config: ml_collections.ConfigDict, stage: stages.Stage, data: VideoDataset
) -> Callable[..., Any]:
  """The pmapped predict step of a stage."""
  return parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=config.eval.views_per_pass,
      num_classes=len(data.class_names),
    )
  )


def write_scores(
  config: ml_collections.ConfigDict,
  stage: stages.Stage,
  data: VideoDataset,
  split: str,
  folder: Path,
  predict: Callable[..., Any],
  variables: Any,
  watch: train.Watch,
) -> None:
  """Scores a split by a stage's replicated variables; into `folder`/scores."""
  result = evaluate.evaluate(
    predict,
    variables,
    stage.inputs.eval_rows(
      split, **train.eval_part(config.eval.views_per_pass)
    ),
    protocol=stage.inputs.protocol(),
    description=f"{stage.name}, {split}",
    should_stop=watch.should_stop,
  )
  if parallel.is_primary():
    result = dataclasses.replace(result, class_names=tuple(data.class_names))
    scores.save_scores(scores_path(folder, stage.name, split), result)
  parallel.barrier(f"scores of {stage.name}, {split}")


def missing_splits(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
) -> list[str]:
  """Splits without this stage's scores under the run's test protocol."""
  protocol = stage_views.protocol(config, name)

  def is_scored(split):
    path = scores_path(workdir, name, split)
    if not path.exists():
      return False
    found = scores.load_scores(path)
    return (found.protocol, len(found.ids)) == (
      protocol,
      len(data.sources[split]),
    )

  return [
    split
    for split in stage_data.splits_to_score(config)
    if not is_scored(split)
  ]


def compute_features(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
  watch: train.Watch,
) -> None:
  """Stores the features that a stage reads, as far as they are missing."""
  if config[name].kind != "features":
    return
  wanted = [(split, False) for split in stage_data.splits(config)]
  if stage_data.is_dense(config):
    wanted += [(split, True) for split in stage_data.splits_to_score(config)]
  for source in config[name].sources:
    feature = config[source].feature
    missing = []
    for split, dense in wanted:
      path = features_path(workdir, source, feature, split, dense)
      found = read_features(path)
      description = describe_features(config, source, dense)
      if found is None or found.description != description:
        missing.append((split, dense, path, description))
    if not missing:
      continue
    stage = stages.create_stage(config, source, data, workdir)
    predict = parallel.pmap_predict_step(
      functools.partial(
        steps.feature_step,
        model=stage.model,
        preprocess=stage.preprocess,
        views_per_pass=config.eval.views_per_pass,
        feature=feature,
      )
    )
    with checkpoints.open_manager(
      workdir / source / "checkpoints", keep=config.train.keep_checkpoints
    ) as manager:
      variables = parallel.replicate(checkpoints.restore_variables(manager))
    for split, dense, path, description in missing:
      rows = stage.inputs.frame_rows(
        split, dense=dense, **train.eval_part(config.eval.views_per_pass)
      )
      extracted = evaluate.extract(
        predict,
        variables,
        rows,
        description=f"{source} {feature}, {split}",
        should_stop=watch.should_stop,
      )
      if parallel.is_primary():
        write_features(
          path,
          extracted,
          num_sequences=int(rows.counts.sum()),
          description=description,
        )
      else:
        for _ in extracted:  # Its part of what the primary process writes.
          pass
      parallel.barrier(f"features of {source}, {split}, {dense}")


def describe_features(
  config: ml_collections.ConfigDict, source: str, dense: bool = False
) -> str:
  """What stored features are of; they are computed again where it changes."""
  views = protocols.SINGLE.describe(
    config.features.crop_fraction, config[source].input.image_size
  )
  return (
    f"{source} {config[source].feature}, {config.features.num_frames} frames,"
    f" step {config[source].total_steps}, {'dense, ' * dense}{views}"
  )
