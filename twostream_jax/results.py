"""From the scores of all stages to fusion, results.json and the report."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import ml_collections
import numpy as np

import twostream_jax
from twostream_jax import fuse, logging, metrics, report, scores
from twostream_jax.data import dataset as dataset_lib
from twostream_jax.data import input_pipeline
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.flow import spec as flow_spec
from twostream_jax.scores import Scores
from twostream_jax.workdir import scores_path, write_text


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
      note=config.report.note,
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
