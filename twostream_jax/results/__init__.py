"""From the scores of all stages to fusion, results.json and the report."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import ml_collections
import numpy as np

import twostream_jax
from twostream_jax import (
  fuse,
  metric_logger,
  metrics,
  report,
  scores,
)
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.data.records import VideoSource
from twostream_jax.files import json_files, tables, words
from twostream_jax.files.workdir import scores_path, write_text
from twostream_jax.flow import spec as flow_spec
from twostream_jax.fuse.weighting import WeightedFusion
from twostream_jax.metrics.intervals import metric_intervals
from twostream_jax.results import gallery
from twostream_jax.scores import Scores
from twostream_jax.stages import needs
from twostream_jax.stages.rules import UNFITTED, create_rules, load_streams

RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"


def check_fusion(config: ml_collections.ConfigDict, data: VideoDataset) -> None:
  """Raises ValueError where the settings of the fusion do not fit."""
  fusion = config.fusion
  rules = (*UNFITTED, *fuse.FITS)
  unknown = [rule for rule in fusion.rules if rule not in rules]
  if unknown:
    raise ValueError(f"config.fusion.rules {unknown} are not in {rules}")
  both = [rule for rule in fusion.rules if rule in config.stages]
  if both:
    raise ValueError(
      f"config.stages and config.fusion.rules both have {both}: scores and"
      " results go by these names; name the stage otherwise"
    )
  fitted = [rule for rule in fusion.rules if rule in fuse.FITS]
  if fitted and not fusion.fit_split:
    raise ValueError(
      f"config.fusion.rules {fitted} need config.fusion.fit_split, the split"
      " whose scores they are fitted on"
    )
  if fusion.fit_split == config.data.test_split:
    raise ValueError(
      f"config.fusion.fit_split={fusion.fit_split!r} is the test split"
    )
  if fusion.fit_split and fusion.fit_split not in data.sources:
    raise ValueError(
      f"config.fusion.fit_split={fusion.fit_split!r}, but the dataset has the"
      f" splits {sorted(data.sources)}"
    )
  if "weighted" in fusion.rules and len(fusion.weights) != len(config.stages):
    raise ValueError(
      f"config.fusion.weights={tuple(fusion.weights)} needs one weight for each"
      f" of the stages {tuple(config.stages)}"
    )
  if "weighted" in fusion.rules and not any(fusion.weights):
    raise ValueError(
      f"config.fusion.weights={tuple(fusion.weights)} must not all be 0"
    )


def conclude(
  config: ml_collections.ConfigDict,
  workdir: Path,
  data: VideoDataset,
  *,
  folder: Path | None = None,
  steps: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """Fuses the stages' scores; writes results.json and report.html.

  Args:
    config: of the run; the test split is the one that is reported.
    workdir: of the run.
    data: the dataset.
    folder: where the scores are, and what is written goes; None: the workdir.
    steps: of the checkpoints that were scored by stage, to be told; None: they
      are those that count.
  """
  folder = folder or workdir
  test = config.data.test_split
  streams = load_streams(config, folder, test)
  fused, weights = fuse_streams(config, folder, streams)
  for rule, result in fused.items():
    scores.save_scores(scores_path(folder, rule, test), result)
  protocols = {name: s.protocol for name, s in streams.items()}
  first = next(iter(streams.values()))
  results = {
    "dataset": data.name,
    "split": test,
    "protocol": "; ".join(dict.fromkeys(protocols.values())),
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
    "intervals": {
      "streams": {name: intervals(s) for name, s in streams.items()},
      "fusion": {rule: intervals(s) for rule, s in fused.items()},
    },
    "protocols": protocols,
    "digests": {
      "weights": {name: s.weights for name, s in streams.items()},
      "videos": first.videos,
    },
    "subsets": subsets(streams),
  }
  if first.multi_label:
    results["left_out"] = left_out(first, data.class_names)
  if steps:
    results["checkpoints"] = dict(steps)
  text = json.dumps(results, indent=2, allow_nan=False)
  write_text(folder / RESULTS_FILE, text + "\n")
  write_report(
    config, workdir, data, results, streams, fused, weights, folder, steps
  )
  return results


def withdraw(folder: Path) -> None:
  """Removes what `conclude` wrote, before scores change that it reports."""
  for file in (RESULTS_FILE, REPORT_FILE):
    (folder / file).unlink(missing_ok=True)


def read_results(workdir: Path) -> dict[str, Any]:
  """What `conclude` wrote.

  Raises:
    JsonError: It can't be read.
  """
  return json_files.read_object(workdir / RESULTS_FILE, finite=True)


def fuse_streams(
  config: ml_collections.ConfigDict,
  workdir: Path,
  streams: dict[str, Scores],
) -> tuple[dict[str, Scores], tuple[float, ...]]:
  """Fused scores by rule, and the fitted weights, if any."""
  if len(streams) < 2:
    return {}, ()
  rules = create_rules(config, workdir)
  fused = {name: rule(streams) for name, rule in rules.items()}
  rule = rules.get("fitted_weights")
  fitted = rule.fitted if rule else None
  is_weighted = isinstance(fitted, WeightedFusion)
  return fused, tuple(fitted.weights) if is_weighted else ()


def intervals(found: Scores) -> dict[str, list[float]]:
  """95 % confidence intervals by metric, [low, high]."""
  bounds = metric_intervals(found.logits, found.labels)
  return {name: list(ends) for name, ends in bounds.items()}


def subsets(streams: dict[str, Scores]) -> list[dict[str, Any]]:
  """The average of every two or more stages, best first.

  A table to read, on the test split: the rule for a new set of videos has to
  be chosen on other scores.
  """
  if len(streams) < 3:
    return []
  return [
    {"stages": list(subset.streams)} | subset.metrics
    for subset in fuse.subset_table(streams)
    if len(subset.streams) > 1
  ]


def left_out(found: Scores, class_names: Sequence[str]) -> dict[str, Any]:
  """What the metrics of a multi-label set do not count.

  Returns:
    "classes": names of those that no video shows, which map leaves out;
    "videos": the number without any class, which precision_at_1 leaves out.
  """
  precision = metrics.mean_average_precision(found.logits, found.labels)
  return {
    "classes": [class_names[i] for i in precision.left_out],
    "videos": int((~found.labels.astype(bool).any(axis=1)).sum()),
  }


def write_report(
  config, workdir, data, results, streams, fused, weights, folder, steps
) -> None:
  """Gathers what the report shows and writes report.html, in `folder`."""
  everything = streams | fused
  rated = results["fusion"] or results["streams"]
  # The first of the metrics: top-1, or mean average precision.
  best = max(rated, key=lambda name: next(iter(rated[name].values())))
  chosen = report.choose_examples(
    everything,
    fused=best,
    streams=list(streams),
    count=config.report.num_examples,
  )
  shown_clips, unmapped = gallery.gather(
    config, workdir, data, chosen, streams, steps
  )
  notes = {"Flow": json.dumps(flow_spec.to_dict(data.flow_spec))}
  shown = {"weighted": (tuple(config.fusion.weights), "from the config")}
  if weights:
    origin = f"fitted on {config.fusion.fit_split!r}"
    shown["fitted_weights"] = (weights, origin)
  for rule, (shares, origin) in shown.items():
    if rule in fused:
      listed = ", ".join(
        f"{name} {w:g}" for name, w in zip(streams, shares, strict=True)
      )
      notes[f"Weights of the fusion {rule!r}"] = f"{listed} ({origin})"
  report.write_report(
    folder / REPORT_FILE,
    report.ReportData(
      title=f"Two-stream classification of {data.name}",
      results=results,
      class_names=data.class_names,
      scores=everything,
      curves={
        name: metric_logger.read_metrics(workdir / name) for name in streams
      },
      examples=shown_clips,
      unmapped=unmapped,
      splits={
        name: split_facts(data.sources[name], len(data.class_names))
        for name in needs.splits(config)
      },
      rejected=list(data.rejected),
      note=config.report.note,
      notes=notes,
      config_json=json.dumps(config.to_dict(), indent=2),
      environment=environment(),
    ),
  )


def split_facts(source: VideoSource, num_classes: int) -> report.SplitFacts:
  """What a split holds, by its index: no record is read."""
  labels = source.labels
  if isinstance(labels, tuple):  # Any number of them a clip.
    none = np.zeros(0, np.int32)
    labels = np.concatenate([none, *(np.unique(clip) for clip in labels)])
  names = source.facts.dtype.names or ()
  facts = {name: source.facts[name] for name in names}
  return report.SplitFacts(np.bincount(labels, minlength=num_classes), **facts)


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
  bounds = results["intervals"]["streams"] | results["intervals"]["fusion"]
  names = list(next(iter(rows.values())))
  rows = {words.printable(row): values for row, values in rows.items()}
  bounds = {words.printable(row): ends for row, ends in bounds.items()}
  cells = [
    [row, *(_cell(values[name], bounds[row].get(name)) for name in names)]
    for row, values in rows.items()
  ]
  lines = [
    f"{words.printable(results['dataset'])},"
    f" {words.printable(results['split'])}:"
    f" {results['videos']} videos, {results['skipped']} skipped",
    *_protocol_lines(results["protocols"]),
    *_checkpoint_lines(results),
    *_left_out_lines(results),
    "in brackets: 95 % confidence over videos",
    "",
    tables.columns([["model", *names], *cells], words=1),
  ]
  return "\n".join(lines)


def _cell(value: float, bounds: Sequence[float] | None) -> str:
  if bounds is None:
    return f"{value:.3f}"
  low, high = bounds
  return f"{value:.3f} ({low:.3f}-{high:.3f})"


def _protocol_lines(protocols: Mapping[str, str]) -> list[str]:
  protocols = {words.printable(name): p for name, p in protocols.items()}
  shared = report.stages_by_protocol(protocols)
  if len(shared) == 1:
    return list(shared)
  return [f"{', '.join(names)}: {text}" for text, names in shared.items()]


def _checkpoint_lines(results: Mapping[str, Any]) -> list[str]:
  steps = results.get("checkpoints", {})
  listed = ", ".join(
    f"{words.printable(name)} {step}" for name, step in steps.items()
  )
  return [f"checkpoints: {listed}"] if steps else []


def _left_out_lines(results: Mapping[str, Any]) -> list[str]:
  left_out = results.get("left_out", {"classes": [], "videos": 0})
  lines = []
  if left_out["classes"]:
    names = ", ".join(map(words.printable, left_out["classes"]))
    lines.append(f"map leaves out classes that no video shows: {names}")
  if left_out["videos"]:
    videos = left_out["videos"]
    lines.append(f"precision_at_1 leaves out videos without a class: {videos}")
  return lines
