"""The report's gallery: how an example clip is drawn."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twostream_jax.flow import colorwheel
from twostream_jax.report import pictures, plots
from twostream_jax.report.choice import (
  KINDS,
  classes_of,
  label_of,
  outcome,
)
from twostream_jax.report.templates import render
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
    return render("examples.html", cards=[])
  first = next(iter(scores.values()))
  rows = {video_id: i for i, video_id in enumerate(first.ids)}
  for example in examples:
    _check(example, scores, rows)
  scale = pictures.flow_scale([flow for e in examples for flow in e.flows])
  longest = pictures.longest_side(
    sum(2 * len(e.frames) + len(e.maps) for e in examples)
  )
  badges: dict[str, str] = {"agreed": "Right", "wrong": "Wrong"}
  if len(scores) > 1:
    badges = dict(zip(KINDS, _BADGES, strict=True))
  cards = [
    _judged(scores, rows[example.video_id], example.label, names, badges)
    | _drawn(example, names, scale, longest)
    for example in examples
  ]
  kinds = Counter(card["kind"] for card in cards)
  reasons = {}
  for name, reason in unmapped.items():
    reasons.setdefault(reason, []).append(name)
  return render(
    "examples.html",
    cards=cards,
    colours=pictures.wheel(scale),
    mapped=any(example.maps for example in examples),
    unmapped=reasons,
    kinds=[(kind, badge, kinds[kind]) for kind, badge in badges.items()],
    classes=[
      (i, names[i])
      for i in sorted({c for e in examples for c in classes_of(e.label)})
    ],
    styles={name: styles[name] for name in scores},
    wordy=plots.are_long(names),
    many=len(scores) > _MAX_BELOW,
  )


def _check(
  example: Example, scores: Mapping[str, Scores], rows: Mapping[str, int]
) -> None:
  """Raises ValueError unless an example fits the scores."""
  first, row = next(iter(scores.values())), rows.get(example.video_id)
  known = "missing" if row is None else label_of(first, row)
  if known != example.label:
    raise ValueError(
      f"example {example.video_id!r} has label {example.label}; in the scores"
      f" it is {known}"
    )
  for found in example.maps:
    if found.model not in scores:
      raise ValueError(
        f"example {example.video_id!r} has a map by {found.model!r}, of which"
        " there are no scores"
      )


def _judged(
  scores: Mapping[str, Scores],
  row: int,
  label: int | tuple[int, ...],
  names: Sequence[str],
  badges: Mapping[str, str],
) -> dict[str, Any]:
  """What the models say of a clip, and whether that is right.

  Args:
    scores: the last are the final word, the rest are the streams.
    row: of the clip in the scores.
    label: of the clip.
    names: class names.
    badges: titles of the outcomes.
  """
  classes = classes_of(label)
  opinions = [
    {"model": name, "guesses": _guesses(each, row, classes, names)}
    for name, each in scores.items()
  ]
  verdicts = [opinion["guesses"][0]["true"] for opinion in opinions]
  kind = outcome(verdicts[:-1] or verdicts, verdicts[-1])
  return {
    "kind": kind,
    "badge": badges[kind],
    "right": "".join(str(int(verdict)) for verdict in verdicts),
    "classes": classes,
    "opinions": opinions,
  }


def _guesses(
  scores: Scores, row: int, true: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
  """The three most probable classes of one model for one clip."""
  logits = scores.logits[row]
  to_chances = sigmoid if scores.multi_label else softmax
  chances = to_chances(logits[None])[0]
  # By logit, not by probability: rounding must not reorder what `right` saw.
  return [
    {
      "name": names[guess],
      "chance": float(chances[guess]),
      "true": guess in true,
    }
    for guess in np.argsort(-logits, kind="stable")[:3].tolist()
  ]


def _drawn(
  example: Example, names: Sequence[str], scale: float, longest: int
) -> dict[str, Any]:
  """The pictures of a clip: frames, the flow of each, then the maps.

  Args:
    example: the clip.
    names: class names.
    scale: speed of the strongest colour, pixels per frame.
    longest: side of a picture, pixels.
  """
  video_id, count = example.video_id, len(example.frames)
  classes = classes_of(example.label)
  true = ", ".join(names[i] for i in classes) or "no class"
  strip = []
  for i, frame in enumerate(example.frames):
    image = np.round(pictures.shrink(frame, longest)).astype(np.uint8)
    alt = f"Frame {i + 1} of {count} of {video_id}, class {true}"
    strip.append(pictures.picture(image, alt))
  for i, flow in enumerate(example.flows):
    image = colorwheel.flow_to_rgb(pictures.shrink(flow, longest), scale)
    alt = f"Optical flow {i + 1} of {count} of {video_id} as colours"
    strip.append(pictures.picture(image, alt))
  several, maps = Counter(found.model for found in example.maps), []
  for found in example.maps:
    image = pictures.heat_over(found.view, found.heat, longest)
    answer, title = names[found.label], found.model
    alt = f"Where {found.model} finds {answer} in {video_id}"
    if several[found.model] > 1:
      title += {"rgb": " (frame)", "flow": " (flow)"}[found.modality]
    maps.append(
      {
        "picture": pictures.picture(image, alt),
        "model": found.model,
        "title": title,
        "verdict": "right" if found.label in classes else "wrong",
        "answer": answer,
      }
    )
  return {
    "video_id": video_id,
    "true": true,
    "count": count,
    "strip": strip,
    "maps": maps,
  }
