"""Benchmarks that nothing else runs, as far as they go without a clock."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("network", ["cnn_m", "resnet50"])
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
