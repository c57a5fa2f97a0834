"""The measuring command for accelerators, in small on the CPU."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from tests.paths import ROOT
from tests.xla_flags import COMPILE_FAST


@pytest.fixture
def command(monkeypatch):
  """The module of the command."""
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  return importlib.import_module("accelerator")


def run(*arguments):
  return subprocess.run(
    [sys.executable, ROOT / "benchmarks/accelerator.py", *arguments],
    env=os.environ | {"XLA_FLAGS": COMPILE_FAST},
    capture_output=True,
    text=True,
  )


@pytest.mark.walkthroughs
def test_every_part_runs_and_what_it_leaves_can_be_read(command, tmp_path):
  out = tmp_path / "out"
  found = run("--small", f"--out={out}")
  assert found.returncode == 0, found.stdout + found.stderr
  lines = (out / "results.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  parts = {name for row in command.ROWS for name in row}
  assert {row["name"] for row in rows if row["table"] == "parts"} == parts
  assert {row["part"] for row in rows if row["table"] != "parts"} == parts
  # Nothing failed, and there is a number wherever one is promised.
  assert not any(row.get("trouble") for row in rows)
  steps = [row for row in rows if row["table"].startswith("training step")]
  assert {"jax", "bfloat16"} <= {
    word for row in steps for word in (row["side"], row["part"][6:])
  }
  assert all(row["step, ms"] > 0 for row in steps if row["side"] == "jax")
  apart = [row["default (TF32)"] for row in rows if "default (TF32)" in row]
  assert apart and max(apart) < 1e-3
  text = (out / "results.md").read_text()
  assert all(row["table"] in text for row in rows)

  read = run(f"--read={out}")
  assert read.returncode == 0, read.stderr
  assert float(read.stdout.split("|")[-2]) < 1e-5

  again = run("--small", f"--out={out}")
  assert again.returncode != 0 and "holds results already" in again.stderr


def test_all_parts_but_the_last_fit_in_nine_minutes(command):
  *rows, _ = command.ROWS
  assert sum(max(row.values()) for row in rows) + 30 <= 540


def test_what_has_to_be_there_is_listed(command):
  found = run("--list")
  assert found.returncode == 0
  for name in (*command.WHEELS, *(n for row in command.ROWS for n in row)):
    assert name in found.stdout


def test_tables_have_a_column_for_every_key(command):
  rows = [
    {"table": "a", "part": "p", "x": 1.23456, "y": None},
    {"table": "b", "part": "p", "z": "two\nlines"},
    {"table": "a", "part": "q", "w": 3},
  ]
  assert command.tables(rows).splitlines() == [
    "## a", "", "| x | y | w |", "|---|---|---|", "| 1.235 |  |  |",
    "|  |  | 3 |", "", "## b", "", "| z |", "|---|", "| two lines |",
  ]  # fmt: skip


def parts_of(command, monkeypatch, bodies):
  """Replaces the parts by programs."""

  def start(name, out, small):
    del out, small
    return subprocess.Popen(
      [sys.executable, "-c", bodies[name]], start_new_session=True
    )

  monkeypatch.setattr(command, "_start", start)


def test_a_part_that_fails_or_hangs_is_named_and_the_others_go_on(
  command, monkeypatch, tmp_path
):
  rows = ({"bad": 20, "slow": 1}, {"good": 20})
  monkeypatch.setattr(command, "ROWS", rows)
  hanging = "import subprocess; subprocess.run(['sleep', '1234.5'])"
  bodies = {"bad": "raise SystemExit(3)", "slow": hanging, "good": ""}
  parts_of(command, monkeypatch, bodies)
  assert not command.run_all(tmp_path, list(bodies), False, 540)
  rows = {row["name"]: row["trouble"] for row in command.write_tables(tmp_path)}
  assert rows == {
    "bad": "failed with exit code 3",
    "slow": "stopped after 1 s",
    "good": None,
  }
  assert "stopped after 1 s" in (tmp_path / "results.md").read_text()
  # What the part had started has ended as well.
  listed = subprocess.run(
    ["ps", "-ewwf"], capture_output=True, text=True
  ).stdout
  assert "1234.5" not in listed


def test_parts_of_a_row_have_their_own_limits_and_times(
  command, monkeypatch, tmp_path
):
  bodies = {
    "long": "import time; time.sleep(2)",
    "over": "import time; time.sleep(60)",
    "short": "",
  }
  parts_of(command, monkeypatch, bodies)
  row = {"long": 30, "over": 1, "short": 30}
  assert not command.run_row(row, tmp_path, False)
  rows = {row["name"]: row for row in command.write_tables(tmp_path)}
  assert rows["over"]["trouble"] == "stopped after 1 s"
  assert rows["long"]["trouble"] is None and rows["short"]["trouble"] is None
  assert rows["short"]["seconds"] < 1 <= rows["over"]["seconds"]
  assert rows["over"]["seconds"] < 2 <= rows["long"]["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_goes_on_where_the_command_is_interrupted(tmp_path, number):
  process = subprocess.Popen(
    [
      *(sys.executable, ROOT / "benchmarks/accelerator.py", "--small"),
      *("--part=losses", "--part=agreement", f"--out={tmp_path / 'out'}"),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  mark = f"--out={tmp_path / 'out'}"

  def started():
    listed = subprocess.run(
      ["ps", "-ewwo", "args"], capture_output=True, text=True
    ).stdout
    return [x for x in listed.splitlines() if mark in x and "--only" in x]

  limit = time.monotonic() + 30
  while len(started()) < 2 and time.monotonic() < limit:
    time.sleep(0.1)
  assert len(started()) == 2
  process.send_signal(number)
  assert process.wait(timeout=20) != 0
  assert not started()


def test_a_line_that_was_cut_off_costs_no_other(command, tmp_path):
  command.append(tmp_path, {"table": "a", "x": 1})
  with open(tmp_path / "results.jsonl", "a") as file:
    file.write('{"table": "a", "x"')
  assert command.write_tables(tmp_path) == [{"table": "a", "x": 1}]


def test_a_side_that_ends_costs_no_other(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  train_step = importlib.import_module("train_step")

  class Pipe:
    """A side that answers so often."""

    def __init__(self, answers):
      self._answers = answers

    def send(self, question):
      self._question = question
      if not self._answers:
        raise BrokenPipeError

    def recv(self):
      if not self._answers:
        raise EOFError
      self._answers -= 1
      if self._answers == 4:
        return {"first": 1.0, "gflops": 0.0}
      return (2.0, 3.0) if self._question else 5.0

  found = train_step.compare({"a": Pipe(5), "b": Pipe(0)}, 3)
  assert set(found) == {"a"}
  assert (found["a"]["step"], found["a"]["memory"]) == (2.0, 5.0)
  dying = Pipe(5)
  dying._answers, recv = 5, dying.recv

  def once():
    answer = recv()
    dying._answers = 0
    return answer

  dying.recv = once
  assert set(train_step.compare({"a": Pipe(5), "c": dying}, 3)) == {"a"}


def test_no_part_begins_that_has_no_time_left(command, monkeypatch, tmp_path):
  monkeypatch.setattr(command, "ROWS", ({"first": 30}, {"second": 30}))
  parts_of(command, monkeypatch, dict.fromkeys(("first", "second"), ""))
  began = time.monotonic()
  assert not command.run_all(tmp_path, ["first", "second"], False, 10)
  assert time.monotonic() - began < 5
  for row in command.write_tables(tmp_path):
    assert row["trouble"] == "left out: no time left"


def test_flags_are_those_of_the_documentation(command):
  values = flags.FlagValues()
  command.define_flags(values)
  text = (ROOT / "docs/benchmarks.md").read_text()
  for name in ("out", "part", "small", "seconds", "list", "read"):
    assert f"--{name}" in text and name in values
