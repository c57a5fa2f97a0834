"""Signals: the first asks to end, the second ends."""

import os
import signal
import subprocess
import sys
import textwrap
import types

import pytest

from tests.paths import ROOT
from twostream_jax import experiment, interrupts, launch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did(
  number, capfd
):
  second = []
  before = signal.signal(number, lambda *_: second.append(number))
  try:
    with interrupts.catch_signals() as should_stop:
      assert not should_stop()
      os.kill(os.getpid(), number)
      assert should_stop() and not second
      os.kill(os.getpid(), number)
      assert second == [number]
    os.kill(os.getpid(), number)
    assert second == [number] * 2
  finally:
    signal.signal(number, before)
  said = capfd.readouterr().err
  assert said.count(signal.Signals(number).name) == 1


def test_never_never_stops():
  assert not interrupts.never()


@pytest.fixture
def defaults():
  """Handlers of a process in the foreground; others may ignore SIGINT."""
  before = {
    signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
  }
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_block_as_an_error_does(number, capfd, defaults):
  before = signal.getsignal(number)
  cleaned = []

  def work():
    try:
      # Twice, as `timeout` sends it: cleaning up is not cut short.
      os.kill(os.getpid(), number)
    except interrupts.Ended as ended:
      os.kill(os.getpid(), number)
      cleaned.append(True)
      ended.add_note("2 answers are kept")
      raise

  with pytest.raises(SystemExit) as caught, interrupts.exit_at_signals("p"):
    work()
  assert caught.value.code == 128 + number and cleaned
  name = signal.Signals(number).name
  assert capfd.readouterr().err == f"p: ended by {name}; 2 answers are kept\n"
  assert signal.getsignal(number) is before


def run_python(code, *arguments):
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_training_that_is_ended_while_it_imports_is_to_be_repeated(tmp_path):
  found = run_python(
    """
    import os, signal, sys
    from twostream_jax import main

    class Importing:
      def find_spec(name, *_):
        if name == "twostream_jax.experiment":
          os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.meta_path.insert(0, Importing)
    flags = ["--config=quickstart", "--workdir=" + sys.argv[1]]
    main.parse_flags(["main", *flags])
    main.main(["main"])
    """,
    tmp_path,
  )
  assert found.returncode == interrupts.EXIT_CODE, found.stderr
  assert found.stderr.endswith("twostream_jax.main: ended by SIGTERM\n")


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_ended_before_it_begins_is_to_be_repeated(
  number, tmp_path, monkeypatch, capsys
):
  cleaned = []

  def open_or_build(config):
    try:
      os.kill(os.getpid(), number)
    finally:
      cleaned.append(True)

  monkeypatch.setattr(experiment, "open_or_build", open_or_build)
  monkeypatch.setattr(launch, "cache_compilations", lambda *_: None)
  values = types.SimpleNamespace(
    stage="",
    checkpoint=None,
    compilation_cache=None,
    distributed=False,
    coordinator=None,
    mode="train",
  )
  with pytest.raises(SystemExit) as caught:
    experiment.execute("p", None, tmp_path, values)
  assert caught.value.code == interrupts.EXIT_CODE and cleaned
  name = signal.Signals(number).name
  assert capsys.readouterr().err == f"p: ended by {name}\n"


@pytest.mark.usefixtures("defaults")
def test_a_signal_that_comes_again_later_ends_too(monkeypatch):
  monkeypatch.setattr(interrupts, "_SAME", 0.0)
  with pytest.raises(SystemExit), interrupts.exit_at_signals("p"):
    # Where an exception can't leave, it is lost.
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    except interrupts.Ended:
      os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with interrupts.exit_at_signals("p"):
      os.kill(os.getpid(), signal.SIGINT)
  finally:
    signal.signal(signal.SIGINT, before)
