"""Memory of `predict --timeline` on videos of several lengths.

  python benchmarks/timeline_memory.py --workdir=runs/quickstart

Synthetic videos are written once, then followed one after the other, each by a
process of its own. Memory is the resident set of that process and of the one
that decodes for it, looked at five times a second.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

from twostream_jax.files import tables

MIB = 2**20


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_string("workdir", None, "A finished run.", flag_values=values)
  flags.DEFINE_list(
    "minutes", ["1", "10", "60"], "Lengths of the videos.", flag_values=values
  )
  flags.DEFINE_integer("fps", 25, "Frames a second.", flag_values=values)


def write_video(path: Path, minutes: float, fps: int) -> None:
  """Writes a disc on noise that goes round, 96 x 72 pixels."""
  rng = np.random.default_rng(0)
  ground = cv2.GaussianBlur(
    rng.integers(0, 256, (72, 96, 3), np.uint8), (0, 0), 2
  )
  code = cv2.VideoWriter.fourcc(*"mp4v")
  writer = cv2.VideoWriter(os.fspath(path), code, fps, (96, 72))
  if not writer.isOpened():
    raise OSError(f"OpenCV can't write {path}")
  for number in range(round(minutes * 60 * fps)):
    angle = 0.1 * number
    centre = round(48 + 20 * np.cos(angle)), round(36 + 20 * np.sin(angle))
    writer.write(cv2.circle(ground.copy(), centre, 8, (40, 60, 220), -1))
  writer.release()


def resident(pid: int) -> int:
  """Bytes of a process in memory; 0 where it has ended."""
  try:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
  except OSError:
    return 0
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
  """Processes that a process started."""
  try:
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    texts = [(task / "children").read_text() for task in tasks]
  except OSError:
    return []
  return [int(child) for text in texts for child in text.split()]


def measure(command: list[str]) -> tuple[float, list[int], int]:
  """Runs a command; seconds, its memory over time, the largest child's."""
  began = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  own, largest = [], 0
  while process.poll() is None:
    own.append(resident(process.pid))
    largest = max([largest, *map(resident, children(process.pid))])
    time.sleep(0.2)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return time.monotonic() - began, own, largest


def main(argv):
  """Runs the program on the flags of the command line."""
  del argv
  values = flags.FLAGS
  if not values.workdir:
    sys.exit("benchmarks/timeline_memory.py: --workdir=RUN is missing")
  names = ("minutes", "frames", "seconds", "process MiB", "at half")
  print(tables.markdown_head((*names, "decoder MiB")), flush=True)
  with tempfile.TemporaryDirectory() as folder:
    for minutes in map(float, values.minutes):
      video = Path(folder, f"{minutes:g}.mp4")
      write_video(video, minutes, values.fps)
      seconds, own, largest = measure(
        [
          *(sys.executable, "-m", "twostream_jax.predict", video),
          f"--workdir={values.workdir}",
          f"--timeline={folder}/found",
        ]
      )
      frames = round(minutes * 60 * values.fps)
      row = (
        f"{minutes:g}",
        frames,
        f"{seconds:.1f}",
        f"{max(own) / MIB:.0f}",
        f"{own[len(own) // 2] / MIB:.0f}",
        f"{largest / MIB:.0f}",
      )
      print(tables.markdown_row(row), flush=True)
      video.unlink()


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
