"""What data a stage needs, by its settings."""

import itertools
from typing import Any

import ml_collections

from twostream_jax.data.dataset import VideoDataset, identity, open_dataset
from twostream_jax.data.datasets.clips import counted, examples
from twostream_jax.data.loader import protocols
from twostream_jax.flow.spec import require_equal


def splits(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The splits that a run reads, each once."""
  named = (
    config.data.train_split,
    config.data.validation_split,
    config.fusion.fit_split,
    config.data.test_split,
  )
  return tuple(dict.fromkeys(split for split in named if split))


def splits_to_score(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The test split, and the one that fusion is fitted on."""
  named = (config.fusion.fit_split, config.data.test_split)
  return tuple(dict.fromkeys(split for split in named if split))


def check_groups(config: ml_collections.ConfigDict, data: VideoDataset) -> None:
  """Refuses a group of clips that two splits of a run share.

  A build refuses it too; this is for datasets of earlier versions, and of other
  programs. A second dataset plays no part: the names of groups are those of one
  dataset (`g01` is in many), and no more than one split of it is read.

  Raises:
    ValueError: The message names the splits.
  """
  used = dict.fromkeys((*splits(config), *splits_to_score(config)))
  for one, other in itertools.combinations(used, 2):
    shared = sorted(data.sources[one].groups & data.sources[other].groups)
    if shared:
      raise ValueError(
        f"the splits {one!r} and {other!r} of {data.path} share"
        f" {counted(shared, 'group')}: {examples(shared)}. Such leakage makes"
        " results too good. Build the dataset again with each group on one"
        " side, or with --drop_shared_groups."
      )


def is_dense(config: ml_collections.ConfigDict) -> bool:
  """Whether every window is scored."""
  return protocols.parse(config.eval.protocol) == protocols.DENSE


def run_facts(
  config: ml_collections.ConfigDict, data: VideoDataset
) -> dict[str, Any]:
  """What config.json says of a run, JSON-ready: its settings and datasets.

  Raises:
    ValueError: There is no second dataset where the settings name one, or it
      can't be read.
  """
  facts = {"config": config.to_dict(), "dataset": identity(data)}
  if config.data.second_dir:
    second = open_dataset(config.data.second_dir)
    facts["second_dataset"] = identity(second)
  return facts


def second_dataset(
  config: ml_collections.ConfigDict, name: str, data: VideoDataset
) -> VideoDataset | None:
  """The dataset of a stage's second head, if it has one.

  Raises:
    ValueError: it is multi-label, or its flow is of another kind.
  """
  if not config.data.second_dir or config[name].kind == "features":
    return None
  second = open_dataset(config.data.second_dir)
  if data.multi_label or second.multi_label:
    raise ValueError("config.data.second_dir is for sets with one label a clip")
  if uses_flow(config, name):
    require_equal(
      data.flow_spec,
      second.flow_spec,
      model=f"the dataset {data.path}",
      dataset=str(second.path),
    )
  return second


def modalities(stage: ml_collections.ConfigDict) -> tuple[str, ...]:
  """What a stage of videos reads of them."""
  return ("rgb", "flow") if stage.kind == "joint" else (stage.modality,)


def uses_flow(config: ml_collections.ConfigDict, name: str) -> bool:
  """Whether a stage sees flow, itself or through another stage."""
  stage = config[name]
  if stage.kind == "features":
    return any(uses_flow(config, source) for source in stage.sources)
  return "flow" in modalities(stage)
