"""Work in processes, and what becomes of items that end or hang them."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.loader import test_batch_processes
from twostream_jax.data.build.workers import (
  Lost,
  LostError,
  WorkerStartError,
  iterate_in_process,
  map_in_processes,
  without_current_folder,
)
from twostream_jax.data.loader.batch_processes import ProcessBatches


def _nothing():
  pass


def _square(number):
  return number * number


def _crash_on(bad, number):
  if number in bad:
    os.kill(os.getpid(), signal.SIGSEGV)
  return number


def _kill_on(bad, number):
  if number in bad:
    os.kill(os.getpid(), signal.SIGKILL)
  return number


def _kill_at_once():
  os.kill(os.getpid(), signal.SIGKILL)


def _hang_on(bad, number):
  if number in bad:
    time.sleep(60)
  return number


def _raise(number):
  raise LookupError(f"no {number}")


def _exit_at_once():
  os._exit(3)


def _process_id(number):
  return os.getpid()


class _Interrupted:
  """Sends SIGINT to the process that is to be prepared, while it starts."""

  def __reduce__(self):
    return _interrupt, ()


def _interrupt():
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(0.01)
  return _nothing


def test_every_item_gives_its_result_once():
  results = list(map_in_processes(_square, range(20), 2, _nothing))
  assert sorted(results) == [(n, n * n) for n in range(20)]


def test_nothing_to_do_gives_nothing():
  assert list(map_in_processes(_square, [], 1, _nothing)) == []


def test_items_are_taken_when_a_process_is_free_for_them():
  taken = []

  def items():
    for number in range(9):
      taken.append(number)
      yield number

  results = map_in_processes(_square, items(), 1, _nothing)
  next(results)
  assert taken == [0]
  assert len(list(results)) == 8


def test_only_the_item_that_ends_its_process_is_lost():
  work = functools.partial(_crash_on, {0, 3, 7})
  results = dict(map_in_processes(work, range(8), 2, _nothing))
  lost = {number for number, r in results.items() if r == Lost("crashed")}
  assert lost == {0, 3, 7}
  assert all(results[number] == number for number in set(range(8)) - lost)


def test_an_item_that_hangs_is_lost_at_the_time_limit():
  work = functools.partial(_hang_on, {1})
  start = time.monotonic()
  results = dict(map_in_processes(work, range(4), 2, _nothing, time_limit=1.0))
  assert results == {0: 0, 1: Lost("stalled"), 2: 2, 3: 3}
  assert time.monotonic() - start < 50


def _compute_on(bad, number):
  while number in bad:
    pass
  return number


def test_waiting_is_told_from_computing_at_the_time_limit():
  work = functools.partial(_compute_on, {0})
  results = dict(map_in_processes(work, range(1), 1, _nothing, time_limit=0.5))
  assert results == {0: Lost("timed out")}


def test_a_process_that_is_killed_did_not_crash():
  work = functools.partial(_kill_on, {1})
  results = dict(map_in_processes(work, range(3), 1, _nothing))
  assert results == {0: 0, 1: Lost("killed"), 2: 2}


def test_a_process_that_is_killed_at_its_start_says_so():
  with pytest.raises(WorkerStartError, match="killed, probably for lack of"):
    list(map_in_processes(_square, [1], 1, _kill_at_once))


def test_a_process_that_died_idle_costs_no_item():
  results = map_in_processes(_process_id, iter(range(3)), 1, _nothing)
  _, first = next(results)
  os.kill(first, signal.SIGKILL)
  # Its other thread holds the pipe open for a moment longer.
  process = Path(f"/proc/{first}")
  while len(list((process / "task").iterdir())) > 1 or (
    " Z " not in (process / "stat").read_text()
  ):
    time.sleep(0.01)
  others = dict(results)
  assert set(others) == {1, 2}
  assert first not in others.values()
  assert not any(isinstance(result, Lost) for result in others.values())


def test_an_error_of_the_work_is_raised_here():
  with pytest.raises(LookupError, match="no 5") as caught:
    list(map_in_processes(_raise, [5], 1, _nothing))
  assert "in _raise" in caught.value.__notes__[0]


def test_processes_that_can_t_start_are_no_lost_items():
  with pytest.raises(RuntimeError, match="can't start"):
    list(map_in_processes(_square, [1], 1, _exit_at_once))


def test_processes_end_with_the_map():
  results = map_in_processes(_process_id, range(2), 1, _nothing)
  _, process = next(results)
  results.close()
  assert not os.path.exists(f"/proc/{process}")


def _count_to(bad, end):
  for number in range(end):
    if number in bad:
      os.kill(os.getpid(), signal.SIGSEGV)
    yield number


def _count_and_hang(end):
  yield from range(end)
  time.sleep(60)


def _count_and_raise(end):
  yield from range(end)
  raise LookupError(f"no {end}")


def _count_in_file(path):
  for number in range(1000):
    path.write_text(str(number))
    yield b"x" * 100_000


def test_values_of_a_process_come_in_order():
  work = functools.partial(_count_to, set())
  assert list(iterate_in_process(work, 5, _nothing)) == [0, 1, 2, 3, 4]


def test_values_before_a_crash_are_there():
  work = functools.partial(_count_to, {3})
  values = iterate_in_process(work, 5, _nothing)
  assert [next(values) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(LostError) as caught:
    next(values)
  assert caught.value.lost == Lost("crashed")


def test_a_value_that_does_not_come_in_time_is_lost():
  values = iterate_in_process(_count_and_hang, 2, _nothing, time_limit=1.0)
  assert [next(values), next(values)] == [0, 1]
  with pytest.raises(LostError, match="timed out"):
    next(values)


def test_an_error_after_some_values_is_raised_here():
  values = iterate_in_process(_count_and_raise, 1, _nothing)
  assert next(values) == 0
  with pytest.raises(LookupError, match="no 1"):
    next(values)


def test_values_that_nobody_takes_are_not_made(tmp_path):
  values = iterate_in_process(_count_in_file, tmp_path / "n", _nothing)
  next(values)
  time.sleep(0.3)
  made = int((tmp_path / "n").read_text())
  values.close()
  assert made < 10


_INTERRUPTED = """
from tests.data.build import test_workers
if __name__ == "__main__":
  test_workers.interrupt_a_start(%s)
"""


def interrupt_a_start(stream):
  if stream:
    values = iterate_in_process(_square, 1, _Interrupted())
  else:
    values = map_in_processes(_square, [1], 1, _Interrupted())
  with pytest.raises(RuntimeError, match="can't start"):
    list(values)
  assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_an_interrupt_while_a_process_starts_is_silent(tmp_path, stream):
  # In a process of its own: its first start of another one is the hard one.
  (tmp_path / "main.py").write_text(_INTERRUPTED % stream)
  said = subprocess.run(
    [sys.executable, tmp_path / "main.py"],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
  )
  assert (said.returncode, said.stderr) == (0, "")


def _compute_then_hang(number):
  end = time.process_time() + 0.5
  while time.process_time() < end:
    pass
  time.sleep(60)


@pytest.mark.slow
def test_what_computed_before_it_hangs_has_stalled():
  results = dict(
    map_in_processes(_compute_then_hang, range(1), 1, _nothing, time_limit=3.0)
  )
  assert results == {0: Lost("stalled")}


_STARTED = """
from tests.data.build import test_workers
if __name__ == "__main__":
  test_workers.start_all_kinds()
"""


def start_all_kinds():
  assert list(map_in_processes(_square, [3], 1, _nothing)) == [(3, 9)]
  work = functools.partial(_count_to, set())
  assert list(iterate_in_process(work, 2, _nothing)) == [0, 1]
  if hasattr(os, "memfd_create"):
    batches = ProcessBatches(test_batch_processes.Numbered(), 7, 1)
    with contextlib.closing(iter(batches)) as found:
      assert next(found)["label"].tolist() == [7, 7, 7]


@pytest.mark.slow
def test_no_module_of_the_current_folder_is_run(tmp_path):
  (tmp_path / "main.py").write_text(_STARTED)
  here = tmp_path / "downloads"
  here.mkdir()
  for name in ("multiprocessing", "numpy", "runpy", "types", "cv2"):
    (here / f"{name}.py").write_text("open('ran', 'w')\n")
  said = subprocess.run(
    [sys.executable, tmp_path / "main.py"],
    cwd=here,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
  )
  assert (said.returncode, said.stderr) == (0, "")
  assert not (here / "ran").exists()


def test_python_s_flags_that_hide_it_from_processes_are_told(monkeypatch):
  class Flags:
    ignore_environment, safe_path = 1, False

  monkeypatch.setattr(sys, "flags", Flags)
  with (
    pytest.raises(WorkerStartError, match="python -E: add -P"),
    without_current_folder(),
  ):
    pass
