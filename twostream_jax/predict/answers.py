"""Answers as lines of JSON and as tables."""

import textwrap
from collections.abc import Mapping
from typing import Any

from twostream_jax.files import tables, words
from twostream_jax.flow.spec import to_dict
from twostream_jax.predict.predictor import Prediction
from twostream_jax.stages.trained import TrainedRun


def answer(found: Prediction, run: TrainedRun, top: int) -> dict[str, Any]:
  """A prediction, JSON-ready.

  Returns:
    "path"; "stages" and "fused", by name the most probable classes as
    [class, probability]; "protocol" by stage; "flow"; "frames"; "seconds" of
    the video; "elapsed", seconds until the answer.
  """
  return {
    "path": found.path,
    "stages": {name: found.top(name, top) for name in found.stages},
    "fused": {name: found.top(name, top) for name in found.fused},
    "protocol": dict(found.protocols),
    "flow": to_dict(run.flow_spec),
    "frames": found.num_frames,
    "seconds": found.seconds,
    "elapsed": round(found.elapsed, 3),
  }


def failure(path: str, reason: str) -> dict[str, str]:
  """A video without an answer: "path" and "error", why in one line."""
  return {"path": path, "error": " ".join(reason.split())}


def printable(text: str, encoding: str | None = None) -> str:
  """A text with escapes for what an encoding (None: UTF-8) does not have.

  Names of files may be of any bytes, and terminals may be of any encoding and
  obey codes in texts.
  """
  text, encoding = words.lines(text), encoding or "utf-8"
  return text.encode(encoding, "backslashreplace").decode(encoding)


def table(found: Mapping[str, Any]) -> str:
  """What `answer`, `failure` or `long_videos` gave, to read."""
  path = words.printable(found["path"])
  if "error" in found:
    return f"{path}: no answer: {found['error']}"
  if "segments" in found:
    return _segments(found)
  head = (
    f"{path}: {found['frames']} frames, {found['seconds']:.1f} s;"
    f" answered in {found['elapsed']:.1f} s"
  )
  rows = {**found["stages"], **found["fused"]}
  cells = [
    [name, *(f"{words.printable(label)} {share:.3f}" for label, share in row)]
    for name, row in rows.items()
  ]
  return f"{head}\n{textwrap.indent(tables.columns(cells), '  ')}"


def _segments(found: Mapping[str, Any]) -> str:
  head = (
    f"{words.printable(found['path'])}: {found['frames']} frames,"
    f" {found['seconds']:.1f} s;"
    f" {len(found['segments'])} segments by {found['by']!r} in"
    f" {found['elapsed']:.1f} s"
  )
  written = [f"  {kind}: {path}" for kind, path in found["files"].items()]
  return "\n".join([head, *written])
