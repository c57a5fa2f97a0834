"""Optical flow: time and end-point error of every algorithm, in one run.

  python benchmarks/flow.py [--pair=DIR] [--videos=DIR ...]

The rival is OpenCV's DualTVL1 with its defaults, which only the contrib build
has: `pip install opencv-contrib-python-headless` in place of the plain one.
Images are warped by known affine and smooth random fields in turn: smooth
random textures, 256 x 344; with --videos also real frames, 256 x 256, one from
each of some videos evenly spread over the folder, what changes of brightness do
to the flow of consecutive frames of the same videos, and how far the algorithms
are from the rival there. With --pair also a Middlebury pair (frame10.png,
frame11.png, flow10.flo). What is left out is said.
"""

import statistics
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import app, flags

from twostream_jax.data.video.reading import VideoError, read_resized
from twostream_jax.files import tables
from twostream_jax.flow.opencv import dis, farneback
from twostream_jax.flow.tvl1 import FAST, tvl1

_PAIR = flags.DEFINE_string("pair", None, "Folder of a Middlebury pair.")
_VIDEOS = flags.DEFINE_multi_string(
  "videos", [], "Folder of .avi or .mp4 files, in any depth; can be repeated."
)
_COUNT = flags.DEFINE_integer("count", 24, "Videos used of each --videos.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Counted runs, after one more.")
_RIVAL = "OpenCV DualTVL1"
_SIZE = (256, 344)
# Changes of brightness of a gray image; what leaves 0..255 is clipped.
_CHANGES = {
  "+1": lambda image: image + 1.0,
  "+2": lambda image: image + 2.0,
  "+60": lambda image: image + 60.0,
  "+100": lambda image: image + 100.0,
  "x 0.7": lambda image: image * 0.7,
  "x 1.3": lambda image: image * 1.3,
  "x 0.98": lambda image: image * 0.98,
}


def textures(rng, count=4):
  """Yields smooth random images, float32 `_SIZE`, about 0..255."""
  for _ in range(count):
    yield sum(_noise(rng, *_SIZE, cell) for cell in (4, 12, 40)) * 45 + 127


def warped_pairs(images, rng):
  """Pairs (first, second, flow, where it is known) of known motion.

  `second` is an image, `first` the same seen through the flow (Lanczos), both
  with noise of standard deviation 1 and rounded. The flow is, in turn, affine
  (entries of the matrix up to 0.02, the centre moves up to 3 px an axis) and
  smooth random (up to about 6 px, bicubic between random values every 48 px).
  """
  for i, second in enumerate(images):
    height, width = second.shape
    columns, rows = np.meshgrid(
      np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
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


def real_pairs(folder, count):
  """Two consecutive gray frames of each of up to `count` videos, uint8.

  The videos are evenly spread over the sorted ones of the folder, the frames
  are from the middle of each. They are resized as in a build, to a short side
  of 256; of that the middle 256 x 256, so that each algorithm is compiled once.
  """
  files = sorted(
    path for path in Path(folder).rglob("*") if path.suffix in (".avi", ".mp4")
  )
  if not files:
    sys.exit(f"--videos: no .avi or .mp4 file in {folder}")
  pairs = []
  for path in files[:: max(1, len(files) // count)][:count]:
    try:
      frames = [frame.rgb for frame in read_resized(path, 256)]
    except VideoError as error:
      sys.exit(f"--videos: {path}: {error.reason}")
    middle = len(frames) // 2
    if middle:
      pairs.append([_gray_square(f) for f in frames[middle - 1 : middle + 1]])
    else:
      print(f"left out, one frame: {path}")
  return pairs


def _gray_square(frame):
  height, width = frame.shape[:2]
  top, left = (height - 256) // 2, (width - 256) // 2
  gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
  return gray[top : top + 256, left : left + 256].copy()


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
  found["tvl1, texture=0"] = lambda first, second: np.asarray(
    tvl1(first, second, texture=0.0)
  )
  found["dis"] = dis
  found["farneback"] = farneback
  return found


def measure(found, pairs, repeats):
  """Median seconds a pair and mean end-point error in pixels, by name.

  The algorithms take turns, so that other work on the machine slows all alike.
  """
  times = {name: [] for name in found}
  errors = {name: [] for name in found}
  for first, second, truth, known in pairs:
    for repeat in range(repeats + 1):
      for name, compute in found.items():
        began = time.perf_counter()
        flow = compute(first, second)
        # The first one compiles.
        if repeat:
          times[name].append(time.perf_counter() - began)
          continue
        error = np.where(known[..., None], flow - truth, 0)
        errors[name].append(_length(error)[known].mean())
  return {
    name: (statistics.median(times[name]), float(np.mean(errors[name])))
    for name in found
  }


def print_errors(title, pairs):
  """Prints time and error of every algorithm where the motion is known."""
  measured = measure(algorithms(), pairs, _REPEATS.value)
  rival, _ = measured.get(_RIVAL, (None, None))
  rows = [
    (
      name,
      f"{1000 * seconds:.1f}",
      f"{rival / seconds:.1f}" if rival else "-",
      f"{error:.3f}",
    )
    for name, (seconds, error) in measured.items()
  ]
  names = ("algorithm", "ms a pair", "times faster", "error, px")
  print(f"\n{title}\n\n{tables.markdown(names, rows)}")


def print_brightness(title, pairs):
  """Prints what changes of brightness do to every algorithm's flow.

  Of two equal frames, one of them changed: the mean length of the flow. Of
  consecutive frames, the second one changed: its mean distance from the flow of
  the unchanged frames.
  """
  print(f"\n{title}; equal frames, px / consecutive frames, px\n")
  print(tables.markdown_head(("algorithm", *_CHANGES)))
  for name, compute in algorithms().items():
    if name == _RIVAL:
      continue  # It would take hours.
    cells = []
    for change in _CHANGES.values():
      still = [_length(compute(a, _stored(change(a)))) for a, _ in pairs]
      apart = [
        _length(compute(a, _stored(change(b))) - compute(a, b))
        for a, b in pairs
      ]
      cells.append(f"{np.mean(still):.3f} / {np.mean(apart):.3f}")
    print(tables.markdown_row((name, *cells)))


def _stored(image):
  return np.clip(np.round(image), 0, 255).astype(np.uint8)


def print_agreement(title, pairs):
  """Prints how far each algorithm is from the rival, which has to be there."""
  flows = {
    name: np.stack([compute(*pair) for pair in pairs])
    for name, compute in algorithms().items()
  }
  rival = flows[_RIVAL]
  print(
    f"\n{title}; mean length of the flow of {_RIVAL}:"
    f" {_length(rival).mean():.3f} px\n"
  )
  rows = []
  for name, flow in flows.items():
    apart = _length(flow - rival)
    pair = np.median(apart.mean(axis=(1, 2)))
    near = f"{100 * (apart <= 0.5).mean():.1f}"
    rows.append((name, f"{apart.mean():.3f}", f"{pair:.3f}", near))
  names = (
    "algorithm",
    "mean, px",
    "median pair, px",
    "pixels within 0.5 px, %",
  )
  print(tables.markdown(names, rows))
  furthest = _length(flows["tvl1"] - rival).mean(axis=(1, 2))
  i = int(furthest.argmax())
  first, second = (image.astype(np.float32) for image in pairs[i])
  print(
    f"\ntvl1 is furthest in pair {i}: {furthest[i]:.1f} px; without it,"
    f" {np.delete(furthest, i).mean():.3f}. Its frames differ by"
    f" {np.abs(second - first).mean():.1f} of 255."
  )


def _length(flow):
  return np.hypot(flow[..., 0], flow[..., 1])


def print_left_out():
  """Prints what this run can't measure, and why."""
  if not hasattr(cv2, "optflow"):
    print(
      f"left out: {_RIVAL}, and the agreement with it; this OpenCV is not the"
      " contrib build (opencv-contrib-python-headless)"
    )
  if not _VIDEOS.value:
    print("left out: real frames; there is no --videos")
  if not _PAIR.value:
    print("left out: the Middlebury pair; there is no --pair")


def main(argv):
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    sys.exit(f"not a flag: {' '.join(argv[1:])}")
  print(
    f"jax {jax.__version__} on {jax.devices()[0].device_kind}, OpenCV"
    f" {cv2.__version__} with {cv2.getNumThreads()} threads"
  )
  print_left_out()
  rng = np.random.default_rng(0)
  print_errors("textures, known warps", list(warped_pairs(textures(rng), rng)))
  if _PAIR.value:
    print_errors(Path(_PAIR.value).name, [middlebury_pair(_PAIR.value)])
  for folder in _VIDEOS.value:
    name, pairs = Path(folder).name, real_pairs(folder, _COUNT.value)
    frames = (first.astype(np.float32) for first, _ in pairs)
    warped = list(warped_pairs(frames, np.random.default_rng(0)))
    print_errors(f"{name}: {len(pairs)} frames, known warps", warped)
    print_brightness(f"{name}: changes of brightness", pairs)
    if hasattr(cv2, "optflow"):
      print_agreement(
        f"{name}: {len(pairs)} pairs of consecutive frames", pairs
      )


if __name__ == "__main__":
  app.run(main)
