"""The report's training curves: records of `metrics.jsonl` to charts."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from twostream_jax.report import plots
from twostream_jax.report.templates import render

_MAX_POINTS = 200


def is_number(value: object) -> TypeGuard[float]:
  """Whether `value` can be drawn: a real number, neither NaN nor infinite."""
  return isinstance(value, numbers.Real) and math.isfinite(value)


def _value(line: plots.Line, percent: bool) -> str:
  last = line.y[-1]
  return f"{last:.1%}" if percent else f"{last:.3g}"


def training(
  curves: Mapping[str, list[dict]],
  styles: Mapping[str, str],
  titles: Mapping[str, str],
) -> str:
  """Loss and metrics of every stage, as HTML.

  Args:
    curves: records of `metrics.jsonl` by stage; "step" and "split" ("train" or
      "validation") in each, "learning_rate" and what is drawn where known.
    styles: Style sheet classes by stage; a stage that is not a stream (and
      so has no style) is drawn in plain ink.
    titles: of what is drawn, by key: the loss, and metrics in 0..1.
  """
  stages = [
    {"name": stage, "style": styles.get(stage, "fused")}
    | _stage(stage, records, titles)
    for stage, records in curves.items()
  ]
  return render("training.html", stages=[s for s in stages if s["charts"]])


def _curve(records: list[dict], split: str, key: str) -> plots.Line | None:
  """A curve of at most 200 points, means of as many records each."""
  known = sorted(
    (r["step"], r[key])
    for r in records
    if r["split"] == split and is_number(r.get(key))
  )
  if not known:
    return None
  each = math.ceil(len(known) / _MAX_POINTS)
  parts = np.array_split(np.array(known, float), math.ceil(len(known) / each))
  x, y = np.array([part.mean(axis=0) for part in parts]).T
  return plots.Line(split, split, x, y)


def _stage(
  stage: str, records: list[dict], titles: Mapping[str, str]
) -> dict[str, Any]:
  """The charts of a stage, and remarks about its values."""
  charts, remarks = [], []
  for key, title in titles.items():
    percent = key != "loss"
    pair = [_curve(records, split, key) for split in ("train", "validation")]
    lines = [line for line in pair if line is not None]
    if not lines:
      continue
    ends = ", ".join(f"{line.name} {_value(line, percent)}" for line in lines)
    remarks.append(f"final {title.lower()}: {ends}")
    charts.append(
      plots.line_chart(lines, percent=percent)
      | {
        "title": title,
        "description": f"{stage}, {title.lower()} over steps; at the end:"
        f" {ends}",
      }
    )
  if not any(r["split"] == "validation" for r in records):
    remarks.append("no validation was run")
  rates = [
    r["learning_rate"] for r in records if is_number(r.get("learning_rate"))
  ]
  if rates:
    remarks.append(f"learning rate: {max(rates):.3g} to {min(rates):.3g}")
  bad = sum(
    key in r and not is_number(r[key]) for r in records for key in titles
  )
  if bad:
    remarks.append(f"{bad} values are not finite and left out")
  return {"charts": charts, "remarks": remarks}
