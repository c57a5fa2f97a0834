"""Settings that every test shares: eight CPU devices, strict ranks."""

import fcntl
import os
import tempfile

from tests.xla_flags import with_devices

# Before the first import of NumPy and JAX, anywhere. Threads that wait for
# their part of a tiny product take the time of another test.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), with_devices(8)]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests that build the same program again, also in processes that they start,
# share it, small ones too. Several test runs share a folder that they are
# given.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  CACHE = tempfile.TemporaryDirectory(prefix="twostream_jax_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from tests import tiny_dataset  # noqa: E402
from twostream_jax.data import dataset  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# grain reads absl flags, which only a program's main would parse.
flags.FLAGS.mark_as_parsed()


def made_once(tmp_path_factory, name, make):
  """A folder that all workers of a test run share; the first one makes it."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent
  folder, done = base / name, base / f"{name}.done"
  with open(base / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      folder.mkdir()
      make(folder)
      done.touch()
  return folder


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
  """Folder of a built dataset: 12 classes; 2 train, 1 validation, 1 test.

  All workers read it: it is not to be changed.
  """
  return made_once(tmp_path_factory, "tiny", tiny_dataset.build)


@pytest.fixture(scope="session")
def tiny(tiny_dir):
  """The dataset of `tiny_dir`, opened."""
  return dataset.open_dataset(tiny_dir)


@pytest.fixture(scope="session")
def finished_dir(tiny_dir, tiny, tmp_path_factory):
  """Workdir of a finished run of every kind of stage; not to be changed."""
  from tests import finished_run

  def make(folder):
    finished_run.make(finished_run.get_config(tiny_dir), folder, tiny)

  return made_once(tmp_path_factory, "finished", make)
