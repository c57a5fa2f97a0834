"""The rival of `input_pipeline.py`: a DataLoader over files of JPEGs."""

import cv2
import numpy as np
import PIL.Image
import torch

from twostream_jax.data.loader.augment import crop_and_resize


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
  """Decodes a JPEG by OpenCV."""
  mode = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR_RGB
  return cv2.imread(str(path), mode)


def pil(path, gray):
  """Decodes a JPEG by Pillow."""
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
