"""Every setting of a stage changes what is built of it, or is refused."""

import copy
import functools
import types
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from configs import default
from twostream_jax import optim
from twostream_jax.files.workdir import flatten
from twostream_jax.flow.spec import FlowSpec
from twostream_jax.stages import create, effects, inputs

DATA = types.SimpleNamespace(
  sources={"train": ()},
  flow_spec=FlowSpec("dis", {}),
  class_names=("a", "b", "c"),
  multi_label=False,
)
# What a change is to where doubling, negating or naming another would not do.
OTHERS = {
  "model.fields.normalisation": "batch",
  "model.fields.hidden_sizes": (8,),
  "input.short_clip": "hold",
  "input.crop_scale": (0.5, 1.0),
  "input.max_ratio": 1.5,
  "optim.name": "adam",
  "optim.schedule": "constant",
  "input.crop": "corner",
  "optim.boundaries": (400,),
  "optim.penalised": "other",
  "optim.multipliers": (("backbone", 0.5),),
  "modality": "rgb",
  "feature": "fc7",
  "init.weights": "file.safetensors",
  "init.layout": "torchvision",
}
# They say what the stage is; nothing else of it can then stay as it is.
IDENTITY = {"kind", "towers", "sources"}


def get_config():
  config = default.get_config().unlock()
  config.joint = default.get_joint(("spatial", "temporal"))
  for model in ("lstm", "concat", "regularised", "joint_hybrid"):
    sources = ("temporal",) if model == "lstm" else ("spatial", "temporal")
    config[model] = default.get_features(model, sources)
  config.lstm.model.fields = {"bidirectional": False}
  for name in ("regularised", "joint_hybrid"):
    config[name].model.fields = {"hidden": 7}
  for name in STAGES:
    # On, so that what they depend on has an effect.
    config[name].optim.boundaries = (100,)
    config[name].optim.schedule = "step"
    config[name].optim.penalised = "logits"
    config[name].optim.l1 = config[name].optim.l21 = 0.1
  return config


STAGES = (
  "spatial",
  "temporal",
  "joint",
  "lstm",
  "concat",
  "regularised",
  "joint_hybrid",
)


def another(path, value):
  if path in OTHERS:
    return OTHERS[path]
  if path == "model.name":
    return {
      "resnet18": "resnet34",
      "cnn_m": "vgg11",
      "average": "concat",
      "lstm": "concat",
    }.get(value, "regularised" if value == "concat" else "concat")
  if isinstance(value, bool):
    return not value
  if isinstance(value, tuple):
    return tuple(x / 2 for x in value)
  return value / 2 if value and isinstance(value, float) else value + 1


def built(config, name, monkeypatch):
  """All that is made of a stage's settings, to be compared."""
  stage = config[name]
  monkeypatch.setattr(optim, "create_optimizer", lambda _, **given: given)
  schedule = create.create_schedule(stage)
  loss = create.create_loss(config, name, DATA)
  parts = [
    stage.batch_size,
    stage.total_steps,
    stage.balanced,
    stage.optim.ema_decay,
    create.create_model(config, name, 3),
    create.create_optimizer(stage.optim, None),
    [float(schedule(step)) for step in (0, 1, 50, 150, 450)],
    loss.keywords if isinstance(loss, functools.partial) else loss,
  ]
  if stage.kind != "features":
    parts.append(inputs.create_video_inputs(config, name, DATA).train)
    numbers = copy.deepcopy(config)
    numbers[name].update({"init": {"weights": ""}} if "init" in stage else {})
    numbers.stages = (name,)  # Towers of a joint stage are not trained here.
    batches = inputs.create_video_inputs(numbers, name, DATA)
    parts.append(
      create.create_preprocess(
        numbers, name, DATA, batches, Path("/no/such/workdir")
      )
    )
  if stage.kind == "stream":
    # Later stages read it; warm_start reads the files.
    parts += [stage.feature, stage.init.to_dict()]
  return repr(parts)


@pytest.mark.parametrize("name", STAGES)
def test_every_setting_has_an_effect_or_is_refused(name, monkeypatch):
  config = get_config()
  effects.check_effects(config, name)
  before = built(config, name, monkeypatch)
  refused = set()
  for path, value in flatten(config[name].to_dict()).items():
    if path in IDENTITY:
      continue
    changed = ml_collections.ConfigDict(config.to_dict())
    *parents, key = path.split(".")
    part = functools.reduce(lambda p, k: p[k], parents, changed[name])
    with part.ignore_type():
      part[key] = another(path, value)
    if path == "modality":
      part[key] = {"rgb": "flow", "flow": "rgb"}[value]
    if path == "model.name":
      part.fields = {}  # They are of the other network.
    if path == "optim.schedule":
      part.boundaries = ()  # They are of the other schedule.
    try:
      effects.check_effects(changed, name)
    except ValueError as error:
      assert f"config.{name}.{path}=" in str(error)
      assert "has no effect" in str(error)
      refused.add(path)
      continue
    assert built(changed, name, monkeypatch) != before, path
  assert bool(refused) == (config[name].kind != "features")
  # The other way of cropping, and schedules without steps.
  config[name].optim.schedule = "cosine"
  with pytest.raises(ValueError, match="optim.boundaries.*has no effect"):
    effects.check_effects(config, name)


@pytest.mark.parametrize(
  "path, value, why",
  [
    ("joint.init.weights", "a.pth", "stages in its towers"),
    ("joint.model.dropout_rate", 0.1, "stages in its towers"),
    ("joint.model.width", 0.5, "stages in its towers"),
    ("joint.model.fields.normalisation", "batch", "stages in its towers"),
    ("joint.feature", "pool", "features of streams only"),
    ("spatial.input.max_distort", 1, 'for input.crop="corner"'),
    ("spatial.input.stack_length", 5, 'for modality "flow"'),
    ("temporal.input.rgb_jitter", 0.1, 'for modality "rgb"'),
  ],
)
def test_a_setting_without_an_effect_is_named_with_the_reason(path, value, why):
  config = get_config()
  name, *parents, key = path.split(".")
  part = functools.reduce(lambda p, k: p[k], parents, config[name])
  usual = part[key]
  part[key] = value
  with pytest.raises(ValueError, match=why) as error:
    effects.check_effects(config, name)
  assert str(error.value).startswith(f"config.{path}={value!r} has no effect")
  assert str(error.value).endswith(f"its default, {usual!r}")
  assert np.size(usual) == 1
