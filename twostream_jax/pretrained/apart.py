"""Reads files by a process of its own, where a library may crash or hang.

What parses HDF5 and MATLAB files was not written for damaged ones: some end
the process, some are read for ever, and some take all memory. This file is also
the program of that process. It imports nothing but the standard library, and
loads a reader from its file: a module that imports no part of this package.
"""

import contextlib
import io
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

# Bytes that the reader may take beside a multiple of the file's.
_FREE = 2**29
_MOST_GROWN = 10
# Seconds of processor time, and bytes that a second reads at the least.
_SECONDS = 4
_BYTES_PER_SECOND = 10**7


class ApartError(ValueError):
  """The process could not read a file; the message names no file."""


def call(reader: str, content: BinaryIO | memoryview | bytes, size: int):
  """Runs a reader in a process of its own.

  Args:
    reader: Path of the module. Its `serve` is called with the content, a binary
      file, with its size, and with a binary file for the answer.
    content: An open file at its start, or the bytes of one.
    size: Bytes of the file.

  Returns:
    The answer, bytes.

  Raises:
    ApartError: The reader refused it, crashed, or took far too much.
  """
  # -P: no module of the current folder is taken for one of these.
  command = [sys.executable, "-P", __file__, reader, str(size)]
  if isinstance(content, memoryview | bytes):
    done = subprocess.run(command, capture_output=True, input=content)
  else:
    done = subprocess.run(command, capture_output=True, stdin=content)
  return _answer(done.returncode, done.stdout, done.stderr)


def _answer(code: int, answer: bytes, said: bytes) -> bytes:
  """What a process that ended with a code has answered, or an ApartError."""
  if code in (-signal.SIGXCPU, -signal.SIGKILL):
    raise ApartError("damaged: its reader took too long")
  if code < 0:
    raise ApartError("damaged: its reader crashed on it")
  if code:
    lines = said.decode(errors="replace").strip().splitlines()
    raise ApartError(lines[-1] if lines else "it can't be read")
  return answer


def _limit(size: int) -> None:
  """Ends this process where a file of `size` bytes takes far more than that."""
  seconds = _SECONDS + size // _BYTES_PER_SECOND
  resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
  # A crash is expected, its image of the memory is not wanted.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  # What is mapped now, of libraries: macOS does not tell.
  with contextlib.suppress(OSError, ValueError):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _FREE + _MOST_GROWN * size
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _main(reader: str, size: int) -> None:
  """Writes an answer to standard output, or ends with 1 and why."""
  # A library may print what it thinks of the file.
  answers = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)
  functions = runpy.run_path(reader)
  content = sys.stdin.buffer
  if not content.seekable():
    content = io.BytesIO(content.read())
  _limit(size)
  sys.exit(_serve(functions, content, size, answers, sys.stderr.buffer))


def _serve(
  functions: Mapping[str, Any],
  content: BinaryIO,
  size: int,
  answers: BinaryIO,
  said: BinaryIO,
) -> int:
  """Answers as `call` has it: 0, or 1 and why."""
  try:
    functions["serve"](content, size, answers)
    answers.flush()
    return 0
  except MemoryError:
    reason = "damaged: it takes far more memory than its size"
  except Exception as error:
    reason = " ".join(str(error).split()) or type(error).__name__
  said.write(reason.encode(errors="backslashreplace"))
  said.flush()
  return 1


if __name__ == "__main__":
  _main(sys.argv[1], int(sys.argv[2]))
