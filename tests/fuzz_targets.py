"""Formats that `fuzz` damages: small valid files, and who reads them."""

import copy
import dataclasses
import functools
import io
import json
import os
import pickle
import resource
import runpy
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from twostream_jax.checkpoints import CheckpointError

# What the commands tell as one line; all else ends in a traceback.
_TOLD = (ValueError, OSError, CheckpointError)


@dataclasses.dataclass(frozen=True)
class Target:
  """A format.

  Attributes:
    make: Writes valid files to a folder.
    read: Reads a damaged file; the others of its folder are valid.
    pattern: Of the files to damage.
    whole: Whether messages may name the folder in place of the file.
    errors: Types of error that the caller tells in one line.
  """

  make: Callable[[Path], None]
  read: Callable[[Path], object]
  pattern: str = "*"
  whole: bool = False
  errors: tuple[type[Exception], ...] = _TOLD

  def seeds(self, root: Path) -> list[Path]:
    """The files to damage, in one order."""
    return sorted(p for p in root.glob(self.pattern) if p.is_file())

  def names(self, path: Path) -> list[str]:
    """Texts of which an error has to have one."""
    folders = [str(folder) for folder in list(path.parents)[:6]]
    return [path.name, *(folders if self.whole else ())]

  def restore(self, root: Path, copy: Path, path: Path) -> None:
    """Makes a copy of the files valid again, of which one was damaged."""
    shutil.copyfile(path, copy / path.relative_to(root))


# Weights.


def _arrays() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    "features.0.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "features.0.bias": np.arange(4, dtype=np.float32),
    "classifier.6.weight": rng.normal(size=(3, 8)).astype(np.float16),
    "steps": np.arange(3, dtype=np.int64),
  }


def _read_weights(path: Path) -> object:
  from twostream_jax.pretrained import apart, read_source
  from twostream_jax.pretrained.report import first_keys
  from twostream_jax.pretrained.saving import is_own, metadata_of

  # As a process of its own does, without the second in which one starts.
  with mock.patch.object(apart, "call", _call_forked):
    source = read_source(path)
  if is_own(source):
    metadata_of(source)
  sums = [float(np.sum(x, dtype=np.float64)) for x in source.arrays.values()]
  return sums, first_keys(source.arrays)


# "grown": bytes that the last fork took beyond what it began with (Linux).
forked: dict[str, int] = {}


def _call_forked(reader: str, content, size: int) -> bytes:
  """What `apart.call` does, in a fork of this process."""
  from twostream_jax.pretrained import apart

  functions = _reader(reader)
  if not isinstance(content, bytes | memoryview):
    content = content.read()
  with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as said:
    process = os.fork()
    if not process:
      code = 1
      try:
        apart._limit(size)
        code = apart._serve(functions, io.BytesIO(content), size, answers, said)
      finally:
        os._exit(code)
    # It begins with all that this process has.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, status, used = os.wait4(process, 0)
    forked["grown"] = max(0, used.ru_maxrss - before) * 1024
    answers.seek(0)
    said.seek(0)
    code = os.waitstatus_to_exitcode(status)
    return apart._answer(code, answers.read(), said.read())


@functools.cache
def _reader(path: str) -> dict[str, object]:
  return runpy.run_path(path)


def _make_torch(folder: Path, *, zipped: bool) -> None:
  import torch

  save = functools.partial(torch.save, _use_new_zipfile_serialization=zipped)
  tensors = {k: torch.from_numpy(x.copy()) for k, x in _arrays().items()}
  tensors["view"] = tensors["features.0.weight"][1:3, :, 1].transpose(0, 1)
  save(tensors, folder / "a.pth")
  nested = {"state_dict": tensors, "epoch": 3, "args": {"lr": 0.1}}
  save(nested, folder / "b.pth")


def _make_pickles(folder: Path) -> None:
  import torch

  arrays = _arrays()
  for protocol in (2, 4, 5):
    data = pickle.dumps({"weights": arrays, "epoch": 3}, protocol)
    (folder / f"{protocol}.pkl").write_bytes(data)
  tensors = {k: torch.from_numpy(x.copy()) for k, x in arrays.items()}
  (folder / "tensors.pkl").write_bytes(pickle.dumps(tensors))


def _make_safetensors(folder: Path) -> None:
  import safetensors.numpy

  from twostream_jax.pretrained import IMAGENET
  from twostream_jax.pretrained.saving import Metadata, save_weights

  safetensors.numpy.save_file(_arrays(), folder / "a.safetensors")
  variables = {"params": {"conv": {"kernel": np.ones((2, 3), np.float32)}}}
  metadata = Metadata("vgg16", 3, IMAGENET, {"class_names": ["a", "b", "c"]})
  save_weights(folder / "own.safetensors", variables, metadata)


def _write_hdf5(path, **options) -> None:
  import h5py

  with h5py.File(path, "w", **options) as file:
    for key, array in _arrays().items():
      file[f"layers/conv2d/vars/{key}"] = array
    file["layers/conv2d/vars"].attrs["name"] = "conv1"
    file.create_dataset(
      "packed",
      data=np.arange(600, dtype=np.float32).reshape(30, 20),
      chunks=(10, 20),
      compression="gzip",
      shuffle=True,
    )
    file.create_dataset("grows", (4,), "f4", maxshape=(None,), fillvalue=1)


def _make_hdf5(folder: Path) -> None:
  _write_hdf5(folder / "a.h5")
  _write_hdf5(folder / "latest.h5", libver="latest")


def _make_keras(folder: Path) -> None:
  _write_hdf5(folder / "weights")
  weights = (folder / "weights").read_bytes()
  (folder / "weights").unlink()
  layer = {"class_name": "Conv2D", "config": {"name": "conv1"}}
  config = {"class_name": "Sequential", "config": {"layers": [layer]}}
  for name, packed in (("a", zipfile.ZIP_STORED), ("b", zipfile.ZIP_DEFLATED)):
    with zipfile.ZipFile(folder / f"{name}.keras", "w", packed) as archive:
      archive.writestr("model.weights.h5", weights)
      archive.writestr("config.json", json.dumps(config))
      archive.writestr("metadata.json", "{}")


def _make_npz(folder: Path) -> None:
  np.savez(folder / "a.npz", **_arrays())
  np.savez_compressed(folder / "b.npz", **_arrays())


def _make_npy(folder: Path) -> None:
  np.save(folder / "a.npy", {"layer": _arrays()}, allow_pickle=True)


def _make_mat(folder: Path) -> None:
  import scipy.io

  pair = np.empty((1, 2), object)
  pair[0, 0], pair[0, 1] = np.ones((3, 3, 3, 4), np.float32), np.ones((1, 4))
  layers = np.empty((1, 2), object)
  layers[0] = [
    {"type": "conv", "name": "conv1", "weights": pair},
    {"type": "relu", "name": "relu1"},
  ]
  meta = {"normalization": {"averageImage": np.ones((4, 4, 3))}}
  for name, packed in (("a", False), ("b", True)):
    scipy.io.savemat(
      folder / f"{name}.mat",
      {"layers": layers, "meta": meta},
      do_compression=packed,
    )


def _make_shards(folder: Path) -> None:
  import safetensors.numpy

  arrays = list(_arrays().items())
  names = {}
  for i, part in enumerate((arrays[:2], arrays[2:])):
    safetensors.numpy.save_file(dict(part), folder / f"{i}.safetensors")
    names |= {key: f"{i}.safetensors" for key, _ in part}
  (folder / "model.index.json").write_text(
    json.dumps({"metadata": {"total_size": 9}, "weight_map": names})
  )


# Scores.

_IDS = ("jump/a.mp4", "wave/b.mp4", "wave/c d.mp4")


def _scores(multi_label: bool = False):
  from twostream_jax.scores import Scores

  labels = np.array([0, 1, 1], np.int32)
  if multi_label:
    labels = np.array([[1, 0], [1, 1], [0, 0]], bool)
  logits = np.array([[1.5, -2], [0.25, 3], [-1, 2]], np.float32)
  return Scores(_IDS, labels, logits, "single", ("jump", "wave"))


def _read_scores(path: Path) -> object:
  from twostream_jax.fuse.files import read_file
  from twostream_jax.fuse.tables import Listing

  listing = Listing(path.with_name("list.txt"), _IDS, np.array([0.0, 1, 1]))
  return read_file(path, listing)


def _read_own_scores(path: Path) -> object:
  from twostream_jax.scores import load_scores

  _read_scores(path)
  return load_scores(path)


def _make_scores_npz(folder: Path) -> None:
  from twostream_jax.scores import save_scores

  save_scores(folder / "a.npz", _scores())
  save_scores(folder / "b.npz", _scores(multi_label=True))
  arrays = dict(np.load(folder / "a.npz"))
  np.savez_compressed(folder / "c.npz", **arrays)


def _make_scores_npy(folder: Path) -> None:
  np.save(folder / "a.npy", _scores().logits)
  np.save(folder / "b.npy", np.asfortranarray(_scores().logits, np.float64))


def _make_scores_csv(folder: Path) -> None:
  (folder / "a.csv").write_text(
    "id,label,jump,wave\njump/a.mp4,0,0.9,0.1\nwave/b.mp4,1,0.2,0.8\n"
  )
  (folder / "b.csv").write_bytes(
    b'\xef\xbb\xbfid,label,"jump, high",wave\r\n"a ""b""",0,3.5,-1e3\r\n'
  )


def _make_scores_json(folder: Path) -> None:
  one = {"a.mp4": {"label": 0, "scores": [0.9, 0.1]}}
  some = {
    "a.mp4": {"label": [0, 1], "scores": [9, 0.1]},
    "b": {"label": [], "scores": [-1, 2]},
  }
  (folder / "a.json").write_text(
    json.dumps({"class_names": ["jump", "wave"], "videos": one})
  )
  (folder / "b.json").write_text(
    json.dumps({"videos": some, "protocol": "25x10"})
  )


def _make_dumps(folder: Path) -> None:
  import torch

  results = [
    {
      "pred_score": torch.from_numpy(row.copy()),
      "gt_label": torch.tensor([label]),
      "num_classes": 2,
      "frame_dir": name,
    }
    for row, label, name in zip(_scores().logits, [0, 1, 1], _IDS, strict=True)
  ]
  (folder / "a.pkl").write_bytes(pickle.dumps(results))
  (folder / "b.pkl").write_bytes(pickle.dumps(list(_scores().logits)))
  (folder / "c.pkl").write_bytes(pickle.dumps(list(_scores().logits), 2))


def _make_listing(folder: Path) -> None:
  (folder / "a.txt").write_text("jump/a.mp4 12 0\nwave/b c.mp4 30 1\n")
  (folder / "b.txt").write_text("a.mp4\nb.mp4\n")


def _read_listing(path: Path) -> object:
  from twostream_jax.fuse.tables import read_listing

  return read_listing(path)


# Datasets.


def _make_dataset(folder: Path) -> None:
  """Four clips of two classes: what is small is read often."""
  from twostream_jax.data import synthetic
  from twostream_jax.data.build import builder
  from twostream_jax.data.datasets import annotations
  from twostream_jax.flow import default_parameters
  from twostream_jax.flow.spec import FlowSpec

  videos = folder / "videos"
  synthetic.write_videos(videos, {"train": 1, "test": 1}, seed=0)
  for split in videos.iterdir():
    for class_folder in sorted(split.iterdir())[2:]:
      shutil.rmtree(class_folder)
  builder.build_dataset(
    folder,
    name="tiny",
    clips=annotations.read_folder(videos),
    flow_spec=FlowSpec("dis", default_parameters("dis"), short_side=16),
    num_workers=1,
    progress=False,
  )
  shutil.rmtree(videos)


def _read_dataset(path: Path) -> object:
  from twostream_jax.data import dataset

  data = dataset.open_dataset(path.parent)
  return dataset.identity(data), _read_videos(data, 1)


def _read_records(path: Path) -> object:
  from twostream_jax.data import dataset

  # The file of its places is made again: it is that of the valid records.
  for index in path.parent.glob("*.index"):
    index.unlink()
  return _read_videos(dataset.open_dataset(path.parent), 100)


def _read_indexed(path: Path) -> object:
  from twostream_jax.data import dataset

  return _read_videos(dataset.open_dataset(path.parent), 100)


def _read_videos(data, count: int) -> int:
  """Decodes the first and the last image of some videos of each split."""
  from twostream_jax.data import dataset

  total = 0
  for source in data.sources.values():
    for i in range(min(count, len(source))):
      reading = source[i]
      total += len(reading["times"])
      for at in (0, -1):
        total += int(dataset.decode_rgb(reading["rgb"][at]).sum())
        total += int(dataset.decode_flow_codes(reading["flow"][at]).sum())
    total += len(source.labels) + len(source.video_ids)
  return total


def _make_frames(folder: Path) -> None:
  import cv2

  x, y = np.mgrid[:40, :56]
  image = np.stack([x * 5, y * 4, x + y], axis=-1).astype(np.uint8)
  for name, options in {
    "img_00001.jpg": [],
    "img_00002.jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "img_00003.png": [],
    "img_00004.png": [cv2.IMWRITE_PNG_BILEVEL, 1],
    "img_00005.webp": [],
    "img_00006.gif": [],
    "img_00007.bmp": [],
  }.items():
    source = image[..., 0] if "00004" in name else image
    encoded = cv2.imencode(Path(name).suffix, source, options)[1]
    (folder / f"{name}.jpg").write_bytes(np.asarray(encoded).tobytes())


def _read_frames(path: Path) -> object:
  from twostream_jax.data.video import reading
  from twostream_jax.data.video.frames import VideoError

  found = 0
  folder = path.parent / "one"
  folder.mkdir(exist_ok=True)
  shutil.copyfile(path, folder / "img_1.jpg")
  try:
    for frame in reading.read_resized(folder, 32):
      found += int(frame.rgb.sum())
  except VideoError as error:
    # Who reports it names the clip.
    raise ValueError(f"{path.name}: {error.reason}") from error
  return found


# Lists of videos.


def _make_lists(folder: Path) -> None:
  (folder / "train.csv").write_text(
    "label,youtube_id,time_start,time_end,split\n"
    "jump,aaaaaaaaaaa,1,11,train\n"
    '"push, pull",bbbbbbbbbbb,0,10,train\n'
  )
  (folder / "list.csv").write_text("path,label,group\na.mp4,jump,1\nb,w,\n")
  (folder / "val.json").write_text(
    json.dumps(
      {
        "ccccccccccc": {
          "annotations": {"label": "jump", "segment": [1.0, 11.0]},
          "duration": 10.0,
          "subset": "validate",
        }
      }
    )
  )
  (folder / "classInd.txt").write_text("1 Jump\n2 Wave\n")
  (folder / "trainlist01.txt").write_text("Jump/v_Jump_g08_c01.avi 1\n")
  (folder / "testlist01.txt").write_text("Wave/v_Wave_g01_c01.avi\n")
  (folder / "labels.json").write_text('{"Moving up": "0", "Down": "1"}')
  row = {"id": "1", "label": "moving x up", "template": "Moving [up]"}
  (folder / "train.json").write_text(json.dumps([row]))
  (folder / "validation.json").write_text(
    json.dumps([row | {"id": "2", "template": "Down"}])
  )


def _read_lists(path: Path) -> object:
  from twostream_jax.data.datasets import annotations, kinetics, lists, ssv2

  folder = path.parent
  if path.name == "list.csv":
    return annotations._read_list(folder, path, "train")
  if path.suffix == ".txt":
    return lists.list_ucf101(folder)
  if path.name in ("train.csv", "val.json"):
    alone = folder / "kinetics"
    alone.mkdir(exist_ok=True)
    shutil.copyfile(path, alone / path.name)
    try:
      return kinetics.list_kinetics(alone)
    finally:
      shutil.rmtree(alone)
  return ssv2.list_ssv2(folder)


# Runs.


def _make_run(folder: Path) -> None:
  """A run of one stage, as far as opening it needs files."""
  from tests import finished_run, tiny_config
  from twostream_jax.data import dataset
  from twostream_jax.files import workdir

  _make_dataset(folder / "data")
  config = tiny_config.get_config()
  config.data.dir = str(folder / "data")
  config.stages = ("spatial",)
  data = dataset.open_dataset(folder / "data")
  run = folder / "run"
  finished_run.save_checkpoint(config, "spatial", run, data)
  facts = dataset.identity(data)
  workdir.write_config(run, {"config": config.to_dict(), "dataset": facts})
  shutil.rmtree(folder / "data")


def _read_run(path: Path) -> object:
  """Opens a run of damaged settings and whole weights."""
  from twostream_jax import checkpoints
  from twostream_jax.stages import trained

  run = next(p for p in path.parents if p.name == "run")
  # What takes long: the weights are the same ones each time, and a network is
  # traced once for all settings that ask for it.
  _once(checkpoints, "read_metadata", lambda folder: str(folder))
  _once(checkpoints, "restore_variables", lambda *_: 0)
  _once(trained, "_shapes", _asked_for)
  return trained.open_run(run)


def _asked_for(config, name, preprocess, example, num_outputs) -> str:
  sizes = {key: x.shape for key, x in example.items()}
  return repr((config[name].to_dict(), preprocess, sizes, num_outputs))


def _once(module, name: str, key: Callable[..., object]) -> None:
  """Makes a function of a module remember what it returned."""
  function = getattr(module, name)
  if hasattr(function, "known"):
    return
  known = {}

  @functools.wraps(function)
  def remember(*arguments):
    chosen = key(*arguments)
    if chosen not in known:
      known[chosen] = function(*arguments)
    return copy.deepcopy(known[chosen])

  remember.known = known
  setattr(module, name, remember)


def _make_checkpoint(folder: Path) -> None:
  """A checkpoint of a few small arrays."""
  from twostream_jax import checkpoints
  from twostream_jax.flow import spec

  params = {"conv": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3)}}
  directory = folder / "run" / "spatial" / "checkpoints"
  metadata = {
    "name": "tiny",
    "class_names": ["a", "b"],
    "multi_label": False,
    "rgb_quality": 95,
    "flow_spec": spec.to_dict(spec.FlowSpec("dis", {})),
    "inputs": {"rgb_mean": [0.5, 0.5, 0.5]},
  }
  with checkpoints.open_manager(directory, keep=2) as manager:
    checkpoints.save(
      manager,
      8,
      {"params": params, "batch_stats": {}, "ema_params": {}},
      progress={"window": [], "next_batch": 0, "rng": [0, 0]},
      metadata=metadata,
      score=0.5,
    )
    checkpoints.finish(manager)
  record = {"step": 8, "split": "validation", "loss": 0.5, "accuracy": 0.5}
  lines = [record | {"step": step} for step in (4, 8)]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (directory.parent / "metrics.jsonl").write_text(text)


def _read_checkpoint(path: Path) -> object:
  from tests import tiny_config
  from twostream_jax.stages import trained_weights

  run = next(p for p in path.parents if p.name == "run")
  config = tiny_config.get_config()
  config.selection.metric = "accuracy"
  return trained_weights.read(config, "spatial", run)


def _make_export(folder: Path) -> None:
  from twostream_jax.export import write
  from twostream_jax.stages import trained

  _make_run(folder)
  run = trained.open_run(folder / "run")
  write.export_run(run, folder / "model", platforms=("cpu",))
  shutil.rmtree(folder / "run")
  streams = {"streams": ["spatial"], "fitted_on": ""}
  n = len(run.class_names)
  rules = {
    "average_logits": {"kind": "mean_of_logits", "weights": [1.0]},
    "average": {"kind": "mean_of_probabilities", "weights": [1.0]},
    "svm": {
      "kind": "linear",
      "l2_normalised": True,
      "weights": np.eye(n).tolist(),
      "bias": [0.5] * n,
    },
  }
  rules = {name: rule | streams for name, rule in rules.items()}
  (folder / "model" / "fusion.json").write_text(json.dumps(rules))
  # They are not read.
  (folder / "model" / "runner.py").unlink()
  (folder / "model" / "model_card.md").unlink()


def _read_export(path: Path) -> object:
  from twostream_jax.export import runner

  with mock.patch.object(runner, "_faults", _faults_forked):
    return runner.load(next(p for p in path.parents if p.name == "model"))


def _faults_forked(programs: tuple[bytes, ...]) -> list[str]:
  """What `runner._faults` finds, by a fork of this process."""
  from twostream_jax.export import runner

  with tempfile.TemporaryFile() as answers:
    process = os.fork()
    if not process:
      signal.alarm(20)
      try:
        answers.write(json.dumps([*map(runner._fault, programs)]).encode())
        answers.flush()
      finally:
        os._exit(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, status, used = os.wait4(process, 0)
    forked["grown"] = max(0, used.ru_maxrss - before) * 1024
    answers.seek(0)
    if status:
      return ["can't be read: what parses it crashed"] * len(programs)
    return json.loads(answers.read())


_WEIGHTS = {
  "torch": functools.partial(_make_torch, zipped=True),
  "torch_legacy": functools.partial(_make_torch, zipped=False),
  "pickle": _make_pickles,
  "safetensors": _make_safetensors,
  "h5": _make_hdf5,
  "keras": _make_keras,
  "npz": _make_npz,
  "npy": _make_npy,
  "mat": _make_mat,
  "shards": _make_shards,
}
TARGETS = {
  **{name: Target(make, _read_weights) for name, make in _WEIGHTS.items()},
  "scores_npz": Target(_make_scores_npz, _read_own_scores),
  "scores_npy": Target(_make_scores_npy, _read_scores),
  "scores_csv": Target(_make_scores_csv, _read_scores),
  "scores_json": Target(_make_scores_json, _read_scores),
  "scores_pkl": Target(_make_dumps, _read_scores),
  "listing": Target(_make_listing, _read_listing),
  "dataset": Target(_make_dataset, _read_dataset, "**/*.json", whole=True),
  "index": Target(_make_dataset, _read_indexed, "**/*.index", whole=True),
  "records": Target(
    _make_dataset, _read_records, "**/*.array_record*", whole=True
  ),
  "frames": Target(_make_frames, _read_frames),
  "lists": Target(_make_lists, _read_lists, whole=True),
  "config": Target(_make_run, _read_run, "run/config.json", whole=True),
  "checkpoint": Target(
    _make_checkpoint, _read_checkpoint, "run/spatial/**/*", whole=True
  ),
  "export": Target(_make_export, _read_export, "model/**/*", whole=True),
}
