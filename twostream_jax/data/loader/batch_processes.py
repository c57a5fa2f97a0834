"""Batches that are made in processes of their own, in memory that is shared.

Threads of one process share Python's lock. Between two images a thread needs it
for some microseconds, and one that finds it taken falls asleep: on two cores
that costs a tenth of the batches, and what trains waits for the same lock.
"""

import collections
import ctypes
import dataclasses
import itertools
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cv2
import numpy as np

from twostream_jax.data.loader.buffers import Empty

Batch = dict[str, np.ndarray]

# Batches asked of each process at a time: one to make, and the next.
_DEPTH = 2
# What a process runs. It imports no more than it needs: not, as those of
# `multiprocessing` do, the main program with all of its frameworks.
_PROGRAM = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from twostream_jax.data.loader import batch_processes
batch_processes.serve(connection)
"""


class LoaderProcessError(RuntimeError):
  """A process that makes batches has ended by itself."""


@dataclasses.dataclass(frozen=True)
class ProcessBatches:
  """Endless batches, in the order of their numbers.

  Recycles the memory of a released batch.

  Attributes:
    load: number of a batch, and what gives arrays for it, to the batch; can be
      pickled, and is not defined in the main program.
    first: number of the first one.
    num_processes: that make them, in turn.
  """

  load: Callable[[int, Empty], Batch]
  first: int
  num_processes: int

  def __post_init__(self):
    if not hasattr(os, "memfd_create"):
      raise ValueError(
        "processes that make batches need Linux: set config.data.processes=0"
      )

  def __iter__(self) -> Iterator[Batch]:
    """Yields batches until it is closed.

    Raises:
      LoaderProcessError: a process has ended by itself.
      Exception: what `load` raises, in the turn of that batch.
    """
    workers = [_Worker() for _ in range(self.num_processes)]
    try:
      # Now that all of them are starting, for it may have to wait.
      for worker in workers:
        worker.tell(sys.path)
        worker.tell(self.load)
      ahead = _DEPTH * self.num_processes
      turns = zip(
        itertools.count(self.first), itertools.cycle(workers), strict=False
      )
      for number, worker in itertools.islice(turns, ahead):
        worker.ask(number)
      for number, worker in turns:
        # The same process is asked for this batch that made the one to yield.
        batch = worker.answer()
        worker.ask(number)
        yield batch
    finally:
      for worker in workers:
        worker.close()


class _Shared(NamedTuple):
  """Where an array is: file descriptor of the process that made it; shape."""

  descriptor: int
  shape: tuple[int, ...]


class _Worker:
  """A process that makes batches, as this one sees it."""

  def __init__(self):
    self._connection, theirs = multiprocessing.Pipe()
    with theirs:  # Ours only until the process has it.
      self._process = subprocess.Popen(
        # -P: no module of the current folder is taken for one of these.
        [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
      )
    self._blocks = {}
    self._free = collections.deque()

  def ask(self, number: int) -> None:
    free = [self._free.popleft() for _ in range(len(self._free))]
    self.tell((number, free))

  def tell(self, message: Any) -> None:
    try:
      _send(self._connection, message)
    except (BrokenPipeError, ConnectionResetError):
      self._raise_ended()

  def answer(self) -> Batch:
    try:
      batch, error = self._connection.recv()
    except (EOFError, ConnectionResetError):
      self._raise_ended()
    if error is not None:
      raise error
    return {
      name: self._attach(found) if isinstance(found, _Shared) else found
      for name, found in batch.items()
    }

  def close(self) -> None:
    # It may be in the middle of a batch that is no longer needed.
    self._process.kill()
    self._process.wait()
    self._connection.close()

  def _attach(self, place: _Shared) -> np.ndarray:
    descriptor, shape = place
    if descriptor not in self._blocks:
      # By a descriptor of its own, for the block may outlive the process.
      path = f"/proc/{self._process.pid}/fd/{descriptor}"
      try:
        with open(path, "r+b", buffering=0) as file:
          self._blocks[descriptor] = mmap.mmap(file.fileno(), 0)
      except (FileNotFoundError, ProcessLookupError):
        self._raise_ended()
    # Views of an array name the array that owns the memory as their base, not
    # each other; so the one that tells of its end must not be an array.
    block = ctypes.c_uint8 * math.prod(shape)
    holder = block.from_buffer(self._blocks[descriptor])
    weakref.finalize(holder, self._free.append, descriptor).atexit = False
    # NumPy's types leave out that ctypes' arrays are buffers.
    array = np.frombuffer(holder, np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return array.reshape(shape)

  def _raise_ended(self):
    raise LoaderProcessError(
      "a process that makes batches has ended by itself, with exit code"
      f" {self._process.wait()} (1: see its error above; -9: killed, maybe"
      " for lack of memory); config.data.processes sets how many there are, 0"
      " none"
    ) from None


class _Blocks:
  """Memory that the other process sees as well."""

  def __init__(self):
    self._all = {}
    self._free = collections.defaultdict(list)
    self._given = {}

  def empty(self, shape: Sequence[int]) -> np.ndarray:
    """An array, uint8, not initialised."""
    size = math.prod(shape)
    if not self._free[size]:
      descriptor = os.memfd_create("batch")
      os.ftruncate(descriptor, size)
      self._all[descriptor] = mmap.mmap(descriptor, size)
      self._free[size].append(descriptor)
    descriptor = self._free[size].pop()
    array = np.frombuffer(self._all[descriptor], np.uint8).reshape(shape)
    self._given[array.ctypes.data] = descriptor
    return array

  def give_back(self, descriptors: Iterable[int]) -> None:
    """Makes blocks free again."""
    for descriptor in descriptors:
      self._free[len(self._all[descriptor])].append(descriptor)

  def pack(self, batch: Batch) -> dict[str, Any]:
    """Puts where they are for arrays that fill a block, as they were given."""
    packed = {}
    for name, array in batch.items():
      whole = array.dtype == np.uint8 and array.flags.c_contiguous
      descriptor = self._given.get(array.ctypes.data) if whole else None
      if descriptor is not None and array.size == len(self._all[descriptor]):
        packed[name] = _Shared(descriptor, array.shape)
        del self._given[array.ctypes.data]
      else:
        packed[name] = array
    self.give_back(self._given.values())
    self._given.clear()
    return packed


def _send(connection: Connection, message: Any) -> None:
  """`connection.send`, without its search for what processes can share."""
  connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def serve(connection: Connection) -> None:
  """Runs in the process: answers each number with (batch, error).

  Args:
    connection: gives what makes batches and then (number, descriptors of blocks
      that have been released), until the other side is gone.
  """
  # Whoever ends a run sends its signal to all of its processes; the main one
  # still has to save, and ends these.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  cv2.setNumThreads(1)
  blocks = _Blocks()
  try:
    load = connection.recv()
    while True:
      number, free = connection.recv()
      blocks.give_back(free)
      try:
        answer = (blocks.pack(load(number, blocks.empty)), None)
      except Exception as error:
        error.add_note(f"in a process of the loader:\n{traceback.format_exc()}")
        answer = (None, error)
      _send(connection, answer)
  except (EOFError, BrokenPipeError, ConnectionResetError):
    pass  # Whoever wanted the batches is gone.
