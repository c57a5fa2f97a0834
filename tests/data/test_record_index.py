"""The container of records is the one that the index reads, byte by byte."""

import struct

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from twostream_jax.data import record_index
from twostream_jax.data.build import store

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40


def written(path, records):
  writer = ArrayRecordWriter(str(path), store.RECORD_OPTIONS)
  for record in records:
    writer.write(record)
  writer.close()
  return path.read_bytes()


def without_block_headers(data):
  blocks = range(0, len(data), BLOCK)
  return b"".join(data[b + BLOCK_HEADER : b + BLOCK] for b in blocks)


def test_a_file_is_blocks_of_chunks_of_one_plain_record(tmp_path):
  rng = np.random.default_rng(0)
  # One crosses a block, one is empty, one ends beyond several.
  records = [rng.bytes(n) for n in (10, 100_000, 0, 300_000)]
  data = without_block_headers(written(tmp_path / "file", records))
  position, found, kinds = 0, [], []
  while position < len(data):
    header = data[position : position + CHUNK_HEADER]
    _, size, _, kind, unpacked = struct.unpack("<5Q", header)
    begin = position + CHUNK_HEADER
    letter, count = chr(kind & 0xFF), kind >> 8
    kinds.append(letter)
    if letter == "r" and len(found) < len(records):
      assert count == 1 and data[begin] == 0
      assert unpacked == len(records[len(found)])
      found.append(data[begin + size - unpacked : begin + size])
    position = begin + size
  assert found == records
  assert kinds[0] == "s" and set(kinds) == {"s", "r", "p"}


def test_positions_leave_out_block_headers(tmp_path):
  record = np.random.default_rng(1).bytes(200_000)
  path = tmp_path / "file"
  data = written(path, [b"first", record])
  file = record_index.RecordFile(path, len(data))
  place = without_block_headers(data).index(record)
  assert file.length == len(without_block_headers(data))
  assert file.read(place, len(record)) == record
  assert file.find(record, place - 100) == place
