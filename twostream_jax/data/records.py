"""Random access to the videos of a split, and to single images of them.

A record is a whole video: megabytes, of which a training sample shows a few
images. A sample reads just the bytes that it shows, by the split's index
(`record_index`).
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax.data.record_index import (
  IMAGES,
  SIZES,
  RecordFile,
  is_jpeg,
  read_index,
)

_PER_VIDEO = ("fps", "pixel_aspect", "num_damaged")
# Files that a source holds open at once; a process may have about 1000.
_OPEN_FILES = 128
# Records that are compared with an index when it is opened; others are when
# they are first read.
_COMPARED = 16
# Numbers that are hashed at once: the sizes of all images are a large array.
_PIECE = 1 << 20


class Images(Sequence[bytes]):
  """Images of a video, JPEG; read from the disk when they are asked for."""

  def __init__(self, file: RecordFile, start: int, places: np.ndarray):
    self._file = file
    self._start = start
    self._places = places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index):
    """An image, or a list of several, which are read as one piece.

    Raises:
      IndexError: there are fewer.
      ValueError: there are no images where the index has them.
    """
    if isinstance(index, slice):
      return self._read(self._places[index])
    at, size = self._places[index].tolist()
    return self._checked(self._file.read(self._start + at, size))

  def __eq__(self, other) -> bool:
    return isinstance(other, Sequence) and list(self) == list(other)

  def _read(self, places: np.ndarray) -> list[bytes]:
    if not len(places):
      return []
    places = places.tolist()
    first = min(at for at, _ in places)
    end = max(at + size for at, size in places)
    data = self._file.read(self._start + first, end - first)
    return [
      self._checked(data[at - first : at - first + size]) for at, size in places
    ]

  def _checked(self, image: bytes) -> bytes:
    if not is_jpeg(image):
      raise ValueError(f"{self._file.path} does not fit its index")
    return image


class VideoSource:
  """The videos of a split; can be pickled, and read by several threads.

  `source[i]` is a dict of the fields of a record: text as UTF-8 bytes, images
  as `Images`.
  """

  def __init__(
    self, files: Sequence[str | os.PathLike], index: Path, multi_label: bool
  ):
    """Reads `index`, the index file of the record `files` of a split.

    Raises:
      FileNotFoundError: there is no index.
      ValueError: it is damaged, or of other files or records.
    """
    self._arguments = (
      tuple(os.fspath(file) for file in files),
      index,
      multi_label,
    )
    self._multi_label = multi_label
    self._index = read_index(index)
    if len(files) != len(self._index.sizes):
      raise ValueError(
        f"{index} is of {len(self._index.sizes)} files, not of the"
        f" {len(files)} of the split; remove it"
      )
    videos = self._index.videos
    if not multi_label and (videos["labels"] != 1).any():
      raise ValueError(
        f"{index} has videos of no or several classes, which only a multi-label"
        " dataset has"
      )
    self._first_label = _starts(videos["labels"])
    self._first_time = _starts(videos["num_frames"])
    counts = [videos[name] for name in IMAGES]
    self._first_image = _starts(functools.reduce(np.add, counts))
    to_open = [*zip(self._arguments[0], self._index.sizes, strict=True)]
    self._open = functools.lru_cache(_OPEN_FILES)(
      lambda i: RecordFile(*to_open[i])
    )
    n = len(videos)
    has_checksums = len(self._index.checksums) > 0
    self._compared = np.full(n, not has_checksums)
    for i in sorted(set(np.linspace(0, n - 1, min(n, _COMPARED), dtype=int))):
      self._compare(int(i))

  def __reduce__(self):
    return VideoSource, self._arguments

  def __len__(self) -> int:
    return len(self._index.videos)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The fields of a video; ValueError: its file is not that of the index."""
    i = range(len(self))[index]
    # Written out, because it is done for every sample; and `item`, because it
    # takes a quarter of what making a NumPy scalar takes.
    video = self._index.videos.item(i)
    file, start, fps, aspect, damaged, frames, height, width = video[:8]
    labels, rgb, flow, back = video[8:]
    self._compare(i)
    at, file = self._first_label.item(i), self._open(file)
    label = self._index.labels[at : at + labels]
    begin = self._first_time.item(i)
    first = self._first_image.item(i)
    last = first + rgb + flow
    images = self._index.images
    return {
      "video_id": self._index.video_ids.item(i),
      # As TFDS gives it.
      "label": label.astype(np.int64) if self._multi_label else label.item(),
      "group": self._index.groups.item(i),
      "fps": fps,
      "times": self._index.times[begin : begin + frames],
      "pixel_aspect": aspect,
      "num_damaged": damaged,
      "num_frames": frames,
      "height": height,
      "width": width,
      "rgb": Images(file, start, images[first : first + rgb]),
      "flow": Images(file, start, images[first + rgb : last]),
      "flow_backward": Images(file, start, images[last : last + back]),
    }

  def _compare(self, i: int) -> None:
    """Compares a record with its index, once.

    Raises:
      ValueError: it is another one, of the same size.
    """
    if self._compared.item(i):
      return
    file, start = self._index.videos.item(i)[:2]
    file = self._open(file)
    if file.checksum(start) != self._index.checksums.item(i):
      raise ValueError(
        f"{file.path} does not fit its index {self._arguments[1]}: it has other"
        f" records; remove the index, which is then made again"
      )
    self._compared[i] = True

  @property
  def labels(self) -> np.ndarray | tuple[np.ndarray, ...]:
    """Labels of all videos, without reading their images.

    int32 [n]; in a multi-label set a tuple of n such arrays, of any length.
    """
    if self._multi_label:
      return tuple(np.split(self._index.labels, self._first_label[1:]))
    return self._index.labels

  @property
  def label_range(self) -> tuple[int, int]:
    """The lowest and the highest label; (0, -1) where there is none."""
    labels = self._index.labels
    return int(labels.min(initial=0)), int(labels.max(initial=-1))

  @property
  def facts(self) -> np.ndarray:
    """Of all videos, without reading them: structured array [n].

    fps and pixel_aspect float32; num_damaged, num_frames, height and width
    int32; see `dataset.Record`.
    """
    return self._index.videos[[*_PER_VIDEO, *SIZES]]

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of ids, labels and sizes of images, in order; no image is read.

    It tells a split that was built again with other labels, videos or images.
    How records are divided into files makes no difference.
    """
    found = hashlib.sha256("\n".join(self.video_ids).encode())
    index = self._index
    counts = (index.videos[name] for name in ("labels", *SIZES, *IMAGES))
    for values in (*counts, index.labels, index.images[:, 1]):
      found.update(len(values).to_bytes(8, "little"))
      for first in range(0, len(values), _PIECE):
        piece = values[first : first + _PIECE]
        found.update(np.ascontiguousarray(piece, "<i8").data)
    return found.hexdigest()

  @property
  def groups(self) -> frozenset[str]:
    """The known groups of its videos: subjects, scenes or source videos."""
    names = set(self._index.groups.tolist()) - {b""}
    return frozenset(name.decode() for name in names)

  @property
  def video_ids(self) -> tuple[str, ...]:
    """Names of all videos."""
    return tuple(name.decode() for name in self._index.video_ids.tolist())


def _starts(counts: np.ndarray) -> np.ndarray:
  """Where each run begins, when runs of so many follow each other."""
  return np.cumsum(counts, dtype=np.int64) - counts
