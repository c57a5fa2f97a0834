"""The report's gallery: which clips to show, and how one is drawn."""

import dataclasses
import html
from collections import Counter
from collections.abc import Sequence

import numpy as np

from twostream_jax.flow import colorwheel
from twostream_jax.report import plots
from twostream_jax.scores import Scores, join, sigmoid, softmax

# What a clip tells about fusion, in the order in which examples are taken: two
# of the clips that make the case for fusion for each of the others.
_TURNS = ("rescued", "wrong", "rescued", "agreed")
_THUMBNAIL = 320


@dataclasses.dataclass(frozen=True)
class Example:
  """One test clip of the gallery.

  Attributes:
    video_id: one of the ids of the scores.
    label: 0-based true class; in a multi-label set those of the clip, in
      ascending order.
    frame: RGB uint8 [h w 3].
    flow: float32 [h w 2], pixels per frame, x then y.
  """

  video_id: str
  label: int | tuple[int, ...]
  frame: np.ndarray
  flow: np.ndarray

  def __post_init__(self):
    if self.frame.dtype != np.uint8 or self.frame.shape[2:] != (3,):
      raise ValueError(
        f"the frame of {self.video_id!r} must be RGB uint8 [h w 3], not"
        f" {self.frame.dtype} {list(self.frame.shape)}"
      )
    if self.flow.ndim != 3 or self.flow.shape[2] != 2:
      raise ValueError(
        f"the flow of {self.video_id!r} must be [h w 2], not"
        f" {list(self.flow.shape)}"
      )
    if not np.isfinite(self.flow).all():
      raise ValueError(f"the flow of {self.video_id!r} is not finite")


def right(scores: Scores) -> np.ndarray:
  """Whether the class with the largest logit is true of the clip, bool [b]."""
  top = scores.logits.argmax(axis=1)
  if scores.multi_label:
    return scores.labels[np.arange(len(top)), top].astype(bool)
  return top == scores.labels


def _label(scores: Scores, row: int) -> int | tuple[int, ...]:
  """What `Example.label` is of a clip."""
  if scores.multi_label:
    return tuple(np.flatnonzero(scores.labels[row]).tolist())
  return int(scores.labels[row])


def _classes(label: int | tuple[int, ...]) -> tuple[int, ...]:
  return label if isinstance(label, tuple) else (label,)


def outcome(streams_right: Sequence[bool], fused_right: bool) -> str:
  """What a clip shows.

  Returns:
    "wrong" (fusion is), "agreed" (all are right) or "rescued" (fusion is right
    though a stream alone is wrong).
  """
  if not fused_right:
    return "wrong"
  return "agreed" if all(streams_right) else "rescued"


def choose_examples(
  scores: dict[str, Scores], *, fused: str, streams: Sequence[str], count: int
) -> list[str]:
  """Picks clips that show what fusion does, good and bad.

  About half are clips that fusion gets right though a stream alone is wrong, a
  quarter fusion gets wrong, a quarter all get right; a kind that runs out
  leaves its places to the others. Within a kind the clips are spread over who
  was wrong, then over classes, then taken in the order of the split: nobody
  picks the pretty ones. A clip of several classes stands for the first of them
  here; one without any is left out, for nothing said of it can be right.

  Args:
    scores: by name, of the same videos.
    fused: the name of the fused scores; of the only stream, if there is one.
    streams: names of the streams.
    count: how many ids to return, fewer if there are fewer videos.

  Returns:
    Distinct video ids, the same for the same arguments.

  Raises:
    ScoresError: the scores are not of the same videos.
    KeyError: a name is not in `scores`.
  """
  joined = join({name: scores[name] for name in (fused, *streams)})
  first = joined[fused]
  fused_right = right(first)
  patterns = list(
    zip(*(right(joined[name]).tolist() for name in streams), strict=True)
  )
  classes = [_classes(_label(first, i))[:1] for i in range(len(first.ids))]
  waiting = {kind: [] for kind in _TURNS}
  for i, pattern in enumerate(patterns):
    if classes[i]:
      waiting[outcome(pattern, fused_right[i])].append(i)
  chosen, seen, shown = [], Counter(), Counter()
  turn = 0
  while len(chosen) < count and any(waiting.values()):
    kind = _TURNS[turn % len(_TURNS)]
    turn += 1
    if not waiting[kind]:
      continue
    best = min(
      waiting[kind],
      key=lambda i: (seen[kind, patterns[i]], shown[classes[i]], i),
    )
    waiting[kind].remove(best)
    seen[outcome(patterns[best], fused_right[best]), patterns[best]] += 1
    shown[classes[best]] += 1
    chosen.append(first.ids[best])
  return chosen


def shrink(image: np.ndarray) -> np.ndarray:
  """Means over square blocks, so that the longer side is at most 320.

  Args:
    image: [h w c].

  Returns:
    float64 [h w c].
  """
  step = -(-max(image.shape[:2]) // _THUMBNAIL)
  h, w = (max(1, side // step) for side in image.shape[:2])
  cut = image[: h * step, : w * step].astype(np.float64)
  blocks = cut.reshape(h, min(step, cut.shape[0]), w, -1, image.shape[2])
  return blocks.mean(axis=(1, 3))


def flow_scale(fields: Sequence[np.ndarray]) -> float:
  """A round speed that few vectors of the fields [h w 2] exceed."""
  speeds = [np.hypot(*np.moveaxis(flow, -1, 0)).ravel() for flow in fields]
  fast = max((np.percentile(speed, 99) for speed in speeds), default=0.0)
  if fast < 0.01:
    return 1.0
  power = 10.0 ** np.floor(np.log10(fast))
  steps = (1, 1.5, 2, 3, 5, 10)
  return float(next(m for m in steps if m * power >= fast * 0.999) * power)


def wheel(scale: float, unit: str = "px/frame") -> str:
  """The colour wheel with the speed at its rim, as a figure."""
  axis = np.linspace(-1, 1, 121)
  x, y = np.meshgrid(axis, axis)
  rgb = colorwheel.flow_to_rgb(np.stack([x, y], axis=-1), 1.0)
  inside = np.where(np.hypot(x, y) <= 1, 255, 0).astype(np.uint8)
  uri = plots.data_uri(np.dstack([rgb, inside]), ".png")
  return (
    f'<figure class="wheel"><img src="{uri}" width="104" height="104" alt="'
    "Colour wheel of motion: right is red, down yellow, left cyan, up blue-"
    'violet; still is white."><figcaption><strong>Reading the flow</strong>'
    " The hue is the direction of motion as on the wheel, the strength of"
    " colour its speed: white stands still, the rim moves at"
    f" {scale:g}&nbsp;{unit}, darker is faster still.</figcaption></figure>"
  )


def _images(example: Example, name: str, scale: float) -> str:
  frame = np.round(shrink(example.frame)).astype(np.uint8)
  flow = colorwheel.flow_to_rgb(shrink(example.flow), scale)
  alts = (
    (frame, f"A frame of {example.video_id}, class {name}"),
    (flow, f"Optical flow of {example.video_id} as colours"),
  )
  return "".join(picture(image, alt) for image, alt in alts)


def picture(image: np.ndarray, alt: str) -> str:
  """An RGB uint8 image [h w 3] as an element of the page, with its words."""
  return (
    f'<img src="{plots.data_uri(image, ".jpg")}" width="{image.shape[1]}"'
    f' height="{image.shape[0]}" alt="{html.escape(alt)}">'
  )


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
    f'<span class="name">{html.escape(names[guess])}</span>'
    f"{plots.bar(float(chances[guess]), style)}"
    f'<span class="num">{chances[guess]:.0%}</span></li>'
    for guess in top
  )
  verdict = "right" if top[0] in true else "wrong"
  sign = "✓" if verdict == "right" else "✗"
  return (
    f'<div class="opinion"><h4><span class="{verdict}">'
    f'<span aria-hidden="true">{sign}</span> {verdict}</span>'
    f" {html.escape(model)}</h4><ol>{rows}</ol></div>"
  )


def _card(
  example: Example,
  scores: dict[str, Scores],
  styles: dict[str, str],
  names: Sequence[str],
  scale: float,
  badges: dict[str, str],
) -> str:
  """One clip. The last of `scores` is the final word, the rest the streams."""
  row = next(iter(scores.values())).ids.index(example.video_id)
  verdicts = [bool(right(s)[row]) for s in scores.values()]
  kind = outcome(verdicts[:-1], verdicts[-1])
  classes = _classes(example.label)
  opinions = "".join(
    _opinion(name, styles[name], s, row, classes, names)
    for name, s in scores.items()
  )
  true = ", ".join(names[i] for i in classes) or "no class"
  return (
    f'<article class="card" data-kind="{kind}"><header><h3>'
    f'{html.escape(true)}</h3><p><span class="badge {kind}">{badges[kind]}'
    f"</span> {html.escape(example.video_id)}</p></header>"
    f'<div class="pair">{_images(example, true, scale)}</div>{opinions}'
    "</article>"
  )


def _badges(num_models: int) -> dict[str, str]:
  if num_models == 1:
    return {"agreed": "Right", "wrong": "Wrong"}
  return {
    "rescued": "Fusion right, a stream wrong",
    "agreed": "All right",
    "wrong": "Fusion wrong",
  }


def gallery(
  examples: Sequence[Example],
  scores: dict[str, Scores],
  styles: dict[str, str],
  names: Sequence[str],
) -> str:
  """The cards of `examples` with the colour wheel's legend, as HTML.

  Args:
    examples: may be empty.
    scores: of the streams, then of the fusion, in one order of videos.
    styles: classes of the style sheet by name of the model.
    names: class names.

  Raises:
    ValueError: an example is not among the scored videos, or has another
      label than the scores.
  """
  if not examples:
    return "<p>No example clips were kept for this run.</p>"
  first = next(iter(scores.values()))
  labels = {v: _label(first, i) for i, v in enumerate(first.ids)}
  for example in examples:
    if labels.get(example.video_id) != example.label:
      raise ValueError(
        f"example {example.video_id!r} has label {example.label}; in the scores"
        f" it is {labels.get(example.video_id, 'missing')}"
      )
  scale, badges = flow_scale([e.flow for e in examples]), _badges(len(scores))
  cards = "".join(
    _card(e, scores, styles, names, scale, badges) for e in examples
  )
  kind = "cards wordy" if plots.are_long(names) else "cards"
  buttons = "".join(
    f'<button type="button" data-show="{shown}" aria-pressed="false">{text}'
    "</button>"
    for shown, text in badges.items()
  )
  return (
    f'{wheel(scale)}<div class="filter" hidden><button type="button"'
    f' data-show="" aria-pressed="true">All {len(examples)}</button>{buttons}'
    f'</div><div class="{kind}">{cards}</div>'
  )
