"""The report's gallery: how an example clip is drawn."""

import dataclasses
import html
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from twostream_jax.flow import colorwheel
from twostream_jax.report import pictures, plots
from twostream_jax.report.choice import (
  KINDS,
  classes_of,
  label_of,
  outcome,
  right,
)
from twostream_jax.scores import Scores, sigmoid, softmax

# With more models than this a card sets their opinions in two columns.
_MAX_BELOW = 4
# In the order of `KINDS`.
_BADGES = (
  "Fusion right, a stream wrong",
  "Fusion wrong, a stream right",
  "All right",
  "All wrong",
)
_esc = html.escape


@dataclasses.dataclass(frozen=True)
class ClassMap:
  """What a network's answer rests on, in one view of a clip.

  Attributes:
    model: name of the stage.
    modality: "rgb" or "flow", what the network reads.
    label: 0-based class that the map is of.
    view: RGB uint8 [s s 3], the frame (at the middle of the flow) as cropped
      for the network.
    heat: float [h w] >= 0, see `explain.class_maps`.
  """

  model: str
  modality: str
  label: int
  view: np.ndarray
  heat: np.ndarray


@dataclasses.dataclass(frozen=True)
class Example:
  """One test clip of the gallery.

  Attributes:
    video_id: one of the ids of the scores.
    label: 0-based true class; in a multi-label set those of the clip, in
      ascending order.
    frames: RGB uint8 [h w 3], some moments of the clip.
    flows: float32 [h w 2] at these moments, pixels per frame, x then y.
    maps: of the networks that read pixels; may be empty.
  """

  video_id: str
  label: int | tuple[int, ...]
  frames: tuple[np.ndarray, ...]
  flows: tuple[np.ndarray, ...]
  maps: tuple[ClassMap, ...] = ()

  def __post_init__(self):
    if not self.frames or len(self.frames) != len(self.flows):
      raise ValueError(
        f"{self.video_id!r} must have as many frames as flows, and at least"
        f" one: {len(self.frames)} and {len(self.flows)}"
      )
    for frame in (*self.frames, *(found.view for found in self.maps)):
      if frame.dtype != np.uint8 or frame.shape[2:] != (3,):
        raise ValueError(
          f"the frames of {self.video_id!r} must be RGB uint8 [h w 3], not"
          f" {frame.dtype} {list(frame.shape)}"
        )
    for flow in self.flows:
      if flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(
          f"the flow of {self.video_id!r} must be [h w 2], not"
          f" {list(flow.shape)}"
        )
      if not np.isfinite(flow).all():
        raise ValueError(f"the flow of {self.video_id!r} is not finite")
    for found in self.maps:
      if found.heat.ndim != 2 or not np.isfinite(found.heat).all():
        raise ValueError(
          f"the map by {found.model} of {self.video_id!r} must be finite [h w]"
        )


def gallery(
  examples: Sequence[Example],
  scores: dict[str, Scores],
  styles: Mapping[str, str],
  names: Sequence[str],
  unmapped: Mapping[str, str],
) -> str:
  """The cards of `examples` with how to read and how to filter them, as HTML.

  Args:
    examples: may be empty.
    scores: of the streams, then of the fusion, in one order of videos.
    styles: classes of the style sheet by name of the model.
    names: class names.
    unmapped: why there are no class activation maps, by name of the stage.

  Raises:
    ValueError: an example is not among the scored videos, or has another
      label than the scores, or a map by a model that has no scores.
  """
  if not examples:
    return "<p>No example clips were kept for this run.</p>"
  first = next(iter(scores.values()))
  labels = {v: label_of(first, i) for i, v in enumerate(first.ids)}
  for example in examples:
    if labels.get(example.video_id) != example.label:
      raise ValueError(
        f"example {example.video_id!r} has label {example.label}; in the scores"
        f" it is {labels.get(example.video_id, 'missing')}"
      )
    for found in example.maps:
      if found.model not in scores:
        raise ValueError(
          f"example {example.video_id!r} has a map by {found.model!r}, of which"
          " there are no scores"
        )
  scale = pictures.flow_scale([flow for e in examples for flow in e.flows])
  longest = pictures.longest_side(
    sum(2 * len(e.frames) + len(e.maps) for e in examples)
  )
  rows = {video_id: i for i, video_id in enumerate(first.ids)}
  verdicts = {name: right(s) for name, s in scores.items()}
  cards, kinds = [], []
  for example in examples:
    row = rows[example.video_id]
    judged = [bool(found[row]) for found in verdicts.values()]
    kinds.append(outcome(judged[:-1] or judged, judged[-1]))
    cards.append(
      _card(
        example, scores, styles, names, row, judged, kinds[-1], scale, longest
      )
    )
  kind = "cards wordy" if plots.are_long(names) else "cards"
  return (
    f"{_reading(examples, scale, unmapped)}"
    f"{_filters(examples, kinds, scores, styles, names)}"
    f'<div class="{kind}">{"".join(cards)}</div>'
    '<p class="none" hidden>No clip here fits this choice.</p>'
  )


def _reading(examples, scale: float, unmapped: Mapping[str, str]) -> str:
  """How to read the flow and the maps."""
  text = ""
  if any(example.maps for example in examples):
    text = (
      "<strong>Reading the maps</strong> Where a network found its answer: the"
      " brighter, the more the last convolution there spoke for the class below"
      " the picture (Grad-CAM), each picture by its own scale. It shows the"
      " centre crop that the network reads."
    )
  if unmapped:
    reasons = {}
    for name, reason in unmapped.items():
      reasons.setdefault(reason, []).append(name)
    text += " No maps of " + "; ".join(
      f"{_esc(', '.join(stages))}: {_esc(reason)}"
      for reason, stages in reasons.items()
    )
    text += "."
  below = f'<p class="reading">{text.strip()}</p>' if text else ""
  return f'<div class="readings">{pictures.wheel(scale)}{below}</div>'


def _badges(num_models: int) -> dict[str, str]:
  if num_models == 1:
    return {"agreed": "Right", "wrong": "Wrong"}
  return dict(zip(KINDS, _BADGES, strict=True))


def _filters(examples, kinds, scores, styles, names) -> str:
  """Buttons of outcomes; choices of the class and of who is right."""
  counts, badges = Counter(kinds), _badges(len(scores))
  buttons = "".join(
    f'<button type="button" data-show="{kind}" aria-pressed="false">'
    f"{badges[kind]} <b>{counts[kind]}</b></button>"
    for kind in badges
    if counts[kind]
  )
  shown = sorted({c for e in examples for c in classes_of(e.label)})
  classes = "".join(
    f'<option value="{i}">{_esc(names[i])}</option>' for i in shown
  )
  choices = "".join(
    f"<label><span>{plots.marker(styles[name])} {_esc(name)}</span><select"
    f' data-by="right" data-model="{i}"><option value="">right or wrong'
    '</option><option value="1">right</option><option value="0">wrong</option>'
    "</select></label>"
    for i, name in enumerate(scores)
  )
  return (
    '<div class="filter" hidden><div class="pills" role="group"'
    ' aria-label="What fusion did"><button type="button" data-show=""'
    f' aria-pressed="true">All <b>{len(examples)}</b></button>{buttons}</div>'
    '<div class="selects"><label><span>Class</span><select data-by="class">'
    f'<option value="">all</option>{classes}</select></label>{choices}</div>'
    '<p class="note" aria-live="polite"><span class="tally">'
    f"{len(examples)} of {len(examples)}</span> clips shown</p></div>"
  )


def _card(
  example, scores, styles, names, row, judged, kind, scale, longest
) -> str:
  """One clip. The last of `scores` is the final word, the rest the streams."""
  classes = classes_of(example.label)
  opinions = "".join(
    _opinion(name, styles[name], s, row, classes, names)
    for name, s in scores.items()
  )
  true = ", ".join(names[i] for i in classes) or "no class"
  badge = _badges(len(scores))[kind]
  verdicts = "".join(str(int(verdict)) for verdict in judged)
  many = " many" if len(scores) > _MAX_BELOW else ""
  return (
    f'<article class="card" data-kind="{kind}" data-right="{verdicts}"'
    f' data-classes="{" ".join(map(str, classes))}"><header><h3>{_esc(true)}'
    f'</h3><p><span class="badge {kind}">{badge}</span>'
    f" {_esc(example.video_id)}</p></header>"
    f"{_strip(example, true, scale, longest)}"
    f"{_maps(example, classes, styles, names, longest)}"
    f'<div class="opinions{many}">{opinions}</div></article>'
  )


def _strip(example: Example, true: str, scale: float, longest: int) -> str:
  """Frames in their order, the flow of each below it."""
  count, drawn = len(example.frames), ""
  for i, frame in enumerate(example.frames):
    image = np.round(pictures.shrink(frame, longest)).astype(np.uint8)
    alt = f"Frame {i + 1} of {count} of {example.video_id}, class {true}"
    drawn += pictures.picture(image, alt)
  for i, flow in enumerate(example.flows):
    image = colorwheel.flow_to_rgb(pictures.shrink(flow, longest), scale)
    alt = f"Optical flow {i + 1} of {count} of {example.video_id} as colours"
    drawn += pictures.picture(image, alt)
  return f'<div class="strip" style="--n: {count}">{drawn}</div>'


def _maps(example, classes, styles, names, longest) -> str:
  """What each network's answer rests on."""
  several = Counter(found.model for found in example.maps)
  drawn = ""
  for found in example.maps:
    image = pictures.heat_over(found.view, found.heat, longest)
    what = _esc(found.model)
    if several[found.model] > 1:
      what += {"rgb": " (frame)", "flow": " (flow)"}[found.modality]
    answer = names[found.label]
    alt = f"Where {found.model} finds {answer} in {example.video_id}"
    verdict = "right" if found.label in classes else "wrong"
    drawn += (
      f"<figure>{pictures.picture(image, alt)}<figcaption>"
      f"{plots.marker(styles[found.model])} {what}: “<span"
      f' class="{verdict}">{_esc(answer)}</span>”</figcaption></figure>'
    )
  return f'<div class="maps">{drawn}</div>' if drawn else ""


def _opinion(
  model: str,
  style: str,
  scores: Scores,
  row: int,
  true: Sequence[int],
  names: Sequence[str],
) -> str:
  """The three most probable classes of one model for one clip."""
  logits = scores.logits[row]
  to_chances = sigmoid if scores.multi_label else softmax
  chances = to_chances(logits[None])[0]
  # By logit, not by probability: rounding must not reorder what `right` saw.
  top = np.argsort(-logits, kind="stable")[:3]
  rows = "".join(
    f"<li{' class=true' if guess in true else ''}>"
    f'<span class="name">{_esc(names[int(guess)])}</span>'
    f"{plots.bar(float(chances[guess]), style)}"
    f'<span class="num">{chances[guess]:.0%}</span></li>'
    for guess in top
  )
  verdict = "right" if top[0] in true else "wrong"
  sign = "✓" if verdict == "right" else "✗"
  return (
    f'<div class="opinion"><h4><span class="{verdict}">'
    f'<span aria-hidden="true">{sign}</span> {verdict}</span>'
    f" {_esc(model)}</h4><ol>{rows}</ol></div>"
  )
