"""A run: its stages in order, then fusion, results and report.

Whatever is finished is not done again: the newest checkpoint of a stage says
how far it is trained, and a score file is used where it names the protocol of
the run and the digests of the weights and of the split.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from twostream_jax import (
  checkpoints,
  evaluate,
  parallel,
  results,
  scores,
  steps,
  train,
)
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.data.loader import protocols
from twostream_jax.data.loader.features import read_features, write_features
from twostream_jax.experiment.only_run import only_run
from twostream_jax.files.workdir import (
  ConfigMismatchError,
  check_config_file,
  features_path,
  is_written,
  scores_path,
  write_config,
)
from twostream_jax.flow import spec as flow_spec
from twostream_jax.selection import Selection
from twostream_jax.stages import (
  create,
  effects,
  inputs,
  needs,
  settings,
  stage_views,
  trained,
  trained_weights,
  warm_start,
)
from twostream_jax.stages.trained import TrainedStage


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
    InUseError: another command runs in the workdir.
    Interrupted: the run was asked to end; what is done is saved.
  """
  workdir = Path(workdir)
  check_config(config, data, workdir, only_stage)
  with only_run(workdir):
    return _run_stages(config, workdir, data, only_stage, watch)


def _run_stages(
  config, workdir, data, only_stage, watch
) -> dict[str, Any] | None:
  """As `train_and_evaluate`, in a workdir that no other command writes into."""
  begun_with = needs.run_facts(config, data)
  check_trained_data(config, workdir, data, begun_with)
  check_config_file(workdir, begun_with)
  # No process writes before all have looked.
  parallel.barrier("settings")
  if parallel.is_primary():
    if not is_written(workdir, begun_with):
      results.withdraw(workdir)  # They are of the settings before.
    write_config(workdir, begun_with)
  names = (only_stage,) if only_stage else config.stages
  for name in names:
    run_stage(config, name, workdir, data, watch)
  others = [name for name in config.stages if name not in names]
  if not all(is_scored(config, name, workdir, data) for name in others):
    _withdraw_results(workdir)
    return None
  if parallel.is_primary():
    results.conclude(config, workdir, data)
  parallel.barrier("results")
  return results.read_results(workdir)


def check_config(
  config: ml_collections.ConfigDict,
  data: VideoDataset,
  workdir: Path,
  only_stage: str = "",
) -> None:
  """Raises ValueError for settings that do not fit each other or the data.

  Files of weights have to be there only where a stage is not begun.
  """
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
  needs.check_groups(config, data)
  for name in config.stages:
    create.check_kind(config, name)
    effects.check_effects(config, name)
    weights = (
      "" if config[name].kind == "features" else config[name].init.weights
    )
    begun = trained_weights.is_begun(name, workdir)
    if weights and not begun and not Path(weights).is_file():
      raise ValueError(
        f"config.{name}.init.weights={weights!r} is not a file; make it with"
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


def check_trained_data(
  config: ml_collections.ConfigDict,
  workdir: Path,
  data: VideoDataset,
  facts: Mapping[str, Any],
) -> None:
  """Refuses datasets that are not what the checkpoints were trained on.

  The checkpoints themselves are compared, because config.json may be lost or
  edited: those of all stages, also where only their scores are still needed.

  Args:
    config: Settings of the run.
    workdir: Folder of the run.
    data: The dataset.
    facts: Of the run, see `needs.run_facts`.

  Raises:
    FlowSpecError: Flow is of another kind; it names the differences.
    ConfigMismatchError: The training split of the dataset, or of the second
      one, has other videos, labels or images.
  """
  for name in config.stages:
    found = checkpoints.read_metadata(trained_weights.folder(workdir, name))
    if not found:
      continue
    path, metadata = found
    split = config.data.train_split
    _check_digest(path, metadata, facts["dataset"], split, data.path)
    # Networks of features have none, and earlier versions did not write it.
    second = metadata.get("second_dataset")
    if second is not None and "second_dataset" in facts:
      where = config.data.second_dir
      _check_digest(path, second, facts["second_dataset"], split, where)
    if not needs.uses_flow(config, name):
      continue
    try:
      trained = flow_spec.from_dict(metadata["flow_spec"])
    except flow_spec.FlowSpecError as error:
      raise flow_spec.FlowSpecError(f"checkpoint {path}: {error}") from error
    flow_spec.require_equal(
      trained, data.flow_spec, model=str(path), dataset=str(data.path)
    )


def _check_digest(path, trained, now, split, where) -> None:
  """Compares a split by two identities of a dataset; see `identity`."""
  # Earlier versions did not write it down.
  digest = trained.get("digest", {}).get(split)
  if digest not in (None, now["digest"].get(split)):
    raise ConfigMismatchError(
      f"checkpoint {path} was trained on other videos, labels or images than"
      f" split {split!r} of {where} has: the dataset was built again. Use"
      " the old dataset, or another --workdir."
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


def run_stage(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
  watch: train.Watch,
) -> None:
  """Trains a stage and writes its scores, as far as they are missing."""
  if not trained_weights.is_finished(config, name, workdir):
    begun = trained_weights.is_begun(name, workdir)
    if not begun and is_scored(config, name, workdir, data):
      return  # Somebody has removed its checkpoints.
    if begun:
      warm_start.check_resumed(config, name, workdir)
    _withdraw_results(workdir)
    compute_features(config, name, workdir, data, watch)
    stage = create.create_stage(config, name, data, workdir)
    predict = create_predict(config, stage, len(data.class_names))
    train.train_stage(stage, data, config, workdir / name, predict, watch)
  else:
    checkpoints.finish_removals(
      trained_weights.folder(workdir, name), keep=config.train.keep_checkpoints
    )
  stage = trained.open_stage(config, name, workdir)
  trained.check_sources(config, stage, workdir)
  missing = missing_splits(config, stage, workdir, data)
  if missing:
    _withdraw_results(workdir)
    compute_features(config, name, workdir, data, watch)
    score_splits(config, stage, data, missing, workdir, workdir, watch)


def _withdraw_results(workdir: Path) -> None:
  """Removes results of scores that are about to be others, or are not there."""
  if parallel.is_primary():
    results.withdraw(workdir)


def create_predict(
  config: ml_collections.ConfigDict,
  stage: create.Stage | TrainedStage,
  num_classes: int,
) -> Callable[..., Any]:
  """The pmapped predict step of a stage."""
  return parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=config.eval.views_per_pass,
      num_classes=num_classes,
    )
  )


def score_splits(
  config: ml_collections.ConfigDict,
  stage: TrainedStage,
  data: VideoDataset,
  splits: Sequence[str],
  workdir: Path,
  folder: Path,
  watch: train.Watch,
) -> None:
  """Scores splits by a trained stage of `workdir`; into `folder`/scores."""
  batches = inputs.create_inputs(config, stage.name, data, workdir)
  predict = create_predict(config, stage, stage.num_classes)
  variables = parallel.replicate(stage.variables)
  for split in splits:
    result = evaluate.evaluate(
      predict,
      variables,
      batches.eval_rows(split, **train.eval_part(config.eval.views_per_pass)),
      protocol=stage.protocol,
      description=f"{stage.name}, {split}",
      should_stop=watch.should_stop,
    )
    if parallel.is_primary():
      result = dataclasses.replace(
        result,
        class_names=tuple(data.class_names),
        weights=stage.digest,
        videos=data.sources[split].digest,
      )
      scores.save_scores(scores_path(folder, stage.name, split), result)
    parallel.barrier(f"scores of {stage.name}, {split}")


def is_scored(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
) -> bool:
  """Whether a stage has its scores of all splits that need them.

  Where its checkpoints were removed, nothing is left to tell what weights the
  scores are of, and they are taken as they are.
  """
  if not trained_weights.is_begun(name, workdir):
    origin = scores.Origin(stage_views.protocol(config, name))
    return not _missing(config, name, workdir, data, origin)
  if not trained_weights.is_finished(config, name, workdir):
    return False
  stage = trained.open_stage(config, name, workdir)
  return not missing_splits(config, stage, workdir, data)


def missing_splits(
  config: ml_collections.ConfigDict,
  stage: TrainedStage,
  workdir: Path,
  data: VideoDataset,
) -> list[str]:
  """Splits without scores by these weights under the run's test protocol."""
  origin = scores.Origin(stage.protocol, stage.digest)
  return _missing(config, stage.name, workdir, data, origin)


def _missing(config, name, workdir, data, origin: scores.Origin) -> list[str]:
  def is_there(split):
    path = scores_path(workdir, name, split)
    if not path.exists():
      return False
    of_split = origin._replace(videos=data.sources[split].digest)
    return not scores.difference(scores.load_scores(path), of_split)

  return [s for s in needs.splits_to_score(config) if not is_there(s)]


def compute_features(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
  watch: train.Watch,
) -> None:
  """Stores the features that a stage reads, as far as they are missing.

  Raises:
    TrainedRunError: A stream that it reads is not trained to its end.
    InUseError: Another command computes the same.
  """
  if config[name].kind != "features":
    return
  wanted = [(split, False) for split in needs.splits(config)]
  if needs.is_dense(config):
    wanted += [(split, True) for split in needs.splits_to_score(config)]
  for source in config[name].sources:
    stage = trained.open_stage(config, source, workdir)
    missing = []
    for split, dense in wanted:
      path = features_path(workdir, source, stage.feature, split, dense)
      found = read_features(path)
      facts = {
        "description": describe_features(config, source, dense),
        "weights": stage.digest,
        "videos": data.sources[split].digest,
      }
      if found is None or any(getattr(found, k) != facts[k] for k in facts):
        missing.append((split, dense, path, facts))
    if not missing:
      continue
    batches = inputs.create_video_inputs(config, source, data)
    predict = parallel.pmap_predict_step(
      functools.partial(
        steps.feature_step,
        model=stage.model,
        preprocess=stage.preprocess,
        views_per_pass=config.eval.views_per_pass,
        feature=stage.feature,
      )
    )
    variables = parallel.replicate(stage.variables)
    for split, dense, path, facts in missing:
      rows = batches.frame_rows(
        split, dense=dense, **train.eval_part(config.eval.views_per_pass)
      )
      extracted = evaluate.extract(
        predict,
        variables,
        rows,
        description=f"{source} {stage.feature}, {split}",
        should_stop=watch.should_stop,
      )
      # An evaluation beside a training may need the same.
      with only_run(path.parent):
        if parallel.is_primary():
          write_features(
            path, extracted, num_sequences=int(rows.counts.sum()), **facts
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
    f" {'dense, ' * dense}{views}"
  )
