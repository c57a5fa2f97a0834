"""How much memory the reading of a stranger's file may take."""

# Bytes that any file may take, and those of each byte of it.
_FREE = 2**28
_PER_BYTE = 4
# Weights hardly compress: those of float32 that were rounded to bfloat16 to
# half of their size. What unpacks to more than this is made to.
_MOST_COMPRESSED = 4
_SMALL = 2**26


def most_memory(size: int) -> int:
  """Returns the bytes that a file of `size` bytes may take once it is read."""
  return _FREE + _PER_BYTE * size


def most_unpacked(packed: int) -> int:
  """Returns the bytes that weights of `packed` bytes may unpack to."""
  return _SMALL + _MOST_COMPRESSED * packed
