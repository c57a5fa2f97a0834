"""The loader: clips a second, against decoding alone and a PyTorch DataLoader.

  pip install torch pillow simplejpeg
  python benchmarks/input_pipeline.py [--data=DIR]

Training batches at 224 px from clips of 256 x 340 px: shuffled, a random
window, a random crop, mirrored every other time. A sample is one RGB frame, a
stack of 10 flow fields, or both; crops are as large as the input (Simonyan &
Zisserman 2014, section 5) or of random size and ratio, and resized.

The limit is to decode the JPEGs of as many samples, and nothing else, in as
many threads as there are cores: with simplejpeg, as the loader does, and with
OpenCV, which gives the same pixels. The rival is a DataLoader with as many
worker processes, over the same JPEGs in a file each, that does the same work
with OpenCV or with PIL. All of them take turns. Memory is that of all processes
together, above what was there before (proportional set size, so only on Linux).

Without --data the clips are made up, of textures whose JPEGs have the sizes of
real ones.
"""

import collections
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import grain
import jpeg_files
import made_up
import numpy as np
import PIL
import simplejpeg
import tensorflow_datasets as tfds
import torch
from absl import app, flags

from twostream_jax.data.dataset import open_dataset
from twostream_jax.data.loader import views
from twostream_jax.data.loader.augment import RandomCrop
from twostream_jax.data.loader.input_pipeline import (
  TrainTransform,
  train_batches,
)
from twostream_jax.files import tables

_FIELDS = 10
_SIZE = 224
_FIXED = RandomCrop((_SIZE / 256, _SIZE / 256), 1.0)
_JITTER = RandomCrop((0.66, 1.0), 1.33)
CASES = {
  "RGB": (("rgb",), _FIXED),
  "flow": (("flow",), _FIXED),
  "two-stream": (("rgb", "flow"), _FIXED),
  "two-stream, resized": (("rgb", "flow"), _JITTER),
}

_COLUMNS = (
  "clips/s",
  "limit, simplejpeg",
  "limit, OpenCV",
  "loader",
  "of the first",
  "of the second",
  "DataLoader, OpenCV",
  "x",
  "DataLoader, PIL",
  "x",
  "MB",
  "MB, DataLoader",
)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  cores = os.cpu_count()
  for name, default, text in [
    ("clips", 48, "Clips, made up or of --data."),
    ("frames", 80, "Frames of a clip that is made up."),
    ("batch", 32, "Samples a batch."),
    ("batches", 16, "Batches a turn; five times as many of RGB."),
    ("rounds", 4, "Turns of each."),
    ("epochs", 5, "Epochs of flow after which memory is looked at."),
    ("threads", cores, "Threads of the limit, processes of the rival."),
    ("processes", cores, "Processes of the loader; 0: as many threads."),
  ]:
    flags.DEFINE_integer(name, default, text, flag_values=values)
  values_of = list(CASES)
  flags.DEFINE_multi_enum(
    "case", values_of, values_of, "What to load.", flag_values=values
  )
  text = "Dataset; its train split is used."
  flags.DEFINE_string("data", None, text, flag_values=values)


class Noted(Sequence):
  """Images of a record that notes which of them are read."""

  def __init__(self, sequence, gray, notes):
    self._sequence, self._gray, self._notes = sequence, gray, notes

  def __len__(self):
    return len(self._sequence)

  def __getitem__(self, index):
    found = self._sequence[index]
    several = found if isinstance(index, slice) else [found]
    self._notes += [(data, self._gray) for data in several]
    return found


def draw(source, transform, count):
  """Random samples that are not decoded yet."""
  rng = np.random.default_rng(0)
  return [
    transform.draw(source[int(rng.integers(len(source)))], rng)
    for _ in range(count)
  ]


def jpegs_of(samples, transform):
  """The JPEGs of samples: (bytes, whether it is gray)."""
  notes = []
  for sample in samples:
    record = sample.look.record
    noted = {
      name: Noted(record[name], name != "rgb", notes)
      for name in ("rgb", "flow")
    }
    look = sample.look._replace(record=record | noted)
    transform.load([sample._replace(look=look)])
  return notes


def decode_fast(data, gray, buffer):
  """Decodes with simplejpeg, into memory that is there."""
  simplejpeg.decode_jpeg(data, "GRAY" if gray else "RGB", buffer=buffer)


def decode_opencv(data, gray, buffer):
  """Decodes with OpenCV, which has no use for a buffer."""
  del buffer
  mode = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR_RGB
  cv2.imdecode(np.frombuffer(data, np.uint8), mode)


def seconds_to_decode(jpegs, decode, threads):
  """Seconds in which threads decode images, and nothing else."""
  waiting = iter(jpegs)

  def work():
    buffer = np.empty(2**22, np.uint8)
    for data, gray in waiting:
      decode(data, gray, buffer)

  workers = [threading.Thread(target=work) for _ in range(threads)]
  began = time.perf_counter()
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  return time.perf_counter() - began


def seconds_of(batches, count, waiting):
  """Seconds in which batches are made, after those that lie ready."""
  for _ in range(waiting):
    next(batches)
  began = time.perf_counter()
  for _ in range(count):
    next(batches)
  return time.perf_counter() - began


def memory():
  """MB of this process and those that it started, shared pages counted once."""
  total, processes = 0, [os.getpid()]
  while processes:
    folder = Path(f"/proc/{processes.pop()}")
    try:
      lines = (folder / "smaps_rollup").read_text().splitlines()
      for task in (folder / "task").iterdir():
        processes += map(int, (task / "children").read_text().split())
    except OSError:
      continue  # It has ended.
    total += sum(int(li.split()[1]) for li in lines if li.startswith("Pss:"))
  return total / 1024


def most_memory(batches, count):
  """The most that is seen while batches are made, MB."""
  most = 0.0
  for _ in range(count):
    next(batches)
    most = max(most, memory())
  return most


def compare(case, source, clips, values):
  """Prints the row of a case."""
  modalities, crop = CASES[case]
  spec = views.InputSpec(modalities, _SIZE, _FIELDS, 1, "loop")
  transform = TrainTransform(spec, 1, crop, flip=True)
  batches = values.batches * (5 if modalities == ("rgb",) else 1)
  count = batches * values.batch
  jpegs = jpegs_of(draw(source, transform, count), transform)
  made, used = {}, {}
  for name, decode in (
    ("ours", None),
    ("OpenCV", jpeg_files.opencv),
    ("PIL", jpeg_files.pil),
  ):
    before = memory()
    if decode is None:
      made[name] = iter(
        train_batches(
          source,
          transform,
          batch_size=values.batch,
          seed=0,
          threads=values.threads,
          processes=values.processes,
        )
      )
    else:
      files = jpeg_files.FileDataset(
        clips, decode, modalities, crop, _SIZE, _FIELDS
      )
      made[name] = jpeg_files.endless(files, values.batch, values.threads)
    used[name] = most_memory(made[name], 3 * values.threads + 3) - before
  rates = collections.defaultdict(list)
  for _ in range(values.rounds):
    for name, decode in (("fast", decode_fast), ("cv2", decode_opencv)):
      seconds = seconds_to_decode(jpegs, decode, values.threads)
      rates[name].append(count / seconds)
    for name, endless in made.items():
      # So many may lie ready, or be half made.
      ahead = 3 * values.threads
      seconds = seconds_of(endless, batches, ahead)
      rates[name].append(count / seconds)
      # It continues until they are ready.
      time.sleep(0.5 + ahead * seconds / batches)
  rate = {name: statistics.median(found) for name, found in rates.items()}
  row = (
    case,
    f"{rate['fast']:.0f}",
    f"{rate['cv2']:.0f}",
    f"{rate['ours']:.0f}",
    f"{rate['ours'] / rate['fast']:.0%}",
    f"{rate['ours'] / rate['cv2']:.0%}",
    f"{rate['OpenCV']:.0f}",
    f"{rate['ours'] / rate['OpenCV']:.2f}",
    f"{rate['PIL']:.0f}",
    f"{rate['ours'] / rate['PIL']:.2f}",
    f"{used['ours']:.0f}",
    f"{used['OpenCV']:.0f}",
  )
  print(tables.markdown_row(row), flush=True)


def print_profile(source, values):
  """Prints where the time of a sample goes, in one thread."""
  names = (
    "one thread, ms a sample",
    "draw",
    "read",
    "decode",
    "the rest",
    "all",
  )
  print("\n" + tables.markdown_head(names))
  for case in values.case:
    modalities, crop = CASES[case]
    spec = views.InputSpec(modalities, _SIZE, _FIELDS, 1, "loop")
    transform = TrainTransform(spec, 1, crop, flip=True)
    parts = collections.defaultdict(list)
    for _ in range(values.rounds):
      began = time.perf_counter()
      samples = draw(source, transform, values.batch)
      parts["draw"].append(time.perf_counter() - began)
      began = time.perf_counter()
      transform.load(samples)
      parts["load"].append(time.perf_counter() - began)
      wanted = jpegs_of(samples, transform)
      parts["decode"].append(seconds_to_decode(wanted, decode_fast, 1))
      began = time.perf_counter()
      read(samples, modalities)
      parts["read"].append(time.perf_counter() - began)
    ms = {
      name: 1000 * statistics.median(seconds) / values.batch
      for name, seconds in parts.items()
    }
    rest = ms["load"] - ms["decode"] - ms["read"]
    found = (
      ms["draw"],
      ms["read"],
      ms["decode"],
      rest,
      ms["draw"] + ms["load"],
    )
    print(tables.markdown_row((case, *(f"{value:.3f}" for value in found))))


def read(samples, modalities):
  """Reads as many bytes as the samples show."""
  for (record, (start,), _), *_ in samples:
    if "rgb" in modalities:
      record["rgb"][start]
    if "flow" in modalities:
      record["flow"][start : start + _FIELDS]


def print_reading(data, source):
  """Prints what it costs to read a whole record, and one image of it."""
  whole = tfds.builder_from_directory(data.path).as_data_source(split="train")
  records, one = [], []
  for i in range(len(source)):
    began = time.perf_counter()
    whole[i]
    records.append(time.perf_counter() - began)
    began = time.perf_counter()
    source[i]["rgb"][0]
    one.append(time.perf_counter() - began)
  size = sum(map(len, source[0]["rgb"])) + sum(map(len, source[0]["flow"]))
  print(
    f"\nrecords of about {size / 2**20:.1f} MiB: the whole of one as TFDS reads"
    f" it {1000 * statistics.median(records):.2f} ms, its facts and one frame"
    f" {1000 * statistics.median(one):.3f} ms"
  )


def print_epochs(source, values):
  """Prints the memory after each epoch."""
  spec = views.InputSpec(("flow",), _SIZE, _FIELDS, 1, "loop")
  transform = TrainTransform(spec, 1, _JITTER, flip=True)
  batches = iter(
    train_batches(
      source,
      transform,
      batch_size=values.batch,
      seed=0,
      threads=values.threads,
    )
  )
  steps, used = -(-len(source) * 8 // values.batch), []
  for _ in range(values.epochs):
    for _ in range(steps):
      next(batches)
    used.append(memory())
  print(
    f"\nmemory of the process after every {steps} batches of flow, MB: "
    + ", ".join(f"{mb:.0f}" for mb in used)
  )


def main(argv):
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    sys.exit(f"not a flag: {' '.join(argv[1:])}")
  values = flags.FLAGS
  cv2.setNumThreads(1)  # As in the rival's workers.
  with tempfile.TemporaryDirectory() as made:
    if not values.data:
      made_up.write(made, values.clips, values.frames)
    data = open_dataset(values.data or made)
    source = jpeg_files.First(data.sources["train"], values.clips)
    clips = jpeg_files.write_files(source, Path(made) / "files")
    sizes = [
      statistics.mean(len(image) for record in source for image in record[name])
      for name in ("rgb", "flow")
    ]
    print(
      f"{os.cpu_count()} cores, {values.threads} threads, {values.processes}"
      f" processes, Python {sys.version.split()[0]}, grain {grain.__version__},"
      f" simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}, torch"
      f" {torch.__version__}, PIL {PIL.__version__}\n{len(source)} clips;"
      f" a frame {sizes[0] / 1024:.1f} KiB, a field {sizes[1] / 1024:.1f} KiB"
    )
    print_reading(data, source)
    print("\n" + tables.markdown_head(_COLUMNS))
    for case in values.case:
      compare(case, source, clips, values)
    print_profile(source, values)
    print_epochs(source, values)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
