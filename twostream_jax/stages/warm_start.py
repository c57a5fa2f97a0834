"""What a stage begins with: fresh, imported or earlier trained parameters."""

import contextlib
import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from twostream_jax import checkpoints, pretrained
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.files import json_files, words
from twostream_jax.flow import spec as flow_spec
from twostream_jax.flow.spec import FlowSpec
from twostream_jax.stages import needs, trained_weights
from twostream_jax.steps import TrainState

TOWERS = ("spatial", "temporal")
# Of the metadata of checkpoints; see `origins`.
ORIGINS = "begins_with"


def create(
  config: ml_collections.ConfigDict,
  name: str,
  data: VideoDataset,
  workdir: Path,
  numbers: Mapping[str, Any],
) -> Callable[[TrainState], TrainState]:
  """Returns what turns a fresh state into the one that training begins with.

  A stage takes the weights of the stage of its name in the run that
  `config.init_from` names, as far as they fit. Otherwise a stream takes the
  file of weights that its settings name, and the towers of a joint stage take
  the weights of the stages they are named after, where those were trained in
  this run, or their files.

  Args:
    config: of the run.
    name: of the stage.
    data: the dataset.
    workdir: of the run.
    numbers: JSON-ready, how pixels and motion become numbers in this run.

  Raises:
    ValueError: `config.init_from` is not a run with one of the stages.
  """
  load = []
  if config[name].kind == "stream":
    load.append(functools.partial(_load_file, config, name, key="backbone"))
  elif config[name].kind == "joint":
    load.append(functools.partial(_load_towers, config, name, workdir))
  if config.init_from:
    _check_run(config)
    load.append(functools.partial(_load_run, config, name, data, numbers))

  def begin(state: TrainState) -> TrainState:
    variables = state.variables
    for step in load:
      variables = step(variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return dataclasses.replace(
      state,
      params=params,
      batch_stats=batch_stats,
      ema_params=params if state.ema_params else {},
      ema_batch_stats=batch_stats if state.ema_params else {},
    )

  return begin


def origins(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> dict[str, Any]:
  """Digests of what a stage begins with, JSON-ready.

  They are stored with its checkpoints, from the first one on.

  Returns:
    "towers": Of the stages of the run that are towers of a joint stage, by
    name; "files": SHA-256 of files of weights, by path; "init_from": of the
    stage of this name in that run, None where there is none.
  """
  stage, towers, streams = config[name], [], []
  if stage.kind == "joint":
    towers = [tower for tower in stage.towers if tower in config.stages]
    streams = [tower for tower in stage.towers if tower not in config.stages]
  elif stage.kind == "stream":
    streams = [name]
  paths = [config[stream].init.weights for stream in streams]
  return {
    "towers": {tower: _weights(config, tower, workdir) for tower in towers},
    "files": {path: _file_digest(path) for path in paths if path},
    "init_from": _other_weights(config, name),
  }


def towers_of(metadata: Mapping[str, Any]) -> Mapping[str, str]:
  """Digests of the towers that a checkpoint says its stage began with.

  Those of earlier versions do not say it: there are none.
  """
  with json_files.told("the metadata of a checkpoint"):
    return dict(metadata.get(ORIGINS, {}).get("towers", {}))


def check_resumed(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> None:
  """Compares what a begun stage began with with what is there now.

  Towers are stages of the run, whose results are reported beside those of the
  stage: it is not trained further from weights that are no longer there, as a
  network of features is not. A file of weights or another run (`init_from`) is
  read once, when training begins, so that what lies there later changes nothing
  and may be gone. Where it was replaced, a warning says what training resumes
  from, since whoever replaced it may expect otherwise.

  Raises:
    TrainedRunError: A tower was trained again, or not to its end.
  """
  found = checkpoints.read_metadata(trained_weights.folder(workdir, name))
  if found is None:
    return
  path, metadata = found
  again = f"remove {workdir / name} to begin again"
  for tower, digest in towers_of(metadata).items():
    is_there = trained_weights.is_begun(tower, workdir)
    if is_there and _weights(config, tower, workdir) != digest:
      raise trained_weights.TrainedRunError(
        f"{path} began with other weights of stage {tower!r} than it has now:"
        f" {again}"
      )
  with json_files.told(path):
    begun = metadata.get(ORIGINS, {})
    files = dict(begun.get("files", {}))
    of_run = begun.get("init_from")
  replaced = [
    file
    for file, digest in files.items()
    if Path(file).is_file() and _file_digest(file) != digest
  ]
  # It may be gone, or be trained again just now.
  with contextlib.suppress(ValueError, checkpoints.CheckpointError):
    if of_run and _other_weights(config, name) not in (None, of_run):
      replaced.append(str(config.init_from))
  for source in map(words.printable, replaced):
    warnings.warn(
      f"{source} has other weights now than stage {name!r} began with; training"
      f" resumes from {path}, without them: {again}",
      stacklevel=2,
    )


def _weights(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> str:
  """Identity of a trained stream, as `TrainedStage.digest`."""
  found = trained_weights.read(config, name, workdir)
  return trained_weights.combined([found.digest])


def _other_weights(config: ml_collections.ConfigDict, name: str) -> str | None:
  """Digest of the stage of this name in the run that `init_from` names."""
  if not config.init_from:
    return None
  found = checkpoints.read_metadata(_checkpoints(config, name))
  if found is None:
    return None
  other = ml_collections.ConfigDict(found[1]["config"])
  return trained_weights.read(other, name, Path(config.init_from)).digest


def _file_digest(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def rgb_statistics(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
  """Mean and standard deviation of R, G, B in 0..1 that a network expects.

  Those that its weights were trained with, otherwise the settings'.
  """
  stage = config[name]
  spatial = _network(config, name, "rgb")
  own = tuple(stage.input.rgb_mean), tuple(stage.input.rgb_std)
  if spatial is None:
    return own
  if _is_trained_before(config, name, spatial):
    keys = ("rgb_mean", "rgb_std")
    trained = _numbers(config, name, spatial, workdir, keys)
    return tuple(trained["rgb_mean"]), tuple(trained["rgb_std"])
  convention = _convention(config[spatial])
  if convention is None:
    return own
  return convention.rgb_mean, convention.rgb_std


def flow_numbers(
  config: ml_collections.ConfigDict, name: str, workdir: Path, spec: FlowSpec
) -> tuple[float, bool]:
  """How motion becomes numbers of a network of flow.

  Where it begins with the weights of an image network, flow is spread as that
  network's pixels were spread. Where it begins with those of a network of flow,
  it is as that network was trained. Otherwise it is as the settings say.

  Args:
    config: Settings of the run.
    name: Name of the stage.
    workdir: Folder of the run.
    spec: Flow of the dataset.

  Returns:
    Pixels of motion that become an input of 1, and whether the mean of each
    field is subtracted.

  Raises:
    FlowSpecError: The weights were trained on other flow.
  """
  stage = config[name]
  own = stage.input.flow_scale, stage.input.subtract_mean_flow
  temporal = _network(config, name, "flow")
  if temporal is None:
    return own
  if _is_trained_before(config, name, temporal):
    keys = ("flow_scale", "subtract_mean_flow")
    trained = _numbers(config, name, temporal, workdir, keys)
    return trained["flow_scale"], trained["subtract_mean_flow"]
  weights = config[temporal].init.weights
  if not weights:
    return own
  convention = _convention(config[temporal])
  if convention is not None:
    return convention.flow_scale(spec.bound), own[1]
  return _flow_of_file(temporal, weights, spec)


def _network(
  config: ml_collections.ConfigDict, name: str, modality: str
) -> str | None:
  """Name of the stream whose network a stage has for a modality, if any."""
  stage = config[name]
  streams = stage.towers if stage.kind == "joint" else (name,)
  return next((s for s in streams if config[s].modality == modality), None)


def _is_trained_before(
  config: ml_collections.ConfigDict, name: str, stream: str
) -> bool:
  """Whether a joint stage takes a tower that is a stage of the run."""
  return stream != name and stream in config.stages


def _numbers(
  config: ml_collections.ConfigDict,
  name: str,
  tower: str,
  workdir: Path,
  keys: Sequence[str],
) -> Mapping[str, Any]:
  """How pixels or motion became numbers of the trained tower of a joint stage.

  Raises:
    ValueError: The joint stage has another setting, which would do nothing.
  """
  for key in keys:
    ours, theirs = config[name].input[key], config[tower].input[key]
    if ours != theirs:
      raise ValueError(
        f"config.{name}.input.{key}={ours}, but its tower {tower!r} was trained"
        f" with {theirs}: set it to that"
      )
  return trained_weights.read_facts(config, tower, workdir)["inputs"]


def _flow_of_file(stream: str, path: str, spec: FlowSpec) -> tuple[float, bool]:
  """What the notes of a weight file of a network of flow say."""
  notes = pretrained.read_metadata(path).notes
  missing = [key for key in ("flow_spec", "inputs") if key not in notes]
  if missing:
    raise pretrained.WeightsError(
      f"{path}: weights of a network of flow, whose notes do not say what flow"
      f" they were trained on: {' and '.join(missing)} must be in"
      " Metadata.notes, as in the metadata of a checkpoint"
    )
  flow_spec.require_equal(
    flow_spec.from_dict(notes["flow_spec"]),
    spec,
    model=path,
    dataset=f"the dataset of stage {stream!r}",
  )
  return notes["inputs"]["flow_scale"], notes["inputs"]["subtract_mean_flow"]


def _convention(
  stage: ml_collections.ConfigDict,
) -> pretrained.InputConvention | None:
  """The images that a stream's file of weights, if any, was trained on."""
  if not stage.init.weights:
    return None
  source, layout = pretrained.fit_layout(
    pretrained.read_source(stage.init.weights),
    stage.model.name,
    stage.init.layout or None,
  )
  return layout.convention(source)


def _load_file(
  config: ml_collections.ConfigDict,
  name: str,
  variables: Mapping[str, Any],
  *,
  key: str,
) -> dict[str, Any]:
  """Puts a stream's file of weights, if any, in the network at `key`."""
  stage = config[name]
  if not stage.init.weights:
    return dict(variables)
  own = {kind: tree.get(key, {}) for kind, tree in variables.items()}
  loaded, _, report = pretrained.load_pretrained(
    stage.init.weights,
    backbone=stage.model.name,
    variables=jax.device_get(own),
    layout=stage.init.layout or None,
    partial=stage.init.partial,
    from_images=stage.modality == "flow",
  )
  _say(f"{name}: weights of {stage.init.weights}: {report.summary()}")
  return {
    kind: dict(tree) | ({key: loaded[kind]} if loaded.get(kind) else {})
    for kind, tree in variables.items()
  }


def _load_towers(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: Path,
  variables: Mapping[str, Any],
) -> dict[str, Any]:
  """Puts trained streams, or their files, in a joint network's towers."""
  result = dict(variables)
  for key, tower in zip(TOWERS, config[name].towers, strict=True):
    if tower not in config.stages:
      result = _load_file(config, tower, result, key=key)
      continue
    trained = trained_weights.read(config, tower, workdir).variables
    fresh = []
    for kind, tree in result.items():
      if key in tree:
        source = trained[kind].get("backbone", {})
        taken = _take(tree[key], source, f"{key}/", fresh)
        result[kind] = dict(tree) | {key: taken}
    _say(
      f"{name}: {key} network from stage {tower!r}, but for"
      f" {', '.join(fresh) or 'nothing'}"
    )
  return result


def _checkpoints(config: ml_collections.ConfigDict, name: str) -> Path:
  return Path(config.init_from) / name / "checkpoints"


def _check_run(config: ml_collections.ConfigDict) -> None:
  if not any(_checkpoints(config, name).is_dir() for name in config.stages):
    raise ValueError(
      f"config.init_from={config.init_from!r} is not a workdir of a run with"
      f" one of the stages {tuple(config.stages)}"
    )


def _load_run(
  config: ml_collections.ConfigDict,
  name: str,
  data: VideoDataset,
  numbers: Mapping[str, Any],
  variables: Mapping[str, Any],
) -> dict[str, Any]:
  """Puts the weights of the stage of this name of another run in a network.

  Raises:
    FlowSpecError: those were trained on flow of another kind.
    ValueError: they expect another normalisation, or nothing fits.
  """
  folder = _checkpoints(config, name)
  found = checkpoints.read_metadata(folder)
  if found is None:
    _say(f"{name}: not in {config.init_from}; begins as its settings say")
    return dict(variables)
  path, metadata = found
  if needs.uses_flow(config, name):
    flow_spec.require_equal(
      flow_spec.from_dict(metadata["flow_spec"]),
      data.flow_spec,
      model=str(path),
      dataset=str(data.path),
    )
  theirs, ours = _contract(metadata["inputs"]), _contract(numbers)
  differing = [key for key in ours if theirs.get(key) != ours[key]]
  if differing:
    listed = "\n".join(
      f"  {key}: {words.printable(str(theirs.get(key)))} there,"
      f" {ours[key]} here"
      for key in differing
    )
    raise ValueError(
      f"the inputs of {path} were others than those of stage {name!r}; set"
      f" them as they were there:\n{listed}"
    )
  other = ml_collections.ConfigDict(metadata["config"])
  trained = trained_weights.read(other, name, Path(config.init_from)).variables
  fresh, result = [], {}
  for kind, tree in variables.items():
    result[kind] = _take(tree, trained[kind], "", fresh)
  counts = [len(jax.tree.leaves(tree)) for tree in (variables, trained)]
  taken = counts[0] - len(fresh)
  if taken < len(fresh):
    # The classifier may be for other classes; not the network another one.
    raise ValueError(
      f"only {taken} of {counts[0]} arrays of {path} fit the network of stage"
      f" {name!r}: it is of another kind or width"
    )
  _say(
    f"{name}: {taken} arrays from {path}; fresh: {', '.join(fresh) or 'none'};"
    f" not used: {counts[1] - taken}"
  )
  return result


def _say(text: str) -> None:
  """Prints a line that names files and arrays of somebody else."""
  print(words.printable(text))


def _contract(numbers: Mapping[str, Any]) -> dict[str, Any]:
  """What has to be equal for weights to mean the same.

  Statistics of features need not be: they belong to this run's videos.
  """
  if "sources" not in numbers:
    return dict(numbers)
  return {
    f"feature of {source!r}": found["feature"]
    for source, found in numbers["sources"].items()
  }


def _take(
  expected: Mapping[str, Any],
  trained: Mapping[str, Any],
  path: str,
  fresh: list[str],
) -> dict[str, Any]:
  """The trained arrays of the parts that the joint network has.

  Adds to `fresh` what the stream lacks or has in another shape: the layer
  after a concatenation of maps has more inputs.
  """
  result = {}
  for key, value in expected.items():
    other = trained.get(key)
    if isinstance(value, Mapping):
      result[key] = _take(value, other or {}, f"{path}{key}/", fresh)
    elif other is not None and np.shape(other) == np.shape(value):
      result[key] = other
    else:
      result[key] = value
      fresh.append(path + key)
  return result
