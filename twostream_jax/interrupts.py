"""Signals that ask a run to end: it ends at the next safe moment."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

# "Temporary failure; the user is invited to retry" (EX_TEMPFAIL, sysexits.h):
# what a job scheduler may take as a reason to start the same command again.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """The run was asked to end, and has saved what it had to."""


def never() -> bool:
  """Nothing asks to end."""
  return False


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
  """Turns SIGTERM and SIGINT into a question that a loop can ask.

  The second signal of a kind does what it always did: it ends the process at
  once.

  Yields:
    A function: whether a signal has come.
  """
  came = []
  before = {}

  def note(number, frame):
    del frame
    came.append(number)
    signal.signal(number, before[number])
    name = signal.Signals(number).name
    text = f"\n{name}: ending at the next safe moment (again: at once)\n"
    # Not print: the signal may come while something is being printed.
    os.write(sys.stderr.fileno(), text.encode())

  for number in _SIGNALS:
    before[number] = signal.signal(number, note)
  try:
    yield lambda: bool(came)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
