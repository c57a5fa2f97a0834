"""Assembles the page: headline, table, words, and the parts beside it."""

import dataclasses
import html
import math
import os

from twostream_jax import metrics
from twostream_jax.report import breakdown, curves, gallery, plots, shell
from twostream_jax.report.breakdown import Model
from twostream_jax.report.curves import is_number
from twostream_jax.report.gallery import Example
from twostream_jax.scores import Scores, join

_METRICS = {
  "top1": "Top-1",
  "top5": "Top-5",
  "mean_class_accuracy": "Mean class accuracy",
}
_STREAM_STYLES = tuple(style for style in plots.MARKERS if style != "fused")
_esc = html.escape


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything that a report shows.

  Attributes:
    title: headline.
    results: what `results.json` holds: "dataset", "split", "protocol",
      "videos", "skipped", "streams" (metrics by stage) and "fusion" (metrics
      by rule, may be empty); metrics are top1, top5 and mean_class_accuracy
      in 0..1.
    class_names: n names; their order is that of the logits.
    scores: by stream and by fusion rule, with the same video ids. The first
      two streams are taken for appearance and motion, in this order.
    curves: records of `metrics.jsonl` by stage: {"step", "split": "train" or
      "validation", "loss", "accuracy", "learning_rate"}.
    examples: clips of the gallery; see `choose_examples`.
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
  models = _models(data)
  sections = {
    "Results": _results(data, models),
    "Training": curves.training(data.curves, {m.name: m.style for m in models}),
    "Classes": breakdown.classes(
      models, len(data.results["streams"]), data.class_names
    ),
    "Confusions": breakdown.confusions(models, data.class_names),
    "Examples": gallery.gallery(
      data.examples,
      {m.name: m.scores for m in models},
      {m.name: m.style for m in models},
      data.class_names,
    ),
    "Rejected files": shell.rejected_files(data.rejected),
    "About this run": _about(data),
  }
  return shell.render_page(data.title, _facts(data.results), sections)


def _best(named: dict[str, dict]) -> str | None:
  """The name with the highest top-1, the first of equals."""
  known = {k: v for k, v in named.items() if is_number(v.get("top1"))}
  return max(known, key=lambda name: known[name]["top1"], default=None)


def _percent(value, digits: int = 1) -> str:
  return f"{100 * value:.{digits}f}%" if is_number(value) else "–"


def _models(data: ReportData) -> list[Model]:
  """The streams in their order, then the best fusion rule if there is one."""
  streams = list(data.results["streams"])
  if not streams:
    raise ValueError("the results hold no stream to report on")
  best = _best(data.results["fusion"])
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
      "fused" if name == best else _style(i),
      joined[name],
      metrics.confusion_matrix(joined[name].logits, joined[name].labels, n),
    )
    for i, name in enumerate(names)
  ]


def _style(i: int) -> str:
  return _STREAM_STYLES[i % len(_STREAM_STYLES)]


def _facts(results: dict) -> str:
  names = ("dataset", "split", "videos", "skipped", "protocol")
  return shell.definitions((name.capitalize(), results[name]) for name in names)


def _results(data: ReportData, models: list[Model]) -> str:
  streams, fusion = data.results["streams"], data.results["fusion"]
  n = len(data.class_names)
  everything = [*streams.values(), *fusion.values()]
  top = {
    key: max(
      (m[key] for m in everything if is_number(m.get(key))), default=None
    )
    for key in _METRICS
  }
  rows = [
    _result_row(name, "stream", _style(i), values, top, 1 / n)
    for i, (name, values) in enumerate(streams.items())
  ] + [
    _result_row(name, "fusion", "fused", values, top, 1 / n)
    for name, values in fusion.items()
  ]
  chance = {"top1": 1 / n, "top5": min(5, n) / n, "mean_class_accuracy": 1 / n}
  cells = "".join(f"<td>{_percent(chance[key])}</td>" for key in _METRICS)
  heads = "".join(f'<th scope="col">{name}</th>' for name in _METRICS.values())
  note = f'<p class="note">{_esc(data.note)}</p>' if data.note else ""
  return (
    f'<p class="lead">{_esc(_gain_in_words(data.results))}</p>'
    f'<p class="note">{_esc(_caution(data.results, models))}</p>'
    f"{note}"
    '<div class="scroll"><table class="results"><thead><tr><th scope="col">'
    f'Model</th><th scope="col"><span class="hidden">Top-1 as a bar</span></th>'
    f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody><tfoot><tr>"
    f'<th scope="row">Chance <small>1 of {n}</small></th><td></td>{cells}</tr>'
    "</tfoot></table></div>"
    f'<p class="note">★ the best of its column. {_uncertainty(models[0])}</p>'
  )


def _result_row(
  name: str, kind: str, style: str, values: dict, top: dict, chance: float
) -> str:
  cells = ""
  for key in _METRICS:
    value = values.get(key)
    if is_number(value) and value == top[key]:
      cells += (
        '<td class="best"><span class="hidden">best: </span><b>'
        f'{_percent(value)}</b><span aria-hidden="true">★</span></td>'
      )
    else:
      cells += f"<td>{_percent(value)}</td>"
  top1 = values["top1"] if is_number(values.get("top1")) else math.nan
  return (
    f'<tr><th scope="row">{plots.marker(style)} {_esc(name)}'
    f" <small>{kind}</small></th>"
    f"<td>{plots.bar(top1, style, chance)}</td>{cells}</tr>"
  )


def _uncertainty(model: Model) -> str:
  videos = len(model.scores.ids)
  return (
    f"With {videos} test clips, an accuracy carries a sampling error of up to"
    f" ±{98 / math.sqrt(videos):.1f} points (95%)."
  )


def _gain_in_words(results: dict) -> str:
  """What fusion gained over the best single stream, or lost."""
  best_stream, best_rule = _best(results["streams"]), _best(results["fusion"])
  if best_stream is None:
    return "No stream has a top-1 accuracy."
  alone = results["streams"][best_stream]["top1"]
  if best_rule is None:
    return (
      f"The best single stream, {best_stream}, is right on {_percent(alone)} of"
      " the test clips. No fusion was run."
    )
  together = results["fusion"][best_rule]["top1"]
  points = f"{abs(100 * (together - alone)):.1f} percentage points"
  if abs(together - alone) < 0.0005:
    verdict = (
      f"Fusion gained nothing: its best rule, {best_rule}, is right on"
      f" {_percent(together)} of the test clips, as much as the best single"
      f" stream, {best_stream}"
    )
  elif together > alone:
    verdict = (
      f"Fusion by {best_rule} is right on {_percent(together)} of the test"
      f" clips, {points} more than the best single stream, {best_stream}"
    )
  else:
    verdict = (
      f"Fusion lost: its best rule, {best_rule}, is right on"
      f" {_percent(together)} of the test clips, {points} less than the best"
      f" single stream, {best_stream}"
    )
  return f"{verdict} ({_percent(alone)})."


def _caution(results: dict, models: list[Model]) -> str:
  """How sure the gain is."""
  best_stream, best_rule = _best(results["streams"]), _best(results["fusion"])
  if best_stream is None or best_rule is None:
    return ""
  by_name = {model.name: model for model in models}
  text = _changes(by_name[best_stream], by_name[best_rule])
  if len(results["fusion"]) > 1:
    text += (
      f" The rule is the best of {len(results['fusion'])} on this very split,"
      " which flatters it a little."
    )
  return text


def _changes(alone: Model, fused: Model) -> str:
  """Which clips fusion changed, and whether chance alone could do that."""
  before, after = gallery.right(alone.scores), gallery.right(fused.scores)
  won, lost = int((after & ~before).sum()), int((before & ~after).sum())
  # McNemar's test with continuity correction, two-sided at 5%.
  clear = abs(won - lost) - 1 > 1.96 * math.sqrt(won + lost)
  verdict = "more than" if clear else "no more than"
  return (
    f"Fusion corrects {won} clips that {alone.name} gets wrong and spoils"
    f" {lost} that {alone.name} gets right: {verdict} chance would explain"
    " (McNemar, 95%)."
  )


def _about(data: ReportData) -> str:
  return (
    f"{shell.definitions(data.notes.items())}<h3>Environment</h3>"
    f"{shell.definitions(data.environment.items())}"
    "<details><summary>Configuration</summary>"
    f'<pre tabindex="0">{_esc(data.config_json)}</pre></details>'
  )
