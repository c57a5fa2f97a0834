"""The command itself, in processes of its own: results, kills, errors."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import tiny_config
from tests.paths import ROOT
from tests.xla_flags import COMPILE_FAST
from twostream_jax import checkpoints
from twostream_jax.data import dataset
from twostream_jax.stages import create


def command(directory, *flags, config="tests/tiny_config.py"):
  return [
    sys.executable,
    "-m",
    "twostream_jax.main",
    f"--config={config}",
    f"--workdir={directory / 'run'}",
    f"--config.data.dir={directory / 'data'}",
    *flags,
  ]


def environment():
  # One device, unlike the tests' own process.
  return os.environ | {"XLA_FLAGS": COMPILE_FAST}


def run_to_end(directory, *flags, **kwargs):
  return subprocess.run(
    command(directory, *flags, **kwargs),
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )


def kill_when(condition, directory):
  """Starts the command and kills it, hard, as soon as `condition` holds."""
  process = subprocess.Popen(
    command(directory),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  deadline = time.monotonic() + 200
  while not condition():
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL


def final_parameters(directory, name):
  config = tiny_config.get_config()
  # A batch must divide over the devices of this process, which are eight.
  data = dataset.open_dataset(directory / "data")
  stage = create.create_stage(config, name, data, directory)
  folder = directory / "run" / name / "checkpoints"
  with checkpoints.open_reader(folder) as reader:
    assert reader.latest_step() == config[name].total_steps
    template = stage.state_shapes()
    return checkpoints.restore_newest(reader, template).state


@pytest.mark.faults
def test_a_run_killed_again_and_again_ends_in_the_same_bits(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  done = run_to_end(whole)
  assert done.returncode == 0, done.stderr
  assert "spatial" in done.stdout and "report.html" in done.stdout

  def exists(pattern):
    return lambda: any(killed.glob(pattern))

  # While clips are rendered, while they are stored, while each stage trains
  # (the first file of a checkpoint is there, so it is likely cut in half).
  kill_when(exists("data/.videos.*/train/*/*.avi"), killed)
  kill_when(exists("data/*/*.incomplete"), killed)
  kill_when(exists("run/spatial/checkpoints/4*"), killed)
  kill_when(exists("run/temporal/checkpoints/2*"), killed)
  assert not (killed / "run" / "results.json").exists()
  finished = run_to_end(killed)
  assert finished.returncode == 0, finished.stderr

  ours, theirs = (
    (directory / "run" / "results.json").read_bytes()
    for directory in (whole, killed)
  )
  assert ours == theirs
  for name in ("spatial", "temporal"):
    a, b = (final_parameters(d, name) for d in (whole, killed))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      np.testing.assert_array_equal(x, y)

  checked = run_to_end(killed, "--config.temporal.model.width=0.05")
  assert checked.returncode == 1
  assert "config.temporal.model.width: 0.02" in checked.stderr
  assert "Traceback" not in checked.stderr
  assert json.loads(ours)["videos"] == 12


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config.temporal.optim.learning_rat=0.1"], ["learning_rat"]),
    (["--config.temporal.total_steps=many"], ["total_steps", "many"]),
    (["--config.train.log_every=0"], ["config.train.log_every=0 must be"]),
    pytest.param(
      ["--config.stages=('spatial','audio')"],
      ["'audio'"],
      marks=pytest.mark.slow,
    ),
    (["stray"], ["not a flag: stray"]),
    (["--protocol=single"], ["--protocol is for --mode=evaluate"]),
    (["--mode=evaluate"], ["'spatial' was never trained"]),
  ],
)
def test_wrong_settings_end_with_one_clear_message(
  tiny_dir, tmp_path, flags, words
):
  failed = run_to_end(tmp_path, f"--config.data.dir={tiny_dir}", *flags)
  assert failed.returncode != 0
  assert all(word in failed.stderr for word in words), failed.stderr
  assert "Traceback" not in failed.stderr
  assert len(failed.stderr.splitlines()) < 6
  assert not (tmp_path / "run" / "spatial").exists()


@pytest.mark.parametrize(
  "name",
  [
    "folder_two_stream",
    pytest.param("ssv2_two_stream", marks=pytest.mark.slow),
  ],
)
def test_a_missing_dataset_ends_with_the_command_that_builds_it(tmp_path, name):
  failed = run_to_end(tmp_path, config=f"configs/{name}.py")
  assert failed.returncode == 1
  assert str(tmp_path / "data") in failed.stderr
  assert "python data_prep/build_tfds.py" in failed.stderr
  assert "Traceback" not in failed.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_synthetic_set_in_the_folder_is_not_taken_for_ours(
  tiny_dir, tmp_path
):
  failed = run_to_end(
    tmp_path,
    f"--config.data.dir={tiny_dir}",
    "--config.data.synthetic.train=3",
  )
  assert failed.returncode == 1
  assert "delete that folder" in failed.stderr
