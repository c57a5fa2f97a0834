"""Videos to a stored dataset: decode, flow, JPEG, ArrayRecord.

Clips are worked on in processes, because a broken file can crash a decoder, and
written in their order as they come, so that memory stays flat and the dataset
does not depend on the number of processes.

Processes start by `spawn`, which imports the main module of the calling program
again. A script that calls `build_dataset` at its top level must do so under
`if __name__ == "__main__":`.
"""

import collections
import contextlib
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from twostream_jax.data.check import (
  CRASHED,
  FILE_NOT_FOUND,
  Rejection,
  rejection_entry,
  start_worker,
  too_few_frames,
)
from twostream_jax.data.clips import (
  Clip,
  class_names,
  is_multi_label,
  labels_of,
)
from twostream_jax.data.dataset import (
  Record,
  dataset_metadata,
  encode_flow,
  encode_rgb,
  record_features,
)
from twostream_jax.data.video import (
  VideoError,
  read_fps,
  read_resized,
  target_size,
)
from twostream_jax.data.workers import WorkerCrash, map_in_processes
from twostream_jax.flow import compute_flow
from twostream_jax.flow.spec import FlowSpec

VERSION = "1.0.0"
# An example of 2 GiB or more can't be serialised (protocol buffers), and every
# worker holds one in memory.
MAX_CLIP_BYTES = 1 << 30
_CLIPS_PER_SHARD = 256


class BuildError(ValueError):
  """No dataset can be built from these clips."""


@dataclasses.dataclass(frozen=True)
class BuildSummary:
  """What a build did.

  Attributes:
    path: the folder of the dataset's files.
    counts: clips stored, by split.
    rejected: the clips that could not be used: dicts with video_id, split,
      label and reason. The dataset's metadata.json holds the same list.
    untrained: classes of which no train clip could be used.
    seconds: time it took.
    size: of the dataset, in bytes.
  """

  path: Path
  counts: dict[str, int]
  rejected: tuple[dict[str, Any], ...]
  untrained: tuple[str, ...]
  seconds: float
  size: int


def process_clip(
  clip: Clip,
  flow_spec: FlowSpec,
  rgb_quality: int,
  *,
  max_bytes: int = MAX_CLIP_BYTES,
) -> Record | Rejection:
  """Decodes a clip, computes its flow and encodes both.

  Flow is computed between frames of the stored size, before their JPEG
  encoding.

  Args:
    clip: the clip.
    flow_spec: how to compute and store flow; its short side holds for the
      frames too.
    rgb_quality: JPEG quality (0..100) of the frames.
    max_bytes: a clip that needs more, encoded, is rejected.

  Returns:
    A record with t frames and t - step fields, or why there is none. An error
    that nobody thought of is a reason like any other: one odd file must not
    end a build of hours, and every reason is listed at its end.
  """
  if not clip.path.is_file():
    return Rejection(FILE_NOT_FOUND)
  try:
    rgb, flow, size = _encode_clip(clip.path, flow_spec, rgb_quality, max_bytes)
    fps = read_fps(clip.path)
  except VideoError as error:
    return Rejection(error.reason)
  except Exception as error:
    return Rejection(f"unexpected {type(error).__name__}: {error}")
  return Record(
    video_id=clip.video_id,
    label=clip.label,
    group=clip.group,
    fps=fps,
    num_frames=len(rgb),
    height=size[0],
    width=size[1],
    rgb=rgb,
    flow=flow,
    flow_backward=[],
  )


def build_dataset(
  out_dir: str | os.PathLike,
  *,
  name: str,
  clips: Sequence[Clip],
  flow_spec: FlowSpec,
  rgb_quality: int = 95,
  num_workers: int | None = None,
  progress: bool = True,
  overwrite: bool = False,
  process: Callable[[Clip, FlowSpec, int], Record | Rejection] = process_clip,
) -> BuildSummary:
  """Builds a dataset in `out_dir/name/1.0.0`.

  The files appear under that name when all of them are complete. What a killed
  build left is removed. Equal arguments give equal files, whatever the number
  of workers.

  Args:
    out_dir: folder of datasets; made where missing.
    name: of the dataset: lower-case letters, digits and underscores.
    clips: in the order to store them in.
    flow_spec: how to compute and store flow.
    rgb_quality: JPEG quality (1..100) of the frames.
    num_workers: processes; None: one for each CPU.
    progress: whether to draw a progress bar on stderr.
    overwrite: whether to replace the dataset if there is one. The old one stays
      until the new one is complete.
    process: what is done to a clip. It runs in another process, so it has to be
      a function at the top level of a module.

  Raises:
    FileExistsError: the dataset exists and `overwrite` is false.
    BuildError: no clip of a split can be used; nothing is written.
    ValueError: an argument is out of range.
    RuntimeError: worker processes can't start.
  """
  _check_arguments(name, clips, flow_spec, rgb_quality, num_workers)
  start = time.monotonic()
  final = Path(out_dir) / name / VERSION
  staging = final.with_name(f"{VERSION}.incomplete")
  replaced = final.with_name(f".replaced-{VERSION}")
  _recover(final, staging, replaced)
  if final.exists() and not overwrite:
    raise FileExistsError(
      f"{final} exists. Use another name or folder, or ask for it to be"
      " replaced (overwrite=True, --overwrite)."
    )
  workers = min(num_workers or os.cpu_count() or 1, len(clips))
  work = _Work(process, flow_spec, rgb_quality)
  metadata = dataset_metadata(
    name, class_names(clips), flow_spec, rgb_quality, is_multi_label(clips)
  )
  try:
    staging.mkdir(parents=True)
    with contextlib.closing(
      map_in_processes(work, clips, workers, start_worker)
    ) as results:
      bar = tqdm(results, name, len(clips), unit="clip", disable=not progress)
      used = _write(staging, metadata, clips, bar)
    _check_used(clips, used, metadata["rejected"])
    if final.exists():
      final.rename(replaced)
    staging.rename(final)
  finally:
    _recover(final, staging, replaced)
  seconds = time.monotonic() - start
  return _summarise(final, clips, used, metadata["rejected"], seconds)


def _summarise(
  path: Path,
  clips: Sequence[Clip],
  used: Sequence[Clip],
  rejected: Sequence[dict[str, Any]],
  seconds: float,
) -> BuildSummary:
  trained = class_names(clip for clip in used if clip.split == "train")
  return BuildSummary(
    path=path,
    counts=dict(collections.Counter(clip.split for clip in used)),
    rejected=tuple(rejected),
    untrained=tuple(n for n in class_names(clips) if n not in trained),
    seconds=seconds,
    size=sum(file.stat().st_size for file in path.iterdir()),
  )


def _encode_clip(
  path: Path, spec: FlowSpec, rgb_quality: int, max_bytes: int
) -> tuple[list[bytes], list[bytes], tuple[int, int]]:
  """Returns the encoded frames, the encoded fields and (height, width)."""
  rgb, flow, size, num_bytes = [], [], (0, 0), 0
  earlier = collections.deque(maxlen=spec.step)
  for frame in read_resized(path, spec.short_side):
    size = frame.shape[:2]
    rgb.append(encode_rgb(frame, rgb_quality))
    num_bytes += len(rgb[-1])
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    if len(earlier) == spec.step:
      flow.append(encode_flow(compute_flow(spec, earlier[0], gray), spec))
      num_bytes += len(flow[-1])
    earlier.append(gray)
    if num_bytes > max_bytes:
      raise VideoError(
        f"longer than a record can be: above {max_bytes >> 20} MiB after"
        f" {len(rgb)} frames; cut it into clips, or use a smaller short side"
      )
  if not flow:
    raise VideoError(too_few_frames(len(rgb), spec.step + 1).reason)
  return rgb, flow, size


@dataclasses.dataclass(frozen=True)
class _Work:
  """What is sent to a worker with each clip."""

  process: Callable[[Clip, FlowSpec, int], Record | Rejection]
  flow_spec: FlowSpec
  rgb_quality: int

  def __call__(self, clip: Clip) -> Record | Rejection:
    return self.process(clip, self.flow_spec, self.rgb_quality)


def _write(
  folder: Path,
  metadata: dict[str, Any],
  clips: Sequence[Clip],
  results: Iterable[Record | Rejection | WorkerCrash],
) -> list[Clip]:
  """Writes the dataset, adds to metadata["rejected"], returns clips used."""
  # The writer of tfds.core.GeneratorBasedBuilder holds a split in memory, and
  # above 1 GB of it needs TensorFlow; this one writes each record as it comes.
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=metadata["name"],
      version=VERSION,
      data_dir=os.fspath(folder),
      module_name=__name__,
    ),
    description="Videos as JPEG frames and quantised optical flow.",
    features=record_features(
      metadata["class_names"], multi_label=metadata["multi_label"]
    ),
    metadata=tfds.core.MetadataDict(metadata),
    disable_shuffling=True,
  )
  writer = tfds.core.SequentialWriter(
    info, _CLIPS_PER_SHARD, file_format="array_record"
  )
  writer.initialize_splits(list(dict.fromkeys(c.split for c in clips)))
  used = []
  try:
    for clip, result in zip(clips, results, strict=True):
      if isinstance(result, WorkerCrash):
        result = Rejection(CRASHED)
      if isinstance(result, Rejection):
        metadata["rejected"].append(rejection_entry(clip, result))
        continue
      indices = [metadata["class_names"].index(n) for n in labels_of(clip)]
      label = indices if metadata["multi_label"] else indices[0]
      writer.add_examples({clip.split: [vars(result) | {"label": label}]})
      used.append(clip)
  finally:
    writer.close_all()
  return used


def _check_used(
  clips: Sequence[Clip], used: Sequence[Clip], rejected: Sequence[dict]
) -> None:
  """Raises BuildError where all clips of a split were rejected."""
  for split in sorted({c.split for c in clips} - {c.split for c in used}):
    reasons = collections.Counter(
      r["reason"] for r in rejected if r["split"] == split
    )
    listed = "; ".join(f"{n} x {r}" for r, n in reasons.most_common(3))
    raise BuildError(
      f"no clip of the {split} split can be used ({listed});"
      " no dataset was written"
    )


def _recover(final: Path, staging: Path, replaced: Path) -> None:
  """Removes what an unfinished build left, and undoes half a replacement."""
  if replaced.exists() and not final.exists():
    replaced.rename(final)
  for leftover in (staging, replaced):
    if leftover.exists():
      shutil.rmtree(leftover)
  if final.parent.is_dir() and not any(final.parent.iterdir()):
    final.parent.rmdir()


def _check_arguments(
  name: str,
  clips: Sequence[Clip],
  flow_spec: FlowSpec,
  rgb_quality: int,
  num_workers: int | None,
) -> None:
  if not re.fullmatch("[a-z][a-z0-9_]*", name):
    raise ValueError(
      "a dataset's name is lower-case letters, digits and underscores, a letter"
      f" first: {name!r}"
    )
  if not clips:
    raise ValueError("no clips to build a dataset from")
  for what, quality in [("rgb", rgb_quality), ("flow", flow_spec.quality)]:
    if not 1 <= quality <= 100:
      raise ValueError(f"the {what} JPEG quality must be 1 to 100: {quality}")
  if num_workers is not None and num_workers < 1:
    raise ValueError(f"at least one worker is needed: {num_workers}")
  height, width = target_size(8, 8, flow_spec.short_side)
  blank = np.zeros([height, width], np.uint8)
  compute_flow(flow_spec, blank, blank)
