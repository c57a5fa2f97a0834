"""The report's results: the table, what fusion gained, and how sure that is."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from twostream_jax.report import choice, plots
from twostream_jax.report.breakdown import Model
from twostream_jax.report.curves import is_number
from twostream_jax.report.wording import Wording
from twostream_jax.scores import Scores

_MAX_SUBSETS = 15
_Metrics = Mapping[str, float]
_esc = html.escape


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
  paragraph = f'<p class="note">{_esc(note)}</p>' if note else ""
  remarks = f"★ the best of its column. {_sampling(results, models[0].scores)}"
  return (
    f'<p class="lead">{_esc(_gain_in_words(results, words))}</p>'
    f'<p class="note">{_esc(_caution(results, models, words))}</p>{paragraph}'
    f"{_table(results, models, words)}"
    f'<p class="note">{_esc(remarks + _left_out(results))}</p>'
    f"{_protocols(results['protocols'])}"
    f"{_subsets(results['subsets'], words)}"
  )


def _percent(value, digits: int = 1) -> str:
  return f"{100 * value:.{digits}f}%" if is_number(value) else "–"


def _table(
  results: Mapping[str, Any], models: Sequence[Model], words: Wording
) -> str:
  streams, fusion = results["streams"], results["fusion"]
  everything = [*streams.values(), *fusion.values()]
  top = {
    key: max(
      (m[key] for m in everything if is_number(m.get(key))), default=None
    )
    for key in words.metrics
  }
  chance, origin = _chance(models[0].scores)
  styles = {model.name: model.style for model in models}
  guide = chance[words.first]
  intervals = results.get("intervals", {})
  rows = [
    _row(
      name,
      kind,
      styles[name] if kind == "stream" else "fused",
      values,
      top,
      guide,
      intervals.get(group, {}).get(name, {}),
      results["protocols"].get(name, ""),
    )
    for kind, group in (("stream", "streams"), ("fusion", "fusion"))
    for name, values in results[group].items()
  ]
  cells = "".join(f"<td>{_percent(chance[key])}</td>" for key in words.metrics)
  return (
    '<div class="scroll"><table class="results"><thead><tr><th scope="col">'
    f'Model</th><th scope="col"><span class="hidden">'
    f"{words.metrics[words.first]} as a bar</span></th>"
    f"{_heads(words)}</tr></thead><tbody>{''.join(rows)}</tbody><tfoot><tr>"
    f'<th scope="row">Chance <small>{origin}</small></th><td></td>{cells}</tr>'
    "</tfoot></table></div>"
  )


def _heads(words: Wording) -> str:
  return "".join(f'<th scope="col">{m}</th>' for m in words.metrics.values())


def _row(
  name: str,
  kind: str,
  style: str,
  values: _Metrics,
  top: Mapping[str, float | None],
  chance: float,
  intervals: Mapping[str, Sequence[float]],
  protocol: str,
) -> str:
  """One model; `top` has the best value and the key of every column."""
  cells = ""
  for key in top:
    value, ends = values.get(key), _interval(intervals.get(key))
    if is_number(value) and value == top[key]:
      cells += (
        '<td class="best"><span class="hidden">best: </span><b>'
        f'{_percent(value)}</b><span aria-hidden="true">★</span>{ends}</td>'
      )
    else:
      cells += f"<td>{_percent(value)}{ends}</td>"
  key = next(iter(top))
  first, ends = values.get(key), intervals.get(key)
  share = first if is_number(first) else math.nan
  bar = plots.bar(share, style, chance, ends if _is_pair(ends) else None)
  # Its name, which comes before what it means.
  short = protocol.split(":")[0] if ":" in protocol else ""
  kind += f" · {short}" if short else ""
  return (
    f'<tr><th scope="row">{plots.marker(style)} {_esc(name)}'
    f" <small>{_esc(kind)}</small></th><td>{bar}</td>{cells}</tr>"
  )


def _is_pair(ends: Any) -> bool:
  """Whether these are the two ends of an interval."""
  return (
    isinstance(ends, list | tuple)
    and len(ends) == 2
    and all(map(is_number, ends))
  )


def _interval(ends: Any) -> str:
  """The ends of a confidence interval, in per cent, below its value."""
  if not _is_pair(ends):
    return ""
  low, high = (100 * end for end in ends)
  return f' <small class="ends">{low:.0f}–{high:.0f}</small>'


def _protocols(protocols: Mapping[str, str]) -> str:
  """How the clips were tested, in words."""
  shared = stages_by_protocol(protocols)
  text = " ".join(
    f"Test protocol{' of ' + ', '.join(names) if len(shared) > 1 else ''}:"
    f" {protocol}."
    for protocol, names in shared.items()
  )
  return f'<p class="note">{_esc(text)}</p>'


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


def _subsets(subsets: Sequence[Mapping[str, Any]], words: Wording) -> str:
  """The average of every two or more streams, as a table to open."""
  if not subsets:
    return ""
  rows = "".join(
    f'<tr><th scope="row">{_esc(" + ".join(row["stages"]))}</th>'
    + "".join(f"<td>{_percent(row.get(key))}</td>" for key in words.metrics)
    + "</tr>"
    for row in subsets[:_MAX_SUBSETS]
  )
  count = len(subsets)
  shown = (
    f"The best {_MAX_SUBSETS} of {count}"
    if count > _MAX_SUBSETS
    else (f"All {count}")
  )
  return (
    "<details><summary>Which streams are worth fusing</summary>"
    '<p class="note">Averages of the probabilities of two or more streams.'
    f" {shown}, by {words.metrics[words.first].lower()} on this very split: to"
    " choose by them would flatter the choice.</p>"
    '<div class="scroll"><table><thead><tr><th scope="col">Streams</th>'
    f"{_heads(words)}</tr></thead><tbody>{rows}</tbody></table></div></details>"
  )


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
