"""Metrics of a stage: JSON lines, and TensorBoard events beside them."""

import json
import os
from pathlib import Path

import tensorboardX

FILENAME = "metrics.jsonl"


def read_metrics(directory: str | os.PathLike) -> list[dict]:
  """Records of a stage, oldest first; none where there is no file.

  A last line that a kill cut off is left out.
  """
  path = Path(directory) / FILENAME
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines(keepends=True):
    if line.endswith("\n"):
      records.append(json.loads(line))
  return records


class MetricsLogger:
  """Appends records {step, split, name: value...} to the files of a stage."""

  def __init__(self, directory: str | os.PathLike, *, resume_step: int):
    """Opens the files and drops what a resumed run will write again.

    Args:
      directory: `workdir/<stage>`.
      resume_step: the step that training goes on from; later records go.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILENAME
    kept = [r for r in read_metrics(directory) if r["step"] <= resume_step]
    temporary = path.with_name(f".{FILENAME}.tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
    os.replace(temporary, path)
    self._file = path.open("a")
    self._events = tensorboardX.SummaryWriter(
      str(directory / "tensorboard"), purge_step=resume_step + 1
    )

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Writes one record; it is on disk when this returns."""
    record = {"step": step, "split": split, **values}
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._events.add_scalar(f"{split}/{name}", value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    self._file.close()
    self._events.close()
