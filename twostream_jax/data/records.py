"""Random access to the videos of a split, and to single images of them.

A record is a whole video: megabytes, of which a training sample shows a few
images. So an index lies beside the ArrayRecord files of a split: the small
fields of every video, and for every image where its bytes are. A sample then
reads just the bytes that it shows. The files stay what TFDS writes and reads;
the index points into them, and can be made again from them.

Positions count the bytes of a file without its block headers: an ArrayRecord
file is a Riegeli file, which has a header of 24 bytes at every multiple of
64 KiB, in the middle of whatever stands there (Riegeli/records file format,
github.com/google/riegeli, doc/riegeli_records_file_format.md, "Block header").
"""

import functools
import os
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

_IMAGES = ("rgb", "flow", "flow_backward")
_SIZES = ("num_frames", "height", "width")
_BLOCK = 1 << 16
_BLOCK_HEADER = 24
# Between two records there are headers of this many bytes at most.
_GAP = 256
# A search for so many bytes of an image is fast, for all of them slow.
_MARK = 32
_VIDEO = np.dtype(
  [
    ("file", "<i4"),
    ("start", "<i8"),  # Of the record in its file.
    ("fps", "<f4"),
    *((name, "<i4") for name in _SIZES),
    ("labels", "<i4"),  # How many, and so for the images.
    *((name, "<i4") for name in _IMAGES),
  ]
)
# Files that a source holds open at once; a process may have about 1000.
_OPEN_FILES = 128


class Index(NamedTuple):
  """What a split holds, and where.

  Attributes:
    sizes: bytes of each file, int64.
    videos: n entries of `_VIDEO`.
    video_ids: UTF-8, bytes [n].
    groups: likewise.
    labels: those of the first video, then of the second ..., int32.
    images: those of the first video, in the order of `_IMAGES`, then of the
      second ...: first byte, counted from that of the record, and number of
      bytes; uint32 [m 2].
  """

  sizes: np.ndarray
  videos: np.ndarray
  video_ids: np.ndarray
  groups: np.ndarray
  labels: np.ndarray
  images: np.ndarray


def index_file(path: str | os.PathLike) -> Index:
  """Reads a whole ArrayRecord file of videos, and finds every image in it.

  Raises:
    ValueError: its bytes are not where the format has them, or an image is no
      JPEG.
  """
  file = _File(path, os.path.getsize(path))
  reader = ArrayRecordReader(os.fspath(path))
  videos, ids, groups, labels, images = [], [], [], [], []
  position = 0
  for _ in range(reader.num_records()):
    record = reader.read()
    start = file.find(record, position)
    position = start + len(record)
    fields = tf_example_pb2.Example.FromString(record).features.feature
    sizes = [fields[n].int64_list.value[0] for n in _SIZES]
    fps = fields["fps"].float_list.value[0]
    own_labels = fields["label"].int64_list.value
    counts = [len(fields[name].bytes_list.value) for name in _IMAGES]
    videos.append((0, start, fps, *sizes, len(own_labels), *counts))
    ids.append(fields["video_id"].bytes_list.value[0])
    groups.append(fields["group"].bytes_list.value[0])
    labels.extend(own_labels)
    images += _find_images(record, fields)
  reader.close()
  return Index(
    np.array([os.path.getsize(path)], np.int64),
    np.array(videos, _VIDEO),
    np.array(ids, np.bytes_),
    np.array(groups, np.bytes_),
    np.array(labels, np.int32),
    np.array(images, np.uint32).reshape(-1, 2),
  )


def join(indices: Sequence[Index]) -> Index:
  """The index of several files, at least one, in their order."""
  videos = np.concatenate([index.videos for index in indices])
  videos["file"] = np.repeat(
    np.arange(len(indices)), [len(index.videos) for index in indices]
  )
  joined = Index(*map(np.concatenate, zip(*indices, strict=True)))
  return joined._replace(videos=videos)


def temporary_name(path: Path) -> Path:
  """Returns a name beside `path` to write its bytes to, before a rename.

  Machines that share a folder have processes of equal ids (in containers of
  one image as a rule), so an id would not keep two writers apart.
  """
  return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_index(index: Index, path: Path) -> None:
  """Writes an index; a file under that name is a whole one."""
  temporary = temporary_name(path)
  with open(temporary, "wb") as file:
    for array in index:
      np.lib.format.write_array(file, array, allow_pickle=False)
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)


def read_index(path: Path) -> Index:
  """Reads an index; the images stay on the disk.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of another version.
  """
  with open(path, "rb") as file:
    try:
      small = [
        np.lib.format.read_array(file, allow_pickle=False)
        for _ in Index._fields[:-1]
      ]
      np.lib.format.read_magic(file)
      shape, _, dtype = np.lib.format.read_array_header_1_0(file)
      images = np.memmap(file, dtype, "r", file.tell(), shape)
    except ValueError as error:
      raise ValueError(f"{path} is damaged: {error}; remove it") from error
  index = Index(*small, images.view(np.ndarray))
  if index.videos.dtype != _VIDEO:
    raise ValueError(f"{path} is of another version; remove it")
  return index


class Images(Sequence[bytes]):
  """Images of a video, JPEG; read from the disk when they are asked for."""

  def __init__(self, file: "_File", start: int, places: np.ndarray):
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

  __hash__ = None

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
    if not _is_jpeg(image):
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
      ValueError: it is damaged, or of other files.
    """
    self._arguments = tuple(map(os.fspath, files)), index, multi_label
    self._multi_label = multi_label
    self._index = read_index(index)
    if len(files) != len(self._index.sizes):
      raise ValueError(
        f"{index} is of {len(self._index.sizes)} files, not of the"
        f" {len(files)} of the split; remove it"
      )
    videos = self._index.videos
    self._first_label = _starts(videos["labels"])
    self._first_image = _starts(sum(videos[name] for name in _IMAGES))
    to_open = [*zip(self._arguments[0], self._index.sizes, strict=True)]
    self._open = functools.lru_cache(_OPEN_FILES)(lambda i: _File(*to_open[i]))

  def __reduce__(self):
    return VideoSource, self._arguments

  def __len__(self) -> int:
    return len(self._index.videos)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The fields of a video; ValueError: its file is not that of the index."""
    i = range(len(self))[index]
    # Written out, because it is done for every sample; and `item`, because it
    # takes a quarter of what making a NumPy scalar takes.
    file, start, fps, frames, height, width, labels, rgb, flow, back = (
      self._index.videos.item(i)
    )
    at, file = self._first_label.item(i), self._open(file)
    label = self._index.labels[at : at + labels]
    first = self._first_image.item(i)
    last = first + rgb + flow
    images = self._index.images
    return {
      "video_id": self._index.video_ids.item(i),
      # As TFDS gives it.
      "label": label.astype(np.int64) if self._multi_label else label.item(),
      "group": self._index.groups.item(i),
      "fps": fps,
      "num_frames": frames,
      "height": height,
      "width": width,
      "rgb": Images(file, start, images[first : first + rgb]),
      "flow": Images(file, start, images[first + rgb : last]),
      "flow_backward": Images(file, start, images[last : last + back]),
    }

  @property
  def labels(self) -> np.ndarray | tuple[np.ndarray, ...]:
    """Labels of all videos, without reading their images.

    int32 [n]; in a multi-label set a tuple of n such arrays, of any length.
    """
    if self._multi_label:
      return tuple(np.split(self._index.labels, self._first_label[1:]))
    return self._index.labels

  @property
  def facts(self) -> np.ndarray:
    """Of all videos, without reading them: structured array [n].

    fps float32, of the files' headers; num_frames, height and width int32.
    """
    return self._index.videos[["fps", *_SIZES]]

  @property
  def video_ids(self) -> tuple[str, ...]:
    """Names of all videos."""
    return tuple(name.decode() for name in self._index.video_ids.tolist())


class _File:
  """Reads by positions that leave out the block headers.

  Attributes:
    path: of the file.
  """

  def __init__(self, path: str | os.PathLike, size: int):
    self.path = os.fspath(path)
    self._descriptor = os.open(path, os.O_RDONLY)
    # When nobody reads any more, whoever has let go of it before.
    weakref.finalize(self, os.close, self._descriptor).atexit = False
    there = os.fstat(self._descriptor).st_size
    if there != size:
      raise ValueError(f"{path} has {there} bytes and its index says {size}")
    if hasattr(os, "posix_fadvise"):  # Not on macOS.
      # Images are far apart: what comes after one is not read ahead.
      os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

  def read(self, start: int, size: int) -> bytes:
    """Returns bytes from a position; ValueError: the file ends before."""
    blocks, rest = divmod(start, _BLOCK - _BLOCK_HEADER)
    first = blocks * _BLOCK + _BLOCK_HEADER + rest
    inside = (rest + size - 1) // (_BLOCK - _BLOCK_HEADER)
    length = size + inside * _BLOCK_HEADER
    data = os.pread(self._descriptor, length, first)
    if len(data) != length:
      raise ValueError(f"{self.path} ends before byte {first + length}")
    if not inside:
      return data
    edge = (blocks + 1) * _BLOCK
    edges = range(edge, edge + inside * _BLOCK, _BLOCK)
    begins = [0, *(edge + _BLOCK_HEADER - first for edge in edges)]
    ends = [*(edge - first for edge in edges), len(data)]
    return b"".join(data[b:e] for b, e in zip(begins, ends, strict=True))

  def find(self, data: bytes, position: int) -> int:
    """Returns where `data` is, shortly after a position, or ValueError."""
    offset = _find(self.read(position, len(data) + _GAP), data, 0)
    if offset < 0:
      raise ValueError(
        f"{self.path} has records that can't be read in parts: it was not"
        " built by data_prep/build_tfds.py"
      )
    return position + offset


def _find_images(record: bytes, fields) -> list[tuple[int, int]]:
  """Where the images of a record are in it."""
  places = []
  for name in _IMAGES:
    position = 0  # The lists are in the order that a serialiser chose.
    for image in fields[name].bytes_list.value:
      if not _is_jpeg(image):
        raise ValueError(f"{len(image)} bytes in {name!r} that are no JPEG")
      position = _find(record, image, position)
      places.append((position, len(image)))
      position += len(image)
  return places


def _find(data: bytes, part: bytes, position: int) -> int:
  """Like `data.find(part, position)`, for parts of megabytes."""
  position = data.find(part[:_MARK], position)
  while position >= 0 and not data.startswith(part, position):
    position = data.find(part[:_MARK], position + 1)
  return position


def _is_jpeg(data: bytes) -> bool:
  """Whether it has the marks of beginning and end."""
  return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"


def _starts(counts: np.ndarray) -> np.ndarray:
  """Where each run begins, when runs of so many follow each other."""
  return np.cumsum(counts, dtype=np.int64) - counts
