"""How much memory the reading of a stranger's file may take."""

# Bytes that any file may take, and those of each byte of it.
_FREE = 2**28
_PER_BYTE = 4


def most_memory(size: int) -> int:
  """Returns the bytes that a file of `size` bytes may take once it is read."""
  return _FREE + _PER_BYTE * size
