"""A finished run, ready to score videos it has never seen."""

import dataclasses
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import jax
import numpy as np

from twostream_jax import parallel, scores, steps
from twostream_jax.data.dataset import Record
from twostream_jax.data.loader import eval_pipeline
from twostream_jax.predict import reading
from twostream_jax.scores import Scores
from twostream_jax.stages import trained
from twostream_jax.stages.trained import TrainedRun, TrainedStage

# Of a build, for runs that do not say what their frames were stored with.
DEFAULT_RGB_QUALITY = 95


class PredictionError(ValueError):
  """A video can't be scored.

  Attributes:
    reason: why, in one line, without the video's name.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a run says of a video.

  Attributes:
    path: of the video, as it was given.
    class_names: of the run.
    stages: float64 [n] in 0..1 by stage: how probable each class is.
    fused: The same by fusion rule.
    logits: float32 [n] by stage, as in the run's score files.
    protocols: Description of the views shown to each stage.
    num_frames: of the video.
    seconds: its length by its frame rate.
    elapsed: seconds from the path to the answer.
  """

  path: str
  class_names: tuple[str, ...]
  stages: Mapping[str, np.ndarray]
  fused: Mapping[str, np.ndarray]
  logits: Mapping[str, np.ndarray]
  protocols: Mapping[str, str]
  num_frames: int
  seconds: float
  elapsed: float

  def top(self, name: str, k: int = 5) -> list[tuple[str, float]]:
    """The k most probable classes by a stage or rule, best first."""
    values = {**self.stages, **self.fused}[name]
    best = np.argsort(-values, kind="stable")[:k]
    return [(self.class_names[i], float(values[i])) for i in best]


def load(
  workdir: str | os.PathLike, protocol: str | None = None
) -> "Predictor":
  """Opens a finished run; its dataset is not needed.

  Args:
    workdir: of the run.
    protocol: which views of a video are scored ("single", "25x10", "dense", see
      `twostream_jax.data.loader.protocols`); None: those that the run was
      tested with.

  Raises:
    TrainedRunError: there is no finished run; the message says what is missing.
    CheckpointError: a checkpoint can't be read.
    ValueError: there is no such protocol, or it does not fit the run.
  """
  run = trained.open_run(workdir, protocol)
  for name, stage in run.stages.items():
    if stage.views is None:
      continue
    tested = stage.views.protocol
    if tested.num_crops == 10 and not run.config[name].input.flip:
      raise ValueError(
        f"the protocol {tested.name!r} mirrors clips, but stage"
        f" {name!r} was trained without: use 5 crops"
      )
  return Predictor(run)


class Predictor:
  """Scores videos as a run scored its test split.

  Attributes:
    run: the run.
    rgb_quality: JPEG quality that frames are coded with before they are seen.
  """

  def __init__(self, run: TrainedRun):
    self.run = run
    quality = run.rgb_quality
    if quality is None:
      quality = DEFAULT_RGB_QUALITY
      warnings.warn(
        f"{run.workdir} does not say the JPEG quality of its frames:"
        f" {DEFAULT_RGB_QUALITY} is taken, the default of a build",
        stacklevel=2,
      )
    self.rgb_quality = quality
    self._variables = {
      name: jax.device_put(stage.variables)
      for name, stage in run.stages.items()
    }
    self._predict = {
      name: self._compiled(
        steps.predict_step, stage, num_classes=stage.num_classes
      )
      for name, stage in run.stages.items()
    }
    self._features = {
      name: self._compiled(steps.feature_step, stage, feature=stage.feature)
      for name, stage in run.stages.items()
      if stage.feature
    }

  def predict(self, path: str | os.PathLike) -> Prediction:
    """Decodes a video and scores it.

    The video is decoded in this process; the command does it in another one,
    which a damaged file may crash.

    Args:
      path: a video file or a folder of its frames.

    Raises:
      PredictionError: it can't be; the message says why.
    """
    source = reading.Source("file", os.fspath(path))
    reader = reading.Reader(self.run.flow_spec, self.rgb_quality)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # As in a build: flow depends on it.
    try:
      record, spent = reading.Timed(reader)(source)
    finally:
      cv2.setNumThreads(threads)
    return self.answer(source.path, record, spent)

  def answer(
    self, path: str, record: Record | reading.Rejection, spent: float
  ) -> Prediction:
    """Scores what was decoded of a video.

    Args:
      path: of the video.
      record: what `reading.Reader` gave.
      spent: seconds that decoding took.

    Raises:
      PredictionError: it could not be decoded, or not be scored.
    """
    began = time.perf_counter()
    if isinstance(record, reading.Rejection):
      raise PredictionError(record.reason)
    streams = self.score(path, record)
    fused = {name: rule(streams) for name, rule in self.run.rules.items()}
    return Prediction(
      path=path,
      class_names=self.run.class_names,
      stages={k: scores.probabilities(s)[0] for k, s in streams.items()},
      fused={k: scores.probabilities(s)[0] for k, s in fused.items()},
      logits={k: s.logits[0] for k, s in streams.items()},
      protocols={k: s.protocol for k, s in streams.items()},
      num_frames=record.num_frames,
      seconds=record.num_frames / record.fps,
      elapsed=spent + time.perf_counter() - began,
    )

  def score(self, path: str, record: Record) -> dict[str, Scores]:
    """Scores of one video by stage, under the run's test protocol.

    Raises:
      PredictionError: a stage can't see it, or scores are not finite.
    """
    source = [vars(record) | {"label": 0}]
    found, features = {}, {}
    for name, stage in self.run.stages.items():
      if stage.kind == "features":
        logits = self._score_features(stage, source, features)
      else:
        logits = self._score_views(stage, source)
      if not np.isfinite(logits).all():
        raise PredictionError(f"scores of stage {name!r} are not finite")
      found[name] = Scores(
        ids=(path,),
        labels=self._no_labels(),
        logits=logits.astype(np.float32)[None],
        protocol=stage.protocol,
      )
    return found

  def _no_labels(self) -> np.ndarray:
    """Placeholder labels of one video; no rule reads them."""
    if self.run.multi_label:
      return np.zeros((1, len(self.run.class_names)), bool)
    return np.zeros(1, np.int32)

  def _score_views(self, stage: TrainedStage, source) -> np.ndarray:
    assert stage.views is not None
    total, count = np.zeros(()), 0
    for batch, real in self._batches(stage.views, source):
      logits = self._predict[stage.name](self._variables[stage.name], batch)
      total = total + np.asarray(logits)[:real].sum(axis=0, dtype=np.float64)
      count += real
    return total / count

  def _score_features(self, stage: TrainedStage, source, known) -> np.ndarray:
    """Logits from features; `known` keeps those of each stream for others."""
    for name in stage.sources:
      if name not in known:
        known[name] = self._extract(self.run.stages[name], source)
    lengths = [known[name][1] for name in stage.sources]
    if any(not np.array_equal(other, lengths[0]) for other in lengths):
      raise PredictionError(
        f"too short for stage {stage.name!r}: its streams"
        f" {', '.join(stage.sources)} see different numbers of frames"
      )
    batch = {name: known[name][0][:, None] for name in stage.sources}
    batch["length"] = lengths[0][:, None]
    logits = self._predict[stage.name](self._variables[stage.name], batch)
    return np.asarray(logits).mean(axis=0, dtype=np.float64)

  def _extract(self, stage: TrainedStage, source):
    """Features [rows f d], rounded as those that are stored, and lengths."""
    assert stage.frames is not None
    values, lengths = [], []
    for batch, real in self._batches(stage.frames, source):
      lengths.append(batch.pop("length")[:real])
      found = self._features[stage.name](self._variables[stage.name], batch)
      values.append(np.asarray(found)[:real].astype(np.float16))
    return np.concatenate(values).astype(np.float32), np.concatenate(lengths)

  def _batches(
    self, transform: eval_pipeline.Transform, source
  ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of rows of the one video, of one shape, and how many are real."""
    count = int(transform.counts(source)[0])
    size = eval_pipeline.batch_size(
      count,
      transform.views,
      views_per_pass=self.run.config.eval.views_per_pass,
      replicas=1,
    )
    for first in range(0, count, size):
      places = np.arange(first, min(first + size, count))
      rows = eval_pipeline.Rows(places, np.zeros_like(places), places)
      yield transform.load(source, rows, size), len(places)

  def _compiled(
    self, step: Callable[..., Any], stage: TrainedStage, **fields: Any
  ) -> Callable[..., Any]:
    """A step of `steps` for a stage, on one device; compiled when called."""
    mapped = functools.partial(
      step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=self.run.config.eval.views_per_pass,
      **fields,
    )
    options = parallel.compiler_options(jax.default_backend())
    return jax.jit(mapped, compiler_options=options)


def main_name(run: TrainedRun) -> str:
  """Returns the rule, or else the stage, that gives a run's single answer."""
  return next(iter(run.rules), next(iter(run.stages)))
