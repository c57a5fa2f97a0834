"""What a report shows of example clips: moments, and what answers rest on."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from twostream_jax import checkpoints, parallel, report
from twostream_jax.data import dataset as dataset_lib
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.data.loader import input_pipeline, protocols
from twostream_jax.data.loader.eval_pipeline import Rows
from twostream_jax.flow import spec as flow_spec
from twostream_jax.results import class_maps
from twostream_jax.scores import Scores
from twostream_jax.stages import trained
from twostream_jax.stages.trained import TrainedStage

# Of a clip, evenly spaced.
_MOMENTS = 3
# Clips that pass through a network together.
_BATCH = 8
# Names of the image networks in a joint stage, and what they read.
_MODALITIES = {"spatial": "rgb", "temporal": "flow"}


def gather(
  config: ml_collections.ConfigDict,
  workdir: Path,
  data: VideoDataset,
  chosen: Sequence[str],
  streams: Mapping[str, Scores],
  steps: Mapping[str, int] | None = None,
) -> tuple[list[report.Example], dict[str, str]]:
  """The chosen clips as a report shows them.

  Args:
    config: of the run.
    workdir: of the run, with the checkpoints of its stages.
    data: the dataset.
    chosen: ids of clips of the test split.
    streams: scores of every stage; a map is of a stage's own first answer.
    steps: of the checkpoints that were scored; None: of those that count.

  Returns:
    The clips, and why there is no map, by name of the stage.
  """
  source = data.sources[config.data.test_split]
  position = {v: i for i, v in enumerate(source.video_ids)}
  records = [source[position[video_id]] for video_id in chosen]
  maps, unmapped = [() for _ in records], {}
  for name, found in streams.items():
    reason = _why_not(config, name, workdir)
    if reason or not records:
      unmapped[name] = reason
      continue
    rows = {video_id: i for i, video_id in enumerate(found.ids)}
    answers = found.logits.argmax(axis=1)
    labels = [int(answers[rows[video_id]]) for video_id in chosen]
    try:
      step = steps[name] if steps else None
      stage = trained.open_stage(
        config, name, workdir, step=step, finished=step is None
      )
      more = explain(stage, records, labels)
    except (checkpoints.CheckpointError, trained.TrainedRunError):
      unmapped[name] = "its checkpoint can't be read"
      continue
    maps = [old + new for old, new in zip(maps, more, strict=True)]
  shown = [
    dataclasses.replace(example(record, data), maps=found)
    for record, found in zip(records, maps, strict=True)
  ]
  return shown, {name: reason for name, reason in unmapped.items() if reason}


def _why_not(
  config: ml_collections.ConfigDict, name: str, workdir: Path
) -> str:
  """Why a stage has no class activation maps; "" where it has."""
  if not config.report.class_maps:
    return "config.report.class_maps is off"
  if config[name].kind == "features":
    return "reads features of other stages, not pixels"
  if not (workdir / name / "checkpoints").is_dir():
    return "has no checkpoint"
  if jax.process_count() > 1:
    # Orbax would wait for all of them to restore.
    return "run by several processes; the same command in one adds them"
  return ""


def example(record: Mapping[str, Any], data: VideoDataset) -> report.Example:
  """Some moments of a video, evenly spaced, and the flow from there.

  Args:
    record: see `dataset.Record`.
    data: the dataset that it is of.
  """
  fields = len(record["flow"])
  middles = (np.arange(_MOMENTS) + 0.5) * fields / _MOMENTS
  moments = sorted(set(middles.astype(int).tolist()))
  label, several = record["label"], data.multi_label
  return report.Example(
    video_id=input_pipeline.text(record["video_id"]),
    label=tuple(sorted(set(map(int, label)))) if several else int(label),
    frames=tuple(dataset_lib.decode_rgb(record["rgb"][i]) for i in moments),
    flows=tuple(
      flow_spec.dequantise(
        dataset_lib.decode_flow_codes(record["flow"][i]), data.flow_spec.bound
      )
      for i in moments
    ),
  )


def explain(
  stage: TrainedStage,
  records: Sequence[Mapping[str, Any]],
  labels: Sequence[int],
) -> list[tuple[report.ClassMap, ...]]:
  """What a stage's answers rest on, in the middle of each clip.

  The network sees one view: the centre crop in the middle of the clip.

  Args:
    stage: Trained stage that reads pixels.
    records: b clips.
    labels: the class to be explained of each.

  Returns:
    Of each clip a map for each of the stage's networks.
  """
  variables, views = jax.device_put(stage.variables), stage.views
  assert views is not None
  read = views.spec.modalities
  # The frame is shown whatever the network reads.
  spec = dataclasses.replace(
    views.spec, modalities=("rgb", *(m for m in read if m != "rgb"))
  )
  views = dataclasses.replace(views, spec=spec, protocol=protocols.SINGLE)
  explained = jax.jit(
    functools.partial(_maps_of_views, stage=stage),
    compiler_options=parallel.compiler_options(jax.default_backend()),
  )
  maps = []
  for first in range(0, len(records), _BATCH):
    part = records[first : first + _BATCH]
    numbers = np.arange(len(part))
    rows = Rows(numbers, numbers, np.zeros_like(numbers))
    batch = views.load(part, rows, _BATCH)
    classes = np.zeros(_BATCH, np.int32)
    classes[: len(part)] = labels[first : first + _BATCH]
    pixels = {modality: batch[modality][:, 0] for modality in read}
    heats = jax.device_get(explained(variables, pixels, classes))
    maps += [
      tuple(
        report.ClassMap(
          model=stage.name,
          modality=_MODALITIES.get(network, read[0]),
          label=int(classes[i]),
          view=batch["rgb"][i, 0, 0],
          heat=heat[i, 0],
        )
        for network, heat in heats.items()
      )
      for i in range(len(part))
    ]
  return maps


def _maps_of_views(variables, pixels, classes, *, stage: TrainedStage):
  return class_maps.class_maps(
    variables, stage.preprocess(pixels), classes, model=stage.model
  )
