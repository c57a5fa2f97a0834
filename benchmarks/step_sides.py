"""The networks that are timed: the project's own, and PyTorch's."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from twostream_jax import losses, models, parallel, steps
from twostream_jax.data.loader.views import image_shapes
from twostream_jax.models.stream import Stream
from twostream_jax.models.two_stream import TwoStream
from twostream_jax.stages.flops import count_flops
from twostream_jax.stages.preprocess import Preprocess

CLASSES = 101
FLOW_CHANNELS = 20
# Spatial and temporal backbone, and fields of the temporal one.
NETWORKS = {
  "vgg16": ("vgg16", None, {}),
  "resnet50": ("resnet50", None, {}),
  "cnn_m": (None, "cnn_m", {"normalisation": "lrn"}),
  "cnn_m_batch": (None, "cnn_m", {"normalisation": "batch"}),
  "two_stream": ("resnet50", "cnn_m", {"normalisation": "lrn"}),
}
_MEAN, _STD, _BOUND = 0.5, 0.25, 20.0


@dataclasses.dataclass(frozen=True)
class Case:
  """One network and its input.

  Attributes:
    network: A key of NETWORKS.
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
    spatial, temporal, _ = NETWORKS[self.network]
    read = [m for m, net in (("rgb", spatial), ("flow", temporal)) if net]
    shapes = image_shapes(read, self.size, FLOW_CHANNELS // 2)
    images = {
      name: rng.integers(0, 256, (self.batch, 1, *shape), dtype=np.uint8)
      for name, shape in shapes.items()
    }
    labels = rng.integers(0, CLASSES, self.batch, dtype=np.int32)
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
  key = jax.random.key(0)
  state, train = jax_training(model, batch, learning_rate=1e-4)

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


def jax_training(
  model: nn.Module, batch: Mapping[str, np.ndarray], learning_rate: float
) -> tuple[steps.TrainState, Callable]:
  """A replicated state and a step: cross-entropy, SGD with momentum 0.9."""
  tx = optax.sgd(learning_rate, momentum=0.9)
  state = steps.create_train_state(
    jax.random.key(0), model, tx, preprocess(), batch
  )
  step = functools.partial(
    steps.train_step,
    model=model,
    tx=tx,
    preprocess=preprocess(),
    loss_fn=losses.softmax_cross_entropy,
  )
  return parallel.replicate(state), parallel.pmap_train_step(step)


def preprocess() -> Preprocess:
  """Codes to inputs, as in the PyTorch sides."""
  return Preprocess(
    (_MEAN,) * 3, (_STD,) * 3, _BOUND, _BOUND, subtract_mean_flow=False
  )


def jax_model(case: Case, **layers):
  """The network as a recipe makes it, but without dropout.

  Args:
    case: Network and its sizes.
    **layers: Fields of the backbones that are replaced: conv, norm, pool.
  """
  spatial, temporal, fields = NETWORKS[case.network]
  common = {
    "num_classes": CLASSES,
    "dropout_rate": 0.0,
    "axis_name": parallel.AXIS,
    "dtype": jnp.dtype(case.dtype),
    "width": case.width,
  }
  nets = {}
  if spatial:
    nets["rgb"] = models.create_model(spatial, **common).clone(**layers)
  if temporal:
    temporal_net = models.create_model(temporal, **common, **fields)
    nets["flow"] = temporal_net.clone(**layers)
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

  spatial, temporal, fields = NETWORKS[case.network]
  common = {"width": case.width, "classes": CLASSES}
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
