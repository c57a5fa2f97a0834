"""Files of strangers: sizes, types and texts that are refused or escaped."""

import csv
import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile

import cv2
import h5py
import numpy as np
import pytest
import tensorstore
from array_record.python import array_record_module

from tests import fuzz, fuzz_targets
from twostream_jax import checkpoints, files, metric_logger, results
from twostream_jax.data import dataset, record_index
from twostream_jax.data.build import store
from twostream_jax.data.datasets import texts
from twostream_jax.data.video import images, reading
from twostream_jax.data.video.frames import VideoError
from twostream_jax.export import runner
from twostream_jax.files import arrays, json_files, limits, pickles, workdir
from twostream_jax.flow.spec import FlowSpec, FlowSpecError
from twostream_jax.fuse import tables
from twostream_jax.fuse.files import read_file
from twostream_jax.predict import answers, kept, timeline
from twostream_jax.pretrained import WeightsError, read_source, sources
from twostream_jax.report import shell
from twostream_jax.scores import Scores, ScoresError
from twostream_jax.stages import trained, warm_start

_JPEG = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()


def _sized(data, height, width):
  """A JPEG image whose header claims another size."""
  at = data.index(b"\xff\xc0") + 5
  return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _many_scans(count):
  image = np.random.default_rng(0).integers(256, size=(2400, 2400, 3))
  options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 1]
  data = cv2.imencode(".jpg", image.astype(np.uint8), options)[1].tobytes()
  at = data.rindex(b"\xff\xda")
  return data[:at] + data[at:-2] * count + data[-2:]


def _png(height, width):
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header


_TIFF = cv2.imencode(".tiff", np.zeros((8, 8), np.uint8))[1]


@pytest.mark.parametrize(
  "data, reason",
  [
    (_sized(_JPEG, 30000, 30000), "at most 33554432"),
    (_sized(_JPEG, 5000, 5000), "bytes can't be 5000x5000"),
    (_many_scans(400), "scans"),
    (_png(2**31 - 1, 2**31 - 1), "at most"),
    (_png(5000, 5000) + bytes(100), "bytes can't be"),
    (b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0" + b"\xff" * 20, "at most"),
    (b"BM" + bytes(16) + struct.pack("<ii", 2**30, -2) + bytes(9), "at most"),
    (b"GIF89a" + b"\xff" * 9, "at most"),
    (np.asarray(_TIFF).tobytes(), "not a JPEG, PNG, WebP, BMP or GIF"),
  ],
)
def test_images_larger_than_their_bytes_are_refused(data, reason, tmp_path):
  (tmp_path / "img_1.jpg").write_bytes(data)
  begin = time.process_time()
  with pytest.raises(VideoError, match=f"img_1.jpg can't be decoded.*{reason}"):
    list(reading.read_frames(tmp_path))
  if data.startswith(b"\xff\xd8"):
    with pytest.raises(ValueError, match=reason):
      images.decode_rgb(data)
  assert time.process_time() - begin < 1


def test_png_images_of_chunks_beyond_their_end_are_refused():
  data = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
  images.check(data)
  at = data.index(b"IDAT") - 4
  with pytest.raises(ValueError, match="cut off, or claims"):
    images.check(data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :])


def test_texts_of_no_characters_are_refused(tmp_path):
  path = tmp_path / "a.npz"
  ids = np.array([0xFFFFFFFF], np.uint32).view("<U1")
  np.savez(path, ids=ids, labels=np.zeros(1, int), logits=np.ones((1, 2)))
  with pytest.raises(ScoresError, match="a.npz: "):
    read_file(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif"])
def test_plain_images_are_read(suffix, tmp_path):
  # Black, and so as small as can be.
  image = np.zeros((1024, 2048, 3), np.uint8)
  data = cv2.imencode(suffix, image)[1]
  (tmp_path / "img_1.jpg").write_bytes(np.asarray(data).tobytes())
  (frame,) = reading.read_frames(tmp_path)
  assert frame.rgb.shape == image.shape


def test_pickles_are_bounded(monkeypatch):
  # These take time, but no memory.
  monkeypatch.setattr(pickles, "_MOST_FREE", 1000)
  with pytest.raises(pickle.UnpicklingError, match="more instructions"):
    pickles.load(io.BytesIO(b"\x80\x02" + b"N0" * 20_000 + b"N."))
  monkeypatch.undo()
  monkeypatch.setattr(limits, "_FREE", 2**20)
  with pytest.raises(pickle.UnpicklingError, match="more instructions"):
    pickles.load(io.BytesIO(b"\x80\x02" + b"}" * 20_000 + b"."))
  name = b"c" + b"a" * 5000 + b"\nb\n"
  with pytest.raises(pickle.UnpicklingError, match="longer than any"):
    pickles.load(io.BytesIO(b"\x80\x02" + name + b"."))


def test_arrays_that_a_pickle_repeats_are_bounded(tmp_path):
  # Texts of Python 2 become bytes once for every array that names them.
  text = b"T" + struct.pack("<I", 2**22) + bytes(2**22) + b"q\x01"
  kind = b"cnumpy\ndtype\n(X\x02\0\0\0u1tR"
  made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\ntR"
  one = made + b"(K\x01" + b"J" + struct.pack("<i", 2**22) + b"\x85" + kind
  one += b"\x89h\x01tb"
  (tmp_path / "a.pkl").write_bytes(b"\x80\x02(" + text + one * 40 + b"l.")
  with pytest.raises(WeightsError, match="a.pkl.*would unpack"):
    read_source(tmp_path / "a.pkl")


def test_keys_longer_than_their_file_are_refused(tmp_path):
  one = np.ones(1, np.float32)
  names = list(map(str, range(1000)))
  tree = {"k" * 20_000: dict.fromkeys(names, one)}
  (tmp_path / "wide.pkl").write_bytes(pickle.dumps(tree))
  deep = {"a": one}
  for _ in range(60):
    deep = {"k" * 20_000: deep, "l": deep}
  with pytest.raises(WeightsError, match="characters; this"):
    sources.flatten(deep, lambda node: None, 1)
  with h5py.File(tmp_path / "wide.h5", "w") as file:
    group = file.create_group("k" * 20_000)
    for name in names:
      group[name] = one
  with h5py.File(tmp_path / "named.h5", "w") as file:
    group = file.create_group("conv2d/vars")
    group.attrs["name"] = "k" * 20_000
    for name in names:
      group[name] = one
  header = b'{"__metadata__":{"a":"%s"}}' % (b"k" * 2**25)
  data = len(header).to_bytes(8, "little") + header
  (tmp_path / "a.safetensors").write_bytes(data)
  for path in tmp_path.iterdir():
    with pytest.raises(WeightsError, match=f"{path.name}.*(chara|names)"):
      read_source(path)


def test_items_that_a_pickle_repeats_are_bounded():
  numbers = [1] * 100_000
  with pytest.raises(WeightsError, match="items of its containers"):
    sources.flatten([numbers] * 1000, lambda node: None, 1)


def test_unlimited_compression_is_refused(tmp_path):
  whole = io.BytesIO()
  np.lib.format.write_array(whole, np.zeros(10))
  for path in (tmp_path / "a.npz",):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
      archive.writestr("a.npy", whole.getvalue())
    with pytest.raises(arrays.ArraysError, match="did not compress"):
      arrays.read_npz(path)
    with pytest.raises(WeightsError, match="unusual way"):
      read_source(path)


@pytest.mark.parametrize("name", ["a.npz", "a.keras", "a.pth"])
def test_long_lists_of_archives_are_refused(name, tmp_path):
  entry = io.BytesIO()
  with zipfile.ZipFile(entry, "w") as archive:
    archive.writestr("a.npy", b"")
  data = entry.getvalue()
  start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
  count = 90_000
  listed = data[start:end] * count
  tail = struct.pack("<IIH", len(listed), start, 0)
  path = tmp_path / name
  path.write_bytes(data[:start] + listed + data[end : end + 12] + tail)
  with pytest.raises(WeightsError, match=f"{name}.*a list of files of"):
    read_source(path)
  with pytest.raises(arrays.ArraysError, match="a list of files of"):
    arrays.read_npz(path)


def test_texts_without_characters_take_no_memory(tmp_path):
  header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }"
  data = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header
  (tmp_path / "a.npy").write_bytes(data)
  with pytest.raises(arrays.ArraysError, match="cut off"):
    arrays.read_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("form", ["chunk", "deep"])
def test_hdf5_bombs_are_refused(form, tmp_path):
  with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
    if form == "chunk":
      # One number, in a chunk of 800 MB.
      file.create_dataset("a", (1,), "f8", chunks=(10**8,), maxshape=(None,))
    group = file
    for _ in range(100 if form == "deep" else 0):
      group = group.create_group("a")
    group["b"] = np.zeros(3, np.float32)
  with pytest.raises(WeightsError, match="a.h5.*(would unpack|in 64 others)"):
    read_source(tmp_path / "a.h5")


@pytest.mark.parametrize(
  "field, value",
  [
    ("bound", float("nan")),
    ("bound", float("inf")),
    ("bound", "20"),
    ("step", 1.5),
    ("step", True),
    ("quality", 101),
    ("fps", float("nan")),
    ("parameters", [1]),
    ("parameters", {"a": float("nan")}),
  ],
)
def test_flow_of_impossible_values_is_refused(field, value):
  given = {"algorithm": "dis", "parameters": {}} | {field: value}
  with pytest.raises(FlowSpecError, match=field):
    FlowSpec(**given)


@pytest.mark.parametrize(
  "key, value, said",
  [
    ("class_names", "abcdefghijkl", "class_names: not a list"),
    ("class_names", ["a"], "names 1 classes"),
    ("multi_label", True, "multi_label is True"),
    ("multi_label", 0, "multi_label: neither true nor false"),
    ("rgb_quality", "95", "rgb_quality"),
    ("rejected", ["a"], "rejected"),
    ("flow_spec", {"bound": float("nan")}, "missing"),
  ],
)
def test_metadata_of_other_types_is_refused(tiny, tmp_path, key, value, said):
  folder = tmp_path / "data"
  shutil.copytree(tiny.path, folder)
  path = folder / dataset.METADATA_FILE
  content = json.loads(path.read_text()) | {key: value}
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=said) as caught:
    dataset.open_dataset(folder)
  assert path.name in str(caught.value)


@pytest.mark.parametrize("options", ["zstd", "brotli", "transpose:true"])
def test_records_that_would_unpack_are_refused(options, tmp_path):
  path = tmp_path / "a"
  writer = array_record_module.ArrayRecordWriter(
    str(path), f"group_size:1,{options}"
  )
  writer.write(bytes(10**6))
  writer.close()
  assert path.stat().st_size < 200_000
  with pytest.raises(ValueError, match="a has records that can't be read in"):
    next(record_index.read_records(path))


@pytest.mark.parametrize("at", ["list", "end"])
def test_records_in_other_places_are_refused(at, tmp_path):
  path = tmp_path / "a"
  store.write_records(path, [b"a" * 99, b"b" * 9])
  assert [*record_index.read_records(path)] == [b"a" * 99, b"b" * 9]
  data = bytearray(path.read_bytes())
  # The list has the chunk at byte 64; the end has the list, three times.
  place = data.index(b"\x08\x40\x10")
  if at == "end":
    place = data.index(b"\x0d\x0d\x0d\x08") + 3
  data[place + 1] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="a has records that can't be read in"):
    next(record_index.read_records(path))


def test_an_index_of_parts_that_do_not_fit_is_refused(tiny, tmp_path):
  folder = tmp_path / "data"
  shutil.copytree(tiny.path, folder)
  path = dataset.index_path(folder, tiny.name, "train")
  index = record_index.read_index(path)
  index = index._replace(labels=index.labels[:-1])
  record_index.write_index(index, path)
  with pytest.raises(ValueError, match="train.index is damaged"):
    dataset.open_dataset(folder)


def test_complex_scores_are_refused():
  with pytest.raises(ScoresError, match="must be numbers, found complex"):
    Scores(("a",), np.array([0]), np.ones((1, 2), complex), "single")


def test_deep_and_wide_json_is_refused(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("[" + "[]," * 3_000_000 + "0]")
  with pytest.raises(ScoresError, match="a.json: its .* lists, names and"):
    read_file(path)


@pytest.mark.parametrize(
  "text",
  [
    b'["' + b'","'.join([b"ab"] * 4_000_000) + b'"]',
    b"{" + b",".join(b'"%x":1' % i for i in range(2_000_000)) + b"}",
    b"[" + b",".join([b"300"] * 9_000_000) + b"]",
    b'["' + b"a" * 2**26 + '\U0001f600"]'.encode(),
  ],
  ids=["texts", "names", "numbers", "wide"],
)
def test_json_that_grows_is_refused(text, tmp_path):
  (tmp_path / "a.json").write_bytes(text)
  with pytest.raises(ValueError, match="a.json.*( hold | bytes are more)"):
    json_files.read(tmp_path / "a.json")
  with pytest.raises(ScoresError, match="a.json.*names and values"):
    read_file(tmp_path / "a.json")
  with pytest.raises(ValueError, match="hold"):
    runner._parse(text)


def test_large_json_is_read(tmp_path, monkeypatch):
  names = [f"a class of some name {i}" for i in range(700)]
  rejected = [
    {
      "video_id": f"abcdefghijk_{i:06d}_{i + 10:06d}",
      "split": "train",
      "label": names[i % 700],
      "reason": "the file is not there",
    }
    for i in range(6000)
  ]
  (tmp_path / "a.json").write_text(json.dumps({"rejected": rejected}))
  assert len(json_files.read(tmp_path / "a.json")["rejected"]) == 6000
  # By a part: of 250,000 videos of 700 classes, and of a list of 650,000.
  monkeypatch.setattr(limits, "_FREE", 0)
  json_files.require_bounded(b"0.0001234567, " * 1000)
  line = b'"abcdefghijk": {"annotations": {"label": "a class", "segment": [0, 1'
  line += (
    b'0]}, "duration": 10.0, "subset": "train", "url": "https://www.youtub'
  )
  line += b'e.com/watch?v=abcdefghijk"},'
  json_files.require_bounded(line * 1000, json_files.GROWN)


@pytest.mark.parametrize(
  "name, text, said",
  [
    ("a.csv", "id,label" + ",ab" * 10**6, "more than 100000 cells"),
    ("a.csv", "\n" * 10**6, "more than 100000 cells or lines"),
    ("a.csv", "id,label,a,b\n" + "a,0,1,0\n" * 400_000, "videos or more in"),
    ("a.txt", "a\n" * 400_000, "videos or more in"),
    ("a.txt", "a" * 10**6, "line 1: a list of videos has"),
  ],
)
def test_tables_that_grow_are_refused(name, text, said, tmp_path, monkeypatch):
  monkeypatch.setattr(limits, "_FREE", 2**26)
  (tmp_path / name).write_text(text)
  read = tables.read_listing if name == "a.txt" else read_file
  with pytest.raises(ScoresError, match=f"{name}.*{said}"):
    read(tmp_path / name)


_TEXTS = {
  "nothing": b"",
  "no text": b"{\xff}",
  "cut off": b'{"a": ',
  "deep": b"[" * 3000,
  "deep but whole": b"[" * 500 + b"]" * 500,
  "a list": b"[1]",
  "a number": b"1" * 5000,
  "other names": b'{"a\\u001b": NaN}',
}
_READERS = {
  workdir.CONFIG_FILE: [
    trained.open_run,
    lambda folder: workdir.check_config_file(folder, _SETTINGS),
  ],
  results.RESULTS_FILE: [results.read_results],
  metric_logger.FILENAME: [metric_logger.read_metrics],
  "outcome.json": [lambda folder: store.read_outcome(folder / "outcome.json")],
  "a.json.partial": [lambda folder: kept.find(folder / "a.json", {})],
  "manifest.json": [runner.load],
}
_DATA = {"train_split": "", "validation_split": ""}
_SETTINGS = {"config": {"data": _DATA, "selection": {"metric": ""}}}


@pytest.mark.parametrize("text", [*_TEXTS, "a folder", "a pipe"])
@pytest.mark.parametrize("name", _READERS)
def test_json_of_strangers_is_refused_in_one_line(name, text, tmp_path):
  path = tmp_path / name
  if text == "a folder":
    path.mkdir()
  elif text == "a pipe":
    os.mkfifo(path)
  else:
    path.write_bytes(_TEXTS[text] + b"\n")
  for read in _READERS[name]:
    with pytest.raises(ValueError) as caught:
      read(tmp_path)
    message = str(caught.value)
    # Of what is missing, and of other settings, the folder is named.
    assert str(tmp_path) in message
    assert "\x1b" not in message


def test_facts_of_checkpoints_that_are_none_decide_nothing(tmp_path):
  texts = [
    *_TEXTS.values(),
    b'{"score": "x"}',
    b'{"score": 1%s}' % (b"0" * 999),
  ]
  for step, text in enumerate(texts):
    path = tmp_path / str(step) / "progress" / "progress.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
  facts = checkpoints._read_facts(tmp_path, range(len(texts)))
  assert {(fact.score, fact.scheduled) for fact in facts.values()} == {
    (None, False)
  }


@pytest.mark.parametrize("name", ["", "state", "metadata/metadata"])
def test_links_in_a_checkpoint_are_not_followed(name, tmp_path):
  fuzz_targets._make_checkpoint(tmp_path)
  folder = tmp_path / "run" / "spatial" / "checkpoints"
  path = folder / "8" / name
  path.rename(tmp_path / "elsewhere")
  path.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(checkpoints.CheckpointError, match="is a link"):
    checkpoints.read_metadata(folder)


def test_settings_that_are_a_link_are_not_read(tmp_path):
  (tmp_path / "other").write_text("{}")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / workdir.CONFIG_FILE).symlink_to("../other")
  with pytest.raises(trained.TrainedRunError, match="is a link out of"):
    trained.open_run(tmp_path / "run")


@pytest.mark.parametrize(
  "name, content, said",
  [
    ("_CHECKPOINT_METADATA", b"1.5", "checkpoints in .* can't be read"),
    ("state/_METADATA", b"{}", "checkpoint 8 in .* can't be read"),
    ("state/manifest.ocdbt", b"{}", "checkpoint 8 in .* can't be read"),
    ("metadata/metadata", b'{"class_names": "ab"}', "8 can't be read: name"),
    ("metadata/metadata", b"[1]", "is not trained"),
    (
      "../../metrics.jsonl",
      b'{"step": 8, "split": "validation", "loss": 1, "accuracy": null}\n',
      "metrics.jsonl can't be read: float",
    ),
  ],
)
def test_damaged_checkpoints_are_named(name, content, said, tmp_path):
  fuzz_targets._make_checkpoint(tmp_path)
  folder = tmp_path / "run" / "spatial" / "checkpoints"
  (folder / "8" / name).write_bytes(content)
  with pytest.raises(fuzz_targets._TOLD, match=said) as caught:
    fuzz_targets._read_checkpoint(folder.parent / "x")
  assert str(folder.parent) in str(caught.value) or "is not trained" in said


def test_a_checkpoint_of_other_arrays_is_refused(tmp_path):
  with checkpoints.open_manager(tmp_path, keep=1) as manager:
    checkpoints.save(manager, 1, {"params": np.ones(3)}, {}, {})
    checkpoints.finish(manager)
  with (
    checkpoints.open_reader(tmp_path) as reader,
    pytest.raises(checkpoints.CheckpointError, match="lacks arrays"),
  ):
    checkpoints.restore_variables(reader)


def _chunk(state, **fields):
  """Changes what a checkpoint says of one of its arrays."""
  key = "params.conv.kernel/.zarray"
  facts = json.loads(state[key])
  state[key] = json.dumps(facts | fields).encode()


_HUGE = [7, 7, 60_000, 30_000]


@pytest.mark.parametrize(
  "damage, said",
  [
    (lambda s: _chunk(s, shape=_HUGE, chunks=_HUGE), "would unpack to more"),
    (lambda s: _chunk(s, chunks=[60_000] * 2), "in parts larger than itself"),
    (lambda s: _chunk(s, shape=[999, 999], chunks=[1, 1]), "in 998001 parts"),
    (lambda s: _chunk(s, dtype="|S9"), "not an array that a run saves"),
    (lambda s: s.write("params.conv.kernel/0.0", None).result(), "missing"),
    (lambda s: s.write("params.conv.kernel/0.0", b"(").result(), "Truncated"),
  ],
)
def test_arrays_that_a_checkpoint_does_not_hold_are_refused(
  damage, said, tmp_path, capfd
):
  names = ("conv", *map(str, range(30)))
  params = {name: {"kernel": np.ones((20, 30), np.float32)} for name in names}
  trees = {"params": params, "batch_stats": {}, "ema_params": {}}
  with checkpoints.open_manager(tmp_path, keep=1) as manager:
    checkpoints.save(manager, 8, trees, {}, {})
    checkpoints.finish(manager)
  state = {"driver": "ocdbt", "base": f"file://{tmp_path}/8/state/"}
  damage(tensorstore.KvStore.open(state).result())
  capfd.readouterr()
  with (
    checkpoints.open_reader(tmp_path) as reader,
    pytest.raises(checkpoints.CheckpointError, match=f"8 in .*{said}"),
  ):
    checkpoints.restore_variables(reader)
  assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "metadata/metadata"])
def test_facts_of_checkpoints_are_bounded(name, tmp_path):
  fuzz_targets._make_checkpoint(tmp_path)
  folder = tmp_path / "run" / "spatial" / "checkpoints"
  with (folder / "8" / name).open("wb") as file:
    file.write(b'{"a": [')
    file.truncate(2**27)
  with pytest.raises(fuzz_targets._TOLD, match="can't be read|is not trained"):
    fuzz_targets._read_checkpoint(folder.parent / "x")


@pytest.mark.parametrize("name", ["x" * 300, "a\x1b[2J", "a/b"])
def test_splits_that_name_no_files_are_refused(tiny, tmp_path, name):
  folder = tmp_path / "data"
  shutil.copytree(tiny.path, folder)
  path = folder / dataset.INFO_FILE
  content = json.loads(path.read_text())
  content["splits"][0]["name"] = name
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="info.json does not list") as caught:
    dataset.open_dataset(folder)
  assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["format_version", "encoding"])
def test_long_texts_are_shown_in_part(tiny, tmp_path, key):
  folder = tmp_path / "data"
  shutil.copytree(tiny.path, folder)
  path = folder / dataset.METADATA_FILE
  content = json.loads(path.read_text())
  (content["flow_spec"] if key == "encoding" else content)[key] = "a\nb" * 999
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"'a\\nba") as caught:
    dataset.open_dataset(folder)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_an_index_of_texts_that_are_none_is_refused(tiny, tmp_path):
  folder = tmp_path / "data"
  shutil.copytree(tiny.path, folder)
  path = dataset.index_path(folder, tiny.name, "train")
  index = record_index.read_index(path)
  index.video_ids[0] = b"a\xff"
  record_index.write_index(index, path)
  with pytest.raises(ValueError, match="train.index is damaged: 'utf-8'"):
    dataset.open_dataset(folder)


def test_cells_are_no_formulas_and_read_back(tmp_path):
  labels = ["=1+1", "+a", "-1", "@a", "'=a", "'a", "a=b", "plain"]
  path = tmp_path / "a.csv"
  timeline.write_csv(
    path, [timeline.Segment(0, 1, label, 0.5) for label in labels]
  )
  with open(path, newline="") as file:
    cells = [row[2] for row in csv.reader(file)][1:]
  assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
  rows = texts.read_rows(path, ("label",))
  assert [row["label"] for _, row in rows] == labels


def test_codes_in_names_are_shown_escaped(tmp_path):
  evil = "jump\x1b[2J\nwave\u202e"
  path = tmp_path / "a.csv"
  timeline.write_csv(path, [timeline.Segment(0, 1, evil, 0.5)])
  shown = answers.table(
    {
      "path": evil,
      "frames": 1,
      "seconds": 1,
      "elapsed": 1,
      "stages": {"spatial": [[evil, 0.5]]},
      "fused": {},
    }
  )
  page = shell.render_page(evil, evil, {"Results": evil})
  for text in (path.read_text(), answers.printable(shown), page):
    assert r"jump\x1b[2J" in text
    assert not {"\x1b", "\u202e"} & set(text)
  assert shown.count("\n") == 1


def test_names_with_codes_are_no_names(tiny, tmp_path):
  for name in ("a\x1b[2J", "a\nb", "a\u202eb", "a/b", ".."):
    with pytest.raises(ValueError, match="not the name of a file"):
      files.name_from_file(name)
    with pytest.raises(ValueError, match="not the name of a file"):
      files.inside(tmp_path, name)
  shutil.copytree(tiny.path, tmp_path / "up" / "a\x1b[2J")
  with pytest.raises(ValueError, match=r"a\\x1b\[2J.* is not a name") as caught:
    dataset.open_dataset(tmp_path)
  assert "\x1b" not in str(caught.value)


def test_lines_of_a_warm_start_are_lines(capsys):
  warm_start._say("weights of a\x1b[2J\nspatial: all is well")
  assert capsys.readouterr().out == (
    "weights of a\\x1b[2J\\nspatial: all is well\n"
  )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
  "name",
  ["pickle", "npy", "scores_npz", "scores_csv", "scores_json", "scores_pkl"]
  + ["safetensors", "listing", "frames", "lists"],
)
def test_damaged_files_are_refused_or_read(name, tmp_path):
  """The same few as always; `python tests/fuzz.py` reads thousands."""
  target = fuzz_targets.TARGETS[name]
  if name in ("pickle", "scores_pkl"):
    pytest.importorskip("torch")
  root, copy = tmp_path / "valid", tmp_path / "copy"
  root.mkdir()
  target.make(root)
  shutil.copytree(root, copy)
  seeds = target.seeds(root)
  for number in range(len(seeds) + 25):
    path, data = fuzz.make_input(seeds, 0, number)
    place = copy / path.relative_to(root)
    place.write_bytes(data)
    result = fuzz.examine(target, place, number)
    target.restore(root, copy, path)
    assert not result.is_fault, result
    assert number >= len(seeds) or result.outcome == fuzz.READ, result
