"""One device, eight, or two processes of four: the same training."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny_config
from tests.paths import ROOT
from tests.xla_flags import with_devices
from twostream_jax import checkpoints, metric_logger, scores
from twostream_jax.experiment import run
from twostream_jax.stages import create


def start(workdir, data, devices, *flags):
  """Starts the temporal stage of the tiny run in a process of its own."""
  environment = os.environ | {"XLA_FLAGS": with_devices(devices)}
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "twostream_jax.main",
      "--config=tests/tiny_config.py",
      "--stage=temporal",
      f"--workdir={workdir}",
      f"--config.data.dir={data}",
      *flags,
    ],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def final_state(workdir, config, data):
  stage = create.create_stage(config, "temporal", data, workdir)
  template = stage.state_shapes()
  with checkpoints.open_reader(workdir / "temporal" / "checkpoints") as reader:
    return checkpoints.restore_newest(reader, template)


@pytest.mark.faults
def test_a_run_goes_on_with_other_processes_and_devices(
  tiny_dir, tiny, tmp_path
):
  """Begun on one device, killed, ended by two processes of four devices."""
  config = tiny_config.get_config()
  config.data.dir = str(tiny_dir)
  eight = tmp_path / "eight"
  run.train_and_evaluate(config, eight, tiny, "temporal")

  mixed = tmp_path / "mixed"
  first = start(mixed, tiny_dir, devices=1)
  deadline = time.monotonic() + 200
  while not (mixed / "temporal" / "checkpoints" / "4").exists():
    assert first.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  first.kill()
  first.communicate()

  port = free_port()
  pair = [
    start(
      mixed,
      tiny_dir,
      4,
      f"--coordinator=localhost:{port}",
      "--num_processes=2",
      f"--process_id={i}",
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=300)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], said
  assert "8 x cpu, 2 processes" in said[0]
  assert "Stage 'temporal' is done" in said[0] and "Stage" not in said[1]

  ours, theirs = (final_state(d, config, tiny) for d in (mixed, eight))
  assert ours.step == theirs.step == 8
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours.state),
    jax.tree.leaves(theirs.state),
    strict=True,
  ):
    # A unit at the edge of its ReLU, or a tie of its pooling, falls on either
    # side where sums are taken in another order, as kinds of CPUs do. It moves
    # the momentum of a few weights; a gradient that is wrong moves all of it.
    momentum = "opt_state" in jax.tree_util.keystr(path)
    allowed = 5e-3 if momentum else 1e-5
    # As arrays: single numbers near zero are sums of much larger ones.
    assert np.linalg.norm(a - b) <= allowed * np.linalg.norm(b) + 1e-7, path
  for record, expected in zip(
    metric_logger.read_metrics(mixed / "temporal"),
    metric_logger.read_metrics(eight / "temporal"),
    strict=True,
  ):
    assert record.keys() == expected.keys()
    for name in record.keys() - {"split"}:
      assert record[name] == pytest.approx(expected[name], rel=1e-4), (
        name,
        record,
        expected,
      )
  for split in ("validation", "test"):
    path = Path("scores") / f"temporal-{split}.npz"
    ours, theirs = (scores.load_scores(d / path) for d in (mixed, eight))
    assert ours.ids == theirs.ids and ours.protocol == theirs.protocol
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
