"""The report's results: the table, what fusion gained, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twostream_jax.report import choice
from twostream_jax.report.breakdown import Model
from twostream_jax.report.curves import is_number
from twostream_jax.report.templates import render
from twostream_jax.report.wording import Wording
from twostream_jax.scores import Scores

_MAX_SUBSETS = 15
_Metrics = Mapping[str, float]


def best(named: Mapping[str, _Metrics], key: str) -> str | None:
  """The name with the highest metric `key`, the first of equals."""
  known = {k: v for k, v in named.items() if is_number(v.get(key))}
  return max(known, key=lambda name: known[name][key], default=None)


def section(
  results: Mapping[str, Any],
  models: Sequence[Model],
  words: Wording,
  note: str,
) -> str:
  """The section of the results, as HTML.

  Args:
    results: see `ReportData`.
    models: the streams in their order, then the best fusion rule if any.
    words: of the kind of labels.
    note: what a reader should know of the results; may be empty.
  """
  chance, odds = _chance(models[0].scores)
  subsets = results["subsets"]
  return render(
    "results.html",
    lead=_gain_in_words(results, words),
    caution=_caution(results, models, words),
    note=note,
    metrics=list(words.metrics.values()),
    rows=_rows(results, models, words),
    guide=chance[words.first],
    odds=odds,
    chance=[_percent(chance[key]) for key in words.metrics],
    remarks=_sampling(results, models[0].scores) + _left_out(results),
    protocols=_protocols(results["protocols"]),
    subsets=[
      (row["stages"], [_percent(row.get(key)) for key in words.metrics])
      for row in subsets[:_MAX_SUBSETS]
    ],
    shown=f"The best {_MAX_SUBSETS} of {len(subsets)}"
    if len(subsets) > _MAX_SUBSETS
    else f"All {len(subsets)}",
  )


def _percent(value, digits: int = 1) -> str:
  return f"{100 * value:.{digits}f}%" if is_number(value) else "–"


def _rows(
  results: Mapping[str, Any], models: Sequence[Model], words: Wording
) -> list[dict[str, Any]]:
  """The models as rows of the table, with the best of each column marked."""
  everything = [*results["streams"].values(), *results["fusion"].values()]
  top = {
    key: max(
      (m[key] for m in everything if is_number(m.get(key))), default=None
    )
    for key in words.metrics
  }
  styles = {model.name: model.style for model in models}
  rows = []
  for kind, group in (("stream", "streams"), ("fusion", "fusion")):
    intervals = results.get("intervals", {}).get(group, {})
    for name, values in results[group].items():
      ends = intervals.get(name, {})
      # Its name, which comes before what it means.
      protocol, colon, _ = results["protocols"].get(name, "").partition(":")
      share = values.get(words.first)
      rows.append(
        {
          "name": name,
          "kind": f"{kind} · {protocol}" if colon and protocol else kind,
          "style": styles[name] if kind == "stream" else "fused",
          "share": share if is_number(share) else None,
          "ends": _pair(ends.get(words.first)),
          "cells": [
            _cell(values.get(key), top[key], _pair(ends.get(key)))
            for key in words.metrics
          ],
        }
      )
  return rows


def _cell(
  value: Any, top: float | None, ends: Sequence[float] | None
) -> dict[str, Any]:
  """A metric, and in whole per cent its confidence interval."""
  return {
    "text": _percent(value),
    "best": is_number(value) and value == top,
    "ends": ends and "–".join(f"{100 * end:.0f}" for end in ends),
  }


def _pair(ends: Any) -> Sequence[float] | None:
  """The two ends of an interval, if that is what it is."""
  is_pair = isinstance(ends, list | tuple) and len(ends) == 2
  return ends if is_pair and all(map(is_number, ends)) else None


def _protocols(protocols: Mapping[str, str]) -> str:
  """How the clips were tested, in words."""
  shared = stages_by_protocol(protocols)
  return " ".join(
    f"Test protocol{' of ' + ', '.join(names) if len(shared) > 1 else ''}:"
    f" {protocol}."
    for protocol, names in shared.items()
  )


def stages_by_protocol(protocols: Mapping[str, str]) -> dict[str, list[str]]:
  """Names of stages by test protocol, from protocols by name."""
  stages = {}
  for name, protocol in protocols.items():
    stages.setdefault(protocol, []).append(name)
  return stages


def _chance(scores: Scores) -> tuple[dict[str, float], str]:
  """What guessing gives by metric, and the odds in words."""
  n = scores.logits.shape[1]
  if not scores.multi_label:
    chance = {
      "top1": 1 / n,
      "top5": min(5, n) / n,
      "mean_class_accuracy": 1 / n,
    }
    return chance, f"1 of {n}"
  labels = scores.labels.astype(bool)
  shares = labels.mean(axis=0)
  return {
    # Of a class, the precision of any order that knows nothing.
    "map": float(shares[shares > 0].mean()),
    "precision_at_1": float(labels[labels.any(axis=1)].mean()),
  }, "share of labels"


def _sampling(results: Mapping[str, Any], scores: Scores) -> str:
  """How much the numbers depend on which clips were tested."""
  if results.get("intervals"):
    return (
      "Below each number, and as a line on the bar: its 95% confidence interval"
      f" in per cent, for the choice of {len(scores.ids)} test clips"
      f" ({'bootstrap, and Wilson' if scores.multi_label else 'Wilson'}). It"
      " says nothing about another training."
    )
  clips, what = len(scores.ids), "test clips, an accuracy"
  if scores.multi_label:
    clips = int(scores.labels.any(axis=1).sum())
    what = "labelled test clips, precision at 1"
  return (
    f"With {clips} {what} carries a sampling error of up to"
    f" ±{98 / math.sqrt(clips):.1f} points (95%)."
  )


def _left_out(results: Mapping[str, Any]) -> str:
  """What the metrics of a multi-label set do not count."""
  text = ""
  if "left_out" not in results:
    return text
  classes, videos = (results["left_out"][k] for k in ("classes", "videos"))
  if classes:
    text += (
      " Mean average precision leaves out what no test clip shows:"
      f" {', '.join(classes)}."
    )
  if videos:
    text += f" Precision at 1 leaves out clips without any class: {videos}."
  return text


def _gain_in_words(results: Mapping[str, Any], words: Wording) -> str:
  """What fusion gained over the best single stream, or lost."""
  key = words.first
  stream, rule = (best(results[k], key) for k in ("streams", "fusion"))
  if stream is None:
    return f"No stream has a {words.metrics[key]}."
  alone = results["streams"][stream][key]
  if rule is None:
    does = words.verdict.format(_percent(alone))
    return f"The best single stream, {stream}, {does}. No fusion was run."
  together = results["fusion"][rule][key]
  does = words.verdict.format(_percent(together))
  points = f"{abs(100 * (together - alone)):.1f} percentage points"
  if abs(together - alone) < 0.0005:
    verdict = (
      f"Fusion gained nothing: its best rule, {rule}, {does}, as much as the"
      f" best single stream, {stream}"
    )
  elif together > alone:
    verdict = (
      f"Fusion by {rule} {does}, {points} more than the best single stream,"
      f" {stream}"
    )
  else:
    verdict = (
      f"Fusion lost: its best rule, {rule}, {does}, {points} less than the best"
      f" single stream, {stream}"
    )
  return f"{verdict} ({_percent(alone)})."


def _caution(
  results: Mapping[str, Any], models: Sequence[Model], words: Wording
) -> str:
  """How sure the gain is."""
  stream, rule = (best(results[k], words.first) for k in ("streams", "fusion"))
  if stream is None or rule is None:
    return ""
  by_name = {model.name: model for model in models}
  text = _changes(by_name[stream], by_name[rule], words)
  if len(results["fusion"]) > 1:
    text += (
      f" The rule is the best of {len(results['fusion'])} on this very split,"
      " which flatters it a little."
    )
  return text


def _changes(alone: Model, fused: Model, words: Wording) -> str:
  """Which clips fusion changed, and whether chance alone could do that."""
  before, after = choice.right(alone.scores), choice.right(fused.scores)
  won, lost = int((after & ~before).sum()), int((before & ~after).sum())
  # McNemar's test with continuity correction, two-sided at 5%.
  clear = abs(won - lost) - 1 > 1.96 * math.sqrt(won + lost)
  verdict = "more than" if clear else "no more than"
  return (
    f"{words.changes.format(won)} that {alone.name} gets wrong and spoils"
    f" {lost} that {alone.name} gets right: {verdict} chance would explain"
    " (McNemar, 95%)."
  )
