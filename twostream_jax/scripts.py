"""Console scripts of the installed package.

Each runs a module exactly as `python -m` does, so that flags, help texts and
worker processes are the same by either name.
"""

import runpy


def build() -> None:
  """Runs `twostream-build`, which is data_prep/build_tfds.py."""
  _run("twostream_jax.data_prep.build_tfds")


def browse() -> None:
  """Runs `twostream-browse`, which is data_prep/browse.py."""
  _run("twostream_jax.data_prep.browse")


def convert() -> None:
  """Runs `twostream-convert`, which is data_prep/convert_weights.py."""
  _run("twostream_jax.data_prep.convert_weights")


def train() -> None:
  """Runs `twostream-train`, which is twostream_jax.main."""
  _run("twostream_jax.main")


def fuse() -> None:
  """Runs `twostream-fuse`, which is twostream_jax.fuse."""
  _run("twostream_jax.fuse")


def predict() -> None:
  """Runs `twostream-predict`, which is twostream_jax.predict."""
  _run("twostream_jax.predict")


def export() -> None:
  """Runs `twostream-export`, which is twostream_jax.export."""
  _run("twostream_jax.export")


def summary() -> None:
  """Runs `twostream-summary`, which is twostream_jax.summary."""
  _run("twostream_jax.summary")


def _run(module: str) -> None:
  runpy.run_module(module, run_name="__main__", alter_sys=True)
