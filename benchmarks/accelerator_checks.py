"""Parts of `accelerator.py` that compare numbers: each yields result rows."""

import concurrent.futures
import dataclasses
import functools
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_sizes import Sizes
from step_sides import CLASSES, jax_training, preprocess

from twostream_jax import checkpoints, models, parallel
from twostream_jax.models.stream import Stream

Row = dict[str, Any]


def agreement(sizes: Sizes) -> Iterator[Row]:
  """Logits of every network on this device against those on the CPU."""
  devices = {"cpu": jax.devices("cpu")[0], "here": jax.local_devices()[0]}
  side = min(sizes.size, 128)

  def compare(name, precision):
    model = models.create_model(
      name, num_classes=CLASSES, width=sizes.width, dropout_rate=0.0
    )
    x = np.random.default_rng(0).normal(size=(2, side, side, 3))
    logits = {}
    with jax.default_matmul_precision(precision):
      for place, device in devices.items():
        with jax.default_device(device):
          own = jnp.asarray(x, jnp.float32)
          if place == "cpu":
            init = jax.jit(functools.partial(model.init, train=False))
            variables = _scaled(jax.device_get(init(jax.random.key(0), own)))
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


def _scaled(variables: Any) -> Any:
  """Variables whose batch norms have random scales.

  A network begins with residual branches that are scaled to zero, and what they
  compute would not be compared.
  """
  rng = np.random.default_rng(3)

  def draw(path, value):
    if path[-1].key != "scale":
      return value
    return rng.uniform(0.5, 1.0, value.shape).astype(value.dtype)

  return jax.tree_util.tree_map_with_path(draw, variables)


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
  backbone = models.create_model(
    name,
    num_classes=CLASSES,
    width=width,
    dropout_rate=0.0,
    axis_name=parallel.AXIS,
    dtype=dtype,
  )
  frames = np.zeros((batch, side, side, 3), np.uint8)
  return jax_training(
    Stream(modality="rgb", backbone=backbone),
    _batch(frames, np.zeros(batch, int)),
    # With 0.01 CNN-M's losses rise again at first, and what rounding changes
    # then grows in float32 as well.
    learning_rate=0.002,
  )


def _answer(variables: Any) -> np.ndarray:
  """Logits of the checkpoint's network for fixed frames."""
  model = Stream(
    modality="rgb",
    backbone=models.create_model("resnet18", num_classes=CLASSES, width=0.25),
  )
  frames = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
  with jax.default_matmul_precision("highest"):
    logits, _ = jax.jit(functools.partial(model.apply, train=False))(
      variables, preprocess()({"rgb": frames[:, None]})
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


def parts(out: Path) -> dict[str, Callable[[Sizes], Iterator[Row]]]:
  """Parts by name; `out` is the folder for the checkpoint."""
  return {
    "agreement": agreement,
    "losses": loss_curves,
    "checkpoint": functools.partial(write_checkpoint, out=out),
  }
