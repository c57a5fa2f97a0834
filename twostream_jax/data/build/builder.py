"""Videos to a stored dataset, in a build that survives.

Clips are worked on in processes, because a broken file can crash a decoder or
hang it. What is finished is on the disk: a build that was stopped, by whatever,
resumes and produces bit-identical files. The dataset does not depend on the
number of processes.

A clip is rejected for what is wrong with its file. What is wrong with the
machine (memory, disks, network) ends the build after all other clips, and the
next run tries those clips again.

Processes start by `spawn`, which imports the main module of the calling program
again. A script that calls `build_dataset` at its top level must do so under
`if __name__ == "__main__":`.
"""

import collections
import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from twostream_jax import files
from twostream_jax.data.build import build_errors
from twostream_jax.data.build.check import Rejection
from twostream_jax.data.build.clip_task import ClipTask, Process, finish_here
from twostream_jax.data.build.encode import process_clip
from twostream_jax.data.build.forecast import Forecast, forecast, sample_of
from twostream_jax.data.build.plan import (
  VERSION,
  Outcome,
  Plan,
  Source,
  rejected_entries,
  source_of,
)
from twostream_jax.data.build.staging import (
  Staging,
  only_build,
  open_staging,
  remove_if_installed,
  staging_files,
)
from twostream_jax.data.dataset import NAME, dataset_files
from twostream_jax.data.datasets.clips import (
  TIME_LIMIT,
  Clip,
  check_class_names,
  class_names,
  is_multi_label,
)
from twostream_jax.data.video.faults import FILE_NOT_FOUND
from twostream_jax.data.video.reading import target_size
from twostream_jax.flow import compute_flows
from twostream_jax.flow.spec import EXTRACTED, FlowSpec

BuildError = build_errors.BuildError

# Finishes clips, by index, and packs what is complete.
Elsewhere = Callable[[ClipTask, Staging, Sequence[Clip], Sequence[int]], None]


@dataclasses.dataclass(frozen=True)
class BuildSummary:
  """What a build did.

  Attributes:
    path: the folder of the dataset's files.
    counts: clips stored, by split.
    rejected: the clips that could not be used: dicts with video_id, split,
      label and reason. The dataset's metadata.json holds the same list.
    untrained: classes of which no train clip could be used.
    video_seconds: length of the stored videos.
    damaged: number of damaged or lost frames by video id, where there are any.
    seconds: time it took, since it was last started.
    size: of the dataset, in bytes.
  """

  path: Path
  counts: dict[str, int]
  rejected: tuple[dict[str, Any], ...]
  untrained: tuple[str, ...]
  video_seconds: float
  damaged: dict[str, int]
  seconds: float
  size: int


def build_dataset(
  out_dir: str | os.PathLike,
  *,
  name: str,
  clips: Sequence[Clip],
  flow_spec: FlowSpec,
  rgb_quality: int = 95,
  num_workers: int | None = None,
  time_limit: float = TIME_LIMIT,
  progress: bool = True,
  overwrite: bool = False,
  allow_failed: bool = False,
  announce: Callable[[Forecast], None] = lambda forecast: None,
  elsewhere: Elsewhere | None = None,
  process: Process = process_clip,
) -> BuildSummary:
  """Builds a dataset in `out_dir/name/1.0.0`.

  The files appear under that name when all of them are complete. A build that
  was stopped is resumed. Equal arguments give equal files, whatever the number
  of workers and however often it was stopped.

  Args:
    out_dir: folder of datasets; made where missing.
    name: of the dataset: lower-case letters, digits and underscores.
    clips: in the order to store them in.
    flow_spec: how to compute and store flow.
    rgb_quality: JPEG quality (1..100) of the frames.
    num_workers: processes; None: one for each CPU.
    time_limit: seconds that a clip may take before it is rejected.
    progress: whether to draw a progress bar on stderr.
    overwrite: whether to replace the dataset if there is one. The old one stays
      until the new one is complete.
    allow_failed: whether clips are rejected that can't be finished because of
      the machine (see `faults`), instead of ending in an error.
    announce: called with a forecast once a sample of the clips is finished.
    elsewhere: finishes the clips after the sample, instead of processes of this
      machine.
    process: what is done to a clip. It runs in another process, so it has to be
      a function at the top level of a module.

  Raises:
    FileExistsError: the dataset exists and `overwrite` is false.
    ForeignFileError: a folder that would be removed holds a file that was not
      written by a build.
    UnfinishedBuildError: another build of it is running, or there is an
      unfinished one with other arguments.
    BuildError: clips could not be finished because of the machine, its disk is
      full, or no clip of a split can be used. No dataset is written; the same
      arguments resume the build.
    ValueError: an argument is out of range.
    WorkerStartError: worker processes can't start.
  """
  _check_arguments(name, clips, flow_spec, rgb_quality, num_workers, time_limit)
  start = time.monotonic()
  final = Path(out_dir) / name / VERSION
  if final.is_symlink():  # The dataset is where it leads.
    final = Path(os.path.realpath(final))
  plan = Plan(name, clips, flow_spec, rgb_quality)
  lock = final.with_name(f".{final.name}.lock")
  with build_errors.explained(final.parent), only_build(lock):
    sources = [source_of(clip) for clip in clips]
    staging = _begin(final, plan, sources, overwrite)
    task = ClipTask(
      *(process, flow_spec, rgb_quality, staging.store(), time_limit),
      allow_failed=allow_failed,
    )
    _reject_missing(task, staging, clips, sources)
    workers = min(num_workers or os.cpu_count() or 1, len(clips))
    with tqdm(
      total=len(clips), desc=name, unit="clip", disable=not progress
    ) as bar:
      _finish_clips(
        *(staging, task, clips, sources, workers, bar, announce, elsewhere)
      )
    outcomes = _checked_outcomes(clips, staging)
    _install(staging, final, name)
  return _summarise(final, clips, outcomes, time.monotonic() - start)


def _begin(
  final: Path, plan: Plan, sources: Sequence[Source], overwrite: bool
) -> Staging:
  """Clears up after a kill; returns the folder to build in."""
  replaced, own = _replaced(final), dataset_files(plan.name)
  if os.path.lexists(replaced):
    files.require_own(replaced, own)
    if final.exists():
      files.remove_folder(replaced, own)
    else:
      replaced.rename(final)
  folder = final.with_name(f"{final.name}.incomplete")
  remove_if_installed(folder, plan.name)
  if final.exists() and not overwrite:
    raise FileExistsError(
      f"{final} exists. Use another name or folder, or ask for it to be"
      " replaced (overwrite=True, --overwrite)."
    )
  if final.exists():
    files.require_own(final, own)
  return open_staging(folder, plan, sources)


def _reject_missing(
  task: ClipTask,
  staging: Staging,
  clips: Sequence[Clip],
  sources: Sequence[Source],
) -> None:
  """Rejects clips without a file; one that vanishes later is another thing."""
  for index in staging.unfinished():
    if sources[index] is None:
      task.store.write(index, clips[index], Rejection(FILE_NOT_FOUND))
      staging.mark_finished(index)


def _install(staging: Staging, final: Path, name: str) -> None:
  """Moves the finished dataset to its place."""
  complete = staging.finish()
  replaced = _replaced(final)
  if final.exists():
    final.rename(replaced)
  complete.rename(final)
  files.remove_folder(staging.folder, staging_files(name))
  if replaced.exists():
    files.remove_folder(replaced, dataset_files(name))


def _replaced(final: Path) -> Path:
  return final.with_name(f".replaced-{final.name}")


def _finish_clips(
  staging: Staging,
  task: ClipTask,
  clips: Sequence[Clip],
  sources: Sequence[Source],
  workers: int,
  bar: tqdm,
  announce: Callable[[Forecast], None],
  elsewhere: Elsewhere | None,
) -> None:
  todo = staging.unfinished()
  bar.update(len(clips) - len(todo))
  sample = sample_of(todo, workers)
  rest = [index for index in todo if index not in set(sample)]
  seconds = {}
  here = sample if elsewhere else sample + rest
  for index, took in finish_here(task, clips, here, workers):
    if took is None:
      continue
    staging.mark_finished(index)
    bar.update()
    seconds[index] = took
    if len(seconds) == len(sample):
      outcomes = staging.outcomes()
      announce(
        forecast(sources, seconds, outcomes, todo, workers, staging.folder)
      )
  if elsewhere and rest:
    elsewhere(task, staging, clips, rest)
    bar.update(len(clips) - len(staging.unfinished()) - bar.n)


def _checked_outcomes(
  clips: Sequence[Clip], staging: Staging
) -> dict[int, Outcome]:
  """How clips ended, by index.

  Raises:
    BuildError: some did not, because of the machine, or all of a split were
      rejected. The next run tries these again.
  """
  if faults := staging.faults():
    raise build_errors.unfinished(clips, faults, staging.folder)
  outcomes = staging.outcomes()
  if splits := build_errors.unusable_splits(clips, outcomes):
    # No work is lost: none of their clips has a record.
    staging.forget([i for i, c in enumerate(clips) if c.split in splits])
    raise build_errors.unusable(clips, outcomes, splits, staging.folder)
  return outcomes


def _summarise(
  path: Path,
  clips: Sequence[Clip],
  outcomes: Mapping[int, Outcome],
  seconds: float,
) -> BuildSummary:
  used = [clip for i, clip in enumerate(clips) if outcomes[i].reason is None]
  trained = class_names(clip for clip in used if clip.split == "train")
  return BuildSummary(
    path=path,
    counts=dict(collections.Counter(clip.split for clip in used)),
    rejected=tuple(rejected_entries(clips, outcomes)),
    untrained=tuple(n for n in class_names(clips) if n not in trained),
    video_seconds=sum(o.video_seconds for o in outcomes.values()),
    damaged={
      clip.video_id: outcomes[i].damaged
      for i, clip in enumerate(clips)
      if outcomes[i].damaged
    },
    seconds=seconds,
    size=sum(file.stat().st_size for file in path.iterdir()),
  )


def _check_arguments(
  name: str,
  clips: Sequence[Clip],
  flow_spec: FlowSpec,
  rgb_quality: int,
  num_workers: int | None,
  time_limit: float,
) -> None:
  if not re.fullmatch(NAME, name):
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
  is_multi_label(clips)  # Refuses labels of two kinds.
  check_class_names(class_names(clips))
  if not time_limit > 0:
    raise ValueError(f"the time limit must be positive: {time_limit}")
  target_size(8, 8, flow_spec.short_side)
  if flow_spec.algorithm != EXTRACTED:
    compute_flows(flow_spec, [])  # Refuses what it does not know.
  elif flow_spec.direction != "forward":
    raise ValueError("extracted flow has no fields back: direction='forward'")
