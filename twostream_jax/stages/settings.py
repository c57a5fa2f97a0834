"""The numbers of a config: which values each setting can have.

They are checked before anything is built or trained; what depends on the data,
on the devices or on several settings is checked where these are known.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections


@dataclasses.dataclass(frozen=True)
class Number:
  """The values of one number.

  Attributes:
    low: Smallest value.
    high: Largest value.
    above: Whether `low` is excluded.
    below: Whether `high` is excluded.
    whole: Whether it is an integer.
    multiple: What it is a multiple of.
  """

  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  below: bool = False
  whole: bool = False
  multiple: int = 1

  def allows(self, value: Any) -> bool:
    """Whether a value is one of them; none of them is infinite or NaN."""
    kinds = (int,) if self.whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
      return False
    if isinstance(value, float) and not math.isfinite(value):
      return False
    inside = self.low < value if self.above else self.low <= value
    inside &= value < self.high if self.below else value <= self.high
    return inside and (not self.whole or value % self.multiple == 0)

  def __str__(self) -> str:
    if self.multiple > 1:
      kind = f"a multiple of {self.multiple}"
    else:
      kind = "an integer" if self.whole else "a finite number"
    has_low, has_high = math.isfinite(self.low), math.isfinite(self.high)
    if has_low and has_high:
      left, right = "(" if self.above else "[", ")" if self.below else "]"
      return f"{kind} in {left}{self.low}, {self.high}{right}"
    if has_low:
      return f"{kind} {'above' if self.above else 'of at least'} {self.low}"
    return kind


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A tuple of numbers.

  Attributes:
    each: Values of each of them.
    length: How many there are; None for any number.
  """

  each: Number
  length: int | None = None

  def allows(self, value: Any) -> bool:
    """Whether a value is such a tuple."""
    return (
      isinstance(value, tuple | list)
      and self.length in (None, len(value))
      and all(map(self.each.allows, value))
    )

  def __str__(self) -> str:
    count = "" if self.length is None else f"{self.length} numbers, "
    return f"a tuple: {count}each {self.each}"


class Multipliers:
  """Pairs of a regular expression and a factor."""

  def allows(self, value: Any) -> bool:
    """Whether a value is a tuple of such pairs."""
    return isinstance(value, tuple | list) and all(
      isinstance(pair, tuple | list)
      and len(pair) == 2
      and isinstance(pair[0], str)
      and _NOT_NEGATIVE.allows(pair[1])
      for pair in value
    )

  def __str__(self) -> str:
    return (
      "pairs of a regular expression and a factor of at least 0, such as"
      " (('backbone/conv', 0.1),)"
    )


def _count(low: int, high: float = math.inf) -> Number:
  return Number(low, high, whole=True)


_NOT_NEGATIVE = Number(0)
_POSITIVE = Number(0, above=True)
# A share of all, but not all: 1 would leave nothing.
_PART = Number(0, 1, below=True)
_SHARE = Number(0, 1, above=True)
# Larger ones are slips of the keyboard, which would end in a lack of memory.
_LARGE, _LARGE_BATCH = 10_000, 2**20

_RUN = {
  # JAX's keys are made of 32 bits: larger seeds would repeat smaller ones.
  "seed": _count(0, 2**32 - 1),
  "data.threads": _count(1, _LARGE),
  "data.processes": _count(0, _LARGE),
  "data.synthetic.train": _count(0, _LARGE),
  "data.synthetic.validation": _count(0, _LARGE),
  "data.synthetic.test": _count(0, _LARGE),
  "data.synthetic_short_side": Number(8, _LARGE, whole=True, multiple=8),
  "train.log_every": _count(1),
  "train.validate_every": _count(1),
  "train.checkpoint_every": _count(1),
  "train.keep_checkpoints": _count(1),
  "train.micro_batches": _count(1, _LARGE_BATCH),
  "train.max_skipped_steps": _count(0),
  "selection.patience": _count(0),
  "eval.crop_fraction": _SHARE,
  "eval.views_per_pass": _count(1, _LARGE_BATCH),
  "features.num_frames": _count(1, _LARGE),
  "features.crop_fraction": _SHARE,
  "fusion.weights": Numbers(_NOT_NEGATIVE),
  "report.num_examples": _count(0),
}

# Below the name of each stage.
_STAGE = {
  "batch_size": _count(1, _LARGE_BATCH),
  # Steps are counted in int32.
  "total_steps": _count(1, 2**31 - 1),
  "model.width": Number(0, _LARGE, above=True),
  "model.dropout_rate": _PART,
  "model.fields.fc7_dropout_rate": _PART,
  "model.fields.hidden": _count(1, _LARGE_BATCH),
  "model.fields.hidden_sizes": Numbers(_count(1, _LARGE_BATCH)),
  "model.fields.lstm_sizes": Numbers(_count(1, _LARGE_BATCH)),
  # What every network needs, see `models`.
  "input.image_size": _count(64, _LARGE),
  "input.stack_length": _count(1, _LARGE),
  "input.num_segments": _count(1, _LARGE),
  "input.crop_scale": Numbers(_SHARE, length=2),
  "input.max_ratio": Number(1),
  "input.corner_scales": Numbers(_SHARE),
  "input.max_distort": _count(0),
  "input.rgb_mean": Numbers(Number(), length=3),
  "input.rgb_std": Numbers(_POSITIVE, length=3),
  "input.rgb_jitter": _NOT_NEGATIVE,
  "input.flow_scale": _POSITIVE,
  "optim.learning_rate": _NOT_NEGATIVE,
  "optim.warmup_steps": _count(0),
  "optim.boundaries": Numbers(_count(1)),
  "optim.decay_factor": _NOT_NEGATIVE,
  "optim.momentum": _PART,
  "optim.weight_decay": _NOT_NEGATIVE,
  "optim.max_grad_norm": _NOT_NEGATIVE,
  "optim.label_smoothing": _PART,
  "optim.ema_decay": _PART,
  "optim.multipliers": Multipliers(),
  "optim.l1": _NOT_NEGATIVE,
  "optim.l21": _NOT_NEGATIVE,
}


def check_numbers(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a number that its setting can't have.

  The message names the setting, the value and the values that it can have.
  Settings that the config does not have are passed over.
  """
  settings = config.to_dict()
  for name, value, values in _settings(settings):
    if not values.allows(value):
      raise ValueError(f"config.{name}={value!r} must be {values}")


def _settings(
  settings: Mapping[str, Any],
) -> Iterator[tuple[str, Any, Number | Numbers | Multipliers]]:
  for key, values in _RUN.items():
    yield from _find(settings, key, key, values)
  for stage, tree in settings.items():
    if isinstance(tree, Mapping) and "kind" in tree:
      for key, values in _STAGE.items():
        yield from _find(tree, key, f"{stage}.{key}", values)


def _find(tree, key, name, values):
  for part in key.split("."):
    if not isinstance(tree, Mapping) or part not in tree:
      return
    tree = tree[part]
  yield name, tree, values
