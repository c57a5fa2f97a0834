"""Reads the runs in a folder while another process trains them.

Continues until its standard input is closed, then writes how often it read. It
ends with a traceback where reading fails in another way than by what is not
there yet.
"""

import contextlib
import sys
import threading
import time
from pathlib import Path

from absl import flags

from tests import faults_config
from twostream_jax import checkpoints, metric_logger
from twostream_jax.data import dataset
from twostream_jax.experiment import rescore
from twostream_jax.stages import create, trained

RESCORED = "temporal"  # It keeps an average.
PAUSE = 1.0  # Seconds between two readings, which would take a core.


def read(workdir, config):
  """Reads all that a run has so far; whether it is finished."""
  for name in config.stages:
    folder = workdir / name / "checkpoints"
    checkpoints.read_metadata(folder)
    metric_logger.read_metrics(workdir / name)
    with checkpoints.open_reader(folder) as reader:
      if reader.all_steps():
        checkpoints.restore_variables(reader)
  try:
    trained.open_run(workdir)
  except trained.TrainedRunError:
    return False
  return True


def score(workdir, config, data):
  """Scores a stage by its checkpoint so far, and begins another run from it."""
  try:
    rescore.checkpoint_steps(config, workdir, only_stage=RESCORED)
  except ValueError:
    return  # Not trained yet.
  rescore.rescore(config, workdir, data, only_stage=RESCORED)
  other = config.copy_and_resolve_references()
  other.init_from = str(workdir)
  stage = create.create_stage(other, RESCORED, data, workdir.parent / "beside")
  with contextlib.suppress(trained.TrainedRunError):  # Half-trained: refused.
    stage.warm_start(stage.init_state())


def main(folder, directory):
  """Reads all runs in the folder, and scores one now and then."""
  flags.FLAGS.mark_as_parsed()
  config = faults_config.get_config()
  config.data.dir = directory
  data = dataset.open_dataset(Path(directory))
  ended = threading.Event()
  threading.Thread(
    target=lambda: (sys.stdin.read(), ended.set()), daemon=True
  ).start()
  print("ready", flush=True)
  reads, scores, last = 0, 0, 0.0
  while not ended.is_set():
    for workdir in sorted(folder.glob("run*")):
      if not (workdir / "config.json").exists():
        continue
      read(workdir, config)
      reads += 1
      if time.monotonic() - last > 20.0:
        score(workdir, config, data)
        scores += 1
        last = time.monotonic()
    ended.wait(PAUSE)
  print(f"{reads} reads, {scores} scores", flush=True)


if __name__ == "__main__":
  main(Path(sys.argv[1]), sys.argv[2])
