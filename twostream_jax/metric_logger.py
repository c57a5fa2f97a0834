"""Metrics of a stage: JSON lines, and TensorBoard events beside them.

metrics.jsonl  what the seed and the data determine, bit by bit
timing.jsonl   how fast it went
tensorboard/   both, and samples of the input
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from twostream_jax import files
from twostream_jax.files import json_files

if TYPE_CHECKING:
  import tensorboardX

FILENAME = "metrics.jsonl"
TIMING = "timing.jsonl"


def read_metrics(
  directory: str | os.PathLike, filename: str = FILENAME
) -> list[dict]:
  """Records of a stage, oldest first; none where there is no file.

  A last line that a kill cut off is left out.

  Raises:
    JsonError: A line is not a record; the message names the file and the line.
  """
  path = Path(directory) / filename
  if not os.path.lexists(path):
    return []
  # The line after the last break was cut off, or is empty.
  content = json_files.read_bytes(path, sys.maxsize)
  with json_files.told(path):
    json_files.require_bounded(content, json_files.GROWN)
  lines = content.split(b"\n")[:-1]
  return [_record(line, f"{path}:{i}") for i, line in enumerate(lines, 1)]


def _record(line: bytes, place: str) -> dict[str, Any]:
  with json_files.told(place):
    record = json_files.parse(line)
    if type(record["step"]) is not int or not isinstance(record["split"], str):
      raise json_files.JsonError("no record of a step and a split")
    return record


class MetricsLogger:
  """Appends records {step, split, name: value...} to the files of a stage."""

  def __init__(self, directory: str | os.PathLike, *, resume_step: int):
    """Opens the files and drops what a resumed run will write again.

    Args:
      directory: `workdir/<stage>`.
      resume_step: Step that training resumes from; later records are dropped.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self._metrics = _open(directory, FILENAME, resume_step)
    self._timing = _open(directory, TIMING, resume_step)
    self._events = _event_writer(directory / "tensorboard", resume_step + 1)

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Writes one record; it is on disk when this returns."""
    self._append(self._metrics, step, split, values)

  def write_timing(self, step: int, values: dict[str, float]) -> None:
    """Writes how fast training was in the steps up to this one."""
    self._append(self._timing, step, "timing", values)

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows an image in TensorBoard: RGB uint8 [h w 3]."""
    self._events.add_image(name, image, step, dataformats="HWC")

  def _append(self, file, step, split, values) -> None:
    file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
    file.flush()
    for name, value in values.items():
      self._events.add_scalar(f"{split}/{name}", value, step)

  def close(self) -> None:
    """Flushes and closes all files."""
    self._metrics.close()
    self._timing.close()
    self._events.close()


class NoLogger:
  """In the place of `MetricsLogger` where another process writes."""

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Does nothing."""

  def write_timing(self, step: int, values: dict[str, float]) -> None:
    """Does nothing."""

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


def _event_writer(
  directory: Path, purge_step: int
) -> "tensorboardX.SummaryWriter":
  # tensorboardX imports PyTorch wherever it is installed, which takes two
  # seconds and is used for PyTorch's tensors only.
  hidden = "torch" not in sys.modules
  if hidden:
    # An import of it fails; the types of Python do not have this.
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules["torch"]
  return tensorboardX.SummaryWriter(str(directory), purge_step=purge_step)


def _open(directory: Path, filename: str, resume_step: int) -> TextIO:
  records = read_metrics(directory, filename)
  kept = [r for r in records if r["step"] <= resume_step]
  with files.replaced(directory / filename) as temporary:
    temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
  return (directory / filename).open("a")
