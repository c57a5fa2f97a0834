"""Recycles the memory of released batches.

An operating system clears memory before it gives it out. For a batch of flow
that takes a fifth as long as decoding it does, and every batch is new memory:
what is freed of such a size goes back to the system.
"""

import collections
import ctypes
import math
import weakref
from collections.abc import Callable, Sequence

import numpy as np

Empty = Callable[[Sequence[int]], np.ndarray]


def new_array(shape: Sequence[int]) -> np.ndarray:
  """An array, uint8, not initialised."""
  return np.empty(shape, np.uint8)


class Buffers:
  """Gives arrays; takes their memory back when the last view of one is gone.

  It holds as much as was ever in use at once. Threads may share it.
  """

  def __init__(self):
    self._free = collections.defaultdict(list)

  def empty(self, shape: Sequence[int]) -> np.ndarray:
    """Returns an array, uint8, not initialised."""
    size = math.prod(shape)
    free = self._free[size]
    try:
      block = free.pop()
    except IndexError:
      block = np.empty(size, np.uint8)
    # Views of an array name the array that owns the memory as their base, not
    # each other; so the one that tells of its end must not be an array.
    holder = (ctypes.c_uint8 * size).from_buffer(block.data)
    weakref.finalize(holder, free.append, block).atexit = False
    # NumPy's types leave out that ctypes' arrays are buffers.
    array = np.frombuffer(holder, np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return array.reshape(shape)
