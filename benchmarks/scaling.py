"""A training step on 1 to 8 devices of the CPU, and what pmap itself costs.

  python benchmarks/scaling.py [--network=resnet18] [--batch=16] [--size=64]

Each number of devices is a process of its own, which splits the cores into so
many devices and the same global batch over them. The cores do not become more:
were splitting free, every number of devices would take the same time; what is
above that is the price of smaller parts, of adding up the gradients and of
updating a copy of the parameters on each device.

What pmap costs: the same step on one device under jit alone, and under pmap as
the project maps it; and a step that does nothing but add 1, for the dispatch.
The two of a pair take turns; medians count, after one turn more.
"""

import functools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from absl import app, flags

from twostream_jax import losses, models, parallel, steps
from twostream_jax.models.stream import Stream
from twostream_jax.stages.preprocess import Preprocess

_CLASSES = 101
_DEVICES = (1, 2, 4, 8)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_enum(
    "network", "resnet18", list(models.BACKBONES), "Backbone.", values
  )
  flags.DEFINE_integer("batch", 16, "Global, clips.", flag_values=values)
  flags.DEFINE_integer("size", 64, "Pixels, both sides.", flag_values=values)
  flags.DEFINE_integer("repeats", 7, "Counted turns.", flag_values=values)
  flags.DEFINE_bool("worker", False, "Measures in this process.", values)


def create_step(network: str, batch_size: int, size: int) -> tuple:
  """A train step that waits for its axis, its first state, batch and key."""
  backbone = models.create_model(
    network, num_classes=_CLASSES, dropout_rate=0.0, axis_name=parallel.AXIS
  )
  model = Stream(modality="rgb", backbone=backbone)
  rng = np.random.default_rng(0)
  shape = (batch_size, 1, size, size, 3)
  batch = {
    "rgb": rng.integers(0, 256, shape, dtype=np.uint8),
    "label": rng.integers(0, _CLASSES, batch_size, dtype=np.int32),
    "mask": np.ones(batch_size, bool),
    "index": np.arange(batch_size, dtype=np.int32),
  }
  preprocess = Preprocess(
    (0.5,) * 3, (0.25,) * 3, 20.0, 20.0, subtract_mean_flow=False
  )
  tx = optax.sgd(1e-4, momentum=0.9)
  key = jax.random.key(0)
  state = steps.create_train_state(key, model, tx, preprocess, batch)
  train_step = functools.partial(
    steps.train_step,
    model=model,
    tx=tx,
    preprocess=preprocess,
    loss_fn=losses.softmax_cross_entropy,
  )
  return train_step, state, batch, key


def add_one(state, batch, key, *, axis_name):
  """A step whose time is that of its dispatch."""
  del batch, key, axis_name
  return jax.tree.map(lambda x: x + 1, state), {}


def pmapped(train_step: Callable, state, batch, key) -> Callable[[], None]:
  """The step as the project maps it, to be called again and again."""
  mapped = parallel.pmap_train_step(train_step)
  state = parallel.replicate(state)
  batch = parallel.shard(batch)

  def run():
    nonlocal state
    state, metrics = mapped(state, batch, key)
    jax.block_until_ready((state, metrics))

  return run


def jitted(train_step: Callable, state, batch, key) -> Callable[[], None]:
  """The same step without pmap: its axis has one place."""
  # Nothing is mapped: only the name of the axis is bound.
  alone = jax.vmap(
    functools.partial(train_step, axis_name=parallel.AXIS),
    in_axes=None,
    out_axes=None,
    axis_name=parallel.AXIS,
    axis_size=1,
  )
  options = parallel.compiler_options(jax.default_backend())
  compiled = jax.jit(alone, donate_argnums=(0,), compiler_options=options)
  state = jax.tree.map(jax.numpy.array, state)

  def run():
    nonlocal state
    state, metrics = compiled(state, batch, key)
    jax.block_until_ready((state, metrics))

  return run


def take_turns(
  functions: dict[str, Callable[[], None]], repeats: int
) -> dict[str, float]:
  """Median seconds of each function."""
  times = {name: [] for name in functions}
  for turn in range(repeats + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      if turn:
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(found) for name, found in times.items()}


def measure(network: str, batch_size: int, size: int, repeats: int) -> None:
  """Prints what this process measures on the devices that it has."""
  parts = create_step(network, batch_size, size)
  devices = jax.local_device_count()
  sides = {"pmap": pmapped(*parts)}
  if devices == 1:
    sides["jit alone"] = jitted(*parts)
  for name, seconds in take_turns(sides, repeats).items():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
      f"{devices} devices, {name:9}: {seconds * 1e3:8.1f} ms a step,"
      f" {batch_size / seconds:7.1f} clips/s; at most {peak:.0f} MiB"
    )
  trivial = (add_one, {"x": np.zeros(8, np.float32)}, {}, jax.random.key(0))
  sides = {"pmap": pmapped(*trivial)}
  if devices == 1:
    sides["jit alone"] = jitted(*trivial)
  for name, seconds in take_turns(sides, 50 * repeats).items():
    print(f"{devices} devices, {name:9}: {seconds * 1e6:8.0f} us to add 1")


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  values = flags.FLAGS
  if values.worker:
    measure(values.network, values.batch, values.size, values.repeats)
    return
  print(
    f"jax {jax.__version__}, {os.cpu_count()} cores; {values.network}, global"
    f" batch {values.batch}, {values.size} x {values.size} pixels, float32"
  )
  for devices in _DEVICES:
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, *argv, *sys.argv[1:], "--worker"]
    subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
