"""A folder that one command writes into at a time."""

import errno
import os
import subprocess
import sys

import pytest

from tests import tiny_config
from twostream_jax import parallel
from twostream_jax.experiment import only_run, rescore, run
from twostream_jax.experiment.only_run import InUseError


@pytest.fixture
def config(tiny_dir):
  config = tiny_config.get_config()
  config.data.dir = str(tiny_dir)
  return config


def test_a_second_training_is_refused_and_leaves_no_trace(
  config, tiny, tmp_path
):
  with only_run.only_run(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for only_stage in ("", "temporal"):
      with pytest.raises(InUseError, match="another command is writing into"):
        run.train_and_evaluate(config, tmp_path, tiny, only_stage)
    assert sorted(tmp_path.rglob("*")) == before == [tmp_path / ".lock"]
  assert not (tmp_path / ".lock").exists()


def test_an_evaluation_waits_for_the_same_one_only(
  config, tiny, tmp_path, monkeypatch
):
  monkeypatch.setattr(rescore, "checkpoint_steps", lambda *_, **__: {})
  monkeypatch.setattr(rescore, "_score", lambda *_: "scored")
  folder = rescore.evaluation_path(config, tmp_path)
  with only_run.only_run(tmp_path):  # A training.
    assert rescore.rescore(config, tmp_path, tiny) == "scored"
  with (
    only_run.only_run(folder),
    pytest.raises(InUseError, match="evaluations/test-2x1"),
  ):
    rescore.rescore(config, tmp_path, tiny)


def test_a_kill_releases_the_lock(tmp_path):
  code = (
    "import os, pathlib, sys; from twostream_jax import files\n"
    "with files.locked(pathlib.Path(sys.argv[1])) as held:\n"
    "  os.kill(os.getpid(), 9 * held)"
  )
  lock = tmp_path / only_run.LOCK_FILE
  found = subprocess.run([sys.executable, "-c", code, lock], check=False)
  assert found.returncode == -9 and lock.exists()
  with only_run.only_run(tmp_path):
    pass
  assert not lock.exists()


def test_the_first_process_locks_for_all(tmp_path, monkeypatch):
  with only_run.only_run(tmp_path):
    monkeypatch.setattr(parallel, "is_primary", lambda: False)
    with only_run.only_run(tmp_path):  # Another one of the same run.
      pass
    # That the first one found it locked ends the others as well.
    monkeypatch.setattr(parallel, "any_process", lambda _: True)
    with pytest.raises(InUseError), only_run.only_run(tmp_path):
      pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr("fcntl.flock", refuse)
  with (
    pytest.warns(UserWarning, match="can't be locked"),
    only_run.only_run(tmp_path),
  ):
    pass
