"""How a build ends that made no dataset, in one sentence."""

import collections
import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from twostream_jax.data.build.plan import Outcome
from twostream_jax.data.datasets.clips import Clip, examples
from twostream_jax.data.video.faults import OUT_OF_MEMORY

# Reasons that a message lists.
_REASONS = 3


class BuildError(ValueError):
  """There is no dataset yet; what is finished is kept for the next run."""


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
  """Explains errors of the machine while a dataset is built in a folder.

  Raises:
    BuildError: a file can't be written or memory does not suffice.
  """
  try:
    yield
  except FileExistsError:
    raise
  except (OSError, MemoryError) as error:
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    raise BuildError(
      f"the build in {folder} stopped ({str(error) or OUT_OF_MEMORY}):"
      f" {'make room on that disk' if full else 'mend the cause'} and run the"
      " same command again, which resumes it"
    ) from error


def unfinished(
  clips: Sequence[Clip], faults: Mapping[int, str], folder: Path
) -> BuildError:
  """The error of a build in which clips failed because of the machine.

  Args:
    clips: all of the build.
    faults: reasons by index, at least one.
    folder: where the finished clips are kept.
  """
  totals = collections.Counter(clip.split for clip in clips)
  failed = collections.Counter(clips[i].split for i in sorted(faults))
  shares = [f"{n} of {totals[split]} {split}" for split, n in failed.items()]
  return BuildError(
    f"{' and '.join(shares)} clips could not be finished because of this"
    f" machine, not of their files: {_listed(clips, faults)}; what"
    f" is done of the others ({len(clips) - len(faults)}) is kept in {folder}:"
    " see that the videos can be reached and that memory suffices (fewer"
    " --workers need less), and run the same command again, or build without"
    " these clips (--allow_failed)"
  )


def unusable_splits(
  clips: Sequence[Clip], outcomes: Mapping[int, Outcome]
) -> list[str]:
  """Splits of which every clip was rejected."""
  used = {clips[i].split for i, o in outcomes.items() if o.reason is None}
  return sorted({clip.split for clip in clips} - used)


def unusable(
  clips: Sequence[Clip],
  outcomes: Mapping[int, Outcome],
  splits: Sequence[str],
  folder: Path,
) -> BuildError:
  """The error of a build in which all clips of some splits were rejected.

  Args:
    clips: all of the build.
    outcomes: of all clips, by index.
    splits: see `unusable_splits`; at least one.
    folder: where the finished clips of other splits are kept.
  """
  reasons = {
    i: o.reason
    for i, o in outcomes.items()
    if clips[i].split in splits and o.reason is not None
  }
  return BuildError(
    f"no clip of the {' and the '.join(splits)} split can be used:"
    f" {_listed(clips, reasons)}; what is finished of others is kept in"
    f" {folder}: repair or replace these files and run the same command again,"
    " which tries them again"
  )


def _listed(clips: Sequence[Clip], reasons: Mapping[int, str]) -> str:
  """The most frequent reasons, each with clips."""
  ids = collections.defaultdict(list)
  for i in sorted(reasons):
    ids[reasons[i]].append(clips[i].video_id)
  frequent = sorted(ids.items(), key=lambda item: -len(item[1]))
  listed = [f"{len(s)} x {r} ({examples(s)})" for r, s in frequent[:_REASONS]]
  return "; ".join(listed) + ("; ..." if len(frequent) > _REASONS else "")
