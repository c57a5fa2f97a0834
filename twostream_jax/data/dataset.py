"""The stored dataset: its records, its metadata, and how to open it.

A dataset is a TFDS dataset in ArrayRecord files. Images stay JPEG bytes on
reading, so that a loader decodes only the frames it samples. TensorFlow plays
no part.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import cv2
import numpy as np
import tensorflow_datasets as tfds

from twostream_jax import files
from twostream_jax.data import record_index, records
from twostream_jax.data.video import images
from twostream_jax.files import json_files
from twostream_jax.files.words import printable
from twostream_jax.flow.spec import (
  FlowSpec,
  FlowSpecError,
  from_dict,
  quantise,
  to_dict,
)

FORMAT_VERSION = 3
# Of datasets that can be read: 2 had no times, pixel aspect or damage.
_READABLE = (2, FORMAT_VERSION)
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
METADATA_FILE = "metadata.json"
# Of a dataset: it is a part of the names of its files.
NAME = "[a-z][a-z0-9_]*"
FILE_FORMAT = "array_record"
# What TFDS writes beside records; "incomplete" is of one that was killed.
_FACTS = (
  r"(incomplete\.[0-9a-fA-F]{32}\.)?"
  r"((dataset_info|features|metadata)\.json|label\.labels\.txt)"
)
# How TFDS makes the name of a file of records.
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
# Until builds could be resumed.
_OLD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_NUMBERS = {TEMPLATE: "{0:05d}", _OLD_TEMPLATE: "{0:05d}-of-{1:05d}"}


# Beside those that encode.
decode_rgb = images.decode_rgb
decode_flow_codes = images.decode_flow_codes


class DatasetNotFoundError(FileNotFoundError):
  """There is no dataset where one was looked for."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One video as it is stored; the reader gives the fields by name, in a dict.

  Attributes:
    video_id: name that the list gives it, or its path relative to the folder of
      videos. Read as UTF-8 bytes, like the group.
    label: name of the class. Stored and read as an index into the class names.
      In a multi-label dataset any number of names and indices.
    group: subject, scene or source video; empty where unknown.
    fps: mean frame rate, frames per second; see `frame_times.mean_rate`.
    times: of the frames, in microseconds since the first one; int64 [t].
    pixel_aspect: width over height of a pixel in the file. Stored frames have
      square pixels.
    num_damaged: frames that the decoder reported as damaged or lost.
    num_frames: t, the number of frames that were decoded.
    height: of the stored frames and fields, in pixels.
    width: of the stored frames and fields, in pixels.
    rgb: t JPEG images; see `decode_rgb`.
    flow: t - step JPEG images, field i from frame i to frame i + step; see
      `decode_flow_codes`.
    flow_backward: JPEG images, field i from frame i + step to frame i; empty
      unless the direction of the flow is bidirectional.
  """

  video_id: str
  label: str | tuple[str, ...]
  group: str
  fps: float
  times: Sequence[int]
  pixel_aspect: float
  num_damaged: int
  num_frames: int
  height: int
  width: int
  rgb: Sequence[bytes]
  flow: Sequence[bytes]
  flow_backward: Sequence[bytes]


@dataclasses.dataclass(frozen=True)
class VideoDataset:
  """A dataset that was opened for reading.

  Attributes:
    path: the folder of its files.
    name: name of the dataset.
    class_names: sorted; a label is an index into it.
    flow_spec: what the stored flow means.
    rgb_quality: JPEG quality (0..100) of the frames.
    rejected: the files that could not be used: dicts with video_id, split,
      label and reason.
    multi_label: whether a clip has any number of classes, not one.
    sources: for each split random access to its videos: `source[i]` is a dict
      of the fields of `Record`, of which images are read when they are asked
      for.
  """

  path: Path
  name: str
  class_names: tuple[str, ...]
  flow_spec: FlowSpec
  rgb_quality: int
  rejected: tuple[dict[str, Any], ...]
  multi_label: bool
  sources: Mapping[str, records.VideoSource]


def dataset_files(name: str) -> tuple[str, ...]:
  """All that is in the folder of a dataset, as regular expressions."""
  records = rf"{FILE_FORMAT}-\d{{5,}}(-of-\d{{5,}})?"
  return rf"{re.escape(name)}-[^/]+\.(index|{records})", _FACTS


def record_features(
  names: Sequence[str], *, multi_label: bool = False
) -> tfds.features.FeaturesDict:
  """Returns the TFDS features of a record; see `Record`."""
  label = tfds.features.ClassLabel(names=list(names))
  # Text, because it is the one TFDS feature that gives bytes back undecoded.
  return tfds.features.FeaturesDict(
    {
      "video_id": tfds.features.Text(),
      "label": tfds.features.Sequence(label) if multi_label else label,
      "group": tfds.features.Text(),
      "fps": np.float32,
      "times": tfds.features.Sequence(np.int64),
      "pixel_aspect": np.float32,
      "num_damaged": np.int32,
      "num_frames": np.int32,
      "height": np.int32,
      "width": np.int32,
      "rgb": tfds.features.Sequence(tfds.features.Text()),
      "flow": tfds.features.Sequence(tfds.features.Text()),
      "flow_backward": tfds.features.Sequence(tfds.features.Text()),
    }
  )


def dataset_metadata(
  name: str,
  names: Sequence[str],
  flow_spec: FlowSpec,
  rgb_quality: int,
  multi_label: bool = False,
) -> dict[str, Any]:
  """Returns the JSON-ready metadata of a dataset with nothing rejected yet."""
  return {
    "format_version": FORMAT_VERSION,
    "name": name,
    "class_names": list(names),
    "multi_label": multi_label,
    "flow_spec": to_dict(flow_spec),
    "rgb_quality": rgb_quality,
    "rejected": [],
  }


def open_dataset(path: str | os.PathLike) -> VideoDataset:
  """Opens the dataset in a folder.

  Args:
    path: the folder of the dataset's files, or any folder above that holds
      exactly one dataset.

  Raises:
    DatasetNotFoundError: there is none.
    ValueError: there are several, or it was not built by `build_dataset` of
      a version that can be read.
    FlowSpecError: the stored flow can't be read.
  """
  folder = _find_dataset(Path(path))
  _check_features(folder / FEATURES_FILE)
  # Not by TFDS, which imports what these files name and takes paths from them.
  metadata = json_files.read_object(folder / METADATA_FILE)
  if metadata.get("format_version") not in _READABLE:
    raise ValueError(
      f"{folder} is not a dataset of format version"
      f" {' or '.join(map(str, _READABLE))}"
      f" (it states {metadata.get('format_version')!r:.80});"
      " build it with data_prep/build_tfds.py"
    )
  name, rejected = metadata.get("name"), metadata.get("rejected")
  if not isinstance(name, str) or not re.fullmatch(NAME, name):
    raise ValueError(
      f"{folder / METADATA_FILE}: {name!r:.200} is not the name of a dataset"
    )
  # Runs of earlier versions do not state it, datasets always have.
  check_facts({"rgb_quality": None} | metadata, folder / METADATA_FILE)
  _check_label(folder / FEATURES_FILE, metadata["multi_label"])
  if not _are_rejected(rejected):
    raise ValueError(
      f"{folder / METADATA_FILE} can't be read: rejected: not a list of files"
      " with video_id, split, label and reason"
    )
  return VideoDataset(
    path=folder,
    name=name,
    class_names=tuple(metadata["class_names"]),
    flow_spec=from_dict(metadata["flow_spec"]),
    rgb_quality=metadata["rgb_quality"],
    rejected=tuple(rejected),
    multi_label=metadata["multi_label"],
    sources={
      split: _source(split, paths, folder, metadata)
      for split, paths in _record_files(folder, name).items()
    },
  )


def _are_rejected(value: Any) -> TypeGuard[list[dict[str, Any]]]:
  texts = ("video_id", "split", "reason")
  return isinstance(value, list) and all(
    isinstance(file, dict)
    and "label" in file
    and all(isinstance(file.get(key), str) for key in texts)
    for file in value
  )


def _record_files(folder: Path, name: str) -> dict[str, list[Path]]:
  """The files of records of each split, which `INFO_FILE` lists.

  Raises:
    ValueError: They are not named as those of this package, or lead out of the
      folder.
  """
  path = folder / INFO_FILE
  found, content = {}, json_files.read_object(path)
  try:
    for split in content["splits"]:
      template = split.get("filepathTemplate", _OLD_TEMPLATE)
      numbers = _NUMBERS[template]
      count = len(split["shardLengths"])
      if not count:
        raise ValueError(f"the split {split['name']!r} has no file")
      found[split["name"]] = [
        files.inside(
          folder,
          f"{name}-{split['name']}.{FILE_FORMAT}-{numbers.format(i, count)}",
        )
        for i in range(count)
      ]
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(
      f"{path} does not list files of records as this package does:"
      f" {error!r:.300}"
    ) from error
  return found


def check_facts(facts: Mapping[str, Any], path: Path) -> None:
  """Refuses facts of a dataset, as a file has them, of a wrong type.

  A text in the place of a list of names would pass for a name a letter.

  Args:
    facts: "name", "class_names", "multi_label", "rgb_quality" and "flow_spec".
    path: of the file, for the message.

  Raises:
    ValueError: one is missing or of another type.
  """
  classes = facts.get("class_names")
  quality = facts.get("rgb_quality", 0)
  wrong = [
    what
    for what, is_right in {
      "name: not a text": isinstance(facts.get("name"), str),
      "class_names: not a list of different texts": isinstance(classes, list)
      and all(isinstance(name, str) for name in classes)
      and len(set(classes)) == len(classes) > 0,
      "multi_label: neither true nor false": isinstance(
        facts.get("multi_label"), bool
      ),
      "rgb_quality: not a whole number from 0 to 100": type(quality) is int
      and 0 <= quality <= 100,
    }.items()
    if not is_right
  ]
  if wrong:
    raise ValueError(f"{path} can't be read: {wrong[0]}")
  try:
    from_dict(facts["flow_spec"])
  except KeyError as error:
    raise ValueError(f"{path} can't be read: no flow_spec") from error
  except FlowSpecError as error:
    raise FlowSpecError(f"{path}: {error}") from error


def _check_features(path: Path) -> None:
  """Refuses a file of features that names anything but this package's.

  It is not used here. But whoever opens the folder with TFDS runs the modules
  that it names, from the current folder as well.

  Raises:
    ValueError: It does, or it can't be read.
  """
  ours = set()
  for multi_label in (False, True):
    own = _own_features(multi_label)
    ours |= {"featuresDict", own["type"], *_words(own["content"])}
  try:
    found = set(_words(json_files.read_object(path)))
  except RecursionError as error:
    raise ValueError(f"{path} can't be read: {error}") from error
  # Numbers of classes, too, are strings.
  if strange := sorted(w for w in found - ours if not w.isdecimal()):
    raise ValueError(
      f"{path} names {strange[0][:80]!r}, which no dataset of this package has;"
      " it is not opened, because TFDS would run code of that name"
    )


def _own_features(multi_label: bool) -> dict[str, Any]:
  """Features of this package's records as TFDS writes them to a file."""
  content: Any = record_features(["a"], multi_label=multi_label).to_json()
  return content


def _check_label(path: Path, multi_label: bool) -> None:
  """Refuses features of another kind of labels than the metadata states."""
  own = _own_features(multi_label)
  found = json_files.read_object(path)
  try:
    kinds = [
      features["featuresDict"]["features"]["label"]["pythonClassName"]
      for features in ({"featuresDict": own["content"]}, found)
    ]
  except (KeyError, TypeError) as error:
    raise ValueError(f"{path} can't be read: it has no label") from error
  if kinds[0] != kinds[1]:
    raise ValueError(
      f"{path} and {METADATA_FILE} differ: multi_label is {multi_label}"
    )


def _words(value: Any) -> Iterator[str]:
  """All keys and values of nested JSON."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield key
      yield from _words(item)
  elif isinstance(value, list):
    for item in value:
      yield from _words(item)
  else:
    yield str(value)


def _source(
  split: str, paths: list[Path], folder: Path, metadata: Mapping[str, Any]
) -> records.VideoSource:
  index = index_path(folder, metadata["name"], split)
  arguments = paths, index, metadata["multi_label"]
  source = _open_source(arguments, paths, index)
  low, high = source.label_range
  if low < 0 or high >= len(metadata["class_names"]):
    raise ValueError(
      f"{index} has labels from {low} to {high}, but {folder / METADATA_FILE}"
      f" names {len(metadata['class_names'])} classes"
    )
  return source


def _open_source(arguments: tuple, paths: list[Path], index: Path):
  try:
    return records.VideoSource(*arguments)
  except (FileNotFoundError, record_index.OtherIndexError):
    # Built before there were indices, or there was what they hold now.
    indices = [record_index.index_file(file) for file in paths]
    record_index.write_index(record_index.join(indices), index)
    return records.VideoSource(*arguments)


def index_path(folder: Path, name: str, split: str) -> Path:
  """Where the index of a split of a dataset is; see `record_index`."""
  return files.inside(folder, f"{name}-{split}.index")


def identity(data: VideoDataset) -> dict[str, Any]:
  """JSON-ready facts that give what is trained on the dataset its meaning."""
  return {
    "name": data.name,
    "class_names": list(data.class_names),
    "multi_label": data.multi_label,
    "flow_spec": to_dict(data.flow_spec),
    "rgb_quality": data.rgb_quality,
    "clips": {split: len(source) for split, source in data.sources.items()},
    "digest": {split: source.digest for split, source in data.sources.items()},
  }


def encode_rgb(frame: np.ndarray, quality: int) -> bytes:
  """Encodes an RGB frame, uint8 [h, w, 3], as JPEG of a quality in 0..100."""
  return _encode(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)


def encode_flow(flow: np.ndarray, spec: FlowSpec) -> bytes:
  """Quantises and encodes a field as one gray JPEG, x left of y.

  Args:
    flow: pixels per step, x then y, [h, w, 2], w a multiple of 8.
    spec: gives the bound and the quality.

  Raises:
    ValueError: a component is not a number.
  """
  codes = quantise(flow, spec.bound)
  return _encode(np.hstack([codes[..., 0], codes[..., 1]]), spec.quality)


def _encode(image: np.ndarray, quality: int) -> bytes:
  _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
  return data.tobytes()


def _find_dataset(path: Path) -> Path:
  found, unreadable = [], []
  for folder, children, names in os.walk(path, onerror=unreadable.append):
    if INFO_FILE in names:
      found.append(Path(folder))
      children.clear()
    # A build in progress, or a killed one, is not a dataset.
    children[:] = sorted(c for c in children if not is_unfinished(c))
  if not found:
    for error in unreadable:
      if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
    raise DatasetNotFoundError(
      f"no dataset in {path.absolute()} or below (looked for {INFO_FILE});"
      " build one with data_prep/build_tfds.py, or correct the path"
    )
  if len(found) > 1:
    listed = "\n".join(f"  {printable(str(folder))}" for folder in found)
    raise ValueError(
      f"{len(found)} datasets in {path}; pass the path of one:\n{listed}"
    )
  below = str(found[0].relative_to(path))
  if printable(below) != below:
    # Messages and other commands name it.
    raise ValueError(f"{below!r} in {path} is not a name for a dataset")
  return found[0]


def is_unfinished(folder_name: str) -> bool:
  """Whether a folder's name says that it is not a finished dataset."""
  return folder_name.startswith(".") or ".incomplete" in folder_name
