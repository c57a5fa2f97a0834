"""Reads damaged and hostile files, thousands of them, format by format.

  python tests/fuzz.py --target=h5 --inputs=10000 --seed=0

A target has a few small, valid files and the function of the package that
reads them. Each input is one of these files, changed at random, by a number
that makes it again: `--first=N --inputs=1`. A reader may refuse it by an error
of its own, in one line that names the file, or give an answer. All else is a
fault: another error, another kind of message, more than `BYTES_PER_BYTE` times
the file and `FREE_BYTES` of memory, more than `SECONDS` of processor time, or
the end of the process. Inputs run in processes of their own, so that such an
end is seen and named. The first input of each fault is kept in --out.
"""

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

import numpy as np

if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tests import fuzz_mutations, fuzz_targets  # noqa: E402
from twostream_jax.files import words  # noqa: E402

SECONDS = 5.0
BYTES_PER_BYTE = 4
FREE_BYTES = 256 * 2**20
# Wall clock; other work may keep the processor busy.
_PATIENCE = 60.0
# Address space; what is asked for beyond it raises MemoryError.
_ADDRESS_SPACE = 64 * 2**30
_LONGEST_MESSAGE = 4000
READ, REFUSED = "read", "refused"


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of an input.

  Attributes:
    number: of the input.
    outcome: READ, REFUSED, or the fault in a few words.
    detail: of a fault; inputs of one outcome may differ in it.
    seconds: of processor time.
    grown: bytes of memory beyond what the process had.
  """

  number: int
  outcome: str
  detail: str = ""
  seconds: float = 0.0
  grown: int = 0

  @property
  def is_fault(self) -> bool:
    return self.outcome not in (READ, REFUSED)


def make_input(seeds, seed: int, number: int):
  """The file of a seed that an input replaces, and its bytes.

  Args:
    seeds: paths of valid files; see `fuzz_targets.Target`.
    seed: of the run.
    number: of the input. The first ones are the seeds as they are.
  """
  if number < len(seeds):
    return seeds[number], seeds[number].read_bytes()
  rng = np.random.default_rng([seed, number])
  chosen = seeds[rng.integers(len(seeds))]
  others = [path.read_bytes() for path in seeds]
  return chosen, fuzz_mutations.mutate(chosen.read_bytes(), others, rng)


def run_target(name, folder, *, inputs, seed, first=0, workers=2, tell=None):
  """Yields the result of each input, in any order.

  Args:
    name: a key of `fuzz_targets.TARGETS`.
    folder: where the target's files are made.
    inputs: how many.
    seed: of the random numbers.
    first: number of the first input.
    workers: processes.
    tell: called with each result.
  """
  target = fuzz_targets.TARGETS[name]
  folder.mkdir(parents=True, exist_ok=True)
  root = folder / "valid"
  if not root.exists():
    root.mkdir()
    target.make(root)
  context = multiprocessing.get_context("spawn")
  left = collections.deque(range(first, first + inputs))
  crew = {}

  def start(i):
    copy = folder / f"worker{i}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    ours, theirs = context.Pipe()
    process = context.Process(
      target=_work, args=(theirs, name, root, copy, seed), daemon=True
    )
    process.start()
    theirs.close()
    crew[ours] = [process, None, time.monotonic(), i]
    ours.send(None)

  for i in range(workers):
    start(i)
  while crew:
    ready = multiprocessing.connection.wait(list(crew), 1.0)
    for connection, (process, number, since, i) in list(crew.items()):
      result = None
      if connection in ready:
        try:
          result = connection.recv()
        except (EOFError, ConnectionResetError):
          process.join()
          code = process.exitcode
          result = Result(number, f"crash (exit code {code})")
      elif number is not None and time.monotonic() - since > _PATIENCE:
        process.kill()
        process.join()
        result = Result(number, "hang")
      else:
        continue
      if result is not None and result.number is not None:
        yield result
      if process.exitcode is not None:
        del crew[connection]
        connection.close()
        if left:
          start(i)
        continue
      if left:
        crew[connection][1:3] = left.popleft(), time.monotonic()
        connection.send(crew[connection][1])
      else:
        connection.close()
        del crew[connection]
        process.join()


def _work(connection, name, root, copy, seed) -> None:
  """Reads inputs until the connection is closed."""
  import resource

  # Whatever a library prints about a damaged file.
  null = os.open(os.devnull, os.O_WRONLY)
  if not os.environ.get("FUZZ_LOUD"):
    os.dup2(null, 1)
    os.dup2(null, 2)
  target = fuzz_targets.TARGETS[name]
  seeds = target.seeds(root)
  # What reading imports and keeps is not a cost of an input.
  for path in seeds[:1]:
    with contextlib.suppress(Exception):
      target.read(copy / path.relative_to(root))
  resource.setrlimit(
    resource.RLIMIT_AS, (_ADDRESS_SPACE, resource.RLIM_INFINITY)
  )
  with contextlib.suppress(EOFError, BrokenPipeError):
    while True:
      number = connection.recv()
      if number is None:
        connection.send(Result(None, READ))
        continue
      path, data = make_input(seeds, seed, number)
      place = copy / path.relative_to(root)
      place.write_bytes(data)
      try:
        result = examine(target, place, number)
      finally:
        target.restore(root, copy, path)
      connection.send(result)


def examine(target, path, number: int) -> Result:
  """Reads a file and judges how it went."""
  size = path.stat().st_size
  before = _resident(reset=True)
  begin = time.process_time() + sum(os.times()[2:4])
  outcome, detail = READ, ""
  try:
    target.read(path)
  except target.errors as error:
    outcome, detail = _judge(error, path, target)
  except Exception as error:
    outcome, detail = _unclean(error)
  took = time.process_time() + sum(os.times()[2:4]) - begin
  # Of a fork, what it added to this process; see `fuzz_targets`.
  grown = max(_resident() - before, fuzz_targets.forked.pop("grown", 0))
  if outcome in (READ, REFUSED):
    if took > SECONDS:
      outcome, detail = "slow", f"{took:.1f} s; {outcome}; {detail}"
    elif grown > BYTES_PER_BYTE * size + FREE_BYTES:
      outcome, detail = "memory", f"{grown >> 20} MiB; {outcome}; {detail}"
  return Result(number, outcome, detail, took, grown)


def _judge(error, path, target) -> tuple[str, str]:
  message = str(error)
  named = any(name in message for name in target.names(path))
  if not named:
    return f"words: {type(error).__name__} without the file's name", message
  if words.printable(message) != message or len(message) > _LONGEST_MESSAGE:
    return f"words: {type(error).__name__} of several lines or codes", message
  return REFUSED, message


def _unclean(error) -> tuple[str, str]:
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if "twostream_jax" in f.filename] or frames
  place = f"{pathlib.Path(own[-1].filename).name}:{own[-1].lineno}"
  return f"traceback: {type(error).__name__} at {place}", str(error)


def _resident(reset: bool = False) -> int:
  """The most bytes of memory since the last reset (Linux; else 0)."""
  try:
    if reset:
      pathlib.Path("/proc/self/clear_refs").write_text("5")
    status = pathlib.Path("/proc/self/status").read_text()
  except OSError:
    return 0
  return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> int:
  """Runs the command; 1 where there were faults."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--target", default="all", help=", ".join(fuzz_targets.TARGETS)
  )
  parser.add_argument("--inputs", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--out", type=pathlib.Path, default="fuzz_faults")
  values = parser.parse_args()
  names = values.target.split(",")
  if values.target == "all":
    names = list(fuzz_targets.TARGETS)
  total = 0
  for name in names:
    begin = time.monotonic()
    counts, first = collections.Counter(), {}
    slowest, grown = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="fuzz_") as made:
      folder = pathlib.Path(made)
      for result in run_target(
        name,
        folder,
        inputs=values.inputs,
        seed=values.seed,
        first=values.first,
        workers=values.workers,
      ):
        counts[result.outcome] += 1
        slowest = max(slowest, result.seconds)
        grown = max(grown, result.grown)
        if result.is_fault and result.outcome not in first:
          first[result.outcome] = result
          seeds = fuzz_targets.TARGETS[name].seeds(folder / "valid")
          path, data = make_input(seeds, values.seed, result.number)
          values.out.mkdir(parents=True, exist_ok=True)
          kept = (
            values.out / f"{name}-{values.seed}-{result.number}-{path.name}"
          )
          kept.write_bytes(data)
          print(
            f"  {name}: {result.outcome}: {result.detail!r:.300}\n"
            f"    --target={name} --seed={values.seed} --first={result.number}"
            f" --inputs=1; kept as {kept}",
            flush=True,
          )
    took = time.monotonic() - begin
    told = ", ".join(f"{n} {what}" for what, n in counts.most_common())
    print(
      f"{name}, seed {values.seed}: {counts.total()} inputs in {took:.0f} s:"
      f" {told}; slowest {slowest:.2f} s, most memory {grown / 2**20:.0f} MiB",
      flush=True,
    )
    total += len(first)
  return min(total, 1)


if __name__ == "__main__":
  sys.exit(main())
