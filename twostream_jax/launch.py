"""Before the first computation: other processes, and compiled programs."""

import hashlib
import os
import platform
from pathlib import Path

import jax

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def join_processes(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Makes this process one of several that train together.

  Without arguments JAX finds out from the environment of SLURM, of Open MPI or
  of a TPU pod.

  Args:
    coordinator: HOST:PORT of process 0, which must be free there.
    num_processes: of the run.
    process_id: of this one, from 0.

  Raises:
    ValueError: only some of the arguments are given, or the environment does
      not say what they would; the message says what to do.
  """
  given = (coordinator, num_processes, process_id)
  missing = [argument is None for argument in given]
  if any(missing) and not all(missing):
    raise ValueError(
      "--coordinator, --num_processes and --process_id belong together: give"
      " all three, or none of them where SLURM, Open MPI or a TPU pod says it"
    )
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"--distributed: the processes of this run can't be joined ({error});"
      " start them with srun, mpirun or on a TPU pod, or name them with"
      " --coordinator=HOST:PORT --num_processes=N --process_id=I"
    ) from error
  counts = jax.local_device_count() * jax.process_count()
  if counts != jax.device_count():
    raise ValueError(
      f"process {jax.process_index()} has {jax.local_device_count()} of the"
      f" {jax.device_count()} devices of {jax.process_count()} processes: give"
      " each process as many"
    )


def cache_compilations(directory: str | os.PathLike | None) -> None:
  """Keeps compiled programs on the disk, so that the next start is fast.

  Args:
    directory: where; None: a folder of the user's, one for each kind of
      processor, because programs of one may not run on another. What the
      environment names in JAX_COMPILATION_CACHE_DIR comes first.
  """
  if os.environ.get(CACHE_VARIABLE):
    return
  jax.config.update(
    "jax_compilation_cache_dir", str(directory or _default_cache())
  )
  # Small programs too: a start is made of many.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _default_cache() -> Path:
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  cpu = Path("/proc/cpuinfo")
  kind = platform.machine() + platform.processor()
  if cpu.exists():
    lines = cpu.read_text().splitlines()
    kind += "".join(
      sorted({x for x in lines if x.startswith(("flags", "Features"))})
    )
  digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
  return Path(base) / "twostream_jax" / f"programs-{digest}"
