"""Starts the command again and again, without importing it again.

Reads a line of JSON, {"argv": [...], "log": path}, forks a process that runs
`twostream_jax.main` with these arguments, and writes its process id; when it
has ended, its exit code (minus the number of the signal that killed it). The
children are processes as real as any, which start a second sooner.
"""

import importlib
import json
import os
import sys

from absl import app

from twostream_jax import main


def run(argv, log):
  """In the child: becomes the command; never returns."""
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(file, 1)
  os.dup2(file, 2)
  # The flags of config files look here, whatever they are given.
  sys.argv = ["twostream_jax.main", *argv]
  app.run(main.main, flags_parser=main.parse_flags)


def serve():
  """Serves the lines of standard input, one child at a time."""
  print("ready", flush=True)
  for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
      try:
        run(**job)
      except SystemExit as end:
        sys.stdout.flush()
        if isinstance(end.code, str):
          print(end.code, file=sys.stderr, flush=True)
        os._exit(end.code if isinstance(end.code, int) else bool(end.code))
      finally:
        os._exit(1)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
  # Once, here: the command itself imports it when its flags are parsed. Not
  # above, where processes that decode would import it too.
  importlib.import_module("twostream_jax.experiment")
  serve()
