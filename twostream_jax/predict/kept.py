"""Lines of answers in a file, kept where the command does not get to its end.

Answers go to FILE.partial as they come. Its first line is the command that they
belong to; the same command resumes. When all answers are there, FILE is written
and FILE.partial is removed.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import operator
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twostream_jax import files
from twostream_jax.files import json_files
from twostream_jax.files.words import printable
from twostream_jax.flow.spec import to_dict
from twostream_jax.predict import outputs
from twostream_jax.stages.trained import TrainedRun

Answer = dict[str, Any]


def partial_path(path: Path) -> Path:
  """Returns where answers are until all of them are there."""
  return path.with_name(f"{path.name}.partial")


def facts_of(run: TrainedRun, options: Mapping[str, Any]) -> dict[str, Any]:
  """Collects what answers depend on besides the videos, JSON-ready.

  Args:
    run: Its classes, flow, stages, protocols, weights and fusion rules with
      their parameters.
    options: Flags by name, JSON-ready.
  """
  facts = {
    **options,
    "classes": _digest(list(run.class_names)),
    "flow": _digest(to_dict(run.flow_spec)),
  }
  for name, rule in run.rules.items():
    facts[f"fusion {name}"] = _digest(dataclasses.asdict(rule))
  for name, stage in run.stages.items():
    digest = 0
    for leaf in jax.tree_util.tree_leaves(stage.variables):
      digest = zlib.crc32(
        np.ascontiguousarray(leaf).view(np.uint8).data, digest
      )
    facts[f"stage {name}"] = {
      "step": stage.step,
      "protocol": stage.protocol,
      "weights": f"{digest:08x}",
    }
  return facts


def _digest(facts: Any) -> str:
  """Tells JSON-ready values, and arrays in them, from others."""
  text = json.dumps(
    facts, sort_keys=True, default=operator.methodcaller("tolist")
  )
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(path: Path, facts: Mapping[str, Any]) -> list[Answer]:
  """Reads the answers that an interrupted command left for a file, in order.

  Videos without an answer are left out, to be tried once more, and so are
  answers whose files (tables, pictures) are gone.

  Args:
    path: The file that the command was to write.
    facts: Of this command, see `facts_of`.

  Raises:
    ValueError: They belong to another command; the message says how it differs.
  """
  partial = partial_path(path)
  if not os.path.lexists(partial):
    return []
  # A last line without its end was cut off.
  content = json_files.read_bytes(partial, sys.maxsize)
  advice = "move it or remove it, or name another --json"
  try:
    json_files.require_bounded(content, json_files.GROWN)
    lines = content.split(b"\n")[:-1]
    if not content:
      return []
    theirs = json_files.parse(lines[0])["command"].copy()
    found = [json_files.parse(line) for line in lines[1:]]
    answers = [(line["answer"], line["video"]) for line in found]
    for answer, _ in answers:
      _check(answer)
  except (ValueError, TypeError, LookupError, AttributeError) as error:
    message = f"{partial} does not hold answers of this command: {advice}"
    raise ValueError(message) from error
  for name in sorted(theirs.keys() | facts.keys()):
    if theirs.get(name) != facts.get(name):
      raise ValueError(
        f"{partial} holds answers of another command ({printable(name)}:"
        f" {printable(str(theirs.get(name)))}, here {facts.get(name)}):"
        f" {advice}"
      )
  return [answer for answer, video in answers if _holds(answer, video)]


def _check(answer: Answer) -> None:
  """Raises any error for what is not an answer."""
  texts = [answer["path"], *answer.get("files", {}).values()]
  if not all(isinstance(text, str) for text in texts):
    raise TypeError("paths are not strings")


def _holds(answer: Answer, video: list[int] | None) -> bool:
  """Whether an answer is one, its files are there, and its video is as then."""
  written_files = answer.get("files", {}).values()
  return (
    "error" not in answer
    and all(map(os.path.exists, written_files))
    and _stamp(answer["path"]) == video
  )


def _stamp(path: str) -> list[int] | None:
  """Size and time of change of a file; None: there is none, as for a URL.

  Of a folder of frames it is the sum of sizes, the last time, and a checksum
  over all images: the folder's own time stays where one is overwritten.
  """
  local = outputs.local_path(path)
  try:
    found = os.stat(local)
    if not stat.S_ISDIR(found.st_mode):
      return [found.st_size, found.st_mtime_ns]
    with os.scandir(local) as entries:
      images = sorted((entry.name, entry.stat()) for entry in entries)
  except (OSError, ValueError):
    return None
  listed = [[name, s.st_size, s.st_mtime_ns] for name, s in images]
  return [
    sum(size for _, size, _ in listed),
    max([found.st_mtime_ns, *(time for _, _, time in listed)]),
    zlib.crc32(json.dumps(listed).encode()),
  ]


def unanswered(paths: Sequence[str], answers: Sequence[Answer]) -> list[int]:
  """Returns the places of the paths without an answer."""
  left = collections.Counter(answer["path"] for answer in answers)
  places = []
  for place, path in enumerate(paths):
    if left[path]:
      left[path] -= 1
    else:
      places.append(place)
  return places


@contextlib.contextmanager
def opened(
  path: Path,
  facts: Mapping[str, Any],
  before: Sequence[Answer],
  videos: Iterable[str] = (),
) -> Iterator[Callable[[Answer], None]]:
  """Yields what writes an answer; a file appears when the block is over.

  Where the block fails or is interrupted, FILE.partial keeps the answers, and
  the error has a note that says so.

  Args:
    path: The file.
    facts: Of the command, see `facts_of`.
    before: Answers that `find` gave.
    videos: Paths of all videos. They are looked at now, before any is read: one
      that is replaced in the meantime is answered again.

  Raises:
    ValueError: Another command is writing the file.
    WriteError: A file can't be written.
  """
  partial = partial_path(path)
  head = _line({"command": facts})
  stamps = {video: _stamp(video) for video in videos}
  with files.locked(partial.with_name(f".{partial.name}.lock")) as held:
    if not held:
      raise ValueError(
        f"another command is writing {partial}: wait for it, or name another"
        " --json"
      )
    yield from _opened(path, partial, head, before, stamps)


def _opened(
  path: Path,
  partial: Path,
  head: bytes,
  before: Sequence[Answer],
  stamps: Mapping[str, list[int] | None],
) -> Iterator[Callable[[Answer], None]]:
  def line(answer: Answer) -> bytes:
    video = answer["path"]
    found = stamps[video] if video in stamps else _stamp(video)
    return _line({"answer": answer, "video": found})

  with outputs.written(partial) as temporary:
    temporary.write_bytes(b"".join([head, *map(line, before)]))
  count = len(before)
  try:
    # Unbuffered: what is written is in the file, whatever happens next.
    with open(partial, "ab", buffering=0) as file:

      def add(answer: Answer) -> None:
        nonlocal count
        _write(file, line(answer), partial)
        count += 1

      yield add
    with outputs.written(path) as temporary:
      _copy_answers(partial, temporary)
  except BaseException as error:
    if count:
      error.add_note(
        f"{partial} keeps the answers so far ({count}): the same command"
        " resumes"
      )
    else:
      partial.unlink(missing_ok=True)
    raise
  partial.unlink()


def _copy_answers(partial: Path, target: Path) -> None:
  with open(partial, "rb") as lines, open(target, "wb") as copy:
    next(lines)  # The command.
    copy.writelines(_line(json.loads(line)["answer"]) for line in lines)


def _line(answer: Mapping[str, Any]) -> bytes:
  return json.dumps(answer, allow_nan=False).encode() + b"\n"


def _write(file, line: bytes, path: Path) -> None:
  try:
    while line:
      line = line[file.write(line) :]
  except OSError as error:
    raise outputs.WriteError(path, error) from error
