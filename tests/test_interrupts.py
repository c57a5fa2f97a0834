"""Signals: the first asks to end, the second ends."""

import os
import signal

import pytest

from twostream_jax import interrupts


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
