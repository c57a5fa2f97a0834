"""What a build makes: its plan, and the dataset's files but for the records."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import tensorflow_datasets as tfds

import twostream_jax
from twostream_jax.data.build.check import rejection_entry
from twostream_jax.data.dataset import (
  FILE_FORMAT,
  TEMPLATE,
  dataset_metadata,
  record_features,
)
from twostream_jax.data.datasets.clips import Clip, class_names, is_multi_label
from twostream_jax.flow.spec import FlowSpec, to_dict

VERSION = "1.0.0"
# Of a clip's file its size and time of change in nanoseconds, of a folder of
# frames "folder" and its own; "unreadable" where the machine can't tell, and
# None where neither is there.
Source = Sequence[int | str] | str | None
_UNREADABLE = "unreadable"
_CLIPS_PER_SHARD = 256


def software() -> dict[str, str]:
  """Returns the versions here of what a dataset's bytes depend on."""
  libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
  return {
    "version": f"twostream_jax {twostream_jax.__version__}",
    "decoder": f"PyAV {av.__version__}, libavcodec {libavcodec}",
    "resizing, flow and JPEG": f"OpenCV {cv2.__version__}",
    "TV-L1 flow": f"JAX {importlib.metadata.version('jax')}",
  }


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a build makes: together with the files, all that it depends on."""

  name: str
  clips: Sequence[Clip]
  flow_spec: FlowSpec
  rgb_quality: int

  def metadata(self) -> dict[str, Any]:
    """The dataset's metadata, with nothing rejected yet."""
    return dataset_metadata(
      self.name,
      class_names(self.clips),
      self.flow_spec,
      self.rgb_quality,
      is_multi_label(self.clips),
    )

  def features(self) -> tfds.features.FeaturesDict:
    """The TFDS features of a record."""
    return record_features(
      class_names(self.clips), multi_label=is_multi_label(self.clips)
    )

  def shards(self) -> list[tuple[str, list[int]]]:
    """Split and indices of the clips of each shard."""
    by_split = {}
    for i, clip in enumerate(self.clips):
      by_split.setdefault(clip.split, []).append(i)
    return [
      (split, indices[start : start + _CLIPS_PER_SHARD])
      for split, indices in by_split.items()
      for start in range(0, len(indices), _CLIPS_PER_SHARD)
    ]

  def fingerprint(self) -> dict[str, Any]:
    """JSON-ready; equal for builds that give the same dataset."""
    listed = hashlib.sha256()
    for clip in self.clips:
      row = [clip.video_id, clip.split, clip.label, clip.group]
      row += [clip.rejection] if clip.rejection else []
      listed.update(json.dumps(row).encode())
    flow = {f"flow {k}": v for k, v in to_dict(self.flow_spec).items()}
    return {
      "name": self.name,
      "rgb_quality": self.rgb_quality,
      "number of clips": len(self.clips),
      "names and labels of the clips": listed.hexdigest()[:16],
      **software(),
      **flow,
    }


def source_of(clip: Clip) -> Source:
  """Looks for a clip's file."""
  try:
    if not clip.path.exists():
      return None
    found = clip.path.stat()
    is_file = stat.S_ISREG(found.st_mode)
    return [found.st_size if is_file else "folder", found.st_mtime_ns]
  except OSError:
    return _UNREADABLE


def has_changed(before: Source, now: Source) -> bool:
  """Whether what was concluded from a clip's file holds no more."""
  return now not in (before, None, _UNREADABLE) and before != _UNREADABLE


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a clip ended.

  Attributes:
    reason: why it was rejected; None: it is used.
    size: of the record, in bytes; 0 without one.
    video_seconds: its length.
    damaged: frames that were damaged or lost.
  """

  reason: str | None = None
  size: int = 0
  video_seconds: float = 0.0
  damaged: int = 0


def rejected_entries(
  clips: Sequence[Clip], outcomes: Mapping[int, Outcome]
) -> list[dict[str, Any]]:
  """Returns the rejected clips as the metadata lists them, in order."""
  return [
    rejection_entry(clips[i], outcome.reason)
    for i, outcome in sorted(outcomes.items())
    if outcome.reason is not None
  ]


def shard_file(plan: Plan, folder: Path, split: str, number: int) -> Path:
  """Where the file of a split's records is."""
  template = _template(plan, folder, split)
  return Path(
    os.fspath(template.sharded_filepath(shard_index=number, num_shards=None))
  )


def write_info(
  plan: Plan,
  folder: Path,
  outcomes: Mapping[int, Outcome],
  lengths: Mapping[str, list[int]],
  sizes: Mapping[str, int],
) -> None:
  """Writes the files that make files of records a TFDS dataset.

  Args:
    plan: of the dataset.
    folder: where its files of records are.
    outcomes: of all clips, by index.
    lengths: number of records in each file of a split.
    sizes: bytes of all records of a split.
  """
  metadata = plan.metadata()
  metadata["rejected"] = rejected_entries(plan.clips, outcomes)
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=plan.name,
      version=tfds.core.Version(VERSION),
      data_dir=os.fspath(folder),
      module_name=__name__,
    ),
    description="Videos as JPEG frames and quantised optical flow.",
    features=plan.features(),
    metadata=tfds.core.MetadataDict(metadata),
    disable_shuffling=True,
  )
  info.set_file_format(FILE_FORMAT)
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=lengths[split],
      num_bytes=sizes[split],
      filename_template=_template(plan, folder, split),
    )
    for split in lengths
  ]
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(os.fspath(folder))


def _template(
  plan: Plan, folder: Path, split: str
) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    dataset_name=plan.name,
    data_dir=tfds.core.Path(folder),
    split=split,
    filetype_suffix=FILE_FORMAT,
    template=TEMPLATE,
  )
