"""Everything that an accelerator is to be measured for, in one command.

  python benchmarks/accelerator.py --out=DIR [--part=NAME ...] [--small]
  python benchmarks/accelerator.py --list
  python benchmarks/accelerator.py --read=DIR

The parts run in order of worth, each in a process of its own with a time
limit. Every result is appended to DIR/results.jsonl as soon as it is known, and
DIR/results.md has all of them as tables after each part, so that nothing is
lost where a machine is taken away. A part that fails or runs out of time is
named in the tables with the reason, and the command ends with exit code 1.

--list prints the parts with their limits, and what has to be installed.
--small runs every part in little time on a CPU, which only shows that it works;
torch.compile is left out.
--read restores the checkpoint of a DIR that came from another machine and
compares the network's answers here with those there.

docs/benchmarks.md has instructions for a machine without a network.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

# Parts in order of worth: those of a row run at the same time. Seconds allowed.
# A row takes as long as its longest part. All rows together would take 12
# minutes: where there are 9, the last is cut short after two of four networks.
ROWS = (
  {"card": 20},
  {"tvl1": 45},
  {"train_bfloat16": 245},
  {"evaluation": 70},
  {"loader": 45},
  {"agreement": 80, "losses": 80, "checkpoint": 80},
  {"train_float32": 230},
)
# Beyond numpy, scipy, jax with CUDA, flax, optax, orbax-checkpoint, h5py,
# opencv-python-headless, scikit-learn, safetensors, tqdm, pillow and torch.
WHEELS = (
  "array-record",
  "av",
  "dm-tree",
  "grain",
  "immutabledict",
  "ml-collections",
  "portpicker",
  "promise",
  "simplejpeg",
  "six",
  "tensorboardX",
  "tensorflow-datasets",
  "tensorflow-metadata",
  "toml",
  "wrapt",
)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  names = [name for row in ROWS for name in row]
  flags.DEFINE_string("out", None, "Folder of the results.", values)
  flags.DEFINE_multi_enum("part", names, names, "Can be repeated.", values)
  flags.DEFINE_bool("small", False, "Sizes for a CPU.", values)
  flags.DEFINE_integer(
    "seconds",
    540,
    "Time that there is: parts are cut short, or left out.",
    None,
    None,
    values,
  )
  flags.DEFINE_bool("list", False, "Print what is run and needed.", values)
  flags.DEFINE_string("read", None, "Folder of another machine.", values)
  flags.DEFINE_string("only", None, "Used by the command itself.", values)


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
  """Markdown tables of result rows, one for each "table", in order."""
  from twostream_jax.files.tables import markdown

  grouped = {}
  for row in rows:
    grouped.setdefault(row["table"], []).append(row)
  lines = []
  for title, members in grouped.items():
    columns = list(dict.fromkeys(k for row in members for k in row))
    columns = [c for c in columns if c not in ("table", "part")]
    cells = [[_cell(row.get(c)) for c in columns] for row in members]
    lines += [f"## {title}", "", markdown(columns, cells), ""]
  return "\n".join(lines)


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  return "" if value is None else str(value).replace("\n", " ")


def append(out: Path, row: Mapping[str, Any]) -> None:
  """Adds a result; parts that run at the same time may both do so."""
  line = json.dumps(row) + "\n"
  # One write to a file opened for appending is not torn by another's.
  with open(out / "results.jsonl", "a", buffering=1) as file:
    file.write(line)
  print(line, end="", flush=True)


def write_tables(out: Path) -> list[dict[str, Any]]:
  """Rewrites results.md from results.jsonl; returns the rows."""
  from twostream_jax.files import replaced

  rows = []
  for line in (out / "results.jsonl").read_text().splitlines():
    # Where the disk was full, the last one may be cut off.
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  with replaced(out / "results.md") as temporary:
    temporary.write_text(tables(rows))
  return rows


def run_row(
  row: Mapping[str, int],
  out: Path,
  small: bool,
  interrupts: Sequence[int] = (),
) -> bool:
  """Runs parts at the same time, with their limits; whether all ended well.

  Args:
    row: Seconds by part.
    out: Folder of the results.
    small: Whether to use sizes for a CPU.
    interrupts: Grows by the number of each signal that comes.

  Raises:
    SystemExit: A signal came; all parts have ended.
  """
  began = time.monotonic()
  running, fine = {}, True
  try:
    for name in row:
      running[name] = _start(name, out, small)
    while running:
      time.sleep(0.05)
      if interrupts:
        sys.exit(128 + interrupts[0])
      seconds = time.monotonic() - began
      for name, process in list(running.items()):
        code = process.poll()
        if code is None and seconds < row[name]:
          continue
        reason = None if code == 0 else f"failed with exit code {code}"
        if code is None:
          reason = f"stopped after {row[name]} s"
        _end(running.pop(name))
        _say(out, name, reason, seconds=round(seconds, 1), allowed=row[name])
        write_tables(out)
        fine = fine and reason is None
  finally:
    # Also where this command is interrupted: nothing stays on the card.
    for process in running.values():
      _end(process)
  return fine


def _say(out: Path, name: str, trouble: str | None, **facts: float) -> None:
  """Adds a row to the table of parts."""
  row = {"table": "parts", "part": name, "name": name}
  append(out, row | facts | {"trouble": trouble})


def _start(name: str, out: Path, small: bool) -> subprocess.Popen:
  command = [sys.executable, __file__, f"--only={name}", f"--out={out}"]
  # Processes share the card: none may take most of its memory beforehand.
  environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  return subprocess.Popen(
    command + ["--small"] * small, env=environment, start_new_session=True
  )


def _end(process: subprocess.Popen) -> None:
  """Ends a part and all that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def run_all(
  out: Path,
  parts: Sequence[str],
  small: bool,
  seconds: int,
  interrupts: Sequence[int] = (),
) -> bool:
  """Runs parts in order, while they fit; whether all ended well.

  Args:
    out: Folder of the results.
    parts: Names of those that are wanted.
    small: Whether to use sizes for a CPU.
    seconds: Time that there is.
    interrupts: See `run_row`.
  """
  began, fine = time.monotonic(), True
  for row in ROWS:
    # Two cores compile more slowly than a machine with an accelerator does.
    chosen = {n: limit * (1 + small) for n, limit in row.items() if n in parts}
    left = seconds - (time.monotonic() - began)
    if not chosen:
      continue
    if left < max(chosen.values()):
      # A part whose results come one by one may as well begin.
      chosen = {name: int(min(limit, left)) for name, limit in chosen.items()}
    if left < 20:
      for name in chosen:
        _say(out, name, "left out: no time left")
      fine = False
      continue
    fine = run_row(chosen, out, small, interrupts) and fine
  write_tables(out)
  return fine


def run_part(name: str, out: Path, small: bool) -> bool:
  """Runs a part in this process; whether nothing in it failed."""
  import accelerator_checks
  import accelerator_sizes
  import accelerator_speed

  sizes = accelerator_sizes.SMALL if small else accelerator_sizes.FULL
  part = (accelerator_speed.PARTS | accelerator_checks.parts(out))[name]
  fine = True
  for row in part(sizes):
    append(out, {"part": name} | row)
    fine = fine and not row.get("trouble")
  return fine


def main(argv: Sequence[str]) -> None:
  """Runs the program on the flags of the command line."""
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  values = flags.FLAGS
  if values.list:
    for row in ROWS:
      print(", ".join(f"{name} ({limit} s)" for name, limit in row.items()))
    print("wheels:", " ".join(WHEELS))
    return
  # Only the folder of this script is on the path.
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
  if values.read:
    import accelerator_checks

    print(tables(accelerator_checks.read_checkpoint(Path(values.read))))
    return
  if not values.out:
    raise app.UsageError("--out=DIR is needed: where results are written")
  out = Path(values.out)
  if values.only:
    sys.exit(0 if run_part(values.only, out, values.small) else 1)
  # Noted, not raised: between the start of a part and the note of it, an
  # exception would leave the part behind.
  interrupts = []
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: interrupts.append(number))
  try:
    out.mkdir(parents=True, exist_ok=True)
    # Made here, so that a second run into the folder sees it.
    (out / "results.jsonl").open("x").close()
  except FileExistsError as error:
    raise app.UsageError(
      f"--out={out} is a file or holds results already: use another folder"
    ) from error
  if not run_all(out, values.part, values.small, values.seconds, interrupts):
    sys.exit(1)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
