"""Records survive kills, and a resumed run repeats none."""

import os
import subprocess
import sys

from twostream_jax import metric_logger


def test_records_come_back_in_order(tmp_path):
  logger = metric_logger.MetricsLogger(tmp_path, resume_step=0)
  logger.write(10, "train", {"loss": 1.5})
  logger.write(10, "validation", {"accuracy": 0.25})
  assert metric_logger.read_metrics(tmp_path) == [
    {"step": 10, "split": "train", "loss": 1.5},
    {"step": 10, "split": "validation", "accuracy": 0.25},
  ]
  logger.close()
  assert list((tmp_path / "tensorboard").iterdir())


def test_no_file_is_no_record(tmp_path):
  assert metric_logger.read_metrics(tmp_path) == []


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
  logger = metric_logger.MetricsLogger(tmp_path, resume_step=0)
  for step in (10, 20, 30):
    logger.write(step, "train", {"loss": float(step)})
  logger.close()
  with (tmp_path / metric_logger.FILENAME).open("a") as file:
    file.write('{"step": 40, "sp')  # a kill in the middle of a line
  assert len(metric_logger.read_metrics(tmp_path)) == 3

  logger = metric_logger.MetricsLogger(tmp_path, resume_step=20)
  logger.write(30, "train", {"loss": -1.0})
  logger.close()
  assert [r["loss"] for r in metric_logger.read_metrics(tmp_path)] == [
    10,
    20,
    -1,
  ]


def test_pytorch_is_not_loaded_but_can_be(tmp_path):
  (tmp_path / "torch.py").write_text("print('loaded')")
  code = (
    "from twostream_jax.metric_logger import MetricsLogger\n"
    "logger = MetricsLogger('run', resume_step=0)\n"
    "logger.write(1, 'train', {'loss': 1.5})\n"
    "logger.close()\n"
    "print('closed')\n"
    "import torch\n"
  )
  path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": path},
    capture_output=True,
    text=True,
  )
  assert done.stdout.split() == ["closed", "loaded"], done.stderr
