"""The smallest dataset that every test and the fuzzer can use."""

from pathlib import Path

from twostream_jax.data import synthetic
from twostream_jax.data.build import builder
from twostream_jax.data.datasets import annotations
from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec


def build(directory: Path) -> None:
  """Builds 12 synthetic classes: 2 train, 1 validation, 1 test video each."""
  counts = {"train": 2, "validation": 1, "test": 1}
  synthetic.write_videos(directory / "videos", counts, seed=0)
  builder.build_dataset(
    directory,
    name="tiny",
    clips=annotations.read_folder(directory / "videos"),
    flow_spec=FlowSpec("dis", default_parameters("dis"), short_side=64),
    progress=False,
  )
