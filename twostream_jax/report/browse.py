"""A dataset as one HTML page: its counts, and frames and flow of some clips."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from twostream_jax.data.dataset import VideoDataset
from twostream_jax.flow import colorwheel
from twostream_jax.flow.spec import FlowSpec, to_dict
from twostream_jax.report import pictures, plots, shell
from twostream_jax.report.survey import (
  Moment,
  Sample,
  SplitSurvey,
  choose_clips,
  read_sample,
  survey,
)

# More rows than this scroll in a box of their own, with a search field.
_MAX_ROWS = 40
_LONG_NAME = 12  # In characters: what fits beside a bar and three counts.
# Smallest speed drawn in full colour, as a share of the bound. No motion is
# stored as bound / 255 in x and in y.
_LEAST_SCALE = 0.05
_STYLES = tuple(style for style in plots.MARKERS if style != "fused")
_esc = html.escape


def render_dataset(
  data: VideoDataset,
  *,
  num_clips: int = 24,
  seed: int = 0,
  progress: bool = False,
) -> str:
  """The page of a dataset; equal arguments give equal pages.

  Every record is read once, one at a time; only images of the sampled clips are
  decoded.

  Args:
    data: the dataset.
    num_clips: how many clips to show, 0 or more; see `choose_clips`.
    seed: of their choice.
    progress: whether to draw progress bars on stderr.

  Raises:
    DamagedDatasetError: a clip can't be read.
  """
  splits = survey(data, progress=progress)
  chosen = choose_clips(
    {name: split.labels for name, split in splits.items()},
    count=num_clips,
    seed=seed,
  )
  samples = [read_sample(data, split, i) for split, i in chosen]
  sections = {
    "Splits": _splits(splits),
    "Classes": _classes(data, splits),
    "Clips": _clips(samples, data.flow_spec, splits),
    "Stored flow": _flow_table(data.flow_spec),
    "Rejected files": shell.rejected_files(data.rejected),
  }
  return shell.render_page(data.name, _headline(data, splits), sections)


def _headline(data: VideoDataset, splits: Mapping[str, SplitSurvey]) -> str:
  clips = sum(len(split.labels) for split in splits.values())
  seconds = sum(split.seconds for split in splits.values())
  counts = ", ".join(f"{k} {len(s.labels):,}" for k, s in splits.items())
  size = sum(f.stat().st_size for f in data.path.iterdir() if f.is_file())
  return (
    f'<p class="lead">{_number(clips, "clip")} of'
    f" {_number(len(data.class_names), 'class', 'classes')}:"
    f' {_esc(counts)}.</p><p class="note">{_esc(str(data.path))}</p>'
  ) + shell.definitions(
    [
      ("Video", _duration(seconds)),
      ("On disk", _size(size)),
      ("Labels", "any number a clip" if data.multi_label else "one a clip"),
      ("JPEG quality of frames", data.rgb_quality),
      ("JPEG quality of flow", data.flow_spec.quality),
      ("Rejected files", f"{len(data.rejected):,}"),
    ]
  )


def _number(count: int, one: str, many: str = "") -> str:
  return f"{count:,} {one if count == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
  if seconds < 3600:
    return f"{seconds / 60:.1f} min"
  return f"{seconds / 3600:,.2f} h"


def _size(num_bytes: int) -> str:
  if num_bytes >= 2**30:
    return f"{num_bytes / 2**30:,.1f} GiB"
  return f"{num_bytes / 2**20:,.1f} MiB"


def _splits(splits: Mapping[str, SplitSurvey]) -> str:
  heads = "".join(
    f'<th scope="col">{name}</th>'
    for name in ("Clips", "Video", "Classes", "Fewest", "Median", "Most")
  )
  rows = ""
  for (name, split), style in zip(splits.items(), _STYLES, strict=False):
    counts = split.by_class
    cells = (
      f"{len(split.labels):,}",
      _duration(split.seconds),
      f"{np.count_nonzero(counts):,} of {len(counts):,}",
      f"{counts.min():,}",
      f"{np.median(counts):,g}",
      f"{counts.max():,}",
    )
    rows += (
      f'<tr><th scope="row">{plots.marker(style)} {_esc(name)}</th>'
      f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    )
  return (
    '<div class="scroll"><table class="compact"><thead><tr>'
    '<th scope="col">Split</th>'
    f"{heads}</tr></thead>"
    f"<tbody>{rows}</tbody></table></div>"
    '<p class="note">Fewest, median and most are clips of a class.</p>'
  )


def _classes(data: VideoDataset, splits: Mapping[str, SplitSurvey]) -> str:
  names, styles = data.class_names, dict(zip(splits, _STYLES, strict=False))
  counts = np.array([split.by_class for split in splits.values()])
  heads = "".join(
    f'<th scope="col">{plots.marker(style)}<span class="model">{_esc(split)}'
    "</span></th>"
    for split, style in styles.items()
  )
  trained = splits["train"].by_class > 0 if "train" in splits else None
  most = max(1, counts.sum(axis=0).max())
  rows = "".join(
    _class_row(
      names[i],
      dict(zip(styles.values(), counts[:, i].tolist(), strict=True)),
      most,
      trained is None or bool(trained[i]),
    )
    for i in sorted(range(len(names)), key=lambda i: names[i])
  )
  wordy = plots.are_long(names, _LONG_NAME)
  kind = "classes wordy" if wordy else "classes"
  table = (
    f'<table class="{kind} sortable" style="--models: {len(splits)}"><thead>'
    f'<tr><th scope="col">Class</th><th scope="col" class="plot">'
    f'<span class="counts scale"><span>0</span><b>{most:,}</b></span></th>'
    f"{heads}</tr></thead><tbody>{rows}</tbody></table>"
  )
  legend = "".join(
    f"<span>{plots.marker(style)} {_esc(split)}</span>"
    for split, style in styles.items()
  )
  return (
    f'<p class="note">{_class_notes(data, splits)}</p>'
    f'<p class="legend">{legend}</p>{_boxed(table, len(names))}'
  )


def _class_notes(data: VideoDataset, splits: Mapping[str, SplitSurvey]) -> str:
  notes = ["Clips of each class."]
  if data.multi_label:
    bare = sum(not clip for s in splits.values() for clip in s.labels)
    notes.append("A clip counts in each of its classes.")
    notes.append(f"{_number(bare, 'clip')} without any class.")
  if "train" in splits:
    missing = int((splits["train"].by_class == 0).sum())
    notes.append(
      f"{missing:,} of {_number(len(data.class_names), 'class', 'classes')}"
      " without a train clip."
    )
  return " ".join(notes)


def _class_row(
  name: str, counts: Mapping[str, int], most: int, trained: bool
) -> str:
  mark = "" if trained else ' <span class="badge wrong">no train clip</span>'
  bars = "".join(
    f'<i class="{style}" style="width: {100 * count / most:.2f}%"></i>'
    for style, count in counts.items()
    if count
  )
  cells = "".join(f"<td>{count}</td>" for count in counts.values())
  return (
    f'<tr><th scope="row">{_esc(name)}{mark}</th><td class="plot">'
    f'<span class="stack">{bars}</span></td>{cells}</tr>'
  )


def _boxed(table: str, num_rows: int) -> str:
  if num_rows <= _MAX_ROWS:
    return table
  return (
    '<div><p class="find" hidden><label>Find a class <input type="search">'
    f'</label></p><div class="scroll tall" tabindex="0">{table}</div></div>'
  )


def _clips(
  samples: Sequence[Sample], spec: FlowSpec, splits: Mapping[str, SplitSurvey]
) -> str:
  if not samples:
    return "<p>No clips are shown.</p>"
  # Of all vectors together, so that one fast clip does not bleach the others.
  vectors = [m.flow.reshape(-1, 1, 2) for s in samples for m in s.moments]
  # Nor so small that the stored fields' rounding shows as motion.
  least = spec.bound * _LEAST_SCALE
  scale = max(pictures.flow_scale([np.concatenate(vectors)]), least)
  total = sum(len(split.labels) for split in splits.values())
  unit = "px/frame" if spec.step == 1 else f"px in {spec.step}&nbsp;frames"
  shown = [name for name in splits if any(s.split == name for s in samples)]
  buttons = "".join(
    f'<button type="button" data-show="{_esc(name)}" aria-pressed="false">'
    f"{_esc(name)}</button>"
    for name in shown
  )
  cards = "".join(_card(sample, scale, spec.step) for sample in samples)
  return (
    f'<p class="note">{len(samples):,} of {_number(total, "clip")}, drawn at'
    " random but spread over classes and splits.</p>"
    f"{pictures.wheel(scale, unit)}"
    '<div class="filter" hidden><button type="button" data-show=""'
    f' aria-pressed="true">All {len(samples)}</button>{buttons}</div>'
    f'<div class="cards">{cards}</div>'
  )


def _card(sample: Sample, scale: float, step: int) -> str:
  facts = [
    f"{sample.width} × {sample.height} px",
    f"{sample.fps:.4g} fps",
    _number(sample.num_frames, "frame"),
    f"group {sample.group}" if sample.group else "no group",
  ]
  moments = "".join(
    _pictures(moment, sample.video_id, scale, step) for moment in sample.moments
  )
  both = any(moment.backward is not None for moment in sample.moments)
  return (
    f'<article class="card" data-kind="{_esc(sample.split)}"><header><h3>'
    f"{_esc(', '.join(sample.labels) or 'no class')}</h3><p>"
    f'<span class="badge">{_esc(sample.split)}</span>'
    f' {_esc(sample.video_id)}</p></header><div class="'
    f'{"pair three" if both else "pair"}">{moments}</div>'
    f'<p class="note">{_esc(" · ".join(facts))}</p></article>'
  )


def _pictures(moment: Moment, video_id: str, scale: float, step: int) -> str:
  first, later = moment.frame, moment.frame + step
  shown = [(moment.rgb, "frame", f"{first}")]
  for field, start, end in (
    (moment.flow, first, later),
    (moment.backward, later, first),
  ):
    if field is not None:
      image = colorwheel.flow_to_rgb(field, scale)
      shown.append((image, "flow", f"{start}→{end}"))
  return "".join(
    f"<figure>{pictures.picture(image, f'{kind} {when} of {video_id}')}"
    f"<figcaption>{kind} {when}</figcaption></figure>"
    for image, kind, when in shown
  )


def _flow_table(spec: FlowSpec) -> str:
  values = to_dict(spec)
  parameters = values.pop("parameters")
  values |= {f"parameters.{key}": value for key, value in parameters.items()}
  rows = "".join(
    f'<tr><th scope="row">{_esc(key)}</th><td class="text">{_esc(str(value))}'
    "</td></tr>"
    for key, value in values.items()
  )
  return (
    '<p class="note">What gives the fields their meaning (FlowSpec). Bound in'
    " pixels, step in frames.</p>"
    '<div class="scroll"><table class="compact"><thead><tr><th scope="col">'
    'Setting</th><th scope="col" class="text">Value</th></tr></thead>'
    f"<tbody>{rows}</tbody></table></div>"
  )
