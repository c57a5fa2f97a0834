"""Runs an exported model with `pip install jax safetensors flatbuffers` alone.

  import runner  # This file, which lies beside the model.
  model = runner.load("DIR")
  found = model.predict(rgb=rgb, flow=flow)
  model.top(found.fusion[RULE], 5)  # Of model.rules; or found.streams[STAGE].

`python runner.py` computes a stored example again and tells the difference.
See model_card.md for what the codes in `rgb` and `flow` mean.
"""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors.numpy

FORMAT = "twostream_jax export"
FORMAT_VERSION = 1
# JAX names platforms in its own way.
_PLATFORMS = {"gpu": "cuda"}
# The one call in a program of ours: JAX checks sizes by it, and removes it.
_ASSERTION = "custom_call @shape_assertion("
# Keeps a logarithm finite where all streams give zero.
_FLOOR = 1e-30
# Largest difference from the stored logits, relative to their size. Other
# platforms multiply with fewer bits (TF32, bfloat16).
_TOLERANCES = {"cpu": 1e-4}
_TOLERANCE_ELSEWHERE = 3e-2
# Of an input: videos, windows, height, width, channels.
_MOST_AXES = 5
# Argument of this file where it only reads programs, and what that may take in
# seconds of processor time and bytes beside a multiple of the programs'.
_READ = "--read"
_SECONDS = 10
_FREE = 2**30
# Bytes that JSON may take once it is parsed, beside a multiple of its size:
# rules fitted to 700 classes and four stages have eight million numbers.
_MOST_GROWN = 2**28
# Bytes of the names and shapes of weights; 1,000 arrays have 150,000.
_LONGEST_HEADER = 2**24

Inputs = np.ndarray | Mapping[str, np.ndarray] | None


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Scores of b videos.

  Attributes:
    streams: logits float32 [b n] by stage.
    fusion: fused logits float32 [b n] by rule; none unless all stages ran.
  """

  streams: dict[str, np.ndarray]
  fusion: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
  """An exported model.

  Attributes:
    manifest: what manifest.json holds.
    rules: of fusion, what fusion.json holds.
    weights: arrays by path, on the device.
    programs: of each stage: (weights, inputs) to logits.
  """

  manifest: dict[str, Any]
  rules: dict[str, Any]
  weights: dict[str, jax.Array]
  programs: dict[str, Any]

  @property
  def class_names(self) -> list[str]:
    """Logit i is of class i."""
    return self.manifest["class_names"]

  def predict(
    self,
    rgb: Inputs = None,
    flow: Inputs = None,
    length: np.ndarray | None = None,
    stages: Sequence[str] = (),
    windows_per_pass: int = 64,
  ) -> Prediction:
    """Scores videos by every stage and fuses the scores.

    Args:
      rgb: codes uint8 [b t h w 3] of b videos with t windows (views) each, for
        all stages that read frames; or by stage (or "stage/input", see the
        manifest), where they read different windows or sizes.
      flow: codes uint8 [b t h w 2l], like rgb.
      length: windows of each video that count, int [b], for stages that read
        sequences; None: all.
      stages: those to run; (): all.
      windows_per_pass: that pass through a network together: bounds the memory.

    Raises:
      ValueError: an input is missing or of a wrong shape or type.
    """
    logits = {}
    for name in stages or self.programs:
      if name not in self.programs:
        raise ValueError(f"no stage {name!r}; there are {list(self.programs)}")
      logits[name] = self._score(name, rgb, flow, length, windows_per_pass)
    sizes = {name: len(rows) for name, rows in logits.items()}
    if len(set(sizes.values())) > 1:
      raise ValueError(f"stages are given different numbers of videos: {sizes}")
    fused = {}
    if set(logits) == set(self.programs):
      multi_label = self.manifest["multi_label"]
      fused = {
        rule: fuse(settings, logits, multi_label)
        for rule, settings in self.rules.items()
      }
    return Prediction(logits, fused)

  def top(
    self, logits: np.ndarray, k: int = 5
  ) -> list[list[tuple[str, float]]]:
    """The k best classes of each row, with probabilities in 0..1.

    Margins of the rule "svm" rank, but are not calibrated probabilities.
    """
    shares = probabilities(logits, self.manifest["multi_label"])
    best = np.argsort(-shares, axis=1, kind="stable")[:, :k]
    return [
      [(self.class_names[i], float(row[i])) for i in chosen]
      for row, chosen in zip(shares, best, strict=True)
    ]

  def quantise(self, flow: np.ndarray) -> np.ndarray:
    """Codes uint8 of flow in pixels a step, by the bound of the model.

    Raises:
      ValueError: a component is not a number.
    """
    if np.isnan(flow).any():
      raise ValueError("flow holds values that are not a number")
    bound = self.manifest["flow_spec"]["bound"]
    shifted = np.clip(flow, -bound, bound) + bound
    return np.round(shifted * (255.0 / (2.0 * bound))).astype(np.uint8)

  def _score(self, name, rgb, flow, length, windows_per_pass) -> np.ndarray:
    """Logits [b n] of a stage."""
    stage = self.manifest["stages"][name]
    given = {"rgb": rgb, "flow": flow}
    inputs = {
      key: _pick(name, key, spec, given[spec["modality"]])
      for key, spec in stage["inputs"].items()
    }
    b, t = _same_windows(name, inputs)
    weights = {
      path: array
      for path, array in self.weights.items()
      if path.split("/")[0] in stage["weights"]
    }
    run = functools.partial(_in_passes, self.programs[name], weights)
    if stage["kind"] == "features":
      count = np.full(b, t) if length is None else np.asarray(length)
      if count.shape != (b,) or count.min() < 1 or count.max() > t:
        raise ValueError(f"length must be {b} numbers in 1..{t}")
      inputs["length"] = count.astype(np.int32)
      return run(inputs, max(1, windows_per_pass // t))
    windows = {
      key: x.reshape((b * t, 1) + x.shape[2:]) for key, x in inputs.items()
    }
    return run(windows, windows_per_pass).reshape((b, t, -1)).mean(axis=1)


def load(directory: str | os.PathLike, platform: str | None = None) -> Model:
  """Opens an exported model.

  Args:
    directory: of the export.
    platform: "cpu", "cuda" or "tpu"; None: the one that JAX computes on.

  Raises:
    ValueError: it is not an export that this file can read, or not for the
      platform; a file is damaged, or does not fit the others; it names files
      elsewhere, or its programs call functions outside of them.
  """
  directory = Path(directory)
  path = directory / "manifest.json"
  if not path.is_file():
    raise ValueError(f"no exported model in {directory}: no manifest.json")
  manifest = _read_json(path)
  found = manifest.get("format"), manifest.get("format_version")
  known = FORMAT, FORMAT_VERSION
  if found != known:
    raise ValueError(f"{path} is of {found!r:.200}, this file reads {known}")
  with _told(path):
    _check_manifest(manifest)
  platform = platform or platform_here()
  if platform not in manifest["platforms"]:
    raise ValueError(
      f"{path}: the model is exported for {manifest['platforms']}, not"
      f" {platform!r}"
    )
  rules_path = _inside(directory, manifest["fusion"])
  weights_path = _inside(directory, manifest["weights"])
  paths = {
    name: _inside(directory, stage["programs"][platform])
    for name, stage in manifest["stages"].items()
  }
  rules = _read_json(rules_path)
  with _told(rules_path):
    for rule in rules.values():
      _check_rule(rule, manifest)
  with _told(weights_path):
    with weights_path.open("rb") as file:
      header = int.from_bytes(file.read(8), "little")
    if header > _LONGEST_HEADER:
      raise ValueError(f"it has {header} bytes of names")
    weights = safetensors.numpy.load_file(weights_path)
  contents = {}
  for name, path in paths.items():
    with _told(path):
      contents[name] = path.read_bytes()
  faults = _faults(tuple(contents.values()))
  programs = {}
  for (name, content), fault in zip(contents.items(), faults, strict=True):
    if fault:
      raise ValueError(f"{_printable(paths[name])} {fault}")
    with _told(paths[name]):
      exported = jax.export.deserialize(bytearray(content))
      _check_fits(exported, manifest["stages"][name], weights)
    programs[name] = jax.jit(exported.call)
  return Model(
    manifest=manifest,
    rules=rules,
    weights=jax.device_put(weights),
    programs=programs,
  )


def _inside(directory: Path, name: str) -> Path:
  """The path of a file that the manifest names.

  Raises:
    ValueError: it leads out of the folder, or is not a file.
  """
  path = directory / name
  try:
    stays = path.resolve().is_relative_to(directory.resolve())
    is_file = path.is_file()
  except (ValueError, OSError, RuntimeError):
    stays = is_file = False
  if not stays:
    raise ValueError(
      f"manifest.json names {name!r:.200}, outside of {directory}"
    )
  # A pipe would be waited for.
  if not is_file:
    raise ValueError(
      f"{_printable(path)} is not there, or no file; manifest.json names it"
    )
  return path


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
  """Turns any error of a block that uses a file into one that names it."""
  try:
    yield
  # Parsers of damaged files raise whatever there is.
  except Exception as error:
    said = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
      said = "nested too deeply"
    elif isinstance(error, KeyError):
      said = f"it lacks {said}"
    raise ValueError(
      f"{_printable(path)} can't be read: {_printable(said)[:300]}"
    ) from error


def _printable(text: str | Path) -> str:
  """Escapes codes of terminals and line breaks."""
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode()
    for c in str(text)
  )


def _read_json(path: Path) -> dict[str, Any]:
  with _told(path):
    content = _parse(path.read_bytes())
    if not isinstance(content, dict):
      raise ValueError("it holds no names")
    return content


def _parse(data: bytes) -> Any:
  """Parses JSON that does not grow to far more than its size in memory."""
  # As `files.json_files.require_bounded` has them.
  sizes = {b"[": 72, b"{": 72, b'"': 28, b":": 134, b",": 48}
  grown = sum(size * data.count(token) for token, size in sizes.items())
  # Other characters may widen the whole text, and its parts, to four bytes.
  if grown > _MOST_GROWN + (4 if data.isascii() else -5) * len(data):
    raise ValueError(f"its {len(data)} bytes hold too many names and values")
  return json.loads(data.decode())


def _check_manifest(manifest: Mapping[str, Any]) -> None:
  """Raises any error for values that this file can't use."""
  names, platforms = manifest["class_names"], manifest["platforms"]
  bound, stages = manifest["flow_spec"]["bound"], manifest["stages"]
  for what, is_right in {
    "class_names are not strings": _are_texts(names) and len(names) > 0,
    "platforms are not strings": _are_texts(platforms),
    "multi_label is neither true nor false": isinstance(
      manifest["multi_label"], bool
    ),
    "the bound of flow_spec is not a positive number": _is_number(bound)
    and bound > 0,
    "weights or fusion name no file": _are_texts(
      [manifest["weights"], manifest["fusion"]]
    ),
    "there are no stages": isinstance(stages, dict) and len(stages) > 0,
  }.items():
    if not is_right:
      raise ValueError(what)
  for name, stage in stages.items():
    right = _are_texts([stage["kind"], *stage["programs"].values()])
    if set(platforms) - set(stage["programs"]):
      raise ValueError(f"stage {name!r} has no programs for all platforms")
    if not right or not _are_texts(stage["weights"]) or not stage["inputs"]:
      raise ValueError(f"stage {name!r} has no texts where they belong")
    for spec in stage["inputs"].values():
      sizes = spec["shape"]
      known = isinstance(sizes, list) and 2 < len(sizes) <= _MOST_AXES
      if not known or spec["modality"] not in ("rgb", "flow"):
        raise ValueError(f"stage {name!r} has inputs of no known shape")


@functools.lru_cache(maxsize=8)
def _faults(programs: tuple[bytes, ...]) -> list[str]:
  """What is wrong with serialised programs, each; "" is nothing.

  A process of its own reads them first, since what parses them may crash on
  damaged ones.
  """
  sizes = [str(len(program)) for program in programs]
  done = subprocess.run(
    # -P: no module of the current folder is taken for one of these.
    [sys.executable, "-P", __file__, _READ, *sizes],
    input=b"".join(programs),
    capture_output=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  found = [json.loads(line) for line in done.stdout.splitlines()]
  if len(found) == len(programs):
    return found
  said = done.stderr.decode(errors="replace").strip().splitlines()
  crashed = "can't be read: what parses it crashed, or took too long"
  if done.returncode > 0 and said:
    crashed = f"can't be read: {_printable(said[-1])[:300]}"
  return [*found, *[crashed] * (len(programs) - len(found))]


def _tell_faults(sizes: Sequence[int]) -> None:
  """Reads programs from standard input, and writes what `_faults` returns."""
  with contextlib.suppress(ImportError):  # There is none on Windows.
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(time.process_time()) + _SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # What is mapped now, of libraries: macOS does not tell.
    with contextlib.suppress(OSError, ValueError):
      pages = int(Path("/proc/self/statm").read_text().split()[0])
      most = pages * resource.getpagesize() + _FREE + 10 * sum(sizes)
      resource.setrlimit(resource.RLIMIT_AS, (most, most))
  for size in sizes:
    print(json.dumps(_fault(sys.stdin.buffer.read(size))), flush=True)


def _fault(program: bytes) -> str:
  try:
    text = jax.export.deserialize(bytearray(program)).mlir_module()
  # A parser of what may be anything.
  except Exception as error:
    said = _printable(str(error))[:300] or type(error).__name__
    return f"can't be read: {said}"
  # One calls a function of this process, by name, with any bytes.
  if text.count("custom_call") != text.count(_ASSERTION):
    return (
      "calls functions outside of it, which no export of twostream_jax does;"
      " it is not run"
    )
  return ""


def _check_fits(exported, stage: Mapping[str, Any], weights) -> None:
  """Raises ValueError where a program takes other arrays than it will get."""
  (arrays, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  given = {
    path: (array.shape, array.dtype)
    for path, array in weights.items()
    if path.split("/")[0] in stage["weights"]
  }
  taken = {path: (found.shape, found.dtype) for path, found in arrays.items()}
  if given != taken:
    differing = {
      path
      for path in given.keys() | taken.keys()
      if given.get(path) != taken.get(path)
    }
    raise ValueError(
      f"{len(differing)} arrays of the weights do not fit it, such as"
      f" {min(differing)!r}"
    )
  for key, spec in stage["inputs"].items():
    shape = [str(size) for size in inputs[key].shape]
    if shape != [str(size) for size in spec["shape"]]:
      raise ValueError(
        f"it reads {key!r} as {shape}, manifest.json says {spec['shape']}"
      )


def _check_rule(rule: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
  """Raises any error for a rule of fusion that `fuse` can't use."""
  streams, n = rule["streams"], len(manifest["class_names"])
  if not _are_texts(streams) or not set(streams) <= set(manifest["stages"]):
    raise ValueError(f"it fuses stages that there are not: {streams!r:.200}")
  shapes = {
    "mean_of_logits": {},
    "mean_of_probabilities": {"weights": (len(streams),)},
    "linear": {"weights": (n * len(streams), n), "bias": (n,)},
  }
  if rule["kind"] not in shapes:
    raise ValueError(f"no rule of kind {rule['kind']!r:.200}")
  if not streams:
    raise ValueError("it fuses no stages")
  for key, shape in shapes[rule["kind"]].items():
    values = np.array(rule[key], np.float64)
    if values.shape != shape or not np.isfinite(values).all():
      raise ValueError(f"{key} are not {shape} numbers")
  if rule["kind"] == "linear" and type(rule["l2_normalised"]) is not bool:
    raise ValueError("l2_normalised is neither true nor false")
  for key in ("scale", "offset"):
    if not _is_number(rule.get(key, 1.0)):
      raise ValueError(f"{key} is not a number")


def _are_texts(values: Any) -> bool:
  return isinstance(values, list) and all(isinstance(x, str) for x in values)


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and bool(np.isfinite(float(value)))


def platform_here() -> str:
  """The platform that JAX computes on, as exports name it."""
  backend = jax.default_backend()
  return _PLATFORMS.get(backend, backend)


def _pick(name: str, key: str, spec: dict[str, Any], given: Inputs):
  """A stage's input from what was given, with its shape checked."""
  modality, array = spec["modality"], given
  if isinstance(given, Mapping):
    array = given.get(f"{name}/{key}", given.get(name))
  if array is None:
    raise ValueError(f"stage {name!r} reads {modality}, which is not given")
  array = np.asarray(array)
  wanted = spec["shape"]
  fits = array.ndim == len(wanted) and all(
    isinstance(size, str) or size == found
    for size, found in zip(wanted, array.shape, strict=True)
  )
  if array.dtype != np.uint8 or not fits or 0 in array.shape:
    raise ValueError(
      f"stage {name!r} reads {modality} uint8 [{' '.join(map(str, wanted))}],"
      f" got {array.dtype} {list(array.shape)}; where stages differ, give"
      f" {modality} by stage: {{{name!r}: ...}}"
    )
  return array


def _same_windows(name: str, inputs: Mapping[str, np.ndarray]):
  """Videos and windows of a stage's inputs."""
  sizes = {key: array.shape[:2] for key, array in inputs.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f"stage {name!r} reads equally many of each, got {sizes}")
  return next(iter(sizes.values()))


def _in_passes(program, weights, inputs, size: int) -> np.ndarray:
  """A program over any number of rows, at most `size` of them at once."""
  count = len(next(iter(inputs.values())))
  rows = []
  for start in range(0, count, size):
    part = {key: x[start : start + size] for key, x in inputs.items()}
    missing = size - (count - start) if count > size else 0
    if missing > 0:
      # Filled up: another shape would have to be compiled.
      part = {
        key: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
        for key, x in part.items()
      }
    rows.append(np.asarray(program(weights, part)))
  return np.concatenate(rows)[:count]


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
  """Float64 [b n] of logits [b n]: softmax, or a sigmoid a class."""
  logits = np.asarray(logits, np.float64)
  if multi_label:
    return np.exp(-np.logaddexp(0.0, -logits))
  shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
  return shifted / shifted.sum(axis=1, keepdims=True)


def fuse(
  rule: Mapping[str, Any], logits: Mapping[str, np.ndarray], multi_label: bool
) -> np.ndarray:
  """Fused logits float32 [b n] by a rule of fusion.json.

  Args:
    rule: "kind" and what it needs.
    logits: [b n] by stage.
    multi_label: whether a clip has any number of classes.
  """
  chosen = [logits[name] for name in rule["streams"]]
  if rule["kind"] == "mean_of_logits":
    mean = np.mean(chosen, axis=0, dtype=np.float64)
    return np.asarray(mean, np.float32)
  present = [probabilities(x, multi_label) for x in chosen]
  if rule["kind"] == "mean_of_probabilities":
    mean = functools.partial(np.tensordot, rule["weights"], axes=1)
    fused = np.log(np.maximum(mean(present), _FLOOR))
    if multi_label:
      # Not 1 - fused, which rounds to 0 where all streams are sure.
      absent = [probabilities(-x, multi_label) for x in chosen]
      fused -= np.log(np.maximum(mean(absent), _FLOOR))
    fused = rule.get("scale", 1.0) * fused + rule.get("offset", 0.0)
    return fused.astype(np.float32)
  if rule["kind"] != "linear":
    raise ValueError(f"no rule of kind {rule['kind']!r}")
  if rule["l2_normalised"]:
    present = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in present]
  features = np.concatenate(present, axis=1)
  weights, bias = np.array(rule["weights"]), np.array(rule["bias"])
  return (features @ weights + bias).astype(np.float32)


def example(manifest: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
  """Codes that look like noise, for two videos: the stored example."""
  inputs = {}
  for key, spec in manifest["stages"][name]["inputs"].items():
    sizes: dict[Any, int] = {"b": 2, "t": 1}
    shape = [sizes[x] if x in sizes else int(x) for x in spec["shape"]]
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (index * np.uint64(2654435761)) % np.uint64(2**32)
    codes = (mixed // np.uint64(2**24)).astype(np.uint8)
    inputs[key] = codes.reshape(shape)
  return inputs


def check(
  directory: str | os.PathLike, platform: str | None = None
) -> dict[str, tuple[float, bool]]:
  """Computes the stored example again.

  Args:
    directory: of the export.
    platform: as in `load`.

  Returns:
    By stage the largest difference of a logit, relative to the largest logit
    or 1, and whether it is as small as it should be.
  """
  model = load(directory, platform)
  tolerance = _TOLERANCES.get(platform or platform_here(), _TOLERANCE_ELSEWHERE)
  found = {}
  for name, stage in model.manifest["stages"].items():
    inputs = example(model.manifest, name)
    given = {"rgb": {}, "flow": {}}
    for key, spec in stage["inputs"].items():
      given[spec["modality"]][f"{name}/{key}"] = inputs[key]
    prediction = model.predict(given["rgb"], given["flow"], stages=[name])
    logits = prediction.streams[name]
    with _told(Path(directory) / "manifest.json"):
      stored = np.array(stage["example_logits"], np.float32)
      if stored.shape != logits.shape:
        raise ValueError(f"the example of stage {name!r} is of another shape")
    size = max(1.0, float(np.abs(stored).max()))
    difference = float(np.abs(logits - stored).max()) / size
    found[name] = difference, bool(difference <= tolerance)
  return found


def main(arguments: Sequence[str]) -> int:
  """Checks the model beside this file; 0 if it is as it was exported."""
  if arguments[:1] == [_READ]:
    _tell_faults([int(size) for size in arguments[1:]])
    return 0
  found = check(Path(__file__).parent)
  for name, (difference, fits) in found.items():
    words = "ok" if fits else "DIFFERS"
    name = _printable(name)
    print(f"{name}: {words}, largest relative difference {difference:.1e}")
  return 0 if all(fits for _, fits in found.values()) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
