"""A real training process, killed at 30 moments: the same bits in the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny_config
from tests.xla_flags import COMPILE_FAST
from twostream_jax import checkpoints, interrupts, stages
from twostream_jax.data import dataset

ROOT = Path(__file__).parent.parent
KILLS = 10  # Of each seed.
SETTINGS = {
  "train.checkpoint_every": 4,
  "train.validate_every": 6,
  "train.log_every": 3,
  "spatial.total_steps": 16,
  "temporal.total_steps": 16,
}


class Command:
  """The command, in children of one process that has imported it."""

  def __init__(self, data, log):
    self._data = data
    self.log = log
    environment = os.environ | {"XLA_FLAGS": COMPILE_FAST}
    self._zygote = subprocess.Popen(
      [sys.executable, "-m", "tests.zygote"],
      cwd=ROOT,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._zygote.stdout.readline() == "ready\n"

  def start(self, workdir, *flags):
    """Starts a run; its process id."""
    settings = [f"--config.{k}={v}" for k, v in SETTINGS.items()]
    argv = [
      "--config=tests/tiny_config.py",
      f"--workdir={workdir}",
      f"--config.data.dir={self._data}",
      *settings,
      *flags,
    ]
    job = json.dumps({"argv": argv, "log": str(self.log)})
    self._zygote.stdin.write(job + "\n")
    self._zygote.stdin.flush()
    return int(self._zygote.stdout.readline())

  def wait(self):
    """The exit code of the run, when it has ended."""
    return int(self._zygote.stdout.readline())

  def close(self):
    self._zygote.stdin.close()
    self._zygote.wait(timeout=60)


@pytest.fixture(scope="module")
def command(tiny_dir, tmp_path_factory):
  running = Command(tiny_dir, tmp_path_factory.mktemp("log") / "log")
  yield running
  running.close()


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
  """Workdir of a run that nothing disturbed, and how long it took."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  for _ in range(2):  # The second finds its programs compiled.
    subprocess.run(["rm", "-rf", workdir], check=True)
    began = time.monotonic()
    command.start(workdir)
    assert command.wait() == 0, command.log.read_text()
  return workdir, time.monotonic() - began


def moments(workdir):
  """Conditions that hold at moments a random time would seldom hit."""

  def first_step():
    return (workdir / "spatial").exists()

  def save():
    return any(workdir.glob("*/checkpoints/*tmp*"))

  def evaluation():
    return (workdir / "spatial" / "checkpoints" / "16").exists()

  def between_stages():
    return (workdir / "scores" / "spatial-test.npz").exists()

  def last_evaluation():
    return (workdir / "temporal" / "checkpoints" / "16").exists()

  def last_score():
    return (workdir / "scores" / "temporal-test.npz").exists()

  return [
    first_step,
    save,
    evaluation,
    save,
    between_stages,
    save,
    last_evaluation,
    last_score,
  ]


def final_files(workdir, data):
  """What must be the same: names to bytes or arrays."""
  found = {
    str(path.relative_to(workdir)): path.read_bytes()
    for pattern in ("*/metrics.jsonl", "results.json", "config.json")
    for path in workdir.glob(pattern)
  }
  config = tiny_config.get_config()
  for name in ("spatial", "temporal"):
    stage = stages.create_stage(config, name, data, workdir)
    with checkpoints.open_manager(
      workdir / name / "checkpoints", keep=2
    ) as manager:
      last = checkpoints.restore_newest(manager, stage.state_shapes())
    assert last.step == SETTINGS[f"{name}.total_steps"]
    leaves = jax.tree_util.tree_leaves_with_path(last.state)
    for path, leaf in leaves:
      found[f"{name}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
  return found


def assert_same(workdir, other, data):
  ours, theirs = final_files(workdir, data), final_files(other, data)
  assert ours.keys() == theirs.keys() and len(ours) > 20
  for name, value in ours.items():
    if isinstance(value, bytes):
      assert value == theirs[name], name
    else:
      np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def kill(command, workdir, condition, delay):
  """Kills a run `delay` after a condition first holds; False if it ended."""
  pid = command.start(workdir)
  while not condition():
    if not alive(pid):
      return command.wait() != 0
    time.sleep(0.002)
  time.sleep(delay)
  if alive(pid):
    os.kill(pid, signal.SIGKILL)
  code = command.wait()
  assert code in (0, -signal.SIGKILL), command.log.read_text()
  return code != 0


def alive(pid):
  # A child that has ended is reaped by the zygote at once.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_kills_change_no_bit(command, whole, tiny_dir, tmp_path, seed):
  reference, duration = whole
  data = dataset.open_dataset(tiny_dir)
  rng = np.random.default_rng(seed)
  kills, runs, at = 0, 0, []
  workdir = tmp_path / "run0"
  while kills < KILLS:
    if kills % 3:
      planned = moments(workdir)
      condition = planned[rng.integers(len(planned))]
      delay = rng.uniform(0.0, 0.05)
    else:
      condition, delay = (lambda: True), rng.uniform(0.0, duration)
    if kill(command, workdir, condition, delay):
      kills += 1
      at.append(getattr(condition, "__name__", "?"))
    elif (workdir / "results.json").exists():
      # This run came to its end: begin another one.
      assert_same(reference, workdir, data)
      runs += 1
      workdir = tmp_path / f"run{runs}"
  command.start(workdir)
  assert command.wait() == 0, command.log.read_text()
  assert_same(reference, workdir, data)
  print(f"\n{kills} kills in {runs + 1} runs: {sorted(at)}")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_with_their_own_code(
  command, whole, tiny_dir, tmp_path, number
):
  reference, duration = whole
  workdir = tmp_path / "run"
  rng = np.random.default_rng(number)
  codes = []
  while 0 not in codes:
    pid = command.start(workdir)
    deadline = time.monotonic() + rng.uniform(0.4, 0.8) * duration
    while time.monotonic() < deadline and alive(pid):
      time.sleep(0.01)
    if len(codes) < 4 and alive(pid):
      os.kill(pid, number)
    codes.append(command.wait())
    assert len(codes) < 10
  # What a signal meets before the run listens ends as it always did.
  assert set(codes) <= {0, interrupts.EXIT_CODE, -number, 1}
  assert interrupts.EXIT_CODE in codes, command.log.read_text()
  assert_same(reference, workdir, dataset.open_dataset(tiny_dir))
