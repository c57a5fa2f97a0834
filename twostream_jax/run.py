"""A run: its stages in order, then fusion, results and report.

Whatever is finished is not done again: the newest checkpoint of a stage says
how far it is trained, and a score file that names the run's protocol stands for
its evaluation.
"""

import functools
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import ml_collections
import numpy as np

import twostream_jax
from twostream_jax import (
  evaluate,
  fuse,
  logging,
  metrics,
  parallel,
  report,
  scores,
  stages,
  steps,
  train,
)
from twostream_jax.data import dataset as dataset_lib
from twostream_jax.data import input_pipeline
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.flow import spec as flow_spec
from twostream_jax.scores import Scores

# A change of these does not change what is trained; all else is refused when a
# run is resumed.
FREE_KEYS = (
  "config.data.dir",
  "config.data.build_command",
  "config.data.threads",
  "config.data.test_split",
  "config.data.synthetic",
  "config.train",
  "config.eval",
  "config.fusion",
  "config.report",
)


class ConfigMismatchError(ValueError):
  """The workdir was begun with other settings."""


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
  """
  check_config(config, data, only_stage)
  workdir = Path(workdir)
  write_config(config, data, workdir)
  for name in (only_stage,) if only_stage else config.stages:
    run_stage(config, name, workdir, data)
  if any(
    not scores_path(workdir, name, split).exists()
    for name in config.stages
    for split in splits_to_score(config)
  ):
    return None
  return conclude(config, workdir, data)


def check_config(
  config: ml_collections.ConfigDict, data: VideoDataset, only_stage: str
) -> None:
  """Raises ValueError for settings that do not fit each other or the data."""
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


def write_config(
  config: ml_collections.ConfigDict, data: VideoDataset, workdir: Path
) -> None:
  """Writes config.json, or checks it where the run is resumed.

  Raises:
    ConfigMismatchError: a setting outside `FREE_KEYS` or the dataset differs;
      the message names every such key with both values.
  """
  # Through JSON, so that tuples compare equal to what a file gives back.
  resolved = json.loads(
    json.dumps(
      {
        "config": config.to_dict(),
        "dataset": train.checkpoint_metadata(data)
        | {"clips": {name: len(s) for name, s in data.sources.items()}},
      }
    )
  )
  path = workdir / "config.json"
  if path.exists():
    ours, theirs = _flatten(resolved), _flatten(json.loads(path.read_text()))
    changed = [
      f"  {key}: {theirs.get(key)!r} in the workdir, {ours.get(key)!r} now"
      for key in sorted(ours.keys() | theirs.keys())
      if ours.get(key) != theirs.get(key) and not _is_free(key)
    ]
    if changed:
      raise ConfigMismatchError(
        f"{workdir} was begun with other settings:\n"
        + "\n".join(changed)
        + "\nUse the old settings, or another --workdir."
      )
  write_text(path, json.dumps(resolved, indent=2) + "\n")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _is_free(key: str) -> bool:
  return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def write_text(path: Path, text: str) -> None:
  """Writes a file as a whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def scores_path(workdir: Path, name: str, split: str) -> Path:
  """Where the scores of a stage or a fusion rule are."""
  return workdir / "scores" / f"{name}-{split}.npz"


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
  transform = eval_transform(stage, config)
  protocol = evaluate.protocol(transform)
  missing = [
    split
    for split in splits_to_score(config)
    if not _is_scored(scores_path(workdir, name, split), protocol, data, split)
  ]
  if not missing:
    return
  predict = pmap_predict(stage, config)
  variables = parallel.replicate(
    train.train_stage(stage, data, config, workdir / name, predict)
  )
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
      protocol=protocol,
      description=f"{name}, {split}",
    )
    scores.save_scores(scores_path(workdir, name, split), result)


def _is_scored(path: Path, protocol: str, data, split: str) -> bool:
  if not path.exists():
    return False
  found = scores.load_scores(path)
  return found.protocol == protocol and len(found.ids) == len(
    data.sources[split]
  )


def eval_transform(
  stage: stages.Stage, config: ml_collections.ConfigDict
) -> input_pipeline.EvalTransform:
  """The views of the run's test protocol for a stage."""
  return input_pipeline.EvalTransform(
    spec=stage.transform.spec,
    num_clips=config.eval.num_clips,
    num_crops=config.eval.num_crops,
    crop_fraction=config.eval.crop_fraction,
  )


def pmap_predict(
  stage: stages.Stage, config: ml_collections.ConfigDict
) -> Callable[..., Any]:
  """The stage's predict step, compiled when first called."""
  return parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=config.eval.views_per_pass,
    )
  )


def conclude(
  config: ml_collections.ConfigDict, workdir: Path, data: VideoDataset
) -> dict[str, Any]:
  """Fuses the stages' scores; writes results.json and report.html."""
  test = config.data.test_split
  streams = {
    name: scores.load_scores(scores_path(workdir, name, test))
    for name in config.stages
  }
  fused, weights = fuse_streams(config, workdir, streams)
  for rule, result in fused.items():
    scores.save_scores(scores_path(workdir, rule, test), result)
  first = next(iter(streams.values()))
  results = {
    "dataset": data.name,
    "split": test,
    "protocol": first.protocol,
    "videos": len(first.ids),
    "skipped": sum(entry["split"] == test for entry in data.rejected),
    "streams": {
      name: metrics.classification_metrics(s.logits, s.labels)
      for name, s in streams.items()
    },
    "fusion": {
      rule: metrics.classification_metrics(s.logits, s.labels)
      for rule, s in fused.items()
    },
  }
  write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
  write_report(config, workdir, data, results, streams, fused, weights)
  return results


def fuse_streams(
  config: ml_collections.ConfigDict,
  workdir: Path,
  streams: dict[str, Scores],
) -> tuple[dict[str, Scores], tuple[float, ...]]:
  """Fused scores by rule, and the weights of the weighted rule."""
  if len(streams) < 2:
    return {}, ()
  weights = tuple(config.fusion.weights)
  if config.fusion.fit_on_validation:
    weights = fuse.fit_weights(
      {
        name: scores.load_scores(
          scores_path(workdir, name, config.data.validation_split)
        )
        for name in streams
      }
    )
  fused = {
    "average": fuse.average(streams),
    "weighted": fuse.weighted(streams, weights),
  }
  return fused, weights


def write_report(
  config, workdir, data, results, streams, fused, weights
) -> None:
  """Gathers what the report shows and writes report.html."""
  everything = streams | fused
  best = max(fused or streams, key=lambda k: _top1(everything[k]))
  chosen = report.choose_examples(
    everything,
    fused=best,
    streams=list(streams),
    count=config.report.num_examples,
  )
  position = {v: i for i, v in enumerate(next(iter(streams.values())).ids)}
  source = data.sources[config.data.test_split]
  notes = {"Flow": json.dumps(flow_spec.to_dict(data.flow_spec))}
  if fused:
    origin = (
      f"fitted on {config.data.validation_split!r}"
      if config.fusion.fit_on_validation
      else "from the config"
    )
    shares = ", ".join(
      f"{name} {w:g}" for name, w in zip(streams, weights, strict=True)
    )
    notes["Weights of the weighted fusion"] = f"{shares} ({origin})"
  report.write_report(
    workdir / "report.html",
    report.ReportData(
      title=f"Two-stream classification of {data.name}",
      results=results,
      class_names=data.class_names,
      scores=everything,
      curves={name: logging.read_metrics(workdir / name) for name in streams},
      examples=[example(source[position[v]], data) for v in chosen],
      rejected=list(data.rejected),
      notes=notes,
      config_json=json.dumps(config.to_dict(), indent=2),
      environment=environment(),
    ),
  )


def _top1(result: Scores) -> float:
  return metrics.top_k_accuracy(result.logits, result.labels, 1)


def example(record: Mapping[str, Any], data: VideoDataset) -> report.Example:
  """The middle frame of a video and the flow from there."""
  middle = (int(record["num_frames"]) - data.flow_spec.step) // 2
  codes = dataset_lib.decode_flow_codes(record["flow"][middle])
  return report.Example(
    video_id=input_pipeline.text(record["video_id"]),
    label=int(record["label"]),
    frame=dataset_lib.decode_rgb(record["rgb"][middle]),
    flow=flow_spec.dequantise(codes, data.flow_spec.bound),
  )


def environment() -> dict[str, str]:
  """Versions and devices, for the report."""
  devices = jax.devices()
  return {
    "twostream_jax": twostream_jax.__version__,
    "Python": platform.python_version(),
    "jax": jax.__version__,
    "flax": flax.__version__,
    "numpy": np.__version__,
    "Devices": f"{len(devices)} x {devices[0].device_kind}",
  }


def table(results: Mapping[str, Any]) -> str:
  """The terminal's table of results."""
  rows = results["streams"] | results["fusion"]
  names = list(next(iter(rows.values())))
  width = max(len(row) for row in (*rows, "model"))
  lines = [
    f"{results['dataset']}, {results['split']}: {results['videos']} videos,"
    f" {results['skipped']} skipped",
    results["protocol"],
    "",
    "  ".join([f"{'model':<{width}}"] + [f"{name:>19}" for name in names]),
  ]
  for row, values in rows.items():
    cells = [f"{values[name]:>19.3f}" for name in names]
    lines.append("  ".join([f"{row:<{width}}", *cells]))
  return "\n".join(lines)
