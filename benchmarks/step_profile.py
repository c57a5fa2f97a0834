"""What a training step on the CPU spends its time on.

  python benchmarks/step_profile.py [--network=vgg16 ...] [--batch=8]
    [--size=112]

XLA's own trace does not tell: its convolutions run beside the thread that is
traced. So every convolution of the network is timed by itself, forward and for
both gradients, as the steps compute it, then every pooling and the dense
layers. What the whole step takes beyond their sum is elementwise work, norms,
the update, and copies between the layouts that neighbours want.
"""

import collections
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import step_sides
from absl import app, flags
from flax import linen as nn

from twostream_jax import parallel
from twostream_jax.models import kernels

_NETWORKS = ("vgg16", "resnet50", "cnn_m", "cnn_m_batch")
_REPEATS = 5


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_multi_enum(
    "network", list(_NETWORKS), list(_NETWORKS), "Can be repeated.", values
  )
  flags.DEFINE_integer("batch", 8, "Clips a step.", flag_values=values)
  flags.DEFINE_integer("size", 112, "Pixels, both sides.", flag_values=values)


def layers(case: step_sides.Case) -> dict[tuple, int]:
  """How often the network has which layer of which input shape.

  Returns:
    Counts by (kind, input shape, kernel shape, strides, padding).
  """
  found = collections.Counter()

  def note(call, arguments, options, context):
    module = context.module
    if context.method_name == "__call__" and type(module) in (
      nn.Conv,
      nn.Dense,
    ):
      shape = arguments[0].shape
      if isinstance(module, nn.Dense):
        found["dense", shape, (shape[-1], module.features), None, None] += 1
      else:
        stride, pad = (_pair(x) for x in (module.strides, module.padding))
        kernel = (*module.kernel_size, shape[-1], module.features)
        found["convolution", shape, kernel, stride, (pad[:1] * 2,) * 2] += 1
    return call(*arguments, **options)

  def noted_pool(x, window, stride, padding):
    found["pooling", x.shape, window, stride, padding] += 1
    return kernels.max_pool(x, window, stride, padding)

  # As the steps give them to the network: flow with its planes last.
  images = step_sides.preprocess()(
    {k: x for k, x in case.inputs().items() if k != "label"}
  )
  model = step_sides.jax_model(case, pool=noted_pool)
  with nn.intercept_methods(note):
    jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), images
    )
  return dict(found)


def _pair(value) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else tuple(value)


def operation(layer: tuple) -> tuple[Callable, list[np.ndarray]]:
  """A layer without its bias, and its arguments: the input, then the kernel."""
  kind, shape, kernel, stride, padding = layer
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape).astype(np.float32)
  if kind == "pooling":
    return lambda x: kernels.max_pool(x, kernel, stride, padding), [x]
  weights = rng.normal(size=kernel).astype(np.float32)
  if kind == "dense":
    return jnp.dot, [x, weights]
  convolve = functools.partial(
    kernels.convolve,
    window_strides=stride,
    padding=padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return convolve, [x, weights]


def seconds(function: Callable, *arguments) -> float:
  """The least time of a compiled function, of several."""
  options = parallel.compiler_options("cpu")
  compiled = jax.jit(function, compiler_options=options)
  arguments = jax.device_put(arguments)
  times = []
  for _ in range(1 + _REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return min(times[1:])


def time_parts(case: step_sides.Case) -> dict[str, float]:
  """Seconds a step by part, each layer by itself."""
  parts = collections.Counter()
  for layer, count in layers(case).items():
    kind, shape = layer[:2]
    function, arguments = operation(layer)
    of_input = shape[-1] > step_sides.FLOW_CHANNELS  # Not of the images.
    value = jax.eval_shape(function, *arguments)
    gradient = np.ones(value.shape, np.float32)
    parts[f"{kind}, forward"] += count * seconds(function, *arguments)
    for place, name in enumerate(("input", "kernel")[: len(arguments)]):
      if name == "kernel" or of_input:
        pull = functools.partial(_pull, function, place)
        parts[f"{kind}, gradient of the {name}"] += count * seconds(
          pull, gradient, *arguments
        )
  return dict(parts)


def _pull(function, place, gradient, *arguments):
  def of_one(x):
    return function(*arguments[:place], x, *arguments[place + 1 :])

  return jax.vjp(of_one, arguments[place])[1](gradient)[0]


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  values = flags.FLAGS
  for network in values.network:
    case = step_sides.Case(
      network, values.batch, values.size, gpu=False, dtype="float32"
    )
    built = step_sides.jax_side(case)
    built.step(), built.step(), built.wait()
    times = []
    for _ in range(_REPEATS):
      start = time.perf_counter()
      built.step(), built.wait()
      times.append(time.perf_counter() - start)
    whole = min(times)
    parts = time_parts(case)
    parts["all else"] = whole - sum(parts.values())
    print(f"{network}: {whole * 1e3:.0f} ms a step")
    for part, share in parts.items():
      print(f"  {part:36} {share * 1e3:7.1f} ms {share / whole:6.1%}")


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
