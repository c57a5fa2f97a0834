"""Single images are read from where they are, or there is an error."""

import json
import os
import pickle
import shutil
import threading

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from tests.decoded import assert_same_records
from twostream_jax import files
from twostream_jax.data import dataset, record_index, records
from twostream_jax.data.loader import augment
from twostream_jax.data.loader.views import InputSpec, load_views

IMAGES = ("rgb", "flow", "flow_backward")


def jpeg(rng, side):
  noise = rng.integers(0, 256, [side, side], np.uint8)
  return cv2.imencode(".jpg", noise)[1].tobytes()


def made_up_video(rng, number, labels, side, counts):
  images = {
    name: [jpeg(rng, side) for _ in range(count)]
    for name, count in zip(IMAGES, counts, strict=True)
  }
  return images | {
    "video_id": f"ä{number}".encode(),
    "group": b"g" * number,
    "label": labels,
    "fps": 12.5,
    "times": [40_000 * i * i for i in range(counts[0])],
    "pixel_aspect": 1.5,
    "num_damaged": number,
    "num_frames": counts[0],
    "height": 40 + number,
    "width": 50,
  }


def serialised(video):
  example = tf_example_pb2.Example()
  for name, value in video.items():
    feature = example.features.feature[name]
    for item in value if isinstance(value, list) else [value]:
      kind = {bytes: "bytes", float: "float", int: "int64"}[type(item)]
      getattr(feature, f"{kind}_list").value.append(item)
  return example.SerializeToString(deterministic=True)


def write(path, videos, options="group_size:1,uncompressed"):
  writer = ArrayRecordWriter(str(path), options)
  for video in videos:
    writer.write(serialised(video))
  writer.close()
  return path


def opened(paths, *, multi_label):
  index = paths[0].with_name("all.index")
  record_index.write_index(
    record_index.join([*map(record_index.index_file, paths)]), index
  )
  return records.VideoSource(paths, index, multi_label)


@pytest.fixture(scope="module")
def videos():
  """Nine, with images from a few bytes to several blocks of the file."""
  rng = np.random.default_rng(0)
  sides = (8, 300, 16, 700, 200, 90, 260, 8, 30)
  return [
    made_up_video(rng, i, list(range(i % 4)), side, (4, 3, i % 3))
    for i, side in enumerate(sides)
  ]


@pytest.fixture
def source(videos, tmp_path):
  files = [
    write(tmp_path / str(i), videos[3 * i : 3 * i + 3]) for i in range(3)
  ]
  return opened(files, multi_label=True)


def test_every_image_of_every_file_is_read_across_block_headers(source, videos):
  assert max(len(video["rgb"][0]) for video in videos) > 3 * 65536
  assert len(source) == 9
  for video, read in zip(videos, source, strict=True):
    assert read["label"].tolist() == video["label"]
    assert read["fps"] == 12.5 and read["height"] == video["height"]
    for name in ("video_id", "group", "pixel_aspect", "num_damaged", *IMAGES):
      assert read[name] == video[name]
    assert read["times"].dtype == np.int64
    assert read["times"].tolist() == video["times"]
    assert read["rgb"][-1] == video["rgb"][3]
    assert read["rgb"][1:3] == video["rgb"][1:3]
    assert read["rgb"][::-2] == video["rgb"][::-2]
    assert read["rgb"][4:] == []
    with pytest.raises(IndexError):
      read["rgb"][4]
  with pytest.raises(IndexError):
    source[9]


def test_labels_and_names_need_no_record(source, videos, tmp_path, monkeypatch):
  monkeypatch.setattr(records, "_COMPARED", 0)
  source = pickle.loads(pickle.dumps(source))
  for i in range(3):
    (tmp_path / str(i)).unlink()
  assert [labels.tolist() for labels in source.labels] == [
    video["label"] for video in videos
  ]
  assert source.labels[1].dtype == np.int32
  assert source.video_ids == tuple(f"ä{i}" for i in range(9))
  with pytest.raises(FileNotFoundError):
    source[0]


def test_single_labels_are_an_array(tmp_path):
  rng = np.random.default_rng(0)
  videos = [made_up_video(rng, i, [7 - i], 8, (2, 1, 0)) for i in range(3)]
  source = opened([write(tmp_path / "0", videos)], multi_label=False)
  np.testing.assert_array_equal(source.labels, np.int32([7, 6, 5]))
  assert [record["label"] for record in source] == [7, 6, 5]


def test_records_without_times_have_those_of_their_rate(videos, tmp_path):
  new = ("times", "pixel_aspect", "num_damaged")
  old = [
    {k: v for k, v in video.items() if k not in new} for video in videos[:2]
  ]
  read = opened([write(tmp_path / "0", old)], multi_label=True)[1]
  assert read["times"].tolist() == [0, 80_000, 160_000, 240_000]
  assert (read["pixel_aspect"], read["num_damaged"]) == (1.0, 0)


def test_an_index_of_another_version_is_made_anew(tiny, tmp_path):
  shutil.copytree(tiny.path, tmp_path / "copy")
  path = tmp_path / "copy" / "tiny-train.index"
  index = record_index.read_index(path)
  older = index.videos[[n for n in index.videos.dtype.names if n != "fps"]]
  record_index.write_index(index._replace(videos=older), path)
  again = dataset.open_dataset(tmp_path)
  assert_same_records(again.sources["train"], tiny.sources["train"])


def test_tfds_reads_the_same(tiny):
  builder = tfds.builder_from_directory(tiny.path)
  for split, source in tiny.sources.items():
    theirs = builder.as_data_source(split=split)
    assert_same_records(pickle.loads(pickle.dumps(source)), theirs)
    assert source.labels.tolist() == [record["label"] for record in theirs]


def test_a_folder_that_can_not_be_read_is_not_called_empty(
  tmp_path, monkeypatch
):
  def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))

  with pytest.raises(dataset.DatasetNotFoundError, match="no dataset in"):
    dataset.open_dataset(tmp_path)
  monkeypatch.setattr(os, "scandir", refuse)  # Root reads everything.
  with pytest.raises(PermissionError, match=f"denied: '{tmp_path}'"):
    dataset.open_dataset(tmp_path)


def test_a_dataset_without_an_index_gets_one(tiny, tmp_path):
  shutil.copytree(tiny.path, tmp_path / "copy")
  for index in (tmp_path / "copy").glob("*.index"):
    index.unlink()
  again = dataset.open_dataset(tmp_path)
  for split, source in again.sources.items():
    assert_same_records(source, tiny.sources[split])
    name = f"tiny-{split}.index"
    written = (again.path / name).read_bytes()
    assert written == (tiny.path / name).read_bytes()


def test_writers_of_one_index_with_equal_process_ids_keep_apart(
  source, tmp_path, monkeypatch
):
  # Containers of one image, say, that train on a dataset without an index.
  path = tmp_path / "all.index"
  index = record_index.read_index(path)
  whole = path.read_bytes()
  path.unlink()

  def another_machine(file):
    monkeypatch.undo()
    record_index.write_index(index, path)

  monkeypatch.setattr(files.os, "fsync", another_machine)
  record_index.write_index(index, path)
  assert path.read_bytes() == whole
  assert not list(tmp_path.glob(".*"))


def test_many_threads_read_with_few_files_open(videos, tmp_path, monkeypatch):
  monkeypatch.setattr(records, "_OPEN_FILES", 1)
  files = [write(tmp_path / str(i), videos[i : i + 1]) for i in range(9)]
  source = opened(files, multi_label=True)
  wrong = []

  def read(seed):
    for i in np.random.default_rng(seed).integers(9, size=40):
      if source[i]["rgb"][1] != videos[i]["rgb"][1]:
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_a_file_that_changed_is_an_error(source, videos, tmp_path):
  data = (tmp_path / "0").read_bytes()
  assert source[0]["rgb"] == videos[0]["rgb"]
  fresh = pickle.dumps(source)
  (tmp_path / "0").write_bytes(data[:-1])
  with pytest.raises(ValueError, match="bytes and its index says"):
    pickle.loads(fresh)[0]
  (tmp_path / "0").write_bytes(data[9:] + data[:9])
  with pytest.raises(ValueError, match="does not fit its index"):
    pickle.loads(fresh)[0]["rgb"][0]


@pytest.mark.parametrize(
  "name, value",
  [("label", [5]), ("video_id", "ö4".encode()), ("rgb", None)],
)
def test_records_of_the_same_sizes_do_not_pass_for_those_of_the_index(
  videos, tmp_path, monkeypatch, name, value
):
  """Built again with another label, id or image, beside the old index."""
  monkeypatch.setattr(records, "_COMPARED", 1)
  path = write(tmp_path / "0", videos)
  source = opened([path], multi_label=True)
  size, fresh = path.stat().st_size, pickle.dumps(source)
  if name == "rgb":
    *others, last = videos[4]["rgb"]
    value = [*others, last[:-9] + bytes(7) + last[-2:]]
  assert len(videos[5]["label"]) == 1
  at = 5 if name == "label" else 4
  again = [dict(video) for video in videos]
  again[at][name] = value
  write(path, again)
  assert path.stat().st_size == size
  source = pickle.loads(fresh)
  assert source[3]["rgb"] == videos[3]["rgb"]
  with pytest.raises(ValueError, match="0 does not fit its index .*remove the"):
    source[at]
  # A few are compared at once.
  monkeypatch.setattr(records, "_COMPARED", 16)
  with pytest.raises(ValueError, match="does not fit its index"):
    pickle.loads(fresh)


def test_an_index_without_checksums_is_read(videos, tmp_path):
  files = [write(tmp_path / str(i), videos[i : i + 2]) for i in (0, 2)]
  expected = [dict(record) for record in opened(files, multi_label=True)]
  path = tmp_path / "all.index"
  older, newer = map(record_index.index_file, files)
  older = older._replace(checksums=older.checksums[:0])
  joined = record_index.join([older, newer])
  assert not len(joined.checksums)
  with open(path, "wb") as file:  # As an earlier version wrote it.
    for array in joined[:-1]:
      np.lib.format.write_array(file, array, allow_pickle=False)
  source = records.VideoSource(files, path, True)
  assert [record["rgb"] for record in source] == [r["rgb"] for r in expected]


def test_a_damaged_index_is_an_error(source, tmp_path):
  path = tmp_path / "all.index"
  data = path.read_bytes()
  for part in (data[:300], data[:-9]):
    path.write_bytes(part)
    with pytest.raises(ValueError, match=r"all.index is damaged.*remove it"):
      record_index.read_index(path)


def test_what_can_not_be_read_in_parts_is_refused(videos, tmp_path):
  squeezed = write(tmp_path / "a", videos[:2], "group_size:2,zstd")
  with pytest.raises(ValueError, match="can't be read in parts"):
    record_index.index_file(squeezed)
  no_image = write(tmp_path / "b", [videos[0] | {"flow": [b"nothing"]}])
  with pytest.raises(ValueError, match="7 bytes in 'flow' that are not a JPEG"):
    record_index.index_file(no_image)


def test_a_sample_reads_the_images_that_it_shows(tiny, monkeypatch):
  sizes = []

  def read(self, start, size, original=record_index.RecordFile.read):
    sizes.append(size)
    return original(self, start, size)

  monkeypatch.setattr(record_index.RecordFile, "read", read)
  record = tiny.sources["train"][0]
  whole = [augment.Box(0, 0, 64, 64)]
  for modality, wanted in (
    ("rgb", record["rgb"][5:6]),
    ("flow", record["flow"][5:8]),
  ):
    sizes.clear()
    spec = InputSpec((modality,), 64, 3, 1, "loop")
    load_views(record, np.array([5]), whole, spec)
    # One piece; between two images there are a few bytes.
    (size,) = sizes
    assert 0 <= size - sum(map(len, wanted)) < 16


@pytest.mark.parametrize(
  "key", ["pythonClassName", "python_class_name", "type"]
)
def test_no_code_of_a_dataset_runs(tiny, tmp_path, monkeypatch, key):
  folder = tmp_path / "evil"
  shutil.copytree(tiny.path, folder)
  (folder / "payload.py").write_text("open('ran', 'w')\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  features = json.loads((folder / "features.json").read_text())
  features["featuresDict"]["features"]["fps"][key] = "evil.payload.Tensor"
  (folder / "features.json").write_text(json.dumps(features))
  with pytest.raises(ValueError, match="features.json names '.*no dataset of"):
    dataset.open_dataset(folder)
  assert not (tmp_path / "ran").exists()
  (folder / "features.json").write_text("[" * 100_000)
  with pytest.raises(ValueError, match="features.json can't be read"):
    dataset.open_dataset(folder)


@pytest.mark.parametrize(
  "file, change, match",
  [
    ("metadata.json", {"name": "../tiny"}, "'../tiny' is not the name of"),
    ("metadata.json", {"name": ["tiny"]}, "is not the name of a dataset"),
    ("dataset_info.json", {"name": "/x/y", "shardLengths": ["1"]}, "'.*/x/y"),
    ("dataset_info.json", {"name": "a", "shardLengths": []}, "'a' has no file"),
    (
      "dataset_info.json",
      {"name": "a", "shardLengths": ["1"], "filepathTemplate": "../{SPLIT}"},
      "does not list files of records",
    ),
  ],
)
def test_names_of_a_dataset_stay_in_its_folder(
  tiny, tmp_path, file, change, match
):
  folder = tmp_path / "evil"
  shutil.copytree(tiny.path, folder)
  content = json.loads((folder / file).read_text())
  if "shardLengths" in change:
    content["splits"].append(change)
  else:
    content |= change
  (folder / file).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=match):
    dataset.open_dataset(folder)
  assert os.listdir(tmp_path) == ["evil"]


def test_a_file_of_records_is_no_link_to_another_folder(tiny, tmp_path):
  folder = tmp_path / "evil"
  shutil.copytree(tiny.path, folder)
  file = next(folder.glob("*train.array_record*"))
  file.rename(tmp_path / "secret")
  file.symlink_to("../secret")
  with pytest.raises(ValueError, match="is a link out of"):
    dataset.open_dataset(folder)


def test_tfds_finds_the_same_files(tiny):
  found = tfds.builder_from_directory(tiny.path).info.splits
  assert list(found) == list(tiny.sources)
