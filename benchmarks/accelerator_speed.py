"""Parts of `accelerator.py` that time: each yields result rows."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import step_sides
import train_step
from absl import flags
from accelerator_sizes import Sizes

from twostream_jax import parallel, steps
from twostream_jax.flow import pyramid
from twostream_jax.flow import tvl1 as flow

Row = dict[str, Any]

_PACKAGES = (
  "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch",
  "triton", "opencv-python-headless", "grain", "simplejpeg",
)  # fmt: skip
# Bytes that an update of TV-L1 has to move per pixel where each is one pass
# over memory: six arrays of state in and out, and four that it reads.
_FLOW_BYTES = 4 * (6 + 6 + 4)


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
  pixels = sum(a * b for a, b in pyramid.pyramid_sizes(h, w, 5, 0.5))
  return float(_FLOW_BYTES * pixels * warps * iterations)


def train(sizes: Sizes, dtype: str) -> Iterator[Row]:
  """Training step and forward pass beside PyTorch, eager and compiled."""
  gpu = jax.default_backend() == "gpu"
  sides = ["jax"]
  if importlib.util.find_spec("torch"):
    sides = [
      s for s in step_sides.SIDES if sizes.compiled or "compiled" not in s
    ]
  batch = sizes.batch[dtype]
  cases = [
    step_sides.Case(name, batch, sizes.size, gpu, dtype, sizes.width)
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
  case = step_sides.Case(
    name, sizes.views, sizes.size, gpu, "bfloat16", sizes.width
  )
  model, preprocess = step_sides.jax_model(case), step_sides.preprocess()
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
      num_classes=step_sides.CLASSES,
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

  from twostream_jax.data.dataset import open_dataset
  from twostream_jax.data.loader import views
  from twostream_jax.data.loader.augment import RandomCrop
  from twostream_jax.data.loader.input_pipeline import (
    TrainTransform,
    train_batches,
  )

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


PARTS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
  "card": card,
  "tvl1": tvl1,
  "train_bfloat16": functools.partial(train, dtype="bfloat16"),
  "train_float32": functools.partial(train, dtype="float32"),
  "evaluation": evaluation,
  "loader": loader,
}
