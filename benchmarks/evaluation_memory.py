"""Memory of an evaluation for short and for long clips.

  python benchmarks/evaluation_memory.py [--protocol=25x10] [--frames=50 ...]
    [--side=224] [--views_per_pass=64]

A small CNN-M scores clips of made-up flow in stacks of 10 fields, at full image
size, so that what the views take stands out. Each length is a process of its
own; its peak of resident memory is taken by the system, of all that it did. All
have the same number of clips. The clips' images lie in memory and are the same
few, so that nothing but the views and the network depends on their length.
"""

import functools
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from twostream_jax import evaluate, models, parallel, steps
from twostream_jax.data.loader import eval_pipeline, protocols
from twostream_jax.data.loader.views import InputSpec
from twostream_jax.files import tables
from twostream_jax.models.stream import Stream
from twostream_jax.stages.preprocess import Preprocess

_CLASSES, _STACK, _CLIPS = 101, 10, 2
_HEIGHT, _WIDTH = 256, 344


class Clips:
  """Clips of a length, whose fields repeat."""

  video_ids = tuple(f"clip {i}" for i in range(_CLIPS))
  labels = np.zeros(_CLIPS, np.int32)

  def __init__(self, frames: int):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, _HEIGHT // 16, _WIDTH // 8), np.uint8)
    few = [
      cv2.imencode(".jpg", cv2.resize(x, (2 * _WIDTH, _HEIGHT)))[1].tobytes()
      for x in images
    ]
    self._record = {
      "num_frames": frames,
      "height": _HEIGHT,
      "width": _WIDTH,
      "flow": [few[i % len(few)] for i in range(frames - 1)],
    }

  def __len__(self) -> int:
    return _CLIPS

  def __getitem__(self, index: int) -> dict:
    return self._record


def measure(frames: int, protocol: str, side: int, views_per_pass: int):
  """Views and seconds, and the peak before and after in MiB."""
  model = Stream(
    modality="flow",
    backbone=models.create_model(
      "cnn_m", num_classes=_CLASSES, width=0.05, dropout_rate=0.0
    ),
  )
  preprocess = Preprocess(
    rgb_mean=(0.5,) * 3,
    rgb_std=(0.25,) * 3,
    flow_bound=20.0,
    flow_scale=1.0,
    subtract_mean_flow=True,
  )
  zeros = {"flow": jnp.zeros((1, 1, side, side, 2 * _STACK))}
  variables = model.init(jax.random.key(0), zeros, train=False)
  predict = parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=model,
      preprocess=preprocess,
      views_per_pass=views_per_pass,
      num_classes=_CLASSES,
    )
  )
  clips = Clips(frames)
  transform = eval_pipeline.EvalTransform(
    InputSpec(("flow",), side, _STACK, 1, "loop"),
    protocols.parse(protocol),
    0.875,
  )
  rows = eval_pipeline.eval_rows(
    clips,
    transform,
    clips.labels,
    views_per_pass=views_per_pass,
    replicas=parallel.num_replicas(),
    threads=1,
  )
  before, began = peak(), time.perf_counter()
  evaluate.evaluate(
    predict, parallel.replicate(variables), rows, protocol=protocol
  )
  views = int(rows.counts.sum()) * transform.views
  return views, time.perf_counter() - began, before, peak()


def peak() -> float:
  """Largest resident memory so far, MiB."""
  scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _send(connection, *arguments) -> None:
  flags.FLAGS.mark_as_parsed()  # grain reads them.
  connection.send(measure(*arguments))


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  del argv
  values = flags.FLAGS
  spawn = multiprocessing.get_context("spawn")
  first = None
  print(f"{values.protocol}, {_CLIPS} clips, jax {jax.__version__}")
  names = ("frames", "views", "seconds", "before, MiB", "peak, MiB")
  print(tables.markdown_head((*names, "ratio of growth")))
  for frames in values.frames:
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
      target=_send,
      args=(
        theirs,
        int(frames),
        values.protocol,
        values.side,
        values.views_per_pass,
      ),
    )
    process.start()
    theirs.close()
    views, seconds, before, after = ours.recv()
    process.join()
    first = first or after - before
    row = (
      frames,
      views,
      f"{seconds:.1f}",
      f"{before:.0f}",
      f"{after:.0f}",
      f"{(after - before) / first:.2f}",
    )
    print(tables.markdown_row(row), flush=True)


if __name__ == "__main__":
  flags.DEFINE_string("protocol", "25x10", "See data.loader.protocols.")
  flags.DEFINE_multi_integer("frames", [50, 500, 2000], "Of a clip.")
  flags.DEFINE_integer("side", 224, "Of the square input, pixels.")
  flags.DEFINE_integer("views_per_pass", 64, "See configs/default.py.")
  app.run(main)
