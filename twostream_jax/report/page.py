"""Assembles the page from its parts."""

import dataclasses
import os

from twostream_jax.report import (
  breakdown,
  confusion,
  curves,
  facts,
  gallery,
  headline,
  plots,
  shell,
)
from twostream_jax.report.breakdown import Model
from twostream_jax.report.facts import SplitFacts
from twostream_jax.report.gallery import Example
from twostream_jax.report.templates import render
from twostream_jax.report.wording import wording
from twostream_jax.scores import Scores, join


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything that a report shows.

  Attributes:
    title: headline.
    results: what `results.json` holds: "dataset", "split", "videos",
      "skipped", "streams" (metrics by stage), "fusion" (metrics by rule, may
      be empty), "protocols" (by stage) and "subsets" ("stages" and their
      average's metrics, best first, may be empty). Metrics are those of
      `metrics.classification_metrics`. Maybe "intervals": "streams" and
      "fusion" again, with [low, high] of each metric. Of a multi-label set also
      "left_out": {"classes" (names), "videos" (how many)}.
    class_names: n names; their order is that of the logits.
    scores: by stream and by fusion rule, with the same video ids. The first
      two streams are taken for appearance and motion, in this order.
    curves: records of `metrics.jsonl` by stage: {"step", "split": "train" or
      "validation", "loss", "accuracy", "map" (of a multi-label set),
      "learning_rate"}.
    examples: clips of the gallery; see `choose_examples`.
    unmapped: why examples have no class activation map, by name of the stage.
    splits: what each split of the data set holds, by name; may be empty.
    rejected: {"video_id", "split", "label", "reason"} of unusable files.
    note: what a reader should know of the results; may be empty.
    notes: short remarks by what they are about.
    config_json: the resolved config, pretty-printed.
    environment: versions and devices by name.
  """

  title: str
  results: dict
  class_names: tuple[str, ...]
  scores: dict[str, Scores]
  curves: dict[str, list[dict]]
  examples: list[Example]
  unmapped: dict[str, str]
  splits: dict[str, SplitFacts]
  rejected: list[dict]
  note: str
  notes: dict[str, str]
  config_json: str
  environment: dict[str, str]


def write_report(path: str | os.PathLike, data: ReportData) -> None:
  """Writes the report of `data`, whole or not at all.

  Raises:
    ValueError: as `render_report`; a file that was there stays as it is.
  """
  shell.write_page(path, render_report(data))


def render_report(data: ReportData) -> str:
  """The report as one HTML page, with nothing to load from elsewhere.

  Raises:
    ValueError: there is no stream; a stream or the best fusion rule has no
      scores; the scores differ in their videos or in the number of classes; an
      example is not among them.
  """
  words = wording(any(s.multi_label for s in data.scores.values()))
  models = _models(data, headline.best(data.results["fusion"], words.first))
  styles = {m.name: m.style for m in models}
  sections = {
    "Results": headline.section(data.results, models, words, data.note),
    "Training": curves.training(data.curves, styles, words.curves),
    "Classes": breakdown.classes(
      models, len(data.results["streams"]), data.class_names
    ),
  }
  if not models[0].scores.multi_label:
    sections["Confusions"] = confusion.confusions(
      models, len(data.results["streams"]), data.class_names
    )
  sections |= {
    "Examples": gallery.gallery(
      data.examples,
      {m.name: m.scores for m in models},
      styles,
      data.class_names,
      data.unmapped,
    ),
    "Data": facts.section(data.splits, data.rejected),
    "About this run": render(
      "about.html",
      notes=data.notes,
      environment=data.environment,
      config_json=data.config_json,
    ),
  }
  known = ("dataset", "split", "videos", "skipped")
  about = [(key.capitalize(), data.results[key]) for key in known]
  return shell.render_page(
    data.title, render("facts.html", facts=about), sections
  )


def _models(data: ReportData, best: str | None) -> list[Model]:
  """The streams in their order, then the best fusion rule if there is one."""
  streams = list(data.results["streams"])
  if not streams:
    raise ValueError("the results hold no stream to report on")
  names = streams + ([best] if best else [])
  missing = [name for name in names if name not in data.scores]
  if missing:
    raise ValueError(f"no scores of {missing}, which the results list")
  joined = join({name: data.scores[name] for name in names})
  n = joined[names[0]].logits.shape[1]
  if n != len(data.class_names):
    raise ValueError(
      f"the scores have {n} classes, but there are {len(data.class_names)}"
      " class names"
    )
  return [
    Model(
      name,
      "fused" if name == best else plots.STYLES[i % len(plots.STYLES)],
      joined[name],
      breakdown.figures_by_class(joined[name]),
    )
    for i, name in enumerate(names)
  ]
