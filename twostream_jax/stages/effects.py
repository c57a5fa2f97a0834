"""Settings of a stage that nothing reads, which no config may change.

All kinds of stages, crops and schedules share a form, so a stage has settings
that belong to others. A change of one would be recorded with the run, and do
nothing.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

# A recipe's place is found at run time.
from twostream_jax.configs import default  # pyright: ignore[reportAttributeAccessIssue]
from twostream_jax.files.workdir import flatten

_TOWERS = "the networks are those of the stages in its towers: set it there"
_BOTH = "a joint stage reads both modalities"
_NO_FLOW = 'it is for modality "flow"'
_NO_RGB = 'it is for modality "rgb"'

# Setting, or prefix of several, to the reason why it has no effect.
_JOINT = {
  "modality": _BOTH,
  "feature": "later stages read features of streams only",
  "model.width": _TOWERS,
  "model.dropout_rate": _TOWERS,
  "model.sync_batch_norm": _TOWERS,
  "model.fields": _TOWERS,
  "init": _TOWERS,
}
_SPATIAL = {
  "input.stack_length": _NO_FLOW,
  "input.short_clip": _NO_FLOW,
  "input.flow_scale": _NO_FLOW,
  "input.subtract_mean_flow": _NO_FLOW,
}
_TEMPORAL = {
  "input.rgb_mean": _NO_RGB,
  "input.rgb_std": _NO_RGB,
  "input.rgb_jitter": _NO_RGB,
}
# Of other crops, by the name of a crop.
_CROPS = {
  "random": {
    "input.corner_scales": 'it is for input.crop="corner"',
    "input.max_distort": 'it is for input.crop="corner"',
  },
  "corner": {
    "input.crop_scale": 'it is for input.crop="random"',
    "input.max_ratio": 'it is for input.crop="random"',
  },
}
_STEPS = {
  "optim.boundaries": 'it is for optim.schedule="step"',
  "optim.decay_factor": 'it is for optim.schedule="step"',
}


def check_effects(config: ml_collections.ConfigDict, name: str) -> None:
  """Refuses a changed setting of a stage that nothing reads.

  Args:
    config: of the run.
    name: of the stage, whose kind is known.

  Raises:
    ValueError: The message names the setting, the reason and the default.
  """
  stage = config[name].to_dict()
  unused, forms = _unused(stage)
  flat, defaults = flatten(stage), [flatten(form) for form in forms]
  for key, why in unused.items():
    for path, value in flat.items():
      if path != key and not path.startswith(f"{key}."):
        continue
      allowed = [form.get(path) for form in defaults]
      if value not in allowed:
        raise ValueError(
          f"config.{name}.{path}={value!r} has no effect: {why}. Leave it at"
          f" its default, {allowed[0]!r}"
        )


def _unused(
  stage: Mapping[str, Any],
) -> tuple[Mapping[str, str], list[Mapping[str, Any]]]:
  """What a stage does not use, and the settings that it may begin with."""
  unused = {} if stage["optim"]["schedule"] == "step" else dict(_STEPS)
  if stage["kind"] == "features":
    return unused, [{"optim": default.get_optim().to_dict()}]
  unused |= _CROPS.get(stage["input"]["crop"], {})
  if stage["kind"] == "joint":
    return unused | _JOINT, [default.get_joint(stage["towers"]).to_dict()]
  modality = stage["modality"]
  unused |= _SPATIAL if modality == "rgb" else _TEMPORAL
  # A stream of one modality may begin as one of the other.
  other = "flow" if modality == "rgb" else "rgb"
  return unused, [default.get_stream(m).to_dict() for m in (modality, other)]
