"""Fuses score files, of this project or of others, and says what it gives.

  python -m twostream_jax.fuse spatial-test.npz temporal-test.npz \\
    --rule=weighted --weights=1 --weights=2
  python -m twostream_jax.fuse spatial-test.npz temporal-test.npz \\
    --rule=svm --fit=spatial-validation.npz --fit=temporal-validation.npz

Files are joined by video id. Other programs' scores are read from an .npz file
of plain arrays:

  ids            texts [b], one for each video, as in the other files
  labels         int [b] from 0, or 0 and 1 [b n] of a multi-label set
  logits         float [b n]; or
  probabilities  float [b n] in 0..1
  protocol       a text, may be missing: how the scores came about
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from twostream_jax import fuse, metrics
from twostream_jax.fuse.files import common_videos, named_files, read_files
from twostream_jax.scores import Scores, ScoresError, save_scores
from twostream_jax.workdir import write_text

UNFITTED = ("average", "average_logits", "weighted")


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_enum(
    "rule", "average", [*UNFITTED, *fuse.FITS], "How.", flag_values=values
  )
  flags.DEFINE_multi_float(
    "weights", [], "Of each file, for --rule=weighted.", flag_values=values
  )
  flags.DEFINE_multi_string(
    "fit",
    [],
    "Scores that other rules are fitted on, not of the same videos: a file for"
    " each of the fused ones, in their order.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "common",
    False,
    "Fuse the videos that all files have, and list the others.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "out", None, "Results to write, JSON.", flag_values=values
  )
  flags.DEFINE_string(
    "scores", None, "Fused scores to write, .npz.", flag_values=values
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
    rule: one of UNFITTED or a key of `fuse.FITS`.
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

  def measure(scores):
    return metrics.classification_metrics(scores.logits, scores.labels)

  return {
    "videos": len(fused.ids),
    "protocols": {name: s.protocol for name, s in streams.items()},
    "streams": {name: measure(s) for name, s in streams.items()},
    "fusion": {rule: measure(fused)},
    "confidence": {
      rule: metrics.bootstrap(fused.logits, fused.labels),
    },
  }


def table(results: Mapping[str, Any]) -> str:
  """The terminal's table of results."""
  rows = results["streams"] | results["fusion"]
  names = list(next(iter(rows.values())))
  width = max(map(len, (*rows, "model")))
  lines = ["  ".join([f"{'model':<{width}}"] + [f"{n:>19}" for n in names])]
  for row, values in rows.items():
    cells = [f"{values[name]:>19.3f}" for name in names]
    lines.append("  ".join([f"{row:<{width}}", *cells]))
  for rule, bounds in results["confidence"].items():
    name = names[0]
    low, high = bounds[name]
    lines.append(
      f"\n{rule}: 95 % confidence of {name} {low:.3f} to {high:.3f}"
      f" ({results['videos']} videos, bootstrap)"
    )
  return "\n".join(lines)


def run(values: flags.FlagValues, paths: Sequence[str]) -> int:
  """Runs the command; 0, or 1 after an error that stderr explains."""
  try:
    streams = read_files(paths)
    left_out = {}
    if values.common:
      streams, left_out = common_videos(streams)
    fitting = None
    if values.fit:
      names = named_files(paths)
      if len(values.fit) != len(names):
        raise ValueError(
          f"{len(values.fit)} times --fit for {len(names)} files"
        )
      found = read_files(values.fit)
      fitting = dict(zip(streams, found.values(), strict=True))
    fused = fuse_named(
      streams, values.rule, weights=values.weights, fitting=fitting
    )
    results = evaluate(streams, fused, values.rule) | {"left_out": left_out}
    if values.scores:
      save_scores(values.scores, fused)
    if values.out:
      write_text(Path(values.out), json.dumps(results, indent=2) + "\n")
  except (ScoresError, ValueError, OSError) as error:
    print(f"twostream_jax.fuse: {error}", file=sys.stderr)
    return 1
  for name, ids in left_out.items():
    print(f"Only in {name}, left out: {', '.join(ids)}")
  print(table(results))
  return 0


def main(argv: Sequence[str]) -> int:
  if len(argv) < 3:
    print("twostream_jax.fuse: name at least two score files", file=sys.stderr)
    return 1
  return run(flags.FLAGS, argv[1:])


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
