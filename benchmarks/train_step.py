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
import dataclasses
import functools
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from twostream_jax import losses, models, parallel, steps
from twostream_jax.data.views import image_shapes
from twostream_jax.flops import count_flops
from twostream_jax.models.stream import Stream
from twostream_jax.models.two_stream import TwoStream
from twostream_jax.preprocess import Preprocess

_CLASSES = 101
FLOW_CHANNELS = 20
# Spatial and temporal backbone, and fields of the temporal one.
_NETWORKS = {
  "vgg16": ("vgg16", None, {}),
  "resnet50": ("resnet50", None, {}),
  "cnn_m": (None, "cnn_m", {"normalisation": "lrn"}),
  "cnn_m_batch": (None, "cnn_m", {"normalisation": "batch"}),
  "two_stream": ("resnet50", "cnn_m", {"normalisation": "lrn"}),
}
_MEAN, _STD, _BOUND = 0.5, 0.25, 20.0
_PEAK_SIDE = {"cpu": 3072, "gpu": 8192}


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_multi_enum(
    "network", list(_NETWORKS), list(_NETWORKS), "Can be repeated.", values
  )
  flags.DEFINE_integer("batch", 8, "Clips a step.", flag_values=values)
  flags.DEFINE_integer("size", 112, "Pixels, both sides.", flag_values=values)
  flags.DEFINE_integer("repeats", 5, "Counted turns.", flag_values=values)
  flags.DEFINE_bool("compiled", True, "Also torch.compile.", values)


@dataclasses.dataclass(frozen=True)
class Case:
  """One network and its input.

  Attributes:
    network: A key of _NETWORKS.
    batch: Videos per step.
    size: Height and width, pixels.
    gpu: Whether to run on a GPU, channels last in PyTorch too.
    dtype: Compute dtype, "bfloat16" or "float32" (products of matrices and
      convolutions in TF32 where the GPU has it).
    width: Factor on the channels and hidden units.
  """

  network: str
  batch: int
  size: int
  gpu: bool
  dtype: str
  width: float = 1.0

  def inputs(self) -> dict[str, np.ndarray]:
    """As the loader gives them: uint8 by modality, and labels int32 [b]."""
    rng = np.random.default_rng(0)
    spatial, temporal, _ = _NETWORKS[self.network]
    read = [m for m, net in (("rgb", spatial), ("flow", temporal)) if net]
    shapes = image_shapes(read, self.size, FLOW_CHANNELS // 2)
    images = {
      name: rng.integers(0, 256, (self.batch, 1, *shape), dtype=np.uint8)
      for name, shape in shapes.items()
    }
    labels = rng.integers(0, _CLASSES, self.batch, dtype=np.int32)
    return images | {"label": labels}


@dataclasses.dataclass(frozen=True)
class Side:
  """A network that is ready to be timed; nothing waits for a result but `wait`.

  Attributes:
    step: Runs a training step.
    forward: Runs a forward pass.
    wait: Waits for all that was begun.
    gflops: Operations of a step; 0 where they are not counted.
  """

  step: Callable[[], None]
  forward: Callable[[], None]
  wait: Callable[[], None]
  gflops: float = 0.0


def jax_side(case: Case) -> Side:
  """The project's own training step and forward pass."""
  model = jax_model(case)
  batch = case.inputs() | {
    "mask": np.ones(case.batch, bool),
    "index": np.arange(case.batch, dtype=np.int32),
  }
  tx = optax.sgd(1e-4, momentum=0.9)
  key = jax.random.key(0)
  state = parallel.replicate(
    steps.create_train_state(key, model, tx, preprocess(), batch)
  )
  train = parallel.pmap_train_step(
    functools.partial(
      steps.train_step,
      model=model,
      tx=tx,
      preprocess=preprocess(),
      loss_fn=losses.softmax_cross_entropy,
    )
  )

  def logits(variables, batch):
    return model.apply(variables, preprocess()(batch), train=False)[0]

  predict = parallel.pmap_predict_step(logits)
  forward_flops = count_flops(
    logits, parallel.unreplicate(state.variables), batch
  )
  batch = jax.device_put(parallel.shard(batch))
  pending = None

  def step():
    nonlocal state, pending
    state, pending = train(state, batch, key)

  def forward():
    nonlocal pending
    pending = predict(state.variables, batch)

  return Side(
    step,
    forward,
    lambda: jax.block_until_ready((state, pending)),
    3 * forward_flops / 1e9,
  )


def preprocess() -> Preprocess:
  """Codes to inputs, as in the PyTorch sides."""
  return Preprocess(
    (_MEAN,) * 3, (_STD,) * 3, _BOUND, _BOUND, subtract_mean_flow=False
  )


def jax_model(case: Case):
  """The network as a recipe makes it, but without dropout."""
  spatial, temporal, fields = _NETWORKS[case.network]
  common = {
    "num_classes": _CLASSES,
    "dropout_rate": 0.0,
    "axis_name": parallel.AXIS,
    "dtype": jnp.dtype(case.dtype),
    "width": case.width,
  }
  nets = {}
  if spatial:
    nets["rgb"] = models.create_model(spatial, **common)
  if temporal:
    nets["flow"] = models.create_model(temporal, **common, **fields)
  if len(nets) == 2:
    return TwoStream(spatial=nets["rgb"], temporal=nets["flow"])
  [(modality, backbone)] = nets.items()
  return Stream(modality=modality, backbone=backbone)


def torch_side(case: Case, compiled: bool) -> Side:
  """A step and a forward pass of the same network in PyTorch."""
  import torch

  torch.set_num_threads(os.cpu_count())
  # TF32 where the GPU has it, as in JAX.
  torch.set_float32_matmul_precision("high")
  device = "cuda" if case.gpu else "cpu"
  nets = {name: net.to(device) for name, net in torch_nets(case).items()}
  if case.gpu:
    nets = {
      k: net.to(memory_format=torch.channels_last) for k, net in nets.items()
    }
  inputs = {k: torch.from_numpy(x).to(device) for k, x in case.inputs().items()}
  labels = inputs.pop("label").long()
  parameters = [p for net in nets.values() for p in net.parameters()]
  optimiser = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

  def logits():
    total = 0
    for name, net in nets.items():
      x = (inputs[name][:, 0].float() / 255 - _MEAN) / _STD
      # Frames are NHWC, as a decoder gives them; a view for PyTorch.
      x = x.permute(0, 3, 1, 2) if name == "rgb" else x
      # In float32 on the CPU its own layout is as fast or faster.
      layout = torch.channels_last if case.gpu else torch.contiguous_format
      x = x.contiguous(memory_format=layout)
      total = total + net(x)
    return total / len(nets)

  def loss():
    with torch.autocast(
      device, torch.bfloat16, enabled=case.dtype == "bfloat16"
    ):
      out = logits()
    return torch.nn.functional.cross_entropy(out.float(), labels)

  def predictions():
    with torch.autocast(
      device, torch.bfloat16, enabled=case.dtype == "bfloat16"
    ):
      return logits()

  if compiled:
    loss, predictions = torch.compile(loss), torch.compile(predictions)

  def step():
    for net in nets.values():
      net.train()
    optimiser.zero_grad()
    loss().backward()
    optimiser.step()

  def forward():
    for net in nets.values():
      net.eval()
    with torch.no_grad():
      predictions()

  return Side(
    step, forward, torch.cuda.synchronize if case.gpu else lambda: None
  )


def torch_nets(case: Case) -> dict:
  """The backbones of a case in plain torch.nn, by modality."""
  # Only the folder of this script is on the path.
  sys.path.insert(0, str(Path(__file__).parent.parent))
  from torch import nn

  from tests.models import torch_networks

  spatial, temporal, fields = _NETWORKS[case.network]
  common = {"width": case.width, "classes": _CLASSES}
  size = (case.size, case.size)
  nets = {}
  if spatial == "vgg16":
    nets["rgb"] = torch_networks.VGG(16, batch_norm=False, size=size, **common)
  elif spatial:
    nets["rgb"] = torch_networks.ResNet(50, **common)
  if temporal:
    net = torch_networks.CNNM(second_lrn=True, size=size, **common, **fields)
    bias = net.conv1.bias is not None
    channels = net.conv1.out_channels
    net.conv1 = nn.Conv2d(FLOW_CHANNELS, channels, 7, 2, bias=bias)
    nets["flow"] = net
  return nets


SIDES = {
  "jax": jax_side,
  "torch, eager": functools.partial(torch_side, compiled=False),
  "torch, compiled": functools.partial(torch_side, compiled=True),
}


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
  print(
    f"{'':12} {'':15} {'step s':>8} {'clips/s':>8} {'of peak':>8}"
    f" {'forward s':>9} {'MiB':>6} {'first s':>7}  jax takes, step and forward"
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
    for side, row in found.items():
      print(
        f"{network:12} {side:15} {row['step']:8.3f}"
        f" {case.batch / row['step']:8.1f}"
        f" {own['gflops'] / row['step'] / peak:8.0%} {row['forward']:9.3f}"
        f" {row['memory']:6.0f} {row['first']:7.1f}"
        f"  {own['step'] / row['step']:.2f}x"
        f" {own['forward'] / row['forward']:.2f}x",
        flush=True,
      )


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
