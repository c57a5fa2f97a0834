"""What data a run reads, and what it refuses."""

import types

import pytest

from tests import tiny_config
from twostream_jax.stages import needs


def dataset(**groups):
  sources = {
    split: types.SimpleNamespace(groups=frozenset(names))
    for split, names in groups.items()
  }
  return types.SimpleNamespace(path="data/set", sources=sources)


def test_a_group_in_two_splits_of_a_run_is_refused():
  config = tiny_config.get_config()
  fits = {"train": {"a", "b"}, "validation": {"c"}, "test": {"d"}}
  needs.check_groups(config, dataset(**fits))
  shared = fits | {"validation": {"b", "c"}}
  with pytest.raises(ValueError, match="'train' and 'validation'.*1 group: b"):
    needs.check_groups(config, dataset(**shared))
  # Only the splits that the run reads.
  with config.unlocked():
    config.data.validation_split = config.fusion.fit_split = ""
  needs.check_groups(config, dataset(**shared))
