"""For `input_pipeline.py`: made-up clips, and the rival over files of JPEGs."""

import functools
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import torch

from twostream_jax.data.augment import crop_and_resize
from twostream_jax.data.builder import build_dataset
from twostream_jax.data.clips import Clip
from twostream_jax.data.dataset import Record, encode_flow, encode_rgb
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec

_FRAME = (256, 340)
_OCTAVES = ((64, 45), (24, 35), (9, 22), (4, 10))


def made_up(clip: Clip, spec: FlowSpec, rgb_quality: int, *, frames: int):
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
    clip.video_id, clip.label, "", 25.0, frames, *_FRAME, rgb, flow[1:], ()
  )


def _noise(rng, cell):
  height, width = _FRAME
  coarse = rng.uniform(-1, 1, (height // cell + 3, width // cell + 3))
  return cv2.resize(
    coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
  )


def write_made_up(folder, clips, frames):
  """Builds a dataset of `made_up` clips."""
  build_dataset(
    folder,
    name="textures",
    clips=[
      Clip(str(i), Path(str(i)), "train", "any", "") for i in range(clips)
    ],
    flow_spec=FlowSpec("dis", default_parameters("dis")),
    progress=False,
    process=functools.partial(made_up, frames=frames),
  )


class First:
  """The first videos of a source."""

  def __init__(self, source, count):
    self._source, self._count = source, min(count, len(source))

  def __len__(self):
    return self._count

  def __getitem__(self, i):
    return self._source[range(self._count)[i]]


def write_files(source, folder):
  """Writes every image in a file of its own; returns facts of the clips."""
  clips = []
  for i, record in enumerate(source):
    for name in ("rgb", "flow"):
      (folder / str(i) / name).mkdir(parents=True)
      for j, image in enumerate(record[name]):
        (folder / str(i) / name / f"{j:05d}.jpg").write_bytes(image)
    facts = ("num_frames", "height", "width", "label")
    clips.append((folder / str(i), *(record[name] for name in facts)))
  return clips


def opencv(path, gray):
  mode = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR_RGB
  return cv2.imread(str(path), mode)


def pil(path, gray):
  with PIL.Image.open(path) as image:
    return np.asarray(image.convert("L" if gray else "RGB"))


class FileDataset(torch.utils.data.Dataset):
  """What the loader does, over files, in the usual way of PyTorch."""

  def __init__(self, clips, decode, modalities, crop, size, fields):
    self._clips, self._decode = clips, decode
    self._modalities, self._crop = modalities, crop
    self._size, self._fields = size, fields

  def __len__(self):
    return len(self._clips)

  def __getitem__(self, i):
    folder, num_frames, height, width, label = self._clips[i]
    # torch seeds each worker, and with it what it draws.
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    length = self._fields if "flow" in self._modalities else 0
    start = int(rng.integers(num_frames - length))
    draws = rng.random(self._crop.num_draws)
    box, flip = self._crop.box(draws, height, width), bool(rng.integers(2))

    def see(image):
      seen = crop_and_resize(image, box, self._size)
      return cv2.flip(seen, 1) if flip else seen

    sample = {"label": label}
    if "rgb" in self._modalities:
      path = folder / "rgb" / f"{start + length // 2:05d}.jpg"
      sample["rgb"] = np.ascontiguousarray(see(self._decode(path, False)))
    if "flow" in self._modalities:
      planes = []
      for j in range(start, start + length):
        both = self._decode(folder / "flow" / f"{j:05d}.jpg", True)
        x, y = see(both[:, :width]), see(both[:, width:])
        planes += [255 - x if flip else x, y]
      sample["flow"] = np.stack(planes)
    return sample


def _one_thread(worker):
  del worker
  cv2.setNumThreads(1)


def endless(dataset, batch, workers):
  """Endless batches of a DataLoader."""
  sampler = torch.utils.data.RandomSampler(
    dataset, replacement=True, num_samples=2**40 // batch * batch
  )
  return iter(
    torch.utils.data.DataLoader(
      dataset,
      batch,
      sampler=sampler,
      num_workers=workers,
      worker_init_fn=_one_thread,
      multiprocessing_context="forkserver",
    )
  )
