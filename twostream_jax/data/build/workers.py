"""A map over processes that outlives their crashes and their hangs."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_NO_MORE = object()
# Ends that come from outside a process: memory that ran out, a person, limits.
_KILLS = {
  -signal.SIGKILL,
  -signal.SIGTERM,
  -signal.SIGINT,
  -signal.SIGHUP,
  -signal.SIGQUIT,
  -signal.SIGXCPU,
}
# An item that is too long computes; one that waits for a disk or network does
# less than so many seconds of work while it is looked at.
_STALLED = 0.05
_LOOK = 0.5


class WorkerStartError(RuntimeError):
  """Worker processes can't start."""


@dataclasses.dataclass(frozen=True)
class Lost:
  """Placeholder of the result of an item that was never finished.

  Attributes:
    reason: "crashed": the item ended the process it was in. "killed": something
      outside ended that process, such as a lack of memory. "timed out": the
      item took longer than it may, and its process was ended. "stalled": as
      "timed out", of a process that had hardly computed (told on Linux only).
  """

  reason: str


def map_in_processes(
  work: Callable[[Any], Any],
  items: Iterable[Any],
  num_workers: int,
  start: Callable[[], None],
  *,
  time_limit: float | None = None,
) -> Generator[tuple[Any, Any], None, None]:
  """Applies `work` to each item, in processes.

  A process has one item at a time, so that memory stays flat, and so that only
  the item that is to blame is lost when a process dies; another process takes
  its place. The next item is taken when a process is free for it.

  Processes start by `spawn`: no lock or thread of the caller is copied, but its
  main module is imported again.

  Args:
    work: can be pickled, takes an item.
    items: can be pickled.
    num_workers: processes.
    start: called once in each process, before any work; can be pickled.
    time_limit: seconds that an item may take; None: any time.

  Yields:
    (item, what `work` returned or a `Lost`), in the order they are done.

  Raises:
    WorkerStartError: processes can't start.
    Exception: what `work` raises.
  """
  items = iter(items)
  limit = math.inf if time_limit is None else time_limit
  workers = [_Worker(work, start) for _ in range(num_workers)]
  try:
    idle, busy = [], {}
    for worker in workers:
      worker.wait_until_ready()
      idle.append(worker)
    while True:
      while idle and (item := next(items, _NO_MORE)) is not _NO_MORE:
        worker = idle.pop()
        worker.send(item)
        busy[worker] = (item, time.monotonic() + limit)
      if not busy:
        return
      _wait_for_any(busy)
      for worker, (item, deadline) in list(busy.items()):
        result = worker.poll(overdue=time.monotonic() >= deadline)
        if result is not None:
          del busy[worker]
          idle.append(worker)
          yield item, result[0]
  finally:
    for worker in workers:
      worker.close()


class LostError(Exception):
  """A process ended, or hung, before it had done its work.

  Attributes:
    lost: how.
  """

  def __init__(self, lost: Lost):
    super().__init__(lost.reason)
    self.lost = lost


def iterate_in_process(
  work: Callable[[Any], Iterable[Any]],
  item: Any,
  start: Callable[[], None],
  *,
  time_limit: float | None = None,
) -> Generator[Any, None, None]:
  """Iterates over `work(item)`, in a process of its own.

  The process waits where its values are not taken, so that memory stays flat.

  Args:
    work: can be pickled; gives values that can.
    item: can be pickled.
    start: called in the process before the work; can be pickled.
    time_limit: seconds until the first value, or the next; None: any time.

  Yields:
    What `work(item)` gives.

  Raises:
    LostError: the process crashed or took too long.
    WorkerStartError: processes can't start.
    Exception: what `work` raises.
  """
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(
    target=_serve_values, args=(theirs, work, item, start), daemon=True
  )
  with _started_safely():
    process.start()
  theirs.close()
  try:
    _wait_for_start(ours, process)
    while True:
      if not ours.poll(time_limit):
        raise LostError(Lost("timed out"))
      try:
        kind, value = ours.recv()
      except (EOFError, ConnectionResetError) as error:
        raise LostError(_how_it_ended(process)) from error
      if kind == "error":
        raise value
      if kind == "end":
        return
      yield value
  finally:
    process.kill()
    process.join()
    ours.close()


def _serve_values(connection: Connection, work, item, start) -> None:
  """Runs in the process: sends every value, then that there are no more."""
  _end_at_interrupts()
  threading.Thread(target=_exit_with_parent, daemon=True).start()
  start()
  connection.send(None)
  try:
    for value in work(item):
      connection.send(("value", value))
    connection.send(("end", None))
  except Exception as error:
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    connection.send(("error", error))


def _wait_for_start(connection: Connection, process) -> None:
  try:
    connection.recv()
  except (EOFError, ConnectionResetError) as error:
    # Otherwise a process that can't start would look like a bad item.
    if _how_it_ended(process) == Lost("killed"):
      raise WorkerStartError(
        "worker processes can't start: one was killed, probably for lack of"
        " memory; use fewer of them, or free memory"
      ) from error
    raise WorkerStartError(
      "worker processes can't start. They import the main module again: a"
      " script must do its work under `if __name__ == '__main__':`, and can't"
      " be read from standard input."
    ) from error


def _how_it_ended(process) -> Lost:
  """How a process was lost that has closed its connection."""
  process.join(timeout=5)
  return Lost("killed" if process.exitcode in _KILLS else "crashed")


def _processor_seconds(process) -> float:
  """Time that a process has computed; infinite where that is not known."""
  try:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
  except FileNotFoundError:  # Not on Linux.
    return math.inf
  # Its name comes second, in brackets, and may hold anything.
  user, system = stat.rpartition(")")[2].split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _wait_for_any(busy: dict["_Worker", tuple[Any, float]]) -> None:
  """Returns when a worker has something to say, or is overdue."""
  first = min(deadline for _, deadline in busy.values())
  left = None if first == math.inf else max(0.0, first - time.monotonic())
  wait([worker.connection for worker in busy], left)


class _Worker:
  """A process that does one item after another, replaced where it ends."""

  def __init__(self, work: Callable[[Any], Any], start: Callable[[], None]):
    self._arguments = (work, start)
    self._ended = False
    self._begin()

  def _begin(self) -> None:
    context = multiprocessing.get_context("spawn")
    self.connection, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, *self._arguments), daemon=True
    )
    with _started_safely():
      self._process.start()
    # Ours only: when the process ends, no one else holds its end.
    theirs.close()

  def wait_until_ready(self) -> None:
    _wait_for_start(self.connection, self._process)

  def send(self, item: Any) -> None:
    if self._ended:
      self._replace()
    try:
      self.connection.send(item)
    except BrokenPipeError:
      # It ended while it had nothing to do: this item is not to blame.
      self._replace()
      self.connection.send(item)

  def poll(self, *, overdue: bool) -> tuple[Any] | None:
    """Returns (result,) if the item is done or lost, otherwise None."""
    if self.connection.poll():
      try:
        value, error = self.connection.recv()
      except (EOFError, ConnectionResetError):
        lost = _how_it_ended(self._process)
        self._end()
        return (lost,)
      if error is not None:
        raise error
      return (value,)
    if not overdue:
      return None
    lost = Lost("stalled" if self._has_stalled() else "timed out")
    self._end()
    return (lost,)

  def _has_stalled(self) -> bool:
    # Now, because it may have computed for long before the disk went away.
    before = _processor_seconds(self._process)
    time.sleep(_LOOK)
    return _processor_seconds(self._process) - before < _STALLED

  def _end(self) -> None:
    """Waits for an item before another process takes its place."""
    self.close()
    self._ended = True

  def _replace(self) -> None:
    self.close()
    self._begin()
    self.wait_until_ready()
    self._ended = False

  def close(self) -> None:
    # It may be in the middle of an item that is no longer needed.
    self._process.kill()
    self._process.join()
    self.connection.close()


def _serve(
  connection: Connection,
  work: Callable[[Any], Any],
  start: Callable[[], None],
) -> None:
  """Runs in the process: answers each item with (result, error)."""
  _end_at_interrupts()
  threading.Thread(target=_exit_with_parent, daemon=True).start()
  start()
  connection.send(None)
  while True:
    item = connection.recv()
    try:
      answer = (work(item), None)
    except Exception as error:
      error.add_note(f"in a worker process:\n{traceback.format_exc()}")
      answer = (None, error)
    connection.send(answer)


@contextlib.contextmanager
def _started_safely() -> Iterator[None]:
  """Keeps two things from processes of Python that are started meanwhile.

  The current folder: `python -c`, by which they start, would import a
  multiprocessing.py of that folder before it is told where to look for modules.
  And SIGINT: Ctrl-C while they import would make them write a traceback.
  """
  with without_current_folder():
    # Otherwise the first start of a process starts this, and unblocks SIGINT.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      yield
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def without_current_folder() -> Iterator[None]:
  """Makes processes of Python that start meanwhile behave as by `python -P`.

  They inherit it, whoever starts them. That of `multiprocessing` takes neither
  flags nor an environment.

  Raises:
    WorkerStartError: Python was started with -E, which hides it from them.
  """
  if sys.flags.ignore_environment and not sys.flags.safe_path:
    raise WorkerStartError(
      "worker processes can't start without the modules of the current folder"
      " under python -E: add -P, or use -I"
    )
  before = os.environ.get("PYTHONSAFEPATH")
  os.environ["PYTHONSAFEPATH"] = "1"
  try:
    yield
  finally:
    if before is None:
      del os.environ["PYTHONSAFEPATH"]
    else:
      os.environ["PYTHONSAFEPATH"] = before


def _end_at_interrupts() -> None:
  """Lets Ctrl-C end a worker without a word; the main process reports."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _exit_with_parent() -> None:
  """Ends this process with the one that started it; for a thread."""
  # Workers of a parent that was killed would wait, or work, for ever.
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
