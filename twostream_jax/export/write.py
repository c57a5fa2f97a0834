"""Writes an export: programs, weights, rules, runner and card."""

import json
import os
import platform as python_platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib.version
import numpy as np
import safetensors.numpy

import twostream_jax
from twostream_jax import files
from twostream_jax.export import PLATFORMS, runner
from twostream_jax.export.card import model_card
from twostream_jax.export.programs import (
  create_program,
  export_program,
  flat_weights,
  weights_of,
)
from twostream_jax.files import json_files
from twostream_jax.files.workdir import CONFIG_FILE
from twostream_jax.flow import spec as flow_spec
from twostream_jax.fuse.linear import LinearFusion
from twostream_jax.fuse.weighting import WeightedFusion
from twostream_jax.stages.rules import FusionRule
from twostream_jax.stages.trained import TrainedRun

RESULTS_FILE = "results.json"
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
FUSION_FILE = "fusion.json"
# Files of an export, and what Python leaves where its runner was imported. An
# earlier export is replaced only where nothing else is in it.
OWN = (
  r"(manifest|fusion)\.json",
  r"weights\.safetensors",
  rf"programs/[^/]+-({'|'.join(PLATFORMS)})\.jax",
  r"model_card\.md",
  r"runner\.py",
  r"__pycache__/runner\.[^/]+\.pyc",
)


class ExportError(ValueError):
  """The model can't be exported to where it should go, or is not the same."""


def export_run(
  run: TrainedRun,
  out: Path,
  *,
  licence: str = "",
  platforms: Sequence[str] = PLATFORMS,
) -> dict[str, tuple[float, bool]]:
  """Writes a run's stages, fusion and card to a folder, as a whole or not.

  What was written is read back by the runner before it gets its name.

  Args:
    run: opened by `trained.open_run`.
    out: the folder, or a link to it; an earlier export in it is replaced.
    licence: Licence of the weights, free text.
    platforms: of PLATFORMS.

  Returns:
    What `runner.check` found; nothing where this machine's platform is not one
    of `platforms`.

  Raises:
    ExportError: something else is in the folder, it can't be written, a
      platform is not known, or the exported model does not score as the run
      does.
    ForeignFileError: beside an earlier export, there are other files in it.
  """
  if not platforms or set(platforms) - set(PLATFORMS):
    raise ExportError(f"platforms {list(platforms)} must be of {PLATFORMS}")
  out = Path(out).absolute()
  _check_target(out)
  try:
    with files.replaced_folder(out, OWN) as temporary:
      _write(run, temporary, licence, platforms)
      return _check(temporary, platforms)
  except OSError as error:
    if error.filename != os.path.realpath(out):
      raise
    raise ExportError(
      f"can't write to {out} ({error.strerror}); make room or get access there,"
      " or name another folder with --out=DIR"
    ) from error


def _check_target(out: Path) -> None:
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return
  try:
    manifest = json_files.read_object(out / MANIFEST_FILE)
    known = manifest.get("format") == runner.FORMAT
  except json_files.JsonError:
    known = False
  if not known:
    raise ExportError(
      f"{out} is there already and is not an earlier export: remove it, or name"
      " another folder"
    )


def _check(folder: Path, platforms: Sequence[str]):
  """Reads the export back, where this machine can run it."""
  if runner.platform_here() not in platforms:
    return {}
  found = runner.check(folder)
  wrong = {name: value for name, (value, fits) in found.items() if not fits}
  if wrong:
    raise ExportError(
      f"the exported model does not score as the run does; largest relative"
      f" differences: {wrong}"
    )
  return found


def _write(
  run: TrainedRun, folder: Path, licence: str, platforms: Sequence[str]
) -> None:
  weights = flat_weights(run)
  (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(weights))
  (folder / "programs").mkdir()
  manifest = _facts(run, licence, platforms)
  for name in run.stages:
    stage, serialised = _export_stage(run, name, weights, platforms)
    manifest["stages"][name] = stage
    for platform, data in serialised.items():
      (folder / stage["programs"][platform]).write_bytes(data)
    stage["example_logits"] = _example_logits(run, name, weights, manifest)
  rules = {name: describe_rule(run, rule) for name, rule in run.rules.items()}
  _write_json(folder / FUSION_FILE, rules)
  _write_json(folder / MANIFEST_FILE, manifest)
  (folder / "model_card.md").write_text(model_card(manifest, rules))
  shutil.copyfile(runner.__file__, folder / "runner.py")


def _write_json(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _facts(
  run: TrainedRun, licence: str, platforms: Sequence[str]
) -> dict[str, Any]:
  """The manifest without its stages."""
  settings = json_files.read_object(run.workdir / CONFIG_FILE)
  with json_files.told(run.workdir / CONFIG_FILE):
    clips = {name: int(n) for name, n in settings["dataset"]["clips"].items()}
  data = run.config.data
  return {
    "format": runner.FORMAT,
    "format_version": runner.FORMAT_VERSION,
    "dataset": run.name,
    "licence": licence,
    "class_names": list(run.class_names),
    "multi_label": run.multi_label,
    "flow_spec": flow_spec.to_dict(run.flow_spec),
    "rgb_quality": run.rgb_quality,
    "clips": clips,
    "splits": {
      "train": data.train_split,
      "validate": data.validation_split,
      "test": data.test_split,
    },
    "results": _read_results(run, settings["dataset"]),
    "platforms": list(platforms),
    "weights": WEIGHTS_FILE,
    "fusion": FUSION_FILE,
    "stages": {},
    "versions": {
      "twostream_jax": twostream_jax.__version__,
      "Python": python_platform.python_version(),
      "jax": jax.__version__,
      "jaxlib": jaxlib.version.__version__,
      "flax": flax.__version__,
      "numpy": np.__version__,
    },
  }


def _read_results(
  run: TrainedRun, dataset: Mapping[str, Any]
) -> dict[str, Any] | None:
  """The run's results.json, if it has one.

  Args:
    run: The run.
    dataset: What its config.json says of the dataset.

  Raises:
    ExportError: It reports other weights, another protocol or other videos.
    JsonError: It can't be read.
  """
  path = files.inside(run.workdir, RESULTS_FILE)
  if not path.exists():
    return None
  found = json_files.read_object(path, finite=True)
  with json_files.told(path):
    # Earlier versions did not write down digests.
    weights = found.get("digests", {}).get("weights", {})
    videos = found.get("digests", {}).get("videos")
    wrong = [
      f"the numbers of stage {name!r} are of {what}"
      for name, stage in run.stages.items()
      for what, differs in {
        "another protocol": found["protocols"].get(name) != stage.protocol,
        "other weights": weights.get(name, stage.digest) != stage.digest,
      }.items()
      if differs
    ]
    tested_on = dataset.get("digest", {}).get(run.config.data.test_split)
    if None not in (videos, tested_on) and videos != tested_on:
      wrong.append("its numbers are of other videos or labels")
  if wrong:
    raise ExportError(
      f"{path} is not of this run as it is now ({wrong[0]}): give the command"
      " of the run again, which scores it"
    )
  return found


def _export_stage(
  run: TrainedRun,
  name: str,
  weights: Mapping[str, np.ndarray],
  platforms: Sequence[str],
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """A stage's part of the manifest, and its programs by platform."""
  program = create_program(run, name)
  exported = {p: export_program(program, weights, p) for p in platforms}
  params = jax.tree.leaves(run.stages[name].variables["params"])
  described = {
    "kind": program.kind,
    "network": program.network,
    "precision": run.config.precision,
    "parameters": sum(x.size for x in params),
    "step": run.stages[name].step,
    "protocol": run.stages[name].protocol,
    "weights": list(program.parts),
    "inputs": dict(program.inputs),
    "programs": {p: f"programs/{name}-{p}.jax" for p in platforms},
  }
  return described, {p: bytes(e.serialize()) for p, e in exported.items()}


def _example_logits(run, name, weights, manifest) -> list[list[float]]:
  """What this package computes for the example that `runner.check` computes."""
  program = create_program(run, name)
  inputs = runner.example(manifest, name)
  b, t = next(iter(inputs.values())).shape[:2]
  if program.kind == "features":
    inputs["length"] = np.full(b, t, np.int32)
  logits = jax.jit(program.function)(weights_of(weights, program.parts), inputs)
  return np.asarray(logits, np.float64).tolist()


def describe_rule(run: TrainedRun, rule: FusionRule) -> dict[str, Any]:
  """A rule as plain numbers: what `runner.fuse` applies."""
  if isinstance(rule.fitted, LinearFusion):
    fitted = rule.fitted
    return {
      "kind": "linear",
      "streams": list(fitted.streams),
      "l2_normalised": fitted.l2_normalised,
      "weights": (fitted.scale * fitted.weights).tolist(),
      "bias": (fitted.scale * fitted.bias + fitted.offset).tolist(),
      "rule": fitted.rule,
      "fitted_on": fitted.fitted_on,
    }
  streams = list(run.stages)
  weights, fitted_on = [1.0] * len(streams), ""
  scale, offset = 1.0, 0.0
  if isinstance(rule.fitted, WeightedFusion):
    streams, fitted_on = list(rule.fitted.streams), rule.fitted.fitted_on
    weights = list(rule.fitted.weights)
    scale, offset = rule.fitted.scale, rule.fitted.offset
  elif rule.name == "weighted":
    weights = list(rule.weights)
  share = np.asarray(weights, float) / sum(weights)
  logits = rule.name == "average_logits"
  return {
    "kind": "mean_of_logits" if logits else "mean_of_probabilities",
    "streams": streams,
    "weights": share.tolist(),
    "scale": scale,
    "offset": offset,
    "fitted_on": fitted_on,
  }
