"""Optical flow: time and end-point error of every algorithm, in one run.

  python benchmarks/flow.py [--pair=DIR]

The rival is OpenCV's DualTVL1 with its defaults, which only the contrib build
has: `pip install opencv-contrib-python-headless` in place of the plain one.
Without it that row is missing. Pairs are smooth random textures warped by known
affine and smooth random fields, 256 x 344; with --pair also a Middlebury pair
(frame10.png, frame11.png, flow10.flo).
"""

import statistics
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import app, flags

from twostream_jax.flow.opencv import dis, farneback
from twostream_jax.flow.tvl1 import FAST, tvl1

_PAIR = flags.DEFINE_string("pair", None, "Folder of a Middlebury pair.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Counted runs, after one more.")
_RIVAL = "OpenCV DualTVL1"


def known_pairs(count=4, height=256, width=344):
  """Pairs (first, second, flow, where it is known) of known motion."""
  rng = np.random.default_rng(0)
  columns, rows = np.meshgrid(
    np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
  )
  for i in range(count):
    second = (
      sum(_noise(rng, height, width, cell) for cell in (4, 12, 40)) * (90 / 2)
      + 127
    )
    if i % 2:
      x, y = (6 * _noise(rng, height, width, 48) for _ in range(2))
    else:
      a, b, c, d = rng.uniform(-0.02, 0.02, 4)
      from_x, from_y = columns - width / 2, rows - height / 2
      x = a * from_x + b * from_y + rng.uniform(-3, 3)
      y = c * from_x + d * from_y + rng.uniform(-3, 3)
    to_x, to_y = (columns + x).astype("f4"), (rows + y).astype("f4")
    first = cv2.remap(second, to_x, to_y, cv2.INTER_LANCZOS4)
    known = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
    images = (
      np.clip(m + rng.normal(0, 1, m.shape), 0, 255) for m in (first, second)
    )
    yield *(m.astype(np.uint8) for m in images), np.stack([x, y], -1), known


def _noise(rng, height, width, cell):
  coarse = rng.uniform(-1, 1, (height // cell + 3, width // cell + 3))
  return cv2.resize(
    coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
  )


def middlebury_pair(folder):
  """The pair of a Middlebury folder, like those of `known_pairs`."""
  folder = Path(folder)
  first, second = (
    cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
    for name in ("frame10.png", "frame11.png")
  )
  raw = (folder / "flow10.flo").read_bytes()
  flow = np.frombuffer(raw, np.float32, offset=12).reshape(*first.shape, 2)
  return first, second, flow, (np.abs(flow) < 1e9).all(axis=-1)


def algorithms():
  """Name to function of two gray images."""
  found = {}
  if hasattr(cv2, "optflow"):
    rival = cv2.optflow.DualTVL1OpticalFlow_create()
    found[_RIVAL] = lambda first, second: rival.calc(first, second, None)
  found["tvl1"] = lambda first, second: np.asarray(tvl1(first, second))
  found["tvl1, FAST"] = lambda first, second: np.asarray(
    tvl1(first, second, **FAST)
  )
  found["dis"] = dis
  found["farneback"] = farneback
  return found


def measure(compute, pairs, repeats):
  """Median seconds a pair and mean end-point error in pixels."""
  times, errors = [], []
  for first, second, truth, known in pairs:
    compute(first, second)
    for _ in range(repeats):
      began = time.perf_counter()
      flow = compute(first, second)
      times.append(time.perf_counter() - began)
    error = np.where(known[..., None], flow - truth, 0)
    errors.append(np.hypot(*np.moveaxis(error, -1, 0))[known].mean())
  return statistics.median(times), float(np.mean(errors))


def main(argv):
  if len(argv) > 1:
    sys.exit(f"not a flag: {' '.join(argv[1:])}")
  sets = {"known warps, 256 x 344": list(known_pairs())}
  if _PAIR.value:
    sets[Path(_PAIR.value).name] = [middlebury_pair(_PAIR.value)]
  print(
    f"jax {jax.__version__} on {jax.devices()[0].device_kind}, OpenCV"
    f" {cv2.__version__} with {cv2.getNumThreads()} threads"
  )
  for title, pairs in sets.items():
    print(f"\n{title}\n\n| algorithm | ms a pair | times faster | error, px |")
    print("|---|---|---|---|")
    rival = None
    for name, compute in algorithms().items():
      seconds, error = measure(compute, pairs, _REPEATS.value)
      rival = seconds if name == _RIVAL else rival
      ratio = f"{rival / seconds:.1f}" if rival else "-"
      print(f"| {name} | {1000 * seconds:.1f} | {ratio} | {error:.3f} |")


if __name__ == "__main__":
  app.run(main)
