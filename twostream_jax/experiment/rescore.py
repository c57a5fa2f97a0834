"""Scores a trained run again: another split, protocol or checkpoint.

Nothing is trained, and what the run itself wrote stays as it is. A new score
has a folder of its own:

  workdir/evaluations/<split>-<protocol>[-<step>][-<stage>]/scores/...
  workdir/evaluations/.../results.json, report.html
"""

from pathlib import Path
from typing import Any

import ml_collections

from twostream_jax import checkpoints, parallel, results, train
from twostream_jax.data.dataset import VideoDataset
from twostream_jax.data.loader import protocols
from twostream_jax.experiment import run
from twostream_jax.experiment.only_run import only_run
from twostream_jax.files import words
from twostream_jax.files.workdir import check_config_file
from twostream_jax.stages import needs, trained


def checkpoint_steps(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  only_stage: str = "",
  step: int | None = None,
) -> dict[str, int]:
  """The checkpoint to score of each stage.

  Args:
    config: of the run.
    workdir: of the run.
    only_stage: the only stage to score; "" is all.
    step: of the checkpoint; None: the one that counts.

  Raises:
    ValueError: a stage was not trained, or has no checkpoint of this step.
  """
  found = {}
  for name in (only_stage,) if only_stage else config.stages:
    folder = workdir / name / "checkpoints"
    saved = []
    if folder.is_dir():
      with checkpoints.open_reader(folder) as manager:
        saved = sorted(manager.all_steps())
        chosen = checkpoints.chosen_step(manager)
    if not saved:
      raise ValueError(
        f"stage {name!r} was never trained: there is no checkpoint in {folder};"
        " train it without --mode=evaluate, or name another --workdir"
      )
    if step is not None and step not in saved:
      advice = "" if only_stage else "; each stage can be named with --stage"
      raise ValueError(
        f"stage {name!r} has no checkpoint of step {step} in {folder}, but of"
        f" {', '.join(map(str, saved))}{advice}"
      )
    found[name] = chosen if step is None else step
  return found


def rescore(
  config: ml_collections.ConfigDict,
  workdir: Path,
  data: VideoDataset,
  *,
  only_stage: str = "",
  step: int | None = None,
  watch: train.Watch = train.Watch(),  # noqa: B008, it is frozen
) -> tuple[Path, dict[str, Any]]:
  """Scores `config.data.test_split` by `config.eval`.

  A fitted fusion is fitted again: on scores of `config.fusion.fit_split`
  by the same protocol and checkpoints. Where that is the split that is scored,
  it is left out.

  Args:
    config: of the run; only what does not change training may differ.
    workdir: of the run.
    data: the dataset that it was trained on.
    only_stage: the only stage to score; "" is all.
    step: see `checkpoint_steps`.
    watch: how it is watched.

  Returns:
    The folder of what was written, and the contents of its results.json.

  Raises:
    ValueError: a setting is wrong or a stage was not trained; the message says
      which.
    ConfigMismatchError: the run was begun with other settings.
    FlowSpecError: a stage was trained on flow of another kind.
    CheckpointError: a checkpoint can't be read.
    InUseError: another command makes the same score.
    Interrupted: it was asked to stop; nothing of it counts.
  """
  config = _without_fusion_that_can_not_be(config, only_stage)
  run.check_config(config, data, workdir, only_stage)
  steps = checkpoint_steps(config, workdir, only_stage=only_stage, step=step)
  facts = needs.run_facts(config, data)
  run.check_trained_data(config, workdir, data, facts)
  check_config_file(workdir, facts, to_train=False)
  folder = evaluation_path(config, workdir, only_stage, step)
  with only_run(folder):
    return _score(config, workdir, data, folder, steps, step, watch)


def _score(
  config, workdir, data, folder, steps, step, watch
) -> tuple[Path, dict[str, Any]]:
  """As `rescore`, of `steps` by stage, into a folder of its own."""
  if parallel.is_primary():
    results.withdraw(folder)
  for name in steps:
    # Of the streams that it reads, the checkpoints that count.
    run.compute_features(config, name, workdir, data, watch)
    # Not by the step found above: whoever trains may have removed it since.
    stage = trained.open_stage(config, name, workdir, step=step, finished=False)
    steps[name] = stage.step
    trained.check_sources(config, stage, workdir)
    splits = needs.splits_to_score(config)
    run.score_splits(config, stage, data, splits, workdir, folder, watch)
  if parallel.is_primary():
    shown = config.copy_and_resolve_references()
    shown.stages = tuple(steps)
    results.conclude(shown, workdir, data, folder=folder, steps=steps)
  parallel.barrier("evaluation")
  return folder, results.read_results(folder)


def evaluation_path(
  config: ml_collections.ConfigDict,
  workdir: Path,
  only_stage: str = "",
  step: int | None = None,
) -> Path:
  """The folder of a new score."""
  protocol = protocols.parse(config.eval.protocol)
  parts = [config.data.test_split, protocol.name]
  if step is not None:
    parts.append(str(step))
  if only_stage:
    parts.append(only_stage)
  return workdir / "evaluations" / "-".join(parts)


def _without_fusion_that_can_not_be(config, only_stage):
  config = config.copy_and_resolve_references()
  split, rules = config.data.test_split, tuple(config.fusion.rules)
  if only_stage or config.fusion.fit_split == split:
    rules = tuple(rule for rule in rules if rule in results.UNFITTED)
  left_out = [rule for rule in config.fusion.rules if rule not in rules]
  if left_out and not only_stage and parallel.is_primary():
    listed = words.printable(", ".join(left_out))
    print(f"Left out, for they are fitted on {split!r}: {listed}")
  config.fusion.rules = rules
  if set(rules) <= set(results.UNFITTED):
    config.fusion.fit_split = ""  # No need to score it.
  return config
