"""Fields of whole videos: streaming, directions, chunks, processes."""

import inspect
import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from twostream_jax.flow import (
  FLOWS,
  compute_flow,
  compute_flows,
  default_parameters,
  prepare_process,
)
from twostream_jax.flow import tvl1 as tvl1_module
from twostream_jax.flow.spec import (
  EXTRACTED,
  FlowSpec,
  FlowSpecError,
  require_equal,
)

# TV-L1 as earlier datasets have it. With the defaults, which test_opencv.py
# shares, two programs are compiled for most tests, whose images have one size.
_EARLIER = {
  name: value
  for name, value in default_parameters("tvl1").items()
  if name != "texture"
}
_SETTINGS = {"dis": {}, "farneback": {"winsize": 9}, "tvl1": _EARLIER}
# What a process prints: settings that matter, whether a compiled program was
# found, and a hash of flow.
_REPORT = """
import hashlib, os, pathlib, sys
import numpy as np
from twostream_jax.flow import FlowSpec, compute_flows, prepare_process
spec = FlowSpec(sys.argv[1], {})
if sys.argv[2] != "unprepared":
  prepare_process(spec, pathlib.Path(sys.argv[2]))
for name in ("NPROC", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_FLAGS"):
  print(name, os.environ.get(name))
print("jax", "jax" in sys.modules)
if sys.argv[1] != "tvl1":
  sys.exit()
import jax
hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name.endswith("compilation_cache/cache_hits"))
)
frames = np.random.default_rng(0).integers(0, 256, (3, 40, 48), np.uint8)
fields = np.stack(list(compute_flows(spec, frames)))
print("hash", hashlib.sha256(fields.tobytes()).hexdigest())
print("cache", jax.config.jax_compilation_cache_dir)
print("found", any(hits))
"""


def _frames(count, height=48, width=64):
  """A texture that moves and changes, gray uint8 [count, h, w]."""
  rng = np.random.default_rng(0)
  coarse = rng.uniform(0, 255, (height // 4 + 4, width // 4 + count))
  size = (width + 2 * count, height)
  image = cv2.resize(coarse.astype("f4"), size, interpolation=cv2.INTER_CUBIC)
  image = np.clip(image, 0, 255)
  return [
    np.round(image[:, 2 * i : 2 * i + width] * (1 - 0.02 * i)).astype(np.uint8)
    for i in range(count)
  ]


def _counted(frames, taken):
  for frame in frames:
    taken.append(frame)
    yield frame


def _spec(algorithm, **changes):
  return FlowSpec(algorithm, _SETTINGS[algorithm], **changes)


@pytest.mark.parametrize("algorithm", FLOWS)
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_fields_are_those_of_the_pairs(algorithm, step, direction):
  spec = _spec(algorithm, step=step, direction=direction)
  frames = _frames(6)
  fields = list(compute_flows(spec, iter(frames)))
  assert len(fields) == 6 - step
  for i, field in enumerate(fields):
    expected = [compute_flow(spec, frames[i], frames[i + step])]
    if direction == "bidirectional":
      expected.append(compute_flow(spec, frames[i + step], frames[i]))
    assert field.dtype == np.float32
    np.testing.assert_array_equal(field, expected)


@pytest.mark.parametrize("algorithm", FLOWS)
def test_the_way_back_is_the_way_of_the_frames_turned_round(algorithm):
  spec = _spec(algorithm, direction="bidirectional")
  first, second = _frames(2)
  ((forward, backward),) = compute_flows(spec, [first, second])
  ((there, back),) = compute_flows(spec, [second, first])
  np.testing.assert_array_equal(backward, there)
  np.testing.assert_array_equal(forward, back)
  assert not np.array_equal(forward, backward)


@pytest.mark.parametrize("algorithm", FLOWS)
@pytest.mark.parametrize("step", [1, 3])
def test_frames_are_taken_as_they_are_needed(algorithm, step):
  taken = []
  frames = _counted(_frames(8), taken)
  fields = compute_flows(_spec(algorithm, step=step), frames)
  assert not taken
  for i in range(8 - step):
    next(fields)
    assert len(taken) == i + step + 1
  assert next(fields, None) is None


def test_flow_of_earlier_datasets_stays_as_it_was():
  """Their parameters do not name the texture, which new ones always do."""
  frames = _frames(2)
  frames[1] = frames[1] // 2
  before = FlowSpec("tvl1", _EARLIER)
  ((field,),) = compute_flows(before, frames)
  with_none = FlowSpec("tvl1", _EARLIER | {"texture": 0.0})
  np.testing.assert_array_equal(field, compute_flow(before, *frames))
  np.testing.assert_array_equal(field, compute_flow(with_none, *frames))
  now = FlowSpec("tvl1", default_parameters("tvl1"))
  assert np.abs(field - compute_flow(now, *frames)).mean() > 0.5
  with pytest.raises(FlowSpecError, match="texture"):
    require_equal(before, now, model="m", dataset="d")


@pytest.mark.parametrize("algorithm", FLOWS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_frames_have_no_field(algorithm, count):
  spec = _spec(algorithm, step=3, direction="bidirectional")
  assert list(compute_flows(spec, _frames(count))) == []


def test_too_small_is_refused_and_8_by_8_is_not():
  (field,) = compute_flows(_spec("tvl1"), _frames(2, 8, 8))
  assert field.shape == (1, 8, 8, 2) and np.isfinite(field).all()
  with pytest.raises(ValueError, match="2 x 2"):
    list(compute_flows(_spec("tvl1"), np.zeros((2, 1, 8), np.uint8)))


@pytest.mark.parametrize("algorithm", FLOWS)
@pytest.mark.parametrize("step", [1, 3])
def test_frames_of_two_sizes_are_refused(algorithm, step):
  frames = [*_frames(5), *_frames(5, 48, 72)]
  fields = compute_flows(_spec(algorithm, step=step), frames)
  with pytest.raises(ValueError, match="one size"):
    list(fields)


def test_colour_frames_are_refused():
  with pytest.raises(ValueError, match="gray uint8"):
    next(compute_flows(_spec("tvl1"), np.zeros((2, 48, 64, 3), np.uint8)))


@pytest.mark.parametrize(
  "spec, message",
  [
    (FlowSpec("flownet", {}), "'flownet'; known: dis, farneback, tvl1"),
    (FlowSpec("tvl1", {"preset": "fast"}), "no parameter preset.*lambda_"),
    (FlowSpec(EXTRACTED, {}), "another program.*can't be computed"),
  ],
)
def test_what_can_not_be_computed_is_refused_before_any_frame(spec, message):
  taken = []
  with pytest.raises(FlowSpecError, match=message):
    compute_flows(spec, _counted(_frames(3), taken))
  assert not taken


@pytest.mark.parametrize("algorithm", FLOWS)
def test_defaults_can_be_left_out(algorithm):
  frames = _frames(2)
  (short,) = compute_flows(FlowSpec(algorithm, {}), frames)
  full = FlowSpec(algorithm, default_parameters(algorithm))
  (long,) = compute_flows(full, frames)
  # TV-L1's defaults are another program than its parameters of earlier
  # datasets, whose roundings the compiler may place elsewhere.
  np.testing.assert_allclose(short, long, rtol=0, atol=1e-4)
  np.testing.assert_array_equal(long[0], compute_flow(full, *frames))


def test_an_error_of_the_frames_comes_through():
  def broken():
    yield from _frames(3)
    raise OSError("disk is gone")

  fields = compute_flows(_spec("tvl1"), broken())
  next(fields)
  next(fields)
  with pytest.raises(OSError, match="disk is gone"):
    next(fields)


def test_tvl1_here_has_the_parameters_of_tvl1():
  theirs = inspect.signature(tvl1_module.tvl1).parameters.values()
  assert default_parameters("tvl1") == {
    p.name: p.default for p in theirs if p.kind is p.KEYWORD_ONLY
  }


@pytest.mark.parametrize("count", [3, 4, 6])
def test_chunks_give_what_single_pairs_give(count):
  frames = _frames(count + 1)
  pairs = list(zip(frames, frames[1:], strict=False))
  alone = [compute_flow(_spec("tvl1"), *pair) for pair in pairs]
  flows = list(tvl1_module.tvl1_of_pairs(pairs, pairs_at_once=4, texture=0.0))
  assert len(flows) == count
  np.testing.assert_allclose(flows, alone, atol=5e-3)
  assert np.abs(np.subtract(flows, alone)).mean() < 1e-4


def test_all_chunks_have_one_shape(monkeypatch):
  shapes = []

  def recording(previous, following):
    shapes.append((previous.shape, following.shape))
    return np.zeros((*previous.shape, 2), np.float32)

  monkeypatch.setattr(tvl1_module, "tvl1", recording)
  pairs = [(frame, frame) for frame in _frames(8)]
  flows = list(tvl1_module.tvl1_of_pairs(pairs, pairs_at_once=3))
  assert len(flows) == 8
  assert shapes == [((3, 48, 64), (3, 48, 64))] * 3


@pytest.mark.parametrize("backend, size", [("cpu", 1), ("gpu", 128)])
def test_only_other_devices_than_cpus_get_chunks(monkeypatch, backend, size):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  assert tvl1_module.default_pairs_at_once() == size


def test_chunks_take_no_more_frames_than_they_hold(monkeypatch):
  spec = _spec("tvl1", step=3, direction="bidirectional")
  expected = list(compute_flows(spec, _frames(8)))
  monkeypatch.setattr(tvl1_module, "default_pairs_at_once", lambda: 4)
  taken = []
  fields = compute_flows(spec, _counted(_frames(8), taken))
  got = [next(fields)]
  # Four pairs are two frames, forth and back.
  assert len(taken) == spec.step + 2
  got += fields
  np.testing.assert_allclose(got, expected, atol=5e-3)


def _start(algorithm, cache, **settings):
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_", "XLA_")) and name != "NPROC"
  }
  return subprocess.Popen(
    [sys.executable, "-c", _REPORT, algorithm, str(cache)],
    env=inherited | {"JAX_PLATFORMS": "cpu"} | settings,
    stdout=subprocess.PIPE,
    text=True,
  )


def _report(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0
  return dict(line.split(" ", 1) for line in output.splitlines())


@pytest.mark.slow
def test_flow_is_the_same_to_the_bit_however_processes_are_set_up(tmp_path):
  # The first two run at the same time.
  together = [_start("tvl1", tmp_path / "a"), _start("tvl1", tmp_path / "a")]
  alone = [_report(process) for process in together]
  assert len(list((tmp_path / "a").glob("*tvl1*"))) > 0
  later = _report(_start("tvl1", tmp_path / "a"))
  unprepared = _report(_start("tvl1", "unprepared"))
  threads = _report(_start("tvl1", tmp_path / "b", NPROC="4"))
  reports = [*alone, later, unprepared, threads]
  assert len({report["hash"] for report in reports}) == 1
  for report in (*alone, later):
    assert report["NPROC"] == "1"
    assert report["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert report["cache"] == str(tmp_path / "a")
  assert later["found"] == "True"
  assert unprepared["found"] == threads["found"] == "False"
  assert unprepared["NPROC"] == unprepared["cache"] == "None"


@pytest.mark.slow
def test_settings_of_the_user_stay(tmp_path):
  settings = {
    "NPROC": "3",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine"),
  }
  report = _report(_start("tvl1", tmp_path / "other", **settings))
  assert report["cache"] == settings.pop("JAX_COMPILATION_CACHE_DIR")
  assert {name: report[name] for name in settings} == settings
  assert not (tmp_path / "other").exists()


def test_other_algorithms_need_no_preparation_and_no_jax(tmp_path):
  report = _report(_start("dis", tmp_path / "cache"))
  assert report["jax"] == "False"
  assert report["NPROC"] == report["XLA_PYTHON_CLIENT_PREALLOCATE"] == "None"


def test_no_folder_no_cache(monkeypatch):
  monkeypatch.setenv("NPROC", "1")
  monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  before = jax.config.jax_compilation_cache_dir
  prepare_process(_spec("tvl1"))
  assert jax.config.jax_compilation_cache_dir == before


def test_reading_stored_flow_needs_no_jax():
  code = """
import sys
from twostream_jax import flow
from twostream_jax.flow import colorwheel, opencv, spec
assert flow.default_parameters("tvl1")["lambda_"] == 0.3
print("jax" in sys.modules)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.stdout == "False\n", done.stderr
