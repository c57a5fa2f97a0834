"""Fuses the score files that the command names; see `__main__`."""

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from twostream_jax import fuse, metrics
from twostream_jax.files import tables
from twostream_jax.files.words import lines, printable
from twostream_jax.files.workdir import write_text
from twostream_jax.fuse.files import common_videos, read_files
from twostream_jax.fuse.tables import read_listing
from twostream_jax.metrics import intervals
from twostream_jax.scores import (
  Scores,
  ScoresError,
  align_classes,
  join,
  save_scores,
)


def fuse_named(
  streams: Mapping[str, Scores],
  rule: str,
  *,
  weights: Sequence[float] = (),
  fitting: Mapping[str, Scores] | None = None,
) -> Scores:
  """Fuses by a rule.

  Args:
    streams: scores by name.
    rule: one that needs no fitting, or a key of `fuse.FITS`.
    weights: one for each stream, for "weighted".
    fitting: scores by the same names, for the rules of `fuse.FITS`.

  Raises:
    ValueError: what the rule needs is missing, or what it does not need is
      there, or `fitting` has videos of `streams`.
  """
  fitted = rule in fuse.FITS
  if bool(fitting) != fitted:
    raise ValueError(
      f"--rule={rule} needs --fit, a file of scores for each of {list(streams)}"
      if fitted
      else f"--fit has no use with --rule={rule}"
    )
  if bool(weights) != (rule == "weighted"):
    raise ValueError(
      f"--weights and --rule=weighted belong together: {list(weights)} and"
      f" --rule={rule}"
    )
  if rule == "average":
    return fuse.average(streams)
  if rule == "average_logits":
    return fuse.average_logits(streams)
  if rule == "weighted":
    return fuse.weighted(streams, weights)
  assert fitting
  seen = {i for scores in fitting.values() for i in scores.ids}
  both = sorted(seen & {i for scores in streams.values() for i in scores.ids})
  if both:
    raise ValueError(
      f"{len(both)} videos are fitted on and scored, such as {both[0]!r}: a"
      " rule that is fitted on the videos it is tested on proves nothing"
    )
  return fuse.apply(fuse.FITS[rule](fitting, split="fitting"), streams)


def evaluate(
  streams: Mapping[str, Scores], fused: Scores, rule: str
) -> dict[str, Any]:
  """What the command writes: metrics of every stream and of the fusion."""
  return {
    "videos": len(fused.ids),
    "protocols": {name: s.protocol for name, s in streams.items()},
    "streams": {name: _measure(name, s) for name, s in streams.items()},
    "fusion": {rule: _measure(rule, fused)},
    "confidence": {
      rule: intervals.metric_intervals(fused.logits, fused.labels),
    },
  }


def _measure(name: str, scores: Scores) -> dict[str, float]:
  try:
    return metrics.classification_metrics(scores.logits, scores.labels)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error


def table(results: Mapping[str, Any]) -> str:
  """The terminal's table of results."""
  rows = results["streams"] | results["fusion"]
  rows = {printable(name): values for name, values in rows.items()}
  names = list(next(iter(rows.values())))
  cells = [
    [row, *(f"{values[name]:.3f}" for name in names)]
    for row, values in rows.items()
  ]
  shown = [tables.columns([["model", *names], *cells], words=1)]
  for rule, bounds in results["confidence"].items():
    name = names[0]
    if name not in bounds:
      continue
    low, high = bounds[name]
    shown.append(
      f"\n{rule}: 95 % confidence of {name} {low:.3f} to {high:.3f}"
      f" ({results['videos']} videos)"
    )
  return "\n".join(shown)


def read_all(
  values: flags.FlagValues, paths: Sequence[str]
) -> tuple[dict[str, Scores], dict[str, Scores]]:
  """Reads the files to fuse, and by the same names those of --fit."""
  if values.fit_ids and not values.fit:
    raise ValueError("--fit_ids has no use without --fit")
  streams = _read(paths, values.ids, "--ids")
  if not values.fit:
    return streams, {}
  if len(values.fit) != len(streams):
    raise ValueError(f"{len(values.fit)} times --fit for {len(streams)} files")
  fitting = _read(values.fit, values.fit_ids, "--fit_ids")
  # Here, where they have their own names.
  fitting = join(fitting)
  of_fit = [f"--fit={name}" for name in fitting]
  aligned = align_classes(
    streams | dict(zip(of_fit, fitting.values(), strict=True))
  )
  fitting = [aligned[name] for name in of_fit]
  return (
    {name: aligned[name] for name in streams},
    dict(zip(streams, fitting, strict=True)),
  )


def doubts(
  streams: Mapping[str, Scores], fitting: Mapping[str, Scores]
) -> list[str]:
  """What the digests of files say against fusing them, in sentences.

  They are no errors: streams may be of datasets of their own, and a rule may
  be fitted on scores of other folds. Files that do not state digests are not
  compared.
  """
  found = [
    f"{name} and the file of --fit for it are scores of different weights: the"
    " rule is fitted on scores of another network than it fuses"
    for name, scores in streams.items()
    if name in fitting and _differ(scores.weights, fitting[name].weights)
  ]
  for named, flag in ((streams, ""), (fitting, "of --fit for ")):
    names = list(named)
    different = [
      name
      for name in names[1:]
      if _differ(named[names[0]].videos, named[name].videos)
    ]
    if different:
      found.append(
        f"the files {flag}{names[0]} and {', '.join(different)} are not of the"
        " same build of the videos: ids and labels agree, images do not"
      )
  return found


def _differ(one: str, other: str) -> bool:
  return "" not in (one, other) and one != other


def _read(
  paths: Sequence[str], listed: str | None, flag: str
) -> dict[str, Scores]:
  """Reads files, the videos of those that do not name them from a list."""
  if not listed:
    return read_files(paths)
  listing = read_listing(Path(listed))
  found = read_files(paths, listing)
  if all(scores.ids != listing.ids for scores in found.values()):
    raise ValueError(f"{flag}={listed} has no use: all files name their videos")
  return found


def run(values: flags.FlagValues, paths: Sequence[str]) -> int:
  """Runs the command; 0, or 1 after an error that stderr explains."""
  try:
    streams, fitting = read_all(values, paths)
    left_out = {}
    if values.common:
      streams, left_out = common_videos(streams)
    for doubt in doubts(streams, fitting):
      warnings.warn(printable(doubt), stacklevel=2)
    fused = fuse_named(
      streams, values.rule, weights=values.weights, fitting=fitting
    )
    results = evaluate(streams, fused, values.rule) | {"left_out": left_out}
    if values.scores:
      save_scores(values.scores, fused)
    if values.out:
      write_text(Path(values.out), json.dumps(results, indent=2) + "\n")
  except (ScoresError, ValueError, OSError) as error:
    print(f"twostream_jax.fuse: {lines(str(error))}", file=sys.stderr)
    return 1
  for name, ids in left_out.items():
    # Ids of other programs may hold codes that a terminal obeys.
    listed = ", ".join(map(printable, ids))
    print(f"Only in {printable(name)}, left out: {listed}")
  print(table(results))
  return 0
