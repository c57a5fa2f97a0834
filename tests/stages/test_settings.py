"""Each number of a config has a range, and a run begins with no other value."""

import math

import ml_collections
import numpy as np
import pytest

from configs import default
from tests import tiny_config
from tests.recipes import CONFIGS, get_config
from twostream_jax.configs import hybrid_quickstart
from twostream_jax.experiment import run
from twostream_jax.files.workdir import flatten
from twostream_jax.stages import create, settings

# It turns something off, or is a value like any other.
ZERO_HAS_A_MEANING = {
  "seed",
  "data.processes",
  "data.synthetic.train",
  "data.synthetic.validation",
  "data.synthetic.test",
  "train.max_skipped_steps",
  "selection.patience",
  "report.num_examples",
  "model.dropout_rate",
  "model.fields.fc7_dropout_rate",
  "input.max_distort",
  "input.rgb_jitter",
  "optim.learning_rate",
  "optim.warmup_steps",
  "optim.decay_factor",
  "optim.momentum",
  "optim.weight_decay",
  "optim.max_grad_norm",
  "optim.label_smoothing",
  "optim.ema_decay",
  "optim.l1",
  "optim.l21",
}
# Never, or as many as there are, or a value like any other.
HUGE_HAS_A_MEANING = {
  "train.log_every",
  "train.validate_every",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "train.max_skipped_steps",
  "selection.patience",
  "report.num_examples",
  "input.max_ratio",
  "input.max_distort",
  "input.rgb_jitter",
  "input.flow_scale",
  "optim.learning_rate",
  "optim.warmup_steps",
  "optim.decay_factor",
  "optim.weight_decay",
  "optim.max_grad_norm",
  "optim.l1",
  "optim.l21",
}


def numbers(tree):
  """Names of the settings that are numbers or tuples of them."""
  for name, value in flatten(tree).items():
    if isinstance(value, bool | str):
      continue
    if not any(isinstance(v, str | tuple) for v in np.ravel(value).tolist()):
      yield name


def refusal(config, name, value):
  """The message about a value of any type; "" where it is allowed."""
  *parents, key = name.split(".")
  changed = config.to_dict()
  part = changed
  for parent in parents:
    part = part[parent]
  part[key] = value
  try:
    settings.check_numbers(ml_collections.ConfigDict(changed))
  except ValueError as error:
    return str(error)
  return ""


@pytest.fixture(scope="module")
def config():
  """Every kind of stage."""
  config = hybrid_quickstart.get_config().unlock()
  config.joint = default.get_joint(("spatial", "temporal"))
  config.joint.model.fields.fc7_dropout_rate = 0.5
  return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_of_a_config_has_a_range_that_it_is_in(name):
  config = get_config(name)
  settings.check_numbers(config)
  known = {key for key, _, _ in settings._settings(config.to_dict())}
  assert set(numbers(config.to_dict())) <= known


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None])
def test_no_number_is_negative_or_not_a_number(config, value):
  for name in numbers(config.to_dict()):
    message = refusal(config, name, value)
    assert message.startswith(f"config.{name}="), name
    assert " must be " in message and "\n" not in message


@pytest.mark.parametrize(
  "value, meaningful",
  [(0, ZERO_HAS_A_MEANING), (10**15, HUGE_HAS_A_MEANING)],
)
def test_zero_and_huge_numbers_mean_something_or_are_refused(
  config, value, meaningful
):
  for name in numbers(config.to_dict()):
    message = refusal(config, name, value)
    if {name, name.partition(".")[2]} & meaningful:
      assert not message
    else:
      assert message.startswith(f"config.{name}="), name


@pytest.mark.parametrize(
  "name, value",
  [
    ("train.log_every", 2.5),
    ("train.log_every", True),
    ("seed", 2**32),
    ("data.synthetic_short_side", 60),
    ("spatial.model.dropout_rate", 1.0),
    ("spatial.input.rgb_std", (0.2, 0.0, 0.2)),
    ("spatial.input.rgb_mean", (0.5, 0.5)),
    ("spatial.input.crop_scale", (0.5, "1")),
    ("spatial.input.crop_scale", 0.5),
    ("spatial.input.corner_scales", (1.5, 1.0)),
    ("spatial.optim.boundaries", (0,)),
    ("spatial.optim.multipliers", (1, 2)),
    ("spatial.optim.multipliers", (("conv", -1.0),)),
    ("spatial_lstm.model.fields.hidden_sizes", (64, 0)),
    ("joint.model.fields.fc7_dropout_rate", 1.5),
    ("fusion.weights", (1.0, math.nan)),
  ],
)
def test_other_values_that_can_not_be(config, name, value):
  message = refusal(config, name, value)
  assert message.startswith(f"config.{name}=") and " must be " in message


@pytest.mark.parametrize(
  "value, names",
  [
    (0, ZERO_HAS_A_MEANING),
    # Checked against the steps of the stage, which then are too few.
    (10**15, HUGE_HAS_A_MEANING - {"optim.warmup_steps"}),
  ],
)
def test_a_run_can_begin_with_what_means_something(
  tiny, tmp_path, value, names
):
  config = tiny_config.get_config()
  config.spatial.optim.schedule = "step"
  config.temporal.input.crop = "corner"
  of_flow = {"input.flow_scale", "input.max_distort"}
  # They need other settings.
  other = {"selection.patience", "optim.l1", "optim.l21"}
  for name in names - other - {"model.fields.fc7_dropout_rate"}:
    *parents, key = name.split(".")
    stage = config.temporal if name in of_flow else config.spatial
    part = config if name.split(".")[0] in config else stage
    for parent in parents:
      part = part[parent]
    part[key] = type(part[key])(value)
  run.check_config(config, tiny, tmp_path)
  for name in config.stages:
    create.create_stage(config, name, tiny, tmp_path)
