"""Before the first computation: other processes, and compiled programs."""

import hashlib
import os
import platform
import stat
import sys
import tempfile
from pathlib import Path

import jax

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SMALLEST_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


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


def cache_compilations(
  program: str, directory: str | os.PathLike | None = None
) -> None:
  """Keeps compiled programs on the disk, so that the next start is fast.

  Where there is no folder to keep them in, as without a home folder or where
  it can't be written to, one sentence on stderr says so and nothing is kept. A
  folder that others can write to is not a substitute: JAX runs what it finds.

  Args:
    program: Name of the command, for that sentence.
    directory: Folder of the programs; None for one of the user's, one for each
      kind of processor, because programs of one may not run on another. What
      the environment names in JAX_COMPILATION_CACHE_DIR comes first.

  Raises:
    ValueError: `directory` is given and can't be written to, or every user of
      the machine can.
  """
  if _SMALLEST_VARIABLE not in os.environ:
    # Small programs too: a start is made of many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  if os.environ.get(CACHE_VARIABLE):
    return
  try:
    folder = _writable(Path(directory) if directory else _default_cache())
  except OSError as error:
    if directory:
      raise ValueError(f"--compilation_cache={directory}: {error}") from error
    print(
      f"{program}: compiled programs are not kept for the next start ({error});"
      f" {CACHE_VARIABLE} can name a folder for them",
      file=sys.stderr,
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))


def _writable(folder: Path) -> Path:
  """Makes a folder, of this user alone where it is new.

  Raises:
    OSError: Files can't be written to it, or others could put some there.
  """
  try:
    folder.mkdir(0o700, parents=True, exist_ok=True)
    # JAX would warn of every program that it can't write.
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise OSError(f"can't write to {folder}: {error.strerror}") from error
  found, user = folder.stat(), os.geteuid()
  if found.st_mode & stat.S_IWOTH or (user and found.st_uid not in (0, user)):
    # JAX runs what it finds.
    raise PermissionError(f"others can write to {folder}, or it is of another")
  return folder


def _default_cache() -> Path:
  named = os.environ.get("XDG_CACHE_HOME", "")
  # A relative one is not valid (XDG Base Directory Specification).
  try:
    base = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
  except RuntimeError as error:
    raise FileNotFoundError("this user has no home folder") from error
  cpu = Path("/proc/cpuinfo")
  kind = platform.machine() + platform.processor()
  if cpu.exists():
    lines = cpu.read_text().splitlines()
    kind += "".join(
      sorted({x for x in lines if x.startswith(("flags", "Features"))})
    )
  digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
  return base / "twostream_jax" / f"programs-{digest}"
