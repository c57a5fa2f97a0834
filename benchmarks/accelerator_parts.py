"""The parts of `accelerator.py`: each yields result rows, one dict a row."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import train_step
from absl import flags

from twostream_jax import checkpoints, losses, models, parallel, steps
from twostream_jax.flow import tvl1 as flow
from twostream_jax.models.stream import Stream
from twostream_jax.preprocess import Preprocess

Row = dict[str, Any]

_PACKAGES = (
  "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch",
  "triton", "opencv-python-headless", "grain", "simplejpeg",
)  # fmt: skip
# Bytes that an update of TV-L1 has to move per pixel where each is one pass
# over memory: six arrays of state in and out, and four that it reads.
_FLOW_BYTES = 4 * (6 + 6 + 4)
_NETWORKS = ("vgg16", "cnn_m", "resnet50", "two_stream")
_CLASSES = 101


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How large everything is; see `FULL` and `SMALL`."""

  copied_mib: int
  matrix: int
  flow: tuple[int, int]
  pairs: tuple[int, ...]
  networks: tuple[str, ...]
  backbones: tuple[str, ...]
  batch: Mapping[str, int]
  size: int
  width: float
  repeats: int
  steps: int
  views: int
  clips: int
  loaded: int
  compiled: bool


FULL = Sizes(
  copied_mib=4096,
  matrix=8192,
  flow=(256, 340),
  pairs=(8, 128),
  networks=_NETWORKS,
  backbones=tuple(models.BACKBONES),
  batch={"bfloat16": 128, "float32": 64},
  size=224,
  width=1.0,
  repeats=5,
  steps=50,
  views=250,
  clips=24,
  loaded=24,
  compiled=True,
)
SMALL = Sizes(
  copied_mib=16,
  matrix=256,
  flow=(32, 40),
  pairs=(2,),
  networks=("cnn_m",),
  backbones=("cnn_m",),
  batch={"bfloat16": 2, "float32": 2},
  size=64,
  width=0.05,
  repeats=1,
  steps=3,
  views=4,
  clips=4,
  loaded=1,
  compiled=False,  # torch.compile takes a minute for the smallest.
)


def run(part: str, small: bool, out: Path) -> Iterator[Row]:
  """Yields the rows of a part.

  Args:
    part: A name of `accelerator.ROWS`.
    small: Whether to use sizes for a CPU.
    out: Folder for what is to be read on another machine.
  """
  sizes = SMALL if small else FULL
  parts = {
    "card": card,
    "tvl1": tvl1,
    "train_bfloat16": functools.partial(train, dtype="bfloat16"),
    "train_float32": functools.partial(train, dtype="float32"),
    "evaluation": evaluation,
    "loader": loader,
    "agreement": agreement,
    "losses": loss_curves,
    "checkpoint": functools.partial(write_checkpoint, out=out),
  }
  return parts[part](sizes)


def card(sizes: Sizes) -> Iterator[Row]:
  """Versions, the card, and its two ceilings."""
  device = jax.local_devices()[0]
  yield {
    "table": "machine",
    "what": "device",
    "value": f"{device.device_kind} ({device.platform})",
  }
  yield {"table": "machine", "what": "driver", "value": _driver()}
  yield {"table": "machine", "what": "cores", "value": os.cpu_count()}
  yield {
    "table": "machine",
    "what": "Python",
    "value": sys.version.split()[0],
  }
  for name in _PACKAGES:
    try:
      version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      version = "not installed"
    yield {"table": "machine", "what": name, "value": version}
  yield {
    "table": "ceilings",
    "what": "memory, bytes read and written, TB/s",
    "value": bandwidth(sizes.copied_mib) / 1e12,
  }
  for dtype in ("bfloat16", "float32"):
    yield {
      "table": "ceilings",
      "what": f"product of {sizes.matrix} x {sizes.matrix}, {dtype}, TFLOP/s",
      "value": train_step.measure_peak(sizes.matrix, dtype) / 1e3,
    }


def _driver() -> str:
  command = [
    "nvidia-smi",
    "--query-gpu=driver_version",
    "--format=csv,noheader",
  ]
  try:
    return subprocess.run(
      command, capture_output=True, text=True, check=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "no NVIDIA driver"


def bandwidth(mib: int) -> float:
  """Bytes read and written a second by passes over so many MiB, in place."""
  add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
  x = jnp.ones(mib * 2**18, jnp.float32)
  turns = []
  for _ in range(8):
    began = time.perf_counter()
    for _ in range(4):
      x = add(x)
    x.block_until_ready()
    turns.append(time.perf_counter() - began)
  return 4 * 2 * x.nbytes / statistics.median(turns[2:])


def seconds_of(function: Callable[[], Any], turns: int = 5) -> float:
  """Median seconds of a call, after one more."""
  jax.block_until_ready(function())
  times = []
  for _ in range(turns):
    began = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - began)
  return statistics.median(times)


def tvl1(sizes: Sizes) -> Iterator[Row]:
  """Pairs a second, and the share of what memory traffic allows."""
  bytes_a_second = bandwidth(sizes.copied_mib)
  h, w = sizes.flow
  rng = np.random.default_rng(0)
  pairs = max(sizes.pairs)
  coarse = rng.uniform(0, 255, (pairs, h // 8 + 2, w // 8 + 2))
  image = jax.image.resize(
    jnp.asarray(coarse, jnp.float32), (pairs, h + 8, w + 8), "cubic"
  )
  image = jnp.clip(image, 0, 255).astype(jnp.uint8)
  first, second = image[:, 4 : 4 + h, 4 : 4 + w], image[:, 3 : 3 + h, 2 : 2 + w]
  presets = {"tvl1": {}, "tvl1, FAST": flow.FAST}
  largest = max(sizes.pairs)
  runs = [(name, form, largest) for form in _forms() for name in presets]
  runs += [("tvl1", _forms()[0], count) for count in sizes.pairs[:-1]]
  for name, form, count in runs:
    preset = presets[name]
    call = functools.partial(flow.tvl1, first[:count], second[:count], **preset)
    with _compiled_as(form):
      began = time.perf_counter()
      call().block_until_ready()
      compiled = time.perf_counter() - began
      seconds = seconds_of(call)
    floor = count * flow_traffic(h, w, **preset) / bytes_a_second
    yield {
      "table": f"optical flow of {h} x {w} pixels, all on the device",
      "algorithm": name,
      "updates": form,
      "pairs at once": count,
      "ms": 1e3 * seconds,
      "pairs/s": count / seconds,
      "one pass an update at memory speed, ms": 1e3 * floor,
      "share of that": floor / seconds,
      "first call, s": compiled,
    }
  count = max(sizes.pairs)
  host = [np.asarray(x) for x in (first, second)]

  def stream():
    return list(
      flow.tvl1_of_pairs(zip(*host, strict=True), pairs_at_once=count)
    )

  yield {
    "table": "optical flow from and to the host (tvl1_of_pairs)",
    "algorithm": "tvl1",
    "pairs at once": count,
    "pairs/s": count / seconds_of(stream, 3),
  }


def _forms() -> list[str]:
  """Forms of TV-L1's updates on this device, the one that is used first."""
  return ["kernel", "plain"] if flow.has_kernel() else ["plain"]


@contextlib.contextmanager
def _compiled_as(form: str) -> Iterator[None]:
  """Recompiles TV-L1 with one form of its updates."""
  flow.tvl1.clear_cache()
  with mock.patch.object(flow, "has_kernel", lambda: form == "kernel"):
    yield
  flow.tvl1.clear_cache()


def flow_traffic(h: int, w: int, warps: int = 5, iterations: int = 15) -> float:
  """Bytes that the updates of a pair move where each is one pass."""
  pixels = sum(a * b for a, b in flow.pyramid_sizes(h, w, 5, 0.5))
  return float(_FLOW_BYTES * pixels * warps * iterations)


def train(sizes: Sizes, dtype: str) -> Iterator[Row]:
  """Training step and forward pass beside PyTorch, eager and compiled."""
  gpu = jax.default_backend() == "gpu"
  sides = ["jax"]
  if importlib.util.find_spec("torch"):
    sides = [
      s for s in train_step.SIDES if sizes.compiled or "compiled" not in s
    ]
  batch = sizes.batch[dtype]
  cases = [
    train_step.Case(name, batch, sizes.size, gpu, dtype, sizes.width)
    for name in sizes.networks
  ]
  ahead = [side for side in sides if "compiled" in side]
  with train_step.processes(cases, sides, 10 if gpu else 1) as pipes:
    for case in cases:
      for side in ahead:
        # It computes on the CPU for a minute; only two steps then use the card.
        with contextlib.suppress(OSError):
          pipes[case][side].send(True)
    peak = train_step.measure_peak(sizes.matrix, dtype)
    for case in cases:
      found = train_step.compare(pipes[case], sizes.repeats, ahead)
      own = found.get("jax")
      for side in sides:
        row = {
          "table": f"training step, {dtype}, {batch} x {sizes.size} x"
          f" {sizes.size} pixels; peak {peak / 1e3:.0f} TFLOP/s",
          "network": case.network,
          "side": side,
        }
        if side in found:
          this = found[side]
          row |= {
            "step, ms": 1e3 * this["step"],
            "videos/s": batch / this["step"],
            "of peak": own and own["gflops"] / this["step"] / peak,
            "forward, ms": 1e3 * this["forward"],
            "MiB": this["memory"],
            "first, s": this["first"],
            "jax takes, step": own and own["step"] / this["step"],
            "jax takes, forward": own and own["forward"] / this["forward"],
          }
        else:
          row["trouble"] = "failed"
        yield row
      if sides == ["jax"]:
        yield {"table": row["table"], "side": "torch is not installed"}


def evaluation(sizes: Sizes) -> Iterator[Row]:
  """A video's 25 x 10 views against a forward pass of as many images."""
  for name in sizes.networks:
    if name != "two_stream":
      video, plain = _seconds_of_views(name, sizes)
      yield {
        "table": f"evaluation, {sizes.views} views of a video, bfloat16",
        "network": name,
        "views/s": sizes.views / video,
        "images/s of a forward pass": sizes.views / plain,
        "evaluation takes": video / plain,
      }


def _seconds_of_views(name: str, sizes: Sizes) -> tuple[float, float]:
  """Seconds for the views of a video, and for as many images at once."""
  gpu = jax.default_backend() == "gpu"
  case = train_step.Case(
    name, sizes.views, sizes.size, gpu, "bfloat16", sizes.width
  )
  model, preprocess = train_step.jax_model(case), train_step.preprocess()
  images = {k: x for k, x in case.inputs().items() if k != "label"}
  init = jax.jit(functools.partial(model.init, train=False))
  one = preprocess({k: x[:1] for k, x in images.items()})
  variables = parallel.replicate(init(jax.random.key(0), one))
  predict = parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=model,
      preprocess=preprocess,
      views_per_pass=sizes.views,
      num_classes=_CLASSES,
    )
  )
  forward = parallel.pmap_predict_step(
    lambda variables, batch: model.apply(
      variables, preprocess(batch), train=False
    )[0]
  )
  flat = jax.device_put(parallel.shard(images))
  views = {k: x[:, None] for k, x in flat.items()}
  return (
    seconds_of(lambda: predict(variables, views)),
    seconds_of(lambda: forward(variables, flat)),
  )


def loader(sizes: Sizes) -> Iterator[Row]:
  """Two-stream training batches a second on this machine's cores."""
  import made_up

  from twostream_jax.data import views
  from twostream_jax.data.augment import RandomCrop
  from twostream_jax.data.dataset import open_dataset
  from twostream_jax.data.input_pipeline import TrainTransform, train_batches

  flags.FLAGS.mark_as_parsed()
  crop = RandomCrop((224 / 256, 224 / 256), 1.0)
  batch = sizes.batch["bfloat16"]
  with tempfile.TemporaryDirectory() as folder:
    made_up.write(folder, sizes.clips, 80)
    source = open_dataset(folder).sources["train"]
    for modalities in (("rgb",), ("flow",), ("rgb", "flow")):
      spec = views.InputSpec(modalities, 224, 10, 1, "loop")
      for processes in sorted({min(8, os.cpu_count()), os.cpu_count()}):
        made = iter(
          train_batches(
            source,
            TrainTransform(spec, 1, crop, flip=True),
            batch_size=batch,
            seed=0,
            threads=os.cpu_count(),
            processes=processes,
          )
        )
        count = sizes.loaded * (4 if modalities == ("rgb",) else 1)
        # As many may lie ready as each process holds.
        for _ in range(2 * processes + 1):
          next(made)
        began = time.perf_counter()
        for _ in range(count):
          next(made)
        seconds = time.perf_counter() - began
        del made
        yield {
          "table": f"loader, {os.cpu_count()} cores, batches of {batch}",
          "inputs": " and ".join(modalities),
          "processes": processes,
          "videos/s": count * batch / seconds,
        }


def agreement(sizes: Sizes) -> Iterator[Row]:
  """Logits of every network on this device against those on the CPU."""
  devices = {"cpu": jax.devices("cpu")[0], "here": jax.local_devices()[0]}
  side = min(sizes.size, 128)

  def compare(name, precision):
    model = models.create_model(
      name, num_classes=_CLASSES, width=sizes.width, dropout_rate=0.0
    )
    x = np.random.default_rng(0).normal(size=(2, side, side, 3))
    logits = {}
    with jax.default_matmul_precision(precision):
      for place, device in devices.items():
        with jax.default_device(device):
          own = jnp.asarray(x, jnp.float32)
          if place == "cpu":
            init = jax.jit(functools.partial(model.init, train=False))
            variables = jax.device_get(init(jax.random.key(0), own))
          apply = jax.jit(functools.partial(model.apply, train=False))
          logits[place] = np.asarray(apply(variables, own)[0], np.float64)
    apart = np.linalg.norm(logits["here"] - logits["cpu"])
    return apart / np.linalg.norm(logits["cpu"])

  # Most of the time goes to compilers, which leave Python alone.
  with concurrent.futures.ThreadPoolExecutor(
    max(2, os.cpu_count() // 2)
  ) as pool:
    found = {
      (name, precision): pool.submit(compare, name, precision)
      for precision in ("highest", "default")
      for name in sizes.backbones
    }
    for name in sizes.backbones:
      yield {
        "table": f"logits here and on the CPU, {side} x {side} pixels,"
        " relative distance",
        "network": name,
        "float32 (highest)": float(found[name, "highest"].result()),
        "default (TF32)": float(found[name, "default"].result()),
      }


def loss_curves(sizes: Sizes) -> Iterator[Row]:
  """Losses of bfloat16 and of float32 over some steps of the same training."""
  side, batch = min(sizes.size, 112), 16 if sizes.steps > 3 else 2
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 4 * batch)
  pattern = rng.integers(0, 256, (10, side // 8, side // 8, 3))
  frames = pattern.repeat(8, axis=1).repeat(8, axis=2)[labels]
  frames = np.clip(frames + rng.normal(0, 40, frames.shape), 0, 255)
  for name in sizes.backbones:
    if name not in ("cnn_m", "resnet18"):
      continue
    curves = {}
    for dtype in ("float32", "bfloat16"):
      state, step = _training(name, sizes.width, jnp.dtype(dtype), side, batch)
      curves[dtype] = []
      for i in range(sizes.steps):
        rows = np.arange(i * batch, (i + 1) * batch) % len(labels)
        state, metrics = step(
          state,
          parallel.shard(_batch(frames[rows].astype(np.uint8), labels[rows])),
          jax.random.key(1),
        )
        curves[dtype].append(float(metrics["loss"][0]) / batch)
    a, b = (np.array(curves[dtype]) for dtype in ("float32", "bfloat16"))
    yield {
      "table": f"losses over {sizes.steps} steps, {side} x {side} pixels",
      "network": name,
      "first": float(a[0]),
      "last, float32": float(a[-1]),
      "last, bfloat16": float(b[-1]),
      "mean distance": float(np.abs(a - b).mean()),
    }


def _batch(frames: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
  """A training batch of single frames uint8 [b h w 3]."""
  count = len(frames)
  return {
    "rgb": frames[:, None],
    "label": labels.astype(np.int32),
    "mask": np.ones(count, bool),
    "index": np.arange(count, dtype=np.int32),
  }


def _training(name, width, dtype, side, batch):
  """A replicated state and a training step of a spatial stream."""
  model = Stream(
    modality="rgb",
    backbone=models.create_model(
      name,
      num_classes=_CLASSES,
      width=width,
      dropout_rate=0.0,
      axis_name=parallel.AXIS,
      dtype=dtype,
    ),
  )
  preprocess = train_step.preprocess()
  tx = optax.sgd(0.01, momentum=0.9)
  blank = _batch(
    np.zeros((batch, side, side, 3), np.uint8), np.zeros(batch, int)
  )
  state = steps.create_train_state(
    jax.random.key(0), model, tx, preprocess, blank
  )
  step = parallel.pmap_train_step(
    functools.partial(
      steps.train_step,
      model=model,
      tx=tx,
      preprocess=preprocess,
      loss_fn=losses.softmax_cross_entropy,
    )
  )
  return parallel.replicate(state), step


def _answer(variables: Any) -> np.ndarray:
  """Logits of the checkpoint's network for fixed frames."""
  model = Stream(
    modality="rgb",
    backbone=models.create_model("resnet18", num_classes=_CLASSES, width=0.25),
  )
  frames = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
  preprocess: Preprocess = train_step.preprocess()
  with jax.default_matmul_precision("highest"):
    logits, _ = jax.jit(functools.partial(model.apply, train=False))(
      variables, preprocess({"rgb": frames[:, None]})
    )
  return np.asarray(logits)


def write_checkpoint(sizes: Sizes, out: Path) -> Iterator[Row]:
  """Trains a small network and saves it, to be read on another machine."""
  state, step = _training("resnet18", 0.25, jnp.float32, 64, 8)
  rng = np.random.default_rng(0)
  batch = _batch(
    rng.integers(0, 256, (8, 64, 64, 3), np.uint8), rng.integers(0, 9, 8)
  )
  for _ in range(sizes.steps):
    state, _ = step(state, parallel.shard(batch), jax.random.key(1))
  one = parallel.unreplicate(state)
  answer = _answer(one.variables)
  with tempfile.TemporaryDirectory() as folder:
    manager = checkpoints.open_manager(folder, keep=1)
    saved = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    metadata = {"logits": answer.tolist(), "device": _device()}
    checkpoints.save(manager, sizes.steps, saved, {"seed": 0}, metadata)
    checkpoints.finish(manager)
    manager.close()
    with tarfile.open(out / "checkpoint.tar", "w") as tar:
      tar.add(folder, "checkpoints")
  yield {
    "table": "checkpoint",
    "what": "saved for another machine, MiB",
    "value": (out / "checkpoint.tar").stat().st_size / 2**20,
  }


def _device() -> str:
  return jax.local_devices()[0].device_kind


def read_checkpoint(out: Path) -> Sequence[Row]:
  """Restores what `write_checkpoint` left, and compares its answers."""
  path = out / "checkpoint.tar"
  with tempfile.TemporaryDirectory() as folder:
    try:
      with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
      sys.exit(f"--read: {path} can't be read: {error}")
    directory = Path(folder) / "checkpoints"
    found = checkpoints.read_metadata(directory)
    if found is None:
      sys.exit(f"--read: {path} holds no checkpoint")
    _, metadata = found
    with checkpoints.open_reader(directory) as manager:
      variables = checkpoints.restore_variables(manager)
  there = np.array(metadata["logits"])
  apart = np.linalg.norm(_answer(variables) - there) / np.linalg.norm(there)
  return [
    {
      "table": "checkpoint",
      "saved on": metadata["device"],
      "read on": _device(),
      "relative distance of logits": float(apart),
    }
  ]
