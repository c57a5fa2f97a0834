"""Which checkpoint of a stage counts, and when to stop for want of a better."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

# Metrics of a validation record, and whether more of them is better.
METRICS = {"accuracy": True, "map": True, "loss": False}


class Selection:
  """Follows a metric of the validation split.

  It is a function of the validation records alone, so that a run that is
  resumed decides as one that was never stopped.
  """

  def __init__(
    self,
    metric: str,
    patience: int,
    records: Iterable[Mapping[str, Any]] = (),
    *,
    last_step: int = 0,
  ):
    """Begins with the records of a run.

    Args:
      metric: a key of METRICS; "" follows nothing.
      patience: validations in a row without a better one after which training
        ends; 0 is never.
      records: of the stage's metrics file.
      last_step: records after it are not counted.

    Raises:
      ValueError: the metric is not known or the patience is negative.
    """
    if metric and metric not in METRICS:
      raise ValueError(
        f"config.selection.metric={metric!r} is not in {METRICS}"
      )
    if patience < 0:
      raise ValueError(f"config.selection.patience={patience} is negative")
    if patience and not metric:
      raise ValueError(
        f"config.selection.patience={patience} needs config.selection.metric"
      )
    self._metric = metric
    self._patience = patience
    self._best = -math.inf
    self._since_best = 0
    for record in records:
      if record["split"] == "validation" and record["step"] <= last_step:
        self.add(record["step"], record)

  def add(self, step: int, record: Mapping[str, Any]) -> float | None:
    """Adds a validation.

    Args:
      step: Step of the validation, for messages.
      record: "loss", "accuracy" and optionally "map".

    Returns:
      The score, of which more is better, if no earlier one was as good; None
      otherwise, or without a metric. A NaN is never the best.

    Raises:
      ValueError: the record has no such metric.
    """
    if not self._metric:
      return None
    if self._metric not in record:
      raise ValueError(
        f"config.selection.metric={self._metric!r}, but the validation of step"
        f" {step} has {sorted(set(record) & set(METRICS))}"
      )
    value = float(record[self._metric])
    score = value if METRICS[self._metric] else -value
    if score > self._best:
      self._best, self._since_best = score, 0
      return score
    self._since_best += 1
    return None

  def is_over(self) -> bool:
    """Whether training is to end."""
    return 0 < self._patience <= self._since_best
