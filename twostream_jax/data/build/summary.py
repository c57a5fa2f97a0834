"""Text of what a build or a check found."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from twostream_jax.data.build.builder import BuildSummary
from twostream_jax.data.build.check import Rejection, rejection_entry
from twostream_jax.data.build.forecast import Forecast
from twostream_jax.data.dataset import METADATA_FILE
from twostream_jax.data.datasets.clips import (
  SPLITS,
  Clip,
  class_names,
  counted,
  examples,
  labels_of,
)

# Reasons that are told; some name the file, so that each is another one.
_REASONS = 20


def describe_forecast(forecast: Forecast) -> str:
  """Returns what is to come, for a reader."""
  gib = 2**30
  lines = [
    f"forecast  {forecast.clips} clips left, about"
    f" {_duration(forecast.seconds)} on this machine; the dataset will take"
    f" about {forecast.size / gib:.2f} GiB (judged by {forecast.sample} clips)",
  ]
  # In the end each file of records is there beside the clips it is made of.
  if forecast.size * 1.05 > forecast.disk_free:
    lines.append(
      f"warning: only {forecast.disk_free / gib:.2f} GiB are free on that disk"
    )
  return "\n".join(lines)


def describe(summary: BuildSummary, multi_label: bool = False) -> str:
  """Returns what the build did and what to do next, for a reader."""
  counts = ", ".join(f"{split} {n}" for split, n in summary.counts.items())
  lines = [
    f"dataset   {summary.path}",
    f"clips     {counts}",
    f"video     {_duration(summary.video_seconds)}",
    f"size      {summary.size / 2**20:.1f} MiB, built in"
    f" {_duration(summary.seconds)}",
  ]
  if summary.rejected:
    total = sum(summary.counts.values()) + len(summary.rejected)
    lines += _describe_rejected(summary.rejected, total)
    lines.append(
      f'  each listed under "rejected" in {summary.path / METADATA_FILE}'
    )
  if summary.damaged:
    lines.append(
      f"damaged   {counted(list(summary.damaged), 'clip')} with"
      f" {sum(summary.damaged.values())} damaged or lost frames"
      f" ({examples(list(summary.damaged))})"
    )
  if summary.untrained:
    lines.append(
      "warning: no train clip could be used of: " + ", ".join(summary.untrained)
    )
  if multi_label:
    lines.append("labels    any number a clip (multi-label)")
  recipe = "ccv_hybrid" if multi_label else "folder_two_stream"
  lines += [
    "next",
    f"  python -m twostream_jax.main --config=configs/{recipe}.py"
    f" --config.data.dir={shlex.quote(os.fspath(summary.path.parent))}",
  ]
  return "\n".join(lines)


def describe_check(
  clips: Sequence[Clip], rejections: Sequence[Rejection | None]
) -> str:
  """Returns what a check found, for a reader."""
  names = class_names(clips)
  lines = [f"checked   {len(clips)} clips of {len(names)} classes"]
  for split in SPLITS:
    used = [
      clip
      for clip, rejection in zip(clips, rejections, strict=True)
      if clip.split == split and rejection is None
    ]
    total = sum(clip.split == split for clip in clips)
    if total:
      count = Counter(name for clip in used for name in labels_of(clip))
      sizes = [count[name] for name in names]
      lines.append(
        f"{split:10}{len(used)} of {total} usable,"
        f" {min(sizes)} to {max(sizes)} a class"
      )
  rejected = [
    rejection_entry(clip, rejection.reason)
    for clip, rejection in zip(clips, rejections, strict=True)
    if rejection
  ]
  if rejected:
    lines += _describe_rejected(rejected, len(clips))
  if lost := untrained(clips, rejections):
    classes = counted(lost, "class", "classes")
    lines.append(f"{classes} without a usable train clip:")
    lines.append(f"  {', '.join(lost)}")
  return "\n".join(lines)


def untrained(
  clips: Sequence[Clip], rejections: Sequence[Rejection | None]
) -> list[str]:
  """Returns the classes without a usable train clip."""
  trained = class_names(
    clip
    for clip, rejection in zip(clips, rejections, strict=True)
    if clip.split == "train" and rejection is None
  )
  return sorted(set(class_names(clips)) - set(trained))


def _describe_rejected(
  rejected: Sequence[dict[str, Any]], total: int
) -> list[str]:
  lines = [f"rejected  {len(rejected)} of {total} files"]
  reasons = Counter(entry["reason"] for entry in rejected)
  for reason, n in reasons.most_common(_REASONS):
    ids = [e["video_id"] for e in rejected if e["reason"] == reason]
    lines.append(f"  {n:6d}  {reason} ({examples(ids)})")
  if len(reasons) > _REASONS:
    others = sum(n for _, n in reasons.most_common()[_REASONS:])
    lines.append(f"  {others:6d}  {len(reasons) - _REASONS} other reasons")
  return lines


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  if minutes < 1:
    return f"{seconds:.0f} s"
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min"
