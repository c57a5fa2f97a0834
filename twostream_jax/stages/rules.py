"""The fusion rules of a run, as its settings name them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from twostream_jax import fuse, scores
from twostream_jax.files.workdir import scores_path
from twostream_jax.fuse.linear import LinearFusion
from twostream_jax.fuse.weighting import WeightedFusion
from twostream_jax.scores import Origin, Scores, ScoresError

# Those that are not fitted; the others are the keys of `fuse.FITS`.
UNFITTED = ("average", "average_logits", "weighted")


@dataclasses.dataclass(frozen=True)
class FusionRule:
  """A rule with its parameters, ready for the scores of any videos.

  Attributes:
    name: one of `UNFITTED` or a key of `fuse.FITS`.
    weights: of the stages in their order; of "weighted" only.
    fitted: parameters and what they were fitted on; None where a rule has none.
  """

  name: str
  weights: tuple[float, ...] = ()
  fitted: WeightedFusion | LinearFusion | None = None

  def __call__(self, streams: Mapping[str, Scores]) -> Scores:
    """Fuses the scores of all stages, by their names in the run's order."""
    if self.fitted is not None:
      return fuse.apply(self.fitted, streams)
    if self.name == "weighted":
      return fuse.weighted(streams, self.weights)
    return {"average": fuse.average, "average_logits": fuse.average_logits}[
      self.name
    ](streams)


def create_rules(
  config: ml_collections.ConfigDict,
  workdir: Path,
  origins: Mapping[str, Origin] | None = None,
) -> dict[str, FusionRule]:
  """The rules of a run by name; none where it has one stage.

  Rules with parameters are fitted on the run's score files of its fit split.

  Args:
    config: Settings of the run.
    workdir: Folder of the scores.
    origins: What the scores of each stage on the fit split have to come from;
      None: whoever calls has just made or compared them.

  Raises:
    ScoresError: The scores are not there, can't be used, or came from something
      else.
  """
  if len(config.stages) < 2:
    return {}
  split = config.fusion.fit_split
  rules = {}
  for name in config.fusion.rules:
    if name in UNFITTED:
      weights = tuple(config.fusion.weights) if name == "weighted" else ()
      rules[name] = FusionRule(name, weights=weights)
    else:
      streams = load_streams(config, workdir, split)
      for stage, origin in (origins or {}).items():
        _check_origin(stage, split, streams[stage], origin)
      fitted = fuse.FITS[name](streams, split=split)
      rules[name] = FusionRule(name, fitted=fitted)
  return rules


def _check_origin(
  stage: str, split: str, found: Scores, expected: Origin
) -> None:
  """Refuses scores that came from something else; see `scores.difference`."""
  expected = expected._replace(
    # Files of earlier versions do not say it.
    weights=found.weights and expected.weights,
    videos=found.videos and expected.videos,
  )
  differs = scores.difference(found, expected)
  if differs:
    raise ScoresError(
      f"the scores of stage {stage!r} on {split!r}, which rules are fitted on,"
      f" are {differs}: give the command of the run again, which scores them"
    )


def load_streams(
  config: ml_collections.ConfigDict, workdir: Path, split: str
) -> dict[str, Scores]:
  """The scores of every stage on a split."""
  return {
    name: scores.load_scores(scores_path(workdir, name, split))
    for name in config.stages
  }
