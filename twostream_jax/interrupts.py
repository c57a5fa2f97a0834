"""Signals that ask to end: a run at the next safe moment, others at once."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

# "Temporary failure; the user is invited to retry" (EX_TEMPFAIL, sysexits.h):
# what a job scheduler may take as a reason to start the same command again.
EXIT_CODE = 75

# Seconds in which a signal that comes again is the same one: `timeout` of GNU
# coreutils sends it to a process and then to its group.
_SAME = 1.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """The run was asked to end, and has saved what it had to."""


class Ended(BaseException):
  """A signal asked to end; no `except Exception` holds it.

  Attributes:
    number: Of the signal.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


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


@contextlib.contextmanager
def exit_at_once(program: str, code: int | None = None) -> Iterator[None]:
  """Lets SIGTERM and SIGINT end the process at once, in a line; for imports.

  There is nothing to clean up yet, and an exception that a signal raises while
  an extension module is imported aborts the process.

  Args:
    program: Name that the line begins with.
    code: Exit code; None: 128 and the number of the signal, as shells do.
  """

  def end(number, frame):
    del frame
    said = f"{program}: ended by {signal.Signals(number).name}\n"
    os.write(sys.stderr.fileno(), said.encode())
    os._exit(128 + number if code is None else code)

  with _handled_by(end):
    yield


@contextlib.contextmanager
def _handled_by(handler) -> Iterator[None]:
  """Sets a handler of both signals, where they are not ignored."""
  before = {}
  for number in _SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      before[number] = signal.signal(number, handler)
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)


@contextlib.contextmanager
def exit_at_signals(program: str, code: int | None = None) -> Iterator[None]:
  """Lets SIGTERM and SIGINT end the block by an exception, then the process.

  The block cleans up as after any error. The process then says, in a line with
  the notes of the exception, which signal it was, and exits. Signals that the
  process was started to ignore are ignored.

  Args:
    program: Name that the line begins with.
    code: Exit code; None: 128 and the number of the signal, as shells do.
  """
  last = -_SAME

  def end(number, frame):
    nonlocal last
    del frame
    now = time.monotonic()
    same, last = now - last < _SAME, now
    if not same:
      raise Ended(number)

  try:
    with _handled_by(end):
      yield
  except Ended as ended:
    notes = getattr(ended, "__notes__", [])
    said = "; ".join([f"ended by {ended}", *notes])
    print(f"{program}: {said}", file=sys.stderr)
    sys.exit(128 + ended.number if code is None else code)
