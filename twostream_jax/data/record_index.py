"""What the record files of a split hold, and where.

An index lies beside the ArrayRecord files of a split: the small fields of every
video, and for every image where its bytes are. The files stay what TFDS writes
and reads; the index points into them, and can be made again from them.

Positions count the bytes of a file without its block headers: an ArrayRecord
file is a Riegeli file, which has a header of 24 bytes at every multiple of
64 KiB, in the middle of whatever stands there (Riegeli/records file format,
github.com/google/riegeli, doc/riegeli_records_file_format.md, "Block header").
"""

import math
import os
import struct
import weakref
import zlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from twostream_jax import files
from twostream_jax.files.words import printable

IMAGES = ("rgb", "flow", "flow_backward")
SIZES = ("num_frames", "height", "width")
_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = 40
# Between two records there are headers of this many bytes at most.
_GAP = 256
# A search for so many bytes of an image is fast, for all of them slow.
_MARK = 32
# Bytes before a record that hold the header of its chunk, and so a hash of its
# content ("Chunk" in the document above): 40, and what says its length.
_BEFORE = 48
_VIDEO = np.dtype(
  [
    ("file", "<i4"),
    ("start", "<i8"),  # Of the record in its file.
    ("fps", "<f4"),
    ("pixel_aspect", "<f4"),
    ("num_damaged", "<i4"),
    *((name, "<i4") for name in SIZES),
    ("labels", "<i4"),  # How many, and so for the images.
    *((name, "<i4") for name in IMAGES),
  ]
)


# Types and axes; those of texts have any length.
_ARRAYS = {
  "sizes": (np.dtype("<i8"), 1),
  "videos": (_VIDEO, 1),
  "video_ids": ("S", 1),
  "groups": ("S", 1),
  "labels": (np.dtype("<i4"), 1),
  "times": (np.dtype("<i8"), 1),
  "images": (np.dtype("<u4"), 2),
  "checksums": (np.dtype("<u4"), 1),
}
_MAPPED = ("times", "images")


class Index(NamedTuple):
  """What a split holds, and where.

  Attributes:
    sizes: bytes of each file, int64.
    videos: n entries of `_VIDEO`.
    video_ids: UTF-8, bytes [n].
    groups: UTF-8, bytes [n].
    labels: those of the first video, then of the second ..., int32.
    times: of the frames of the first video, in microseconds, then of the second
      ..., int64.
    images: those of the first video, in the order of `IMAGES`, then of the
      second ...: first byte, counted from that of the record, and number of
      bytes; uint32 [m 2].
    checksums: of the videos' records, see `RecordFile.checksum`; uint32 [n].
      Empty in indices of earlier versions.
  """

  sizes: np.ndarray
  videos: np.ndarray
  video_ids: np.ndarray
  groups: np.ndarray
  labels: np.ndarray
  times: np.ndarray
  images: np.ndarray
  checksums: np.ndarray


def read_records(path: str | os.PathLike) -> Generator[bytes, None, None]:
  """Reads an ArrayRecord file of videos, one record after another.

  Raises:
    ValueError: It is not built as this package does, or is damaged.
  """
  _check_chunks(RecordFile(path, os.path.getsize(path)))
  reader = ArrayRecordReader(os.fspath(path))
  try:
    for _ in range(reader.num_records()):
      yield reader.read()
  finally:
    reader.close()


def index_file(
  path: str | os.PathLike, records: Iterable[bytes] | None = None
) -> Index:
  """Finds every image in an ArrayRecord file of videos.

  Args:
    path: The file.
    records: Its records, in order. None reads them from it, by threads of the
      library, whose reader hangs where none can be started.

  Raises:
    ValueError: its bytes are not where the format has them, or an image is not
      a JPEG.
  """
  try:
    return _index_file(path, records)
  except OSError:
    raise
  # Protocol buffers and the library of records have errors of their own, and
  # whatever a record lacks.
  except Exception as error:
    said = printable(str(error)) or type(error).__name__
    if os.fspath(path) not in said:
      said = f"{path} can't be read as records of videos: {said:.300}"
    raise ValueError(said) from error


def _index_file(
  path: str | os.PathLike, records: Iterable[bytes] | None
) -> Index:
  """As `index_file`; damaged records raise any error."""
  file = RecordFile(path, os.path.getsize(path))
  videos, ids, groups, labels, times, images = [], [], [], [], [], []
  checksums = []
  position = 0
  for record in read_records(path) if records is None else records:
    start = file.find(record, position)
    position = start + len(record)
    # Made by protocol buffers at the import; TFDS declares nothing of it.
    example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    fields = example.FromString(record).features.feature
    sizes = [fields[n].int64_list.value[0] for n in SIZES]
    facts, own_times = _facts(fields, sizes[0])
    own_labels = fields["label"].int64_list.value
    counts = [len(fields[name].bytes_list.value) for name in IMAGES]
    videos.append((0, start, *facts, *sizes, len(own_labels), *counts))
    ids.append(fields["video_id"].bytes_list.value[0])
    groups.append(fields["group"].bytes_list.value[0])
    labels.extend(own_labels)
    times.append(own_times)
    images += _find_images(record, fields)
    checksums.append(file.checksum(start))
  return Index(
    np.array([os.path.getsize(path)], np.int64),
    np.array(videos, _VIDEO),
    np.array(ids, np.bytes_),
    np.array(groups, np.bytes_),
    np.array(labels, np.int32),
    np.concatenate([np.empty(0, np.int64), *times]),
    np.array(images, np.uint32).reshape(-1, 2),
    np.array(checksums, np.uint32),
  )


def _facts(fields, num_frames: int) -> tuple[tuple, np.ndarray]:
  """Frame rate, pixel aspect and damaged frames; times of frames, int64 [t].

  Records of format version 2 have a frame rate alone.
  """
  fps = fields["fps"].float_list.value[0]
  if "times" not in fields:
    times = np.round(np.arange(num_frames) * (1e6 / fps))
    return (fps, 1.0, 0), times.astype(np.int64)
  aspect = fields["pixel_aspect"].float_list.value[0]
  damaged = fields["num_damaged"].int64_list.value[0]
  times = np.array(fields["times"].int64_list.value, np.int64)
  return (fps, aspect, damaged), times


def join(indices: Sequence[Index]) -> Index:
  """The index of several files, at least one, in their order."""
  videos = np.concatenate([index.videos for index in indices])
  videos["file"] = np.repeat(
    np.arange(len(indices)), [len(index.videos) for index in indices]
  )
  joined = Index(*map(np.concatenate, zip(*indices, strict=True)))
  if len(joined.checksums) != len(videos):  # Some are of earlier versions.
    joined = joined._replace(checksums=joined.checksums[:0])
  return joined._replace(videos=videos)


def write_index(index: Index, path: Path) -> None:
  """Writes an index, whole or not at all; OSError names it."""
  with files.replaced(path) as temporary, open(temporary, "wb") as file:
    for array in index:
      np.lib.format.write_array(file, array, allow_pickle=False)


class OtherIndexError(ValueError):
  """An index was written by another version of this package."""


def read_index(path: Path) -> Index:
  """Reads an index; times and images stay on the disk.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of another version.
  """
  try:
    with open(path, "rb") as file:
      *names, last = Index._fields
      arrays = [_read_array(file, name, name in _MAPPED) for name in names]
      has_checksums = file.tell() < os.fstat(file.fileno()).st_size
      none = np.empty(0, np.uint32)
      arrays.append(_read_array(file, last) if has_checksums else none)
    index = Index(*arrays)
    _check(index)
  except OtherIndexError as error:
    raise OtherIndexError(f"{path} {error}; remove it") from error
  except ValueError as error:
    said = printable(str(error))
    raise ValueError(f"{path} is damaged: {said}; remove it") from error
  return index


def _read_array(file: BinaryIO, name: str, mapped: bool = False) -> np.ndarray:
  """Reads or maps the array of a .npy file that an open file stands at.

  NumPy itself takes the memory that a header asks for, and then reads.
  """
  try:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  # Whatever the text of a header does to the parser of Python.
  except Exception as error:
    raise ValueError(f"{name} has no header") from error
  if name == "videos" and dtype != _VIDEO and dtype.fields:
    raise OtherIndexError("is of another version")
  kind, axes = _ARRAYS[name]
  if (dtype != kind and dtype.char != kind) or len(shape) != axes:
    raise ValueError(f"{name} is {str(dtype):.80} {str(shape):.80}")
  start = file.tell()
  size = math.prod(shape) * dtype.itemsize
  if not dtype.itemsize or min(shape) < 0:
    raise ValueError(f"{name} is {str(dtype):.80} {str(shape):.80}")
  if start + size > os.fstat(file.fileno()).st_size:
    raise ValueError(f"{name} is cut off")
  array = np.empty(shape, dtype)
  if mapped and array.size:
    array = np.memmap(file, dtype, "r", start, shape).view(np.ndarray)
  elif array.size:
    array = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
  file.seek(start + size)
  return array


def _check(index: Index) -> None:
  """Refuses an index whose parts do not fit each other, by a ValueError."""
  videos = index.videos
  if not len(videos) == len(index.video_ids) == len(index.groups):
    raise ValueError("it names more or fewer videos than it has")
  if len(index.checksums) not in (0, len(videos)):
    raise ValueError("it has checksums of more or fewer videos than it has")
  counts = ("labels", *SIZES, *IMAGES)
  if any((videos[name] < 0).any() for name in ("start", *counts)):
    raise ValueError("a video has a negative number of something")
  known = (videos["file"] >= 0) & (videos["file"] < len(index.sizes))
  if not known.all() or (index.sizes < 0).any():
    raise ValueError("a video is in a file that is not there")
  for name, there in (
    (("labels",), index.labels),
    (("num_frames",), index.times),
    (IMAGES, index.images),
  ):
    total = sum(int(videos[n].sum(dtype=np.int64)) for n in name)
    if total != len(there) or (there.ndim == 2 and there.shape[1] != 2):
      raise ValueError(f"{name[0]} are {len(there)} for {total} of the videos")
  for texts in (index.video_ids, index.groups):
    b"\n".join(texts.tolist()).decode()
  for name in ("fps", "pixel_aspect"):
    if not (np.isfinite(videos[name]) & (videos[name] > 0)).all():
      raise ValueError(f"{name} is not a positive number")


def _find_images(record: bytes, fields) -> list[tuple[int, int]]:
  """Where the images of a record are in it."""
  places = []
  for name in IMAGES:
    position = 0  # The lists are in the order that a serialiser chose.
    for image in fields[name].bytes_list.value:
      if not is_jpeg(image):
        raise ValueError(f"{len(image)} bytes in {name!r} that are not a JPEG")
      position = _find(record, image, position)
      places.append((position, len(image)))
      position += len(image)
  return places


def is_jpeg(data: bytes) -> bool:
  """Whether it has the marks of beginning and end."""
  return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"


def _check_chunks(file: "RecordFile") -> None:
  """Refuses a file of records in which anything is compressed.

  The library takes the memory that a chunk claims to unpack to. Chunks of this
  package are plain ("Chunk" in the document above). The last block of the file
  says where the list of chunks is, and that where they are: the library reads
  no others (github.com/google/array_record, cpp/layout.proto).

  Raises:
    ValueError: It has other chunks.
  """
  plain, position = {}, 0
  while position < file.length:
    header = file.read(position, _CHUNK_HEADER)
    _, size, _, kind, unpacked = struct.unpack("<5Q", header)
    kind, count = kind & 0xFF, kind >> 8
    begin = position + _CHUNK_HEADER
    # Signature and padding, or records that are not compressed.
    if kind == ord("r") and size and file.read(begin, 1) == b"\0":
      plain[_offset(position)] = begin, size
    elif kind not in b"sp" or count or unpacked:
      raise _foreign(file)
    if max(count, unpacked) > size:
      raise _foreign(file)
    position = begin + size
  try:
    end = file.read(*plain[file.size - _BLOCK])
    listed = file.read(*plain[_numbers(_plain_records(end)[0], 2)[0]])
    for entry in _plain_records(listed)[1:]:
      plain[_numbers(entry, 3)[0]]
  except (KeyError, IndexError) as error:
    raise _foreign(file) from error


def _foreign(file: "RecordFile") -> ValueError:
  return ValueError(
    f"{file.path} has records that can't be read in parts: it was not built by"
    " data_prep/build_tfds.py"
  )


def _offset(position: int) -> int:
  """The byte of the file where a chunk begins, or the block header there."""
  blocks, rest = divmod(position, _BLOCK - _BLOCK_HEADER)
  return blocks * _BLOCK + (_BLOCK_HEADER + rest if rest else 0)


def _plain_records(chunk: bytes) -> list[bytes]:
  """The records of a chunk that is not compressed; IndexError: it is none."""
  size, begin = _varint(chunk, 1)
  place, end, records = begin, begin + size, []
  at = end
  while place < end:
    length, place = _varint(chunk, place)
    records.append(chunk[at : at + length])
    at += length
  return records


def _numbers(record: bytes, count: int) -> list[int]:
  """The fields 1, 2 ... of a protocol buffer; IndexError: it has others."""
  numbers, place = [], 0
  for field in range(1, count + 1):
    if record[place] != field << 3:
      raise IndexError(f"no field {field}")
    number, place = _varint(record, place + 1)
    numbers.append(number)
  if place != len(record):
    raise IndexError("more fields")
  return numbers


def _varint(data: bytes, place: int) -> tuple[int, int]:
  """A number in groups of 7 bits, and where it ends."""
  number = 0
  for shift in range(0, 64, 7):
    byte = data[place]
    place += 1
    number |= (byte & 0x7F) << shift
    if byte < 0x80:
      return number, place
  raise IndexError("too long")


class RecordFile:
  """Reads by positions that leave out the block headers.

  Attributes:
    path: of the file.
    size: of it, in bytes.
    length: without the block headers.
  """

  def __init__(self, path: str | os.PathLike, size: int):
    self.path = os.fspath(path)
    self._descriptor = os.open(path, os.O_RDONLY)
    # After the last reader of a cached file, which may outlive the cache.
    weakref.finalize(self, os.close, self._descriptor).atexit = False
    there = self.size = os.fstat(self._descriptor).st_size
    # The last block may be cut off.
    self.length = there - _BLOCK_HEADER * -(-there // _BLOCK)
    if there != size:
      raise ValueError(
        f"{path} has {there} bytes and its index says {size}: copy the file"
        " again, or build the dataset again"
      )
    if hasattr(os, "posix_fadvise"):  # Not on macOS.
      # Images are far apart: what comes after one is not read ahead.
      os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

  def read(self, start: int, size: int) -> bytes:
    """Returns bytes from a position; ValueError: the file ends before."""
    blocks, rest = divmod(start, _BLOCK - _BLOCK_HEADER)
    first = blocks * _BLOCK + _BLOCK_HEADER + rest
    inside = (rest + size - 1) // (_BLOCK - _BLOCK_HEADER)
    length = size + inside * _BLOCK_HEADER
    # It takes the memory of what is asked for, not of what is there.
    if first + length > self.size:
      raise ValueError(f"{self.path} ends before byte {first + length}")
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

  def checksum(self, start: int) -> int:
    """Tells the record that begins at a position from others of its size.

    It is a CRC-32 of the bytes before it, where the header of its chunk has a
    hash of the content: the record itself, of megabytes, need not be read.
    """
    begin = max(start - _BEFORE, 0)
    return zlib.crc32(self.read(begin, start - begin))

  def find(self, data: bytes, position: int) -> int:
    """Returns where `data` is, shortly after a position, or ValueError."""
    offset = _find(self.read(position, len(data) + _GAP), data, 0)
    if offset < 0:
      raise _foreign(self)
    return position + offset


def _find(data: bytes, part: bytes, position: int) -> int:
  """Like `data.find(part, position)`, for parts of megabytes."""
  position = data.find(part[:_MARK], position)
  while position >= 0 and not data.startswith(part, position):
    position = data.find(part[:_MARK], position + 1)
  return position
