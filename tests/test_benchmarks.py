"""Benchmarks that nothing else runs, as far as they go without a clock."""

import importlib

import cv2
import numpy as np
import pytest

from tests.paths import ROOT
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.flow.spec import FlowSpec


@pytest.mark.parametrize(
  "network", ["cnn_m", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_the_profile_of_a_step_finds_the_layers_of_a_network(
  monkeypatch, network
):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  profile = importlib.import_module("step_profile")
  sides = importlib.import_module("step_sides")
  found = profile.layers(
    sides.Case(network, batch=2, size=64, gpu=False, dtype="float32")
  )
  counts = {"convolution": 0, "pooling": 0, "dense": 0}
  for (kind, shape, *_), count in found.items():
    assert shape[0] == 2
    counts[kind] += count
  expected = {"cnn_m": (5, 3, 3), "resnet50": (53, 1, 1)}[network]
  assert tuple(counts.values()) == expected


@pytest.fixture
def clip(tmp_path):
  path = tmp_path / "a.avi"
  fourcc = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(path), fourcc, 25, (64, 48))
  for level in (0, 60, 120):
    writer.write(np.full((48, 64, 3), level, np.uint8))
  writer.release()
  return Clip("a", path, "train", "l", "")


def test_the_flow_benchmark_reads_gray_pairs(monkeypatch, clip):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  flow = importlib.import_module("flow")
  ((first, second),) = flow.real_pairs(clip.path.parent, 1)
  assert first.shape == second.shape == (256, 256)
  assert first.dtype == np.uint8


def test_the_build_benchmark_times_the_parts_of_a_clip(monkeypatch, clip):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  build = importlib.import_module("build")
  spec = FlowSpec("dis", {"preset": "ultrafast"}, short_side=32)
  assert set(build.time_parts(spec, clip)) == {
    "decode, resize",
    "JPEG of frames",
    "gray",
    "flow",
    "JPEG of flow",
  }
