"""Synthetic videos of which neither stream alone can tell the class.

A class is an *appearance* (three hues of equal luminance) times a *motion*
(four ways to move). Every clip draws position, size and angle from the same
distribution, and only one of them changes with time: a single frame can't tell
which. Optical flow is computed on luminance, in which the hues are alike: flow
can't tell the hue. So the best accuracy of each stream is known:

  spatial alone   1 / 4 motions
  temporal alone  1 / 3 appearances
  both            1

The clips are written as Motion JPEG files, in which every frame is coded by
itself: a codec that predicts frames from each other would leave traces of the
motion in single frames.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from twostream_jax import files
from twostream_jax.data.build.workers import Lost, map_in_processes

# (R, B) offsets; G follows from equal luminance.
APPEARANCES = {"amber": (45, -60), "teal": (-60, 20), "violet": (25, 60)}
MOTIONS = ("slide", "bob", "pulse", "spin")

# Rec. 601 luma, which OpenCV's conversion to gray uses.
_LUMA = np.array([0.299, 0.587, 0.114])
# To start a process takes as long as to render so many.
_CLIPS_A_PROCESS = 20


@dataclasses.dataclass(frozen=True)
class _Path:
  """Where the object is in every frame: pixels, pixels, ratio, radians."""

  x: np.ndarray
  y: np.ndarray
  scale: np.ndarray
  angle: np.ndarray


def chroma(appearance: str) -> np.ndarray:
  """RGB offset of a hue, float64 [3], that leaves luminance unchanged."""
  red, blue = APPEARANCES[appearance]
  green = -(_LUMA[0] * red + _LUMA[2] * blue) / _LUMA[1]
  return np.array([red, green, blue])


def render_clip(
  rng: np.random.Generator, appearance: str, motion: str
) -> np.ndarray:
  """Renders one clip.

  Args:
    rng: the only source of variation beside the class.
    appearance: a key of `APPEARANCES`.
    motion: one of `MOTIONS`.

  Returns:
    RGB uint8 [t h w 3], 20 to 28 frames, 80 to 112 pixels a side.
  """
  num_frames = int(rng.integers(20, 29))
  height, width = (int(side) for side in 4 * rng.integers(20, 29, size=2))
  path = _object_path(rng, motion, num_frames, height, width)
  radius = 0.26 * min(height, width)
  # Wide enough for any camera position.
  margin = 8
  background = _texture(
    rng, (height + 2 * margin, width + 2 * margin), cell=12, contrast=38
  )
  tint = _texture(rng, background.shape, cell=40, contrast=8) - 127
  scene = background[..., None] + tint[..., None] * np.array([1.0, -0.4, -0.6])
  scene = scene.astype(np.float32)
  side = 2 * int(np.ceil(1.6 * radius)) + 1
  patch = _texture(rng, (side, side), cell=6, contrast=45)
  coloured = (patch[..., None] + chroma(appearance)).astype(np.float32)
  shake = np.cumsum(rng.normal(0, 0.35, size=(num_frames, 2)), axis=0)
  shake = np.clip(shake, -margin + 1, margin - 1)
  gain = rng.uniform(0.85, 1.1)
  frames = np.empty((num_frames, height, width, 3), np.uint8)
  for t in range(num_frames):
    frame = _camera(scene, shake[t], margin, height, width).astype(np.float64)
    _paste(frame, coloured, path, t, radius, shake[t])
    # In place: to allocate such arrays takes as long as to compute them.
    frame *= gain
    frame += rng.normal(0, 2.5, size=(height, width, 1))
    np.rint(frame, out=frame)
    np.clip(frame, 0, 255, out=frame)
    frames[t] = frame
  return frames


def _object_path(rng, motion, num_frames, height, width) -> _Path:
  """Draws all four degrees of freedom; lets only `motion` change in time."""
  omega = 2 * np.pi / rng.uniform(22, 32)
  phases = rng.uniform(0, 2 * np.pi, size=3)
  turn = rng.choice([-1, 1]) * rng.uniform(0.10, 0.18)
  time = np.arange(num_frames)

  def swing(index, name):
    moving = omega * time if motion == name else 0 * time
    return np.sin(phases[index] + moving)

  centre_x, centre_y = rng.uniform(0.46, 0.54, size=2)
  angle = rng.uniform(0, 2 * np.pi) + (turn * time if motion == "spin" else 0)
  return _Path(
    x=width * (centre_x + 0.2 * swing(0, "slide")),
    y=height * (centre_y + 0.2 * swing(1, "bob")),
    scale=1 + 0.35 * swing(2, "pulse"),
    angle=angle + 0.0 * time,
  )


def _texture(rng, shape, *, cell, contrast) -> np.ndarray:
  """Smooth random luminance, float32, mean 127, mostly within `contrast`."""
  coarse = tuple(side // cell + 2 for side in shape)
  noise = rng.uniform(-1, 1, size=coarse).astype(np.float32)
  field = cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
  return 127 + contrast * np.clip(field, -1.2, 1.2)


def _camera(scene, offset, margin, height, width) -> np.ndarray:
  """The window of the scene that a shaking camera sees."""
  dx, dy = offset
  matrix = np.array([[1, 0, dx - margin], [0, 1, dy - margin]], np.float32)
  return cv2.warpAffine(scene, matrix, (width, height), flags=cv2.INTER_LINEAR)


def _paste(frame, patch, path, t, radius, offset) -> None:
  """Draws the disc into the frame, float64 [h w 3], with a soft edge."""
  height, width = frame.shape[:2]
  middle = patch.shape[0] // 2
  x, y = path.x[t] + offset[0], path.y[t] + offset[1]
  cos = path.scale[t] * np.cos(path.angle[t])
  sin = path.scale[t] * np.sin(path.angle[t])
  matrix = np.array(
    [
      [cos, -sin, x - cos * middle + sin * middle],
      [sin, cos, y - sin * middle - cos * middle],
    ]
  )
  warped = cv2.warpAffine(
    patch, matrix, (width, height), borderMode=cv2.BORDER_REFLECT
  )
  # The square around the disc: outside, the frame stays as it is.
  reach = radius * path.scale[t] + 1
  rows = slice(max(0, int(y - reach)), max(0, int(y + reach) + 1))
  columns = slice(max(0, int(x - reach)), max(0, int(x + reach) + 1))
  inside = frame[rows, columns]
  down, across = np.ogrid[: inside.shape[0], : inside.shape[1]]
  distance = np.hypot(columns.start + across - x, rows.start + down - y)
  alpha = np.clip(radius * path.scale[t] - distance + 0.5, 0, 1)[..., None]
  inside[:] = alpha * warped[rows, columns] + (1 - alpha) * inside


@dataclasses.dataclass(frozen=True)
class _Clip:
  """A clip to render: its file, what it shows, and the seed of the rest."""

  path: Path
  appearance: str
  motion: str
  seed: tuple[int, ...]

  def write(self) -> None:
    rng = np.random.default_rng(self.seed)
    _write_video(self.path, render_clip(rng, self.appearance, self.motion))


def write_videos(
  directory: str | os.PathLike,
  clips_per_class: Mapping[str, int],
  *,
  seed: int,
  num_workers: int = 1,
) -> None:
  """Renders a whole set as video files, all or nothing.

  Writes `directory/<split>/<appearance>-<motion>/<number>.avi`. The files are a
  function of the arguments alone; every split draws from a seed of its own.

  Args:
    directory: must not exist yet.
    clips_per_class: clips of each class by split, such as {"train": 20}.
    seed: seed of the whole set.
    num_workers: processes that render, of a set worth starting them.

  Raises:
    FileExistsError: `directory` exists.
    OSError: a file can't be written.
    WorkerStartError: processes can't start.
  """
  directory = Path(directory)
  if directory.exists():
    raise FileExistsError(f"{directory} exists already")
  # What a killed call left behind is rendered again.
  with files.replaced_folder(directory, (r"[^/]+/[^/]+/\d+\.avi",)) as partial:
    _write_all(partial, clips_per_class, seed, num_workers)


def _write_all(
  directory: Path,
  clips_per_class: Mapping[str, int],
  seed: int,
  num_workers: int,
) -> None:
  clips = []
  for s, (split, count) in enumerate(sorted(clips_per_class.items())):
    for a, appearance in enumerate(APPEARANCES):
      for m, motion in enumerate(MOTIONS):
        folder = directory / split / f"{appearance}-{motion}"
        folder.mkdir(parents=True)
        clips += [
          _Clip(folder / f"{i:03d}.avi", appearance, motion, (seed, s, a, m, i))
          for i in range(count)
        ]
  num_workers = min(num_workers, len(clips) // _CLIPS_A_PROCESS)
  if num_workers < 2:
    for clip in clips:
      clip.write()
  else:
    for clip, result in map_in_processes(
      _Clip.write, clips, num_workers, _start_worker
    ):
      if isinstance(result, Lost):
        raise OSError(f"{clip.path}: its process {result.reason}")


def _start_worker() -> None:
  cv2.setNumThreads(1)


def _write_video(path: Path, frames: np.ndarray) -> None:
  height, width = frames.shape[1:3]
  fourcc = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(path), fourcc, 25.0, (width, height))
  if not writer.isOpened():
    raise OSError(f"{path}: this build of OpenCV can't write Motion JPEG")
  writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
  for frame in frames:
    writer.write(frame[..., ::-1])
  writer.release()
