"""Batches that other processes make."""

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.paths import ROOT
from twostream_jax.data.loader import batch_processes
from twostream_jax.data.loader.batch_processes import (
  LoaderProcessError,
  ProcessBatches,
)
from twostream_jax.data.records import VideoSource

pytestmark = pytest.mark.skipif(
  not hasattr(os, "memfd_create"), reason="only Linux has memfd_create"
)


@dataclasses.dataclass(frozen=True)
class Numbered:
  """Batches that are full of their number, from the process of that id."""

  fails_at: int = -1

  def __call__(self, number, empty):
    if number == self.fails_at:
      raise ValueError(f"no batch {number}")
    images = empty((3, 4, 5, 1))
    images.fill(number)
    part = empty((2, 6))[:1]  # Not all of its memory: it has to be sent.
    part.fill(number)
    return {
      "images": images[:, :, :, 0],
      "part": part,
      "label": np.full(3, number, np.int32),
      "video_id": np.array([f"v{number}"] * 3),
      "pid": np.array([os.getpid()]),
    }


@pytest.mark.slow
def test_batches_come_in_order_whatever_the_number_of_processes():
  for processes in (1, 3):
    batches = iter(ProcessBatches(Numbered(), 7, processes))
    found = [next(batches) for _ in range(7)]  # All are held at once.
    for number, batch in enumerate(found, start=7):
      assert batch["images"].shape == (3, 4, 5)
      assert (batch["images"] == number).all()
      assert (batch["part"] == number).all()
      assert batch["label"].tolist() == [number] * 3
      assert batch["video_id"].tolist() == [f"v{number}"] * 3
    assert len({int(batch["pid"][0]) for batch in found}) == processes
    batches.close()
    assert (found[0]["images"] == 7).all()  # It outlives who made it.


def test_memory_is_used_again_when_nobody_holds_it():
  batches = iter(ProcessBatches(Numbered(), 0, 1))
  held = next(batches)["images"][1:]
  addresses = set()
  for number in range(1, 20):
    batch = next(batches)
    assert (batch["images"] == number).all()
    addresses.add(batch["images"].ctypes.data)
    del batch
  # In the making, asked for, and looked at; the one that is held is none.
  assert len(addresses) <= 4
  assert (held == 0).all()
  batches.close()


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Batches that name the packages of the process that makes them."""

  source: VideoSource

  def __call__(self, number, empty):
    del number, empty
    assert self.source[0]["rgb"][0]
    return {"modules": np.array(sorted({m.split(".")[0] for m in sys.modules}))}


def test_processes_read_videos_without_the_frameworks_of_the_main_one(tiny):
  batches = iter(ProcessBatches(Loaded(tiny.sources["train"]), 0, 1))
  found = set(next(batches)["modules"].tolist())
  batches.close()
  assert "cv2" in found and not found & {"jax", "grain", "tensorflow"}


def test_an_error_comes_in_its_turn():
  batches = iter(ProcessBatches(Numbered(fails_at=2), 0, 2))
  assert [int(next(batches)["label"][0]) for _ in range(2)] == [0, 1]
  with pytest.raises(ValueError, match="no batch 2") as caught:
    next(batches)
  assert "in a process of the loader" in caught.value.__notes__[0]


def test_signals_of_a_run_do_not_end_it_but_a_crash_is_told():
  batches = iter(ProcessBatches(Numbered(), 0, 1))
  pid = int(next(batches)["pid"][0])
  for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(pid, number)
  assert int(next(batches)["label"][0]) == 1
  os.kill(pid, signal.SIGKILL)
  with pytest.raises(LoaderProcessError, match="exit code -9 .*data.processes"):
    for _ in range(5):  # What was made before may still come.
      next(batches)


def test_a_crash_after_a_batch_was_sent_is_told(monkeypatch):
  attach = batch_processes._Worker._attach

  def crash_first(self, place):
    self._process.kill()
    self._process.wait()
    return attach(self, place)

  monkeypatch.setattr(batch_processes._Worker, "_attach", crash_first)
  with pytest.raises(LoaderProcessError, match="exit code -9"):
    next(iter(ProcessBatches(Numbered(), 0, 1)))


def wait_for_end(pids):
  deadline = time.monotonic() + 10
  while any(map(is_running, pids)):
    assert time.monotonic() < deadline
    time.sleep(0.01)


def is_running(pid):
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except FileNotFoundError:
    return False
  return "State:\tZ" not in status


def test_processes_end_with_who_reads_from_them():
  batches = iter(ProcessBatches(Numbered(), 0, 2))
  pids = [int(next(batches)["pid"][0]) for _ in range(2)]
  del batches
  gc.collect()
  wait_for_end(pids)


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_processes_end_with_a_program_that_does_not_close_them(end):
  program = """
import itertools, sys
from tests.data.loader.test_batch_processes import Numbered
from twostream_jax.data.loader.batch_processes import ProcessBatches
batches = iter(ProcessBatches(Numbered(), 0, 2))
print(*(batch["pid"][0] for batch in itertools.islice(batches, 2)), flush=True)
sys.stdin.read()
"""
  with subprocess.Popen(
    [sys.executable, "-c", program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=ROOT,
  ) as process:
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2 and all(map(is_running, pids))
    if end == "kill":
      process.kill()
    else:
      process.stdin.close()
    process.wait(timeout=20)
  wait_for_end(pids)
