"""Time of a training step and of a forward pass, against PyTorch, in one run.

  python benchmarks/train_step.py [--network=resnet50 ...] [--batch=8]
    [--size=112] [--repeats=5] [--[no]compiled]

The step is the project's own (forward, backward, SGD with momentum, guard
against what is not finite, metrics) under `parallel.pmap_train_step` on one
device; PyTorch's is the same network of tests/models/torch_networks.py with
torch.optim.SGD, eager and under torch.compile. Both start from uint8 on the
device; nothing drops units. On a CPU: float32 and all cores. Where both jax
and torch see a GPU: bfloat16 compute, float32 parameters, channels last.

Every side is a process of its own, so that peak memory is its own. The sides
take turns of some steps and as many forward passes, so that all of them see
what else the machine does; the median of all turns is used, after one more.
Shares of peak are of a large product of matrices in the same dtype in the same
run; the FLOPs of a step are 3 times those of a forward pass.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from step_sides import NETWORKS, SIDES, Case

from twostream_jax.files import tables

_PEAK_SIDE = {"cpu": 3072, "gpu": 8192}
_COLUMNS = (
  "network",
  "side",
  "step, s",
  "clips/s",
  "of peak",
  "forward, s",
  "MiB",
  "first, s",
  "jax takes, step",
  "jax takes, forward",
)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_multi_enum(
    "network", list(NETWORKS), list(NETWORKS), "Can be repeated.", values
  )
  flags.DEFINE_integer("batch", 8, "Clips a step.", flag_values=values)
  flags.DEFINE_integer("size", 112, "Pixels, both sides.", flag_values=values)
  flags.DEFINE_integer("repeats", 5, "Counted turns.", flag_values=values)
  flags.DEFINE_bool("compiled", True, "Also torch.compile.", values)


def work(pipe, side: str, case: Case, steps_a_turn: int) -> None:
  """A process: builds one side when told to, then takes turns when told to.

  Args:
    pipe: To the process that tells it; gets facts, then seconds by turn.
    side: A key of SIDES.
    case: The network.
    steps_a_turn: Steps and forward passes per turn.
  """
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  pipe.recv()
  start = time.perf_counter()
  built = SIDES[side](case)
  built.step(), built.forward(), built.step(), built.wait()
  first = time.perf_counter() - start
  pipe.send({"first": first, "gflops": built.gflops})
  while pipe.recv():
    times = []
    for function in (built.step, built.forward):
      start = time.perf_counter()
      for _ in range(steps_a_turn):
        function()
      built.wait()
      times.append((time.perf_counter() - start) / steps_a_turn)
    pipe.send(times)
  pipe.send(_peak_memory(side, case, before))


def _peak_memory(side: str, case: Case, before: int) -> float:
  """MiB: of the device, or what the process grew since its imports."""
  if not case.gpu:
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024
  if side == "jax":
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
  import torch

  return torch.cuda.max_memory_allocated() / 2**20


def measure_peak(side: int, dtype: str) -> float:
  """GFLOP/s of a product of square matrices of random numbers, best of 7."""
  x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
  product = jax.jit(lambda a, b: a @ b)
  times = []
  for _ in range(8):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    times.append(time.perf_counter() - start)
  return 2 * side**3 / min(times[1:]) / 1e9


@contextlib.contextmanager
def processes(
  cases: Sequence[Case], sides: Sequence[str], steps_a_turn: int = 1
) -> Iterator[dict[Case, dict[str, Any]]]:
  """Starts a process for every side of every case; nothing is built yet.

  Args:
    cases: The networks.
    sides: Keys of SIDES.
    steps_a_turn: See `work`.

  Yields:
    By case, and by side: a pipe to the process, as `compare` takes them.
  """
  context = multiprocessing.get_context("spawn")
  pipes = {case: {} for case in cases}
  started = []
  try:
    for case in cases:
      for side in sides:
        pipes[case][side], other = context.Pipe()
        process = context.Process(
          target=work, args=(other, side, case, steps_a_turn)
        )
        process.start()
        other.close()  # So that the death of a worker is seen as the end of it.
        started.append(process)
    yield pipes
  finally:
    for process in started:
      process.kill()
      process.join()


def compare(
  pipes: Mapping[str, Any], repeats: int, building: Sequence[str] = ()
) -> dict[str, dict]:
  """Median seconds, GFLOPs, first-use seconds and peak MiB of each side.

  Sides are built one after the other: XLA chooses algorithms by timing them.

  Args:
    pipes: From `processes`, by side.
    repeats: Counted turns.
    building: Sides that were told to build before.

  Returns:
    By side. One that fails is left out; its process says why.
  """
  found = {}

  def ask(side, question):
    """What a side answers, or None: its process has ended, and it is out."""
    try:
      if question is not None:
        pipes[side].send(question)
      return pipes[side].recv()
    except (EOFError, OSError):
      found.pop(side, None)
      return None

  for side in pipes:
    if facts := ask(side, None if side in building else True):
      found[side] = facts | {"step": [], "forward": []}
  for _ in range(repeats):
    for side, row in list(found.items()):
      if times := ask(side, True):
        row["step"].append(times[0])
        row["forward"].append(times[1])
  for side, row in list(found.items()):
    row["memory"] = ask(side, False)
    for name in ("step", "forward"):
      row[name] = statistics.median(row[name] or [math.nan])
  return found


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  import torch

  values = flags.FLAGS
  gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
  if jax.local_device_count() > 1:
    raise app.UsageError("one device only: set CUDA_VISIBLE_DEVICES=0")
  sides = [side for side in SIDES if values.compiled or "compiled" not in side]
  print(
    f"jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} cores,"
    f" {jax.local_devices()[0].device_kind};"
    f" {'bfloat16' if gpu else 'float32'}, batch {values.batch},"
    f" {values.size} x {values.size} pixels"
  )
  dtype = "bfloat16" if gpu else "float32"
  measure = functools.partial(measure_peak, _PEAK_SIDE["gpu" if gpu else "cpu"])
  for network in values.network:
    case = Case(network, values.batch, values.size, gpu, dtype)
    before = measure(dtype)
    with processes([case], sides, steps_a_turn=10 if gpu else 1) as pipes:
      found = compare(pipes[case], values.repeats)
    peak = max(before, measure(dtype))
    print(f"{network}: a product of matrices makes {peak:.0f} GFLOP/s")
    own = found.get("jax")
    if own is None:
      sys.exit(f"{network}: the side of jax failed")
    rows = [
      (
        network,
        side,
        f"{row['step']:.3f}",
        f"{case.batch / row['step']:.1f}",
        f"{own['gflops'] / row['step'] / peak:.0%}",
        f"{row['forward']:.3f}",
        f"{row['memory']:.0f}",
        f"{row['first']:.1f}",
        f"{own['step'] / row['step']:.2f}x",
        f"{own['forward'] / row['forward']:.2f}x",
      )
      for side, row in found.items()
    ]
    print(tables.markdown(_COLUMNS, rows), flush=True)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
