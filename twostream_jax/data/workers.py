"""A map over processes that outlives their crashes."""

import collections
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any


class WorkerCrash:
  """Stands for the result of an item that ended the process it was in."""


def map_in_processes(
  work: Callable[[Any], Any],
  items: Iterable[Any],
  num_workers: int,
  start: Callable[[], None],
) -> Iterator[Any]:
  """Applies `work` to each item, in processes, and yields results in order.

  At most two items a worker are in flight, so that memory stays flat. When a
  process dies, each item in flight is tried again, alone in a new process: only
  the item that is to blame gives a `WorkerCrash`.

  Processes start by `spawn`: no lock or thread of the caller is copied, but its
  main module is imported again.

  Args:
    work: can be pickled, takes an item.
    items: can be pickled.
    num_workers: processes.
    start: called once in each process, before any work; can be pickled.

  Yields:
    The result for each item, or `WorkerCrash()`.

  Raises:
    RuntimeError: processes can't start.
    Exception: what `work` raises.
  """
  items = iter(items)
  pending = collections.deque()
  pool = _start_pool(num_workers, start)
  try:
    while True:
      _fill(pending, 2 * num_workers, pool, work, items)
      if not pending:
        return
      if _crashed(pending[0][1]):
        # Any of the items in flight may be the one that ended its process.
        pool.shutdown()
        pending = collections.deque(
          (i, _retry(work, i, start) if _crashed(f) else f) for i, f in pending
        )
        pool = _start_pool(num_workers, start)
      yield pending.popleft()[1].result()
  finally:
    pool.shutdown(cancel_futures=True)


def _fill(
  pending: collections.deque,
  limit: int,
  pool: ProcessPoolExecutor,
  work: Callable[[Any], Any],
  items: Iterator[Any],
) -> None:
  while len(pending) < limit:
    try:
      item = next(items)
    except StopIteration:
      return
    try:
      future = pool.submit(work, item)
    except BrokenProcessPool as error:
      future = Future()
      future.set_exception(error)
    pending.append((item, future))


def _crashed(future: Future) -> bool:
  return isinstance(future.exception(), BrokenProcessPool)


def _retry(
  work: Callable[[Any], Any], item: Any, start: Callable[[], None]
) -> Future:
  with _start_pool(1, start) as pool:
    future = pool.submit(work, item)
    if not _crashed(future):
      return future
  future = Future()
  future.set_result(WorkerCrash())
  return future


def _start_pool(
  num_workers: int, start: Callable[[], None]
) -> ProcessPoolExecutor:
  pool = ProcessPoolExecutor(
    num_workers,
    mp_context=get_context("spawn"),
    initializer=_start_worker,
    initargs=(start,),
  )
  try:
    # Otherwise a process that can't start would look like a bad item.
    pool.submit(os.getpid).result()
  except BrokenProcessPool as error:
    raise RuntimeError(
      "worker processes can't start. They import the main module again: a"
      " script must do its work under `if __name__ == '__main__':`, and can't"
      " be read from standard input."
    ) from error
  return pool


def _start_worker(start: Callable[[], None]) -> None:
  # Ctrl-C ends workers without a word; the main process reports.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  threading.Thread(target=_exit_with_parent, daemon=True).start()
  start()


def _exit_with_parent() -> None:
  # Workers of a parent that was killed would wait for ever.
  parent_process().join()
  os._exit(1)
