"""Each protocol against views that are made and scored one at a time.

The reference shares nothing with the package but the network: JPEGs are decoded
by OpenCV, windows, crops, flips, stacks and normalisation are written out, and
every view passes through the network alone.
"""

import dataclasses
import functools

import cv2
import jax
import numpy as np
import pytest

from configs import default
from tests import tiny_config
from twostream_jax import evaluate, parallel, steps
from twostream_jax.stages import create, inputs

STACK, SIDE, BOUND, FRACTION = 4, 64, 20.0, 0.8
# Frames, height and width: fewer than a stack, a stack, more than that.
VIDEOS = [(2, 48, 64), (3, 64, 48), (5, 48, 64), (9, 48, 48), (23, 48, 64)]


class Source(list):
  """Records in memory."""

  labels = np.arange(len(VIDEOS), dtype=np.int32)
  video_ids = tuple(f"video {i}" for i in range(len(VIDEOS)))


def jpegs(rng, count, height, width):
  """Images that differ everywhere."""
  shape = (count, height // 8, width // 8, *((3,) if width < 90 else ()))
  small = rng.integers(0, 256, shape, np.uint8)
  large = [cv2.resize(image, (width, height)) for image in small]
  return [cv2.imencode(".jpg", image)[1].tobytes() for image in large]


def record(rng, index):
  frames, height, width = VIDEOS[index]
  return {
    "video_id": Source.video_ids[index].encode(),
    "label": index,
    "num_frames": frames,
    "height": height,
    "width": width,
    "rgb": jpegs(rng, frames, height, width),
    "flow": jpegs(rng, frames - 1, height, 2 * width),
  }


@pytest.fixture(scope="module")
def data(tiny):
  rng = np.random.default_rng(0)
  source = Source(record(rng, i) for i in range(len(VIDEOS)))
  return dataclasses.replace(
    tiny, sources=dict.fromkeys(("train", "validation", "test"), source)
  )


@pytest.fixture(scope="module")
def config():
  config = tiny_config.get_config()
  with config.unlocked():
    config.joint = default.get_joint(("spatial", "temporal"))
  config.stages = ("spatial", "temporal", "joint")
  config.eval.crop_fraction = FRACTION
  config.joint.input = config.temporal.input
  config.joint.batch_size = 8
  config.temporal.input.stack_length = STACK
  config.temporal.input.flow_scale = 8.0
  return config


@pytest.fixture(scope="module")
def networks(config, data, tmp_path_factory):
  """By kind: a network, variables that tell views apart, and the predict."""
  folder, found = tmp_path_factory.mktemp("networks"), {}
  for name in ("spatial", "temporal", "joint"):
    own = config.copy_and_resolve_references()
    own.stages = (name,)  # Towers of a joint stage are not trained here.
    stage = create.create_stage(own, name, data, folder)
    variables = jax.tree.map(lambda x: 1.5 * x, stage.init_state().variables)
    found[name] = Network(data, stage, variables)
  return found


class Network:
  """What scores views, all in batches or one alone."""

  def __init__(self, data, stage, variables):
    self.step = functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=7,
      num_classes=len(data.class_names),
    )
    self.predict = parallel.pmap_predict_step(self.step)
    self.variables = variables
    self.apply = jax.jit(
      functools.partial(stage.model.apply, variables, train=False)
    )

  def score(self, inputs):
    """Logits of one view."""
    logits, _ = self.apply({k: x[None, None] for k, x in inputs.items()})
    return np.asarray(logits[0], np.float64)


def windows(protocol, kind, frames):
  """First frame of every window."""
  available = frames if kind == "spatial" else max(1, frames - STACK)
  if protocol == "dense":
    return list(range(available))
  count = 1 if protocol == "single" else int(protocol.split("x")[0])
  return [int((2 * i + 1) * available / (2 * count)) for i in range(count)]


def crops(protocol, height, width):
  """Top, left, side, mirrored."""
  side = round(FRACTION * min(height, width))
  down, right = height - side, width - side
  places = [(down // 2, right // 2)]
  if protocol.endswith(("x5", "x10")):
    places += [(0, 0), (0, right), (down, 0), (down, right)]
  flips = (False, True) if protocol.endswith("x10") else (False,)
  return [(y, x, side, flip) for flip in flips for y, x in places]


def cut(image, crop):
  y, x, side, flip = crop
  seen = cv2.resize(image[y : y + side, x : x + side], (SIDE, SIDE))
  return seen[:, ::-1] if flip else seen


def rgb_view(record, frame, crop):
  image = cv2.imdecode(np.frombuffer(record["rgb"][frame], np.uint8), 1)
  seen = cut(image, crop)[..., ::-1] / 255.0
  return (seen - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def flow_view(record, start, crop, rule):
  count, channels = len(record["flow"]), []
  for i in range(start, start + STACK):
    field = i % count if rule == "loop" else min(i, count - 1)
    both = cv2.imdecode(np.frombuffer(record["flow"][field], np.uint8), 0)
    for component in (0, 1):
      codes = np.hsplit(both, 2)[component]
      flow = cut(codes, crop) * (2 * BOUND / 255) - BOUND
      if crop[3] and component == 0:
        flow = -flow
      channels.append((flow - flow.mean()) / 8.0)
  return np.stack(channels, axis=-1)


def views_of(protocol, kind, record, rule):
  """Every view of a video, as the network takes it."""
  frames = record["num_frames"]
  for start in windows(protocol, kind, frames):
    for crop in crops(protocol, record["height"], record["width"]):
      view = {}
      if kind != "temporal":
        shift = STACK // 2 if kind == "joint" else 0
        view["rgb"] = rgb_view(record, min(start + shift, frames - 1), crop)
      if kind != "spatial":
        view["flow"] = flow_view(record, start, crop, rule)
      yield {k: x.astype(np.float32) for k, x in view.items()}


def assert_agrees(found, network, protocol, kind, data, rule):
  distinct = []
  for i, record in enumerate(data.sources["test"]):
    scores = [network.score(v) for v in views_of(protocol, kind, record, rule)]
    np.testing.assert_allclose(
      found.logits[i], np.mean(scores, axis=0), rtol=0, atol=1e-5
    )
    distinct.append(np.ptp(scores, axis=0).max())
  # The views differ by far more than the tolerance: a lost one would show.
  assert protocol == "single" or max(distinct) > 1e-2
  assert found.ids == Source.video_ids
  assert found.labels.tolist() == list(range(len(VIDEOS)))


def inputs_of(config, data, kind, protocol, rule):
  config = config.copy_and_resolve_references()
  config.eval.protocol = protocol
  config[kind].input.short_clip = rule
  return inputs.create_video_inputs(config, kind, data)


@pytest.mark.parametrize(
  "protocol, rule",
  [
    ("single", "loop"),
    ("single", "hold"),
    ("4x10", "loop"),
    ("dense", "hold"),
  ]
  + [
    pytest.param(protocol, rule, marks=pytest.mark.slow)
    for protocol, rule in (
      *(("7x1", "loop"), ("7x1", "hold"), ("3x5", "loop"), ("3x5", "hold")),
      *(("4x10", "hold"), ("dense", "loop")),
    )
  ],
)
def test_stacks_of_flow(config, data, networks, protocol, rule):
  network = networks["temporal"]
  views = inputs_of(config, data, "temporal", protocol, rule)
  rows = views.eval_rows("test", views_per_pass=1, replicas=8)
  found = evaluate.evaluate(
    network.predict,
    parallel.replicate(network.variables),
    rows,
    protocol=views.protocol(),
  )
  assert found.protocol.startswith(f"{protocol}: ")
  assert_agrees(found, network, protocol, "temporal", data, rule)


@pytest.mark.parametrize("kind", ["spatial", "joint"])
@pytest.mark.parametrize("protocol", ["7x1", "dense"])
def test_frames_alone_and_with_flow(config, data, networks, protocol, kind):
  network = networks[kind]
  views = inputs_of(config, data, kind, protocol, "hold")
  rows = views.eval_rows("test", views_per_pass=1, replicas=8)
  found = evaluate.evaluate(
    network.predict,
    parallel.replicate(network.variables),
    rows,
    protocol=views.protocol(),
  )
  assert_agrees(found, network, protocol, kind, data, "hold")


@pytest.mark.parametrize(
  "views_per_pass", [pytest.param(20, marks=pytest.mark.slow), 1000]
)
@pytest.mark.parametrize(
  "protocol", [pytest.param("4x10", marks=pytest.mark.slow), "dense"]
)
def test_one_device_and_other_batches(
  config, data, networks, protocol, views_per_pass, monkeypatch
):
  network = networks["temporal"]
  views = inputs_of(config, data, "temporal", protocol, "loop")
  several = evaluate.evaluate(
    network.predict,
    parallel.replicate(network.variables),
    views.eval_rows("test", views_per_pass=1, replicas=8),
    protocol="",
  )
  monkeypatch.setattr(jax, "local_device_count", lambda: 1)
  predict = jax.pmap(network.step, devices=jax.devices()[:1])
  alone = evaluate.evaluate(
    predict,
    jax.tree.map(lambda x: x[None], network.variables),
    views.eval_rows("test", views_per_pass=views_per_pass, replicas=1),
    protocol="",
  )
  np.testing.assert_allclose(alone.logits, several.logits, rtol=0, atol=1e-5)
