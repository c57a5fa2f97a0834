"""A dataset as one HTML page: its counts, and frames and flow of some clips."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from twostream_jax.report.templates import render

# More rows than this scroll in a box of their own, with a search field.
_MAX_ROWS = 40
_LONG_NAME = 12  # In characters: what fits beside a bar and three counts.
# Smallest speed drawn in full colour, as a share of the bound. No motion is
# stored as bound / 255 in x and in y.
_LEAST_SCALE = 0.05


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
    "Stored flow": _flow(data.flow_spec),
    "Rejected files": shell.rejected_files(data.rejected),
  }
  return shell.render_page(data.name, _facts(data, splits), sections)


def _facts(data: VideoDataset, splits: Mapping[str, SplitSurvey]) -> str:
  clips = sum(len(split.labels) for split in splits.values())
  seconds = sum(split.seconds for split in splits.values())
  counts = ", ".join(f"{k} {len(s.labels):,}" for k, s in splits.items())
  size = sum(f.stat().st_size for f in data.path.iterdir() if f.is_file())
  classes = shell.number(len(data.class_names), "class", "classes")
  return render(
    "facts.html",
    lead=f"{shell.number(clips, 'clip')} of {classes}: {counts}.",
    note=data.path,
    facts=[
      ("Video", shell.duration(seconds, 2)),
      ("On disk", _size(size)),
      ("Labels", "any number a clip" if data.multi_label else "one a clip"),
      ("JPEG quality of frames", data.rgb_quality),
      ("JPEG quality of flow", data.flow_spec.quality),
      ("Rejected files", f"{len(data.rejected):,}"),
    ],
  )


def _size(num_bytes: int) -> str:
  if num_bytes >= 2**30:
    return f"{num_bytes / 2**30:,.1f} GiB"
  return f"{num_bytes / 2**20:,.1f} MiB"


def _splits(splits: Mapping[str, SplitSurvey]) -> str:
  rows = []
  for style, (name, split) in zip(plots.STYLES, splits.items(), strict=False):
    counts = split.by_class
    figures = (
      f"{len(split.labels):,}",
      shell.duration(split.seconds, 2),
      f"{np.count_nonzero(counts):,} of {len(counts):,}",
      f"{counts.min():,}",
      f"{np.median(counts):,g}",
      f"{counts.max():,}",
    )
    rows.append((style, name, figures))
  columns = ("Clips", "Video", "Classes", "Fewest", "Median", "Most")
  return render("splits.html", columns=columns, rows=rows)


def _classes(data: VideoDataset, splits: Mapping[str, SplitSurvey]) -> str:
  names, styles = data.class_names, plots.STYLES[: len(splits)]
  counts = np.array([split.by_class for split in splits.values()])
  most = max(1, int(counts.sum(axis=0).max()))
  trained = np.ones(len(names), bool)
  if "train" in splits:
    trained = splits["train"].by_class > 0
  return render(
    "counts.html",
    note=_class_notes(data, splits),
    splits=list(zip(styles, splits, strict=True)),
    most=f"{most:,}",
    wordy=plots.are_long(names, _LONG_NAME),
    boxed=len(names) > _MAX_ROWS,
    rows=[
      {
        "name": names[i],
        "trained": trained[i],
        "counts": counts[:, i],
        "bars": [
          (style, f"{100 * count / most:.2f}%")
          for style, count in zip(styles, counts[:, i], strict=True)
          if count
        ],
      }
      for i in sorted(range(len(names)), key=lambda i: names[i])
    ],
  )


def _class_notes(data: VideoDataset, splits: Mapping[str, SplitSurvey]) -> str:
  notes = ["Clips of each class."]
  if data.multi_label:
    bare = sum(not clip for s in splits.values() for clip in s.labels)
    notes.append("A clip counts in each of its classes.")
    notes.append(f"{shell.number(bare, 'clip')} without any class.")
  if "train" in splits:
    missing = int((splits["train"].by_class == 0).sum())
    classes = shell.number(len(data.class_names), "class", "classes")
    notes.append(f"{missing:,} of {classes} without a train clip.")
  return " ".join(notes)


def _clips(
  samples: Sequence[Sample], spec: FlowSpec, splits: Mapping[str, SplitSurvey]
) -> str:
  if not samples:
    return render("clips.html", cards=[])
  # Of all vectors together, so that one fast clip does not bleach the others.
  vectors = [m.flow.reshape(-1, 1, 2) for s in samples for m in s.moments]
  # Nor so small that the stored fields' rounding shows as motion.
  least = spec.bound * _LEAST_SCALE
  scale = max(pictures.flow_scale([np.concatenate(vectors)]), least)
  total = sum(len(split.labels) for split in splits.values())
  unit = "px/frame" if spec.step == 1 else f"px in {spec.step}\xa0frames"
  return render(
    "clips.html",
    total=shell.number(total, "clip"),
    colours=pictures.wheel(scale, unit),
    splits=[name for name in splits if any(s.split == name for s in samples)],
    cards=[_card(sample, scale, spec.step) for sample in samples],
  )


def _card(sample: Sample, scale: float, step: int) -> dict[str, Any]:
  return {
    "sample": sample,
    "facts": [
      f"{sample.width} × {sample.height} px",
      f"{sample.fps:.4g} fps",
      shell.number(sample.num_frames, "frame"),
      f"group {sample.group}" if sample.group else "no group",
    ],
    "both": any(moment.backward is not None for moment in sample.moments),
    "pictures": [
      (pictures.picture(image, f"{what} of {sample.video_id}"), what)
      for moment in sample.moments
      for image, what in _images(moment, scale, step)
    ],
  }


def _images(
  moment: Moment, scale: float, step: int
) -> Iterator[tuple[np.ndarray, str]]:
  """A frame and its fields in colour, each with what it is."""
  first, later = moment.frame, moment.frame + step
  yield moment.rgb, f"frame {first}"
  yield colorwheel.flow_to_rgb(moment.flow, scale), f"flow {first}→{later}"
  if moment.backward is not None:
    image = colorwheel.flow_to_rgb(moment.backward, scale)
    yield image, f"flow {later}→{first}"


def _flow(spec: FlowSpec) -> str:
  values = to_dict(spec)
  parameters = values.pop("parameters")
  values |= {f"parameters.{key}": value for key, value in parameters.items()}
  return render("flow.html", settings=values)
