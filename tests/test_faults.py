"""A real training process, ended at 30 moments: the same bits in the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import faults_config
from tests.conftest import made_once
from tests.paths import ROOT
from tests.xla_flags import COMPILE_FAST
from twostream_jax import checkpoints, interrupts, scores
from twostream_jax.data import dataset
from twostream_jax.stages import create

ENDS = 10  # Of each seed.
LONGEST = 15.0  # Seconds to a moment that no condition names.


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
    argv = [
      "--config=tests/faults_config.py",
      f"--workdir={workdir}",
      f"--config.data.dir={self._data}",
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
    with self._zygote:  # Closes its pipes, and waits.
      self._zygote.stdin.close()


@pytest.fixture(scope="module")
def command(tiny_dir, tmp_path_factory):
  running = Command(tiny_dir, tmp_path_factory.mktemp("log") / "log")
  yield running
  running.close()


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
  """Workdir of a run that nothing disturbed; its programs are kept."""

  def make(folder):
    command.start(folder / "run")
    assert command.wait() == 0, command.log.read_text()

  return made_once(tmp_path_factory, "whole", make) / "run"


def moments(workdir):
  """Conditions that hold at moments a random time would seldom hit."""

  def first_step():
    return (workdir / "spatial").exists()

  def save():
    return any(workdir.glob("*/checkpoints/*tmp*"))

  def removal():
    return any(len(kept) > 3 for kept in listed())

  def validation():
    return any(
      '"validation"' in path.read_text()
      for path in workdir.glob("*/metrics.jsonl")
    )

  def listed():
    for folder in workdir.glob("*/checkpoints"):
      yield [path for path in folder.iterdir() if path.name.isdigit()]

  def evaluation():
    return (workdir / "spatial" / "checkpoints" / "10").exists()

  def between_stages():
    return (workdir / "scores" / "spatial-test.npz").exists()

  def features():
    return any(workdir.glob("features/*/*"))

  def lstm():
    return (workdir / "lstm" / "checkpoints").exists()

  def network():
    return (workdir / "network" / "checkpoints").exists()

  def joint():
    return (workdir / "joint" / "checkpoints").exists()

  def last_score():
    return (workdir / "scores" / "joint-test.npz").exists()

  return [
    first_step,
    save,
    removal,
    validation,
    evaluation,
    between_stages,
    features,
    lstm,
    network,
    joint,
    last_score,
  ]


def final_files(workdir, data):
  """What must be the same: names to bytes or arrays."""
  found = {
    str(path.relative_to(workdir)): path.read_bytes()
    for pattern in ("*/metrics.jsonl", "results.json", "config.json")
    for path in workdir.glob(pattern)
  }
  config = faults_config.get_config()
  for name in config.stages:
    stage = create.create_stage(config, name, data, workdir)
    with checkpoints.open_reader(workdir / name / "checkpoints") as reader:
      last = checkpoints.restore_newest(reader, stage.state_shapes())
      found[f"{name}: kept"] = np.array(sorted(reader.all_steps()))
      found[f"{name}: chosen"] = np.array(checkpoints.chosen_step(reader))
      chosen = checkpoints.restore_variables(reader)
    assert last.step == config[name].total_steps
    for what, tree in (("last", last.state), ("chosen", chosen)):
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found[f"{name}: {what}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
  for path in (workdir / "scores").iterdir():
    found[path.name] = scores.load_scores(path).logits
  return found


def assert_same(workdir, other, data):
  ours, theirs = final_files(workdir, data), final_files(other, data)
  assert ours.keys() == theirs.keys() and len(ours) > 20
  for name, value in ours.items():
    if isinstance(value, bytes):
      assert value == theirs[name], name
    else:
      np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def end(command, workdir, condition, delay, number):
  """Ends a run `delay` after a condition first holds; False if it had ended."""
  pid = command.start(workdir)
  while not condition():
    if not alive(pid):
      return command.wait() != 0
    time.sleep(0.002)
  time.sleep(delay)
  if alive(pid):
    os.kill(pid, number)
  code = command.wait()
  # What a signal meets before the run listens ends as it always did.
  expected = {0, -number}
  if number != signal.SIGKILL:
    expected |= {interrupts.EXIT_CODE, 128 + number}
  assert code in expected, (code, command.log.read_text())
  return code != 0


@contextlib.contextmanager
def reading(folder, data):
  """A process that reads and scores the runs in a folder all the while."""
  process = subprocess.Popen(
    [sys.executable, "-m", "tests.reader", folder, data],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": COMPILE_FAST},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    yield
    said, errors = process.communicate("", timeout=120)
    assert process.returncode == 0, errors
    *_, last = said.splitlines()  # After what the package says.
    assert int(last.split()[0]) > 0
    print(f"\nbeside: {last}")
  finally:
    process.kill()


def alive(pid):
  # A child that has ended is reaped by the zygote at once.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_neither_ends_nor_readers_change_a_bit(
  command, whole, tiny_dir, tmp_path, seed
):
  """Killed, asked to end and read: the same bits, and the same choice."""
  data = dataset.open_dataset(tiny_dir)
  rng = np.random.default_rng(seed)
  runs, at = 0, []
  workdir = tmp_path / "run0"
  with reading(tmp_path, tiny_dir):
    while len(at) < ENDS:
      number = rng.choice([signal.SIGKILL, signal.SIGTERM])
      if len(at) % 3:
        planned = moments(workdir)
        condition = planned[rng.integers(len(planned))]
        delay = rng.uniform(0.0, 0.2)
      else:
        condition, delay = (lambda: True), rng.uniform(0.0, LONGEST)
      if end(command, workdir, condition, delay, int(number)):
        at.append(f"{signal.Signals(number).name} {condition.__name__}")
      elif (workdir / "results.json").exists():
        # This run came to its end: begin another one.
        assert_same(whole, workdir, data)
        runs += 1
        workdir = tmp_path / f"run{runs}"
    command.start(workdir)
    assert command.wait() == 0, command.log.read_text()
    assert_same(whole, workdir, data)
  print(f"\n{len(at)} ends in {runs + 1} runs: {sorted(at)}")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_with_their_own_code(
  command, whole, tiny_dir, tmp_path, number
):
  workdir = tmp_path / "run"
  planned = {moment.__name__: moment for moment in moments(workdir)}
  rng = np.random.default_rng(number)
  # In the order in which a run comes to them, none yet there at its start.
  for name in ("validation", "between_stages", "features", "joint"):
    pid = command.start(workdir)
    while not planned[name]() and alive(pid):
      time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.2))
    os.kill(pid, number)
    assert command.wait() == interrupts.EXIT_CODE, command.log.read_text()
  command.start(workdir)
  assert command.wait() == 0, command.log.read_text()
  assert_same(whole, workdir, dataset.open_dataset(tiny_dir))
