"""Made-up clips: textures whose JPEGs have the sizes of real ones."""

import functools
from pathlib import Path

import cv2
import numpy as np

from twostream_jax.data.build.builder import build_dataset
from twostream_jax.data.dataset import Record, encode_flow, encode_rgb
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

_FRAME = (256, 340)
_OCTAVES = ((64, 45), (24, 35), (9, 22), (4, 10))


def process(clip: Clip, spec: FlowSpec, rgb_quality: int, *, frames: int):
  """A clip of textures, instead of decoding its file."""
  rng = np.random.default_rng(int(clip.video_id))
  rgb, flow = [], []
  for _ in range(frames):
    gray = sum(_noise(rng, c) * a for c, a in _OCTAVES) + 127
    tints = np.stack([25 * _noise(rng, 48) for _ in range(3)], axis=-1)
    noisy = gray[..., None] + tints + rng.normal(0, 1.5, (*_FRAME, 1))
    rgb.append(encode_rgb(np.clip(noisy, 0, 255).astype(np.uint8), rgb_quality))
    moving = np.clip(4 * _noise(rng, 64) - 1, 0, 1)
    field = [
      3 * moving * _noise(rng, 20) + 0.15 * _noise(rng, 40) for _ in range(2)
    ]
    flow.append(encode_flow(np.stack(field, axis=-1), spec))
  return Record(
    video_id=clip.video_id,
    label=clip.label,
    group="",
    fps=25.0,
    times=[40_000 * i for i in range(frames)],
    pixel_aspect=1.0,
    num_damaged=0,
    num_frames=frames,
    height=_FRAME[0],
    width=_FRAME[1],
    rgb=rgb,
    flow=flow[1:],
    flow_backward=(),
  )


def _noise(rng, cell):
  height, width = _FRAME
  coarse = rng.uniform(-1, 1, (height // cell + 3, width // cell + 3))
  return cv2.resize(
    coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
  )


def write(folder, clips, frames):
  """Builds a dataset of clips of `process`."""
  files = [Path(folder, "files", str(i)) for i in range(clips)]
  for file in files:  # Never read, but a build looks for them.
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
  build_dataset(
    folder,
    name="textures",
    clips=[Clip(file.name, file, "train", "any", "") for file in files],
    flow_spec=FlowSpec("dis", default_parameters("dis")),
    progress=False,
    process=functools.partial(process, frames=frames),
  )
