"""The flow contract and its quantisation."""

import dataclasses
import json

import numpy as np
import pytest

from twostream_jax.flow.spec import (
  FlowSpec,
  FlowSpecError,
  dequantise,
  differences,
  flip_codes,
  from_dict,
  quantise,
  require_equal,
  to_dict,
)

_SPEC = FlowSpec("dis", {"preset": "medium"})


def _flow(shape=(4, 6, 2), bound=20.0):
  rng = np.random.default_rng(0)
  return rng.uniform(-bound, bound, shape).astype(np.float32)


@pytest.mark.parametrize("bound", [1.0, 15.0, 20.0, 128.0])
def test_round_trip_is_within_half_a_step(bound):
  flow = _flow((64, 64, 2), bound)
  restored = dequantise(quantise(flow, bound), bound)
  assert restored.dtype == np.float32
  assert np.abs(restored - flow).max() <= bound / 255 * 1.0001


@pytest.mark.parametrize("bound", [1.0, 15.0, 20.0])
def test_no_motion_survives_within_half_a_step(bound):
  restored = dequantise(quantise(np.zeros(3, np.float32), bound), bound)
  assert np.abs(restored).max() <= bound / 255 * 1.0001


def test_ends_and_clipping():
  codes = quantise(np.array([-np.inf, -99, -20, 20, 99, np.inf]), 20.0)
  np.testing.assert_array_equal(codes, [0, 0, 0, 255, 255, 255])


def test_symmetric_about_no_motion():
  flow = _flow((1000,))
  codes = quantise(flow, 20.0).astype(int)
  mirrored = quantise(-flow, 20.0).astype(int)
  np.testing.assert_array_equal(codes + mirrored, 255)


def test_every_code_comes_back():
  codes = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(quantise(dequantise(codes, 20.0), 20.0), codes)


def test_not_a_number_is_refused():
  with pytest.raises(ValueError, match="not a number"):
    quantise(np.array([0.0, np.nan]), 20.0)


def test_flip_twice_changes_nothing():
  codes = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 8), np.uint8)
  np.testing.assert_array_equal(flip_codes(flip_codes(codes)), codes)


def test_flip_of_codes_is_codes_of_flipped_flow():
  flow = _flow((4, 9, 13))
  mirrored = flow[..., ::-1].copy()
  mirrored[0::2] *= -1
  np.testing.assert_array_equal(
    flip_codes(quantise(flow, 20.0)), quantise(mirrored, 20.0)
  )


def test_flip_leaves_its_argument_alone():
  codes = np.zeros((2, 2, 2), np.uint8)
  flip_codes(codes)
  assert not codes.any()


def test_dict_round_trip_through_json():
  spec = FlowSpec("farneback", {"levels": 3, "pyr_scale": 0.5}, bound=15.0)
  assert from_dict(json.loads(json.dumps(to_dict(spec)))) == spec


def test_from_dict_names_missing_and_unknown_fields():
  values = to_dict(_SPEC) | {"colour": "red"}
  del values["bound"]
  with pytest.raises(FlowSpecError, match=r"missing \['bound'\].*'colour'"):
    from_dict(values)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"bound": 0.0}, "bound"),
    ({"step": 0}, "step"),
    ({"direction": "backward"}, "direction='backward'"),
    ({"encoding": "png"}, "'png'"),
    ({"channel_order": "x1 x2 y1 y2"}, "x1 x2 y1 y2"),
  ],
)
def test_refuses_what_it_can_not_mean(change, message):
  with pytest.raises(FlowSpecError, match=message):
    dataclasses.replace(_SPEC, **change)


def test_differences_name_the_fields():
  other = dataclasses.replace(_SPEC, bound=15.0, parameters={"preset": "fast"})
  assert differences(_SPEC, _SPEC) == []
  assert differences(_SPEC, other) == [
    "parameters: {'preset': 'medium'} != {'preset': 'fast'}",
    "bound: 20.0 != 15.0",
  ]


def test_equal_specs_pass():
  again = from_dict(json.loads(json.dumps(to_dict(_SPEC))))
  require_equal(_SPEC, again, model="m", dataset="d")


def test_another_spec_is_refused_with_all_that_helps():
  other = dataclasses.replace(_SPEC, bound=15.0, direction="bidirectional")
  with pytest.raises(FlowSpecError) as refused:
    require_equal(
      _SPEC, other, model="run/temporal/checkpoints/8", dataset="data/tiny"
    )
  lines = str(refused.value).splitlines()
  model = next(s for s in lines if "run/temporal/checkpoints/8" in s)
  data = next(s for s in lines if "data/tiny" in s)
  assert from_dict(json.loads(model[model.index("{") :])) == _SPEC
  assert from_dict(json.loads(data[data.index("{") :])) == other
  assert "  bound: 20.0 != 15.0" in lines
  assert "  direction: 'forward' != 'bidirectional'" in lines
  assert not any(line.startswith("  quality") for line in lines)
  assert "train again" in lines[-1] and "build_tfds" in lines[-1]
