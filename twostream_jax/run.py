"""A run: its stages in order, then fusion, results and report.

Whatever is finished is not done again: the newest checkpoint of a stage says
how far it is trained, and a score file that names the run's protocol stands for
its evaluation.
"""

import functools
import os
from pathlib import Path
from typing import Any

import ml_collections

from twostream_jax import (
  checkpoints,
  evaluate,
  parallel,
  results,
  scores,
  stages,
  steps,
  train,
)
from twostream_jax.data import input_pipeline
from twostream_jax.data.dataset import VideoDataset, identity
from twostream_jax.flow import spec as flow_spec
from twostream_jax.workdir import scores_path, write_config


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  data: VideoDataset,
  only_stage: str = "",
) -> dict[str, Any] | None:
  """Trains what is not trained, evaluates, fuses and reports.

  Args:
    config: see configs/default.py.
    workdir: folder of the run; begun, resumed or found finished.
    data: the dataset.
    only_stage: name of the only stage to train and evaluate; "" is all.

  Returns:
    The contents of results.json, or None where the scores of some stage are
    still missing.

  Raises:
    ValueError: a setting is wrong; the message names it.
    ConfigMismatchError: the workdir was begun with other settings.
    FlowSpecError: a stage was trained on flow of another kind.
  """
  check_config(config, data, only_stage)
  workdir = Path(workdir)
  check_trained_flow(config, workdir, data)
  write_config(workdir, {"config": config.to_dict(), "dataset": identity(data)})
  for name in (only_stage,) if only_stage else config.stages:
    run_stage(config, name, workdir, data)
  if any(missing_splits(config, name, workdir, data) for name in config.stages):
    return None
  return results.conclude(config, workdir, data)


def check_config(
  config: ml_collections.ConfigDict, data: VideoDataset, only_stage: str
) -> None:
  """Raises ValueError for settings that do not fit each other or the data."""
  if data.multi_label:
    raise ValueError(
      f"clips of {data.name!r} have any number of labels; streams are trained"
      " on sets with one label a clip"
    )
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
  cadence = config.train
  if cadence.checkpoint_every % cadence.log_every:
    raise ValueError(
      f"config.train.checkpoint_every={cadence.checkpoint_every} must be a"
      f" multiple of log_every={cadence.log_every}: a resumed run then writes"
      " the same records"
    )
  parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
  if config.fusion.fit_on_validation and not config.data.validation_split:
    raise ValueError(
      "config.fusion.fit_on_validation needs config.data.validation_split"
    )
  if len(config.fusion.weights) != len(config.stages):
    raise ValueError(
      f"config.fusion.weights={tuple(config.fusion.weights)} needs one weight"
      f" for each of the stages {config.stages}"
    )
  mirrored = config.eval.num_crops == 10
  for name in config.stages:
    if mirrored and not config[name].input.flip:
      raise ValueError(
        f"config.eval.num_crops=10 mirrors clips, but config.{name}.input.flip"
        " is off: use 5"
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
    spec = stages.create_transform(config[name], data).spec
    found = checkpoints.read_metadata(workdir / name / "checkpoints")
    if "flow" not in spec.modalities or not found:
      continue
    path, metadata = found
    try:
      trained = flow_spec.from_dict(metadata["flow_spec"])
    except flow_spec.FlowSpecError as error:
      raise flow_spec.FlowSpecError(f"checkpoint {path}: {error}") from error
    flow_spec.require_equal(
      trained, data.flow_spec, model=str(path), dataset=str(data.path)
    )


def splits_to_score(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The test split, and validation where fusion is fitted on it."""
  if config.fusion.fit_on_validation:
    return (config.data.validation_split, config.data.test_split)
  return (config.data.test_split,)


def run_stage(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
) -> None:
  """Trains a stage and writes its scores, as far as they are missing."""
  stage = stages.create_stage(config, name, data)
  missing = missing_splits(config, name, workdir, data)
  if not missing:
    return
  predict = parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=config.eval.views_per_pass,
    )
  )
  variables = parallel.replicate(
    train.train_stage(stage, data, config, workdir / name, predict)
  )
  transform = create_eval_transform(config, name, data)
  for split in missing:
    source = data.sources[split]
    result = evaluate.evaluate(
      predict,
      variables,
      input_pipeline.eval_batches(
        source,
        transform,
        batch_size=config.eval.batch_size,
        threads=config.data.threads,
      ),
      num_videos=len(source),
      protocol=evaluate.protocol(transform),
      description=f"{name}, {split}",
    )
    scores.save_scores(scores_path(workdir, name, split), result)


def missing_splits(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  data: VideoDataset,
) -> list[str]:
  """Splits without this stage's scores under the run's test protocol."""
  protocol = evaluate.protocol(create_eval_transform(config, name, data))

  def is_scored(split):
    path = scores_path(workdir, name, split)
    if not path.exists():
      return False
    found = scores.load_scores(path)
    return (found.protocol, len(found.ids)) == (
      protocol,
      len(data.sources[split]),
    )

  return [split for split in splits_to_score(config) if not is_scored(split)]


def create_eval_transform(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> input_pipeline.EvalTransform:
  """The views of the run's test protocol for a stage."""
  return input_pipeline.EvalTransform(
    spec=stages.create_transform(config[name], data).spec,
    num_clips=config.eval.num_clips,
    num_crops=config.eval.num_crops,
    crop_fraction=config.eval.crop_fraction,
  )
