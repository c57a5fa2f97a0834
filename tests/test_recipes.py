"""Every recipe builds at full size, and trains and evaluates in small."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.recipes import (
  CONFIGS,
  NUM_CLASSES,
  RECIPES,
  dataset_of,
  get_config,
)
from twostream_jax import models, parallel, pretrained, steps
from twostream_jax.data.loader import features, protocols
from twostream_jax.experiment import run
from twostream_jax.files.workdir import features_path
from twostream_jax.stages import create, needs

# Published parameters of a network of 1000 classes and 3 channels, the inputs
# of its last layer and the weights of its first layer for one channel.
PUBLISHED_SIZES = {
  "cnn_m": (92_469_864, 2048, 7 * 7 * 96),
  "vgg16": (138_357_544, 4096, 3 * 3 * 64),
  "vgg19": (143_667_240, 4096, 3 * 3 * 64),
  "resnet50": (25_557_032, 2048, 7 * 7 * 64),
}


class WithSeveralLabels:
  """A split whose clips have two classes, or none."""

  def __init__(self, source):
    self._source = source
    self.labels = tuple(map(self._several, range(len(source)), source.labels))

  def _several(self, index, label):
    labels = [] if index % 5 == 4 else [label, (label + 1) % 12]
    return np.array(labels, np.int64)

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __reduce__(self):
    return WithSeveralLabels, (self._source,)

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    return self._source[index] | {"label": self.labels[index]}


def as_multi_label(data):
  """The same clips as a multi-label set."""
  sources = {name: WithSeveralLabels(s) for name, s in data.sources.items()}
  return dataclasses.replace(data, multi_label=True, sources=sources)


def small_data(name, tiny):
  """The tiny dataset, of the kind of labels that a config is made for."""
  return as_multi_label(tiny) if dataset_of(name) == "ccv" else tiny


def for_tests(config, folder):
  """The same recipe on few, small samples, from made-up weights."""
  for name in config.stages:
    stage = config[name]
    stage.batch_size = 8
    stage.total_steps = 1
    if stage.kind == "features":
      sizes = {
        "lstm": {"hidden_sizes": (6, 5)},
        "regularised": {"hidden": 7},
      }
      stage.model.fields = sizes[stage.model.name]
    else:
      if stage.kind == "stream":
        stage.model.width = 0.02
        # Fewer blocks to compile; other tests build the whole network.
        if stage.model.name == "resnet50":
          stage.model.name = "resnet18"
      stage.input.image_size = 64
    if stage.kind == "stream" and stage.init.weights:
      stage.init.weights = write_weights(stage.model, folder)
    stage.optim.schedule = "cosine"
    stage.optim.boundaries = ()
    stage.optim.warmup_steps = 0
  config.features.num_frames = 3
  crops = config.eval.protocol.partition("x")[2]
  config.eval.protocol = f"1x{crops}"
  config.train.log_every = 1
  config.train.checkpoint_every = 1
  config.report.num_examples = 2
  return config


def write_weights(settings, folder):
  """A file of made-up weights of an image network of 5 classes."""
  model = models.create_model(
    settings.name, num_classes=5, width=settings.width
  )
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)),
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.uniform(0.0, 0.1, x.shape).astype(x.dtype), shapes
  )
  path = folder / f"{settings.name}.safetensors"
  metadata = pretrained.Metadata(settings.name, 5, pretrained.IMAGENET)
  pretrained.save_weights(path, variables, metadata)
  return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_steps_and_predicts_at_full_size(name, tiny, tmp_path):
  """Shapes only, of the real classes, batches, widths and image sizes."""
  config = get_config(name)
  num_classes = NUM_CLASSES.get(dataset_of(name), 12)
  names = tuple(f"class {i:03}" for i in range(num_classes))
  data = dataclasses.replace(
    small_data(name, tiny), class_names=names, sources=tiny.sources
  )
  num_outputs = num_classes
  if config.data.second_dir:
    config.data.second_dir = str(tiny.path)
    num_outputs += len(tiny.class_names)
  for tower in ("spatial", "temporal"):
    config[tower].init.weights = ""
  for stage_name in config.stages:
    if config[stage_name].kind == "features":
      write_blank_features(config, stage_name, data, tmp_path)
    own = config.copy_and_resolve_references()
    if own[stage_name].kind == "joint":
      own.stages = (stage_name,)  # Its towers are not trained here.
    stage = create.create_stage(own, stage_name, data, tmp_path)
    state = stage.state_shapes()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    if name in RECIPES:
      assert count == expected_size(config, stage_name, num_outputs)
    check_abstract_step(stage, state, data.multi_label, num_classes)
    check_abstract_prediction(config, stage, state, num_classes)


def on_devices(example, *leading):
  """A global batch by its shapes: [devices ...leading, each of the example]."""
  return {
    key: jax.ShapeDtypeStruct(
      (jax.device_count(), *leading, *value.shape[1:]), value.dtype
    )
    for key, value in example.items()
  }


def check_abstract_step(stage, state, multi_label, num_classes):
  """One update keeps the shapes of a state and gives the metrics."""
  share = stage.batch_size // jax.device_count()
  batch = on_devices(stage.inputs.example(), share)
  of_clips = (jax.device_count(), share)
  batch["mask"] = jax.ShapeDtypeStruct(of_clips, bool)
  batch["index"] = jax.ShapeDtypeStruct(of_clips, "int32")
  if multi_label:
    batch["label"] = jax.ShapeDtypeStruct((*of_clips, num_classes), "float32")
  else:
    batch["label"] = jax.ShapeDtypeStruct(of_clips, "int32")
  step = parallel.pmap_train_step(
    functools.partial(
      steps.train_step,
      model=stage.model,
      tx=stage.tx,
      preprocess=stage.preprocess,
      loss_fn=stage.loss_fn,
      stop_frozen=stage.stop_frozen,
    )
  )
  replicated = jax.eval_shape(parallel.replicate, state)
  after, metrics = jax.eval_shape(step, replicated, batch, jax.random.key(0))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), replicated
  )
  assert {"loss", "correct", "count", "grad_norm"} <= set(metrics)


def check_abstract_prediction(config, stage, state, num_classes):
  """The views of the test protocol become one row of logits a video."""
  share, views = config.eval.views_per_pass, 1
  if config[stage.name].kind != "features":
    views = protocols.parse(config.eval.protocol).num_crops
    share //= views
  predict = parallel.pmap_predict_step(
    functools.partial(
      steps.predict_step,
      model=stage.model,
      preprocess=stage.preprocess,
      views_per_pass=config.eval.views_per_pass,
      num_classes=num_classes,
    )
  )
  variables = jax.eval_shape(parallel.replicate, state.variables)
  batch = on_devices(stage.inputs.example(), share, views)
  logits = jax.eval_shape(predict, variables, batch)
  assert logits.shape == (jax.device_count(), share, num_classes)


def write_blank_features(config, name, data, folder):
  """Features of one video a split, of the size that the streams give."""
  for source in config[name].sources:
    stage = create.create_stage(config, source, data, folder)
    variables = stage.state_shapes().variables
    seen = jax.eval_shape(stage.preprocess, stage.inputs.example())
    apply = functools.partial(stage.model.apply, train=False)
    _, found = jax.eval_shape(apply, variables, seen)
    size = found[config[source].feature].shape[-1]
    frames = config.features.num_frames
    batch = {
      "video_id": ["v"],
      "label": np.zeros(1, np.int32),
      "length": np.ones(1, np.int32),
      "values": np.zeros((1, frames, size), np.float32),
    }
    for split in needs.splits(config):
      features.write_features(
        features_path(folder, source, config[source].feature, split),
        [batch],
        num_sequences=1,
        description="blank",
        weights="",
        videos="",
      )


def expected_size(config, name, n):
  """Parameters of a stage of n classes, from published counts and formulas."""
  stage = config[name]
  if stage.kind == "stream":
    total, last, first = PUBLISHED_SIZES[stage.model.name]
    size = total - (1000 - n) * (last + 1)
    if stage.modality == "flow":
      size += (2 * stage.input.stack_length - 3) * first
    # Batch norm has two parameters a channel where there was one bias.
    batch = stage.model.fields.get("normalisation") == "batch"
    return size + (96 + 256 + 3 * 512 if batch else 0)
  if stage.kind == "joint":
    # The convolutions of a VGG-16 and a 1 x 1 convolution from 1024 to 512.
    return (
      expected_size(config, "spatial", n)
      + (14_714_688 + 17 * PUBLISHED_SIZES["vgg16"][2])
      + (1024 * 512 + 512)
    )
  if stage.model.name == "lstm":
    layers = ((4096, 1024), (1024, 512))
    return sum(4 * h * (d + h + 1) for d, h in layers) + (512 + 1) * n
  hidden = 2 * 200 * (4096 + 1) + 200 * (400 + 1)
  return hidden + (200 + 1) * n


@pytest.mark.walkthroughs
@pytest.mark.parametrize("name", [*RECIPES, "folder_two_stream"])
def test_a_recipe_trains_evaluates_and_reports(name, tiny, tmp_path, capsys):
  config = for_tests(get_config(name), tmp_path)
  if config.data.second_dir:
    config.data.second_dir = str(tiny.path)
  data = small_data(name, tiny)
  outcome = run.train_and_evaluate(config, tmp_path / "run", data)
  printed = capsys.readouterr().out
  for stage in ("spatial", "temporal"):
    loaded = f"{stage}: weights of {config[stage].init.weights}:" in printed
    assert loaded == bool(config[stage].init.weights)
  assert outcome["videos"] == 12
  assert tuple(outcome["streams"]) == tuple(config.stages)
  assert tuple(outcome["fusion"]) == tuple(config.fusion.rules)
  metric = "map" if data.multi_label else "top1"
  for found in (outcome["streams"] | outcome["fusion"]).values():
    assert 0 <= found[metric] <= 1
  assert (tmp_path / "run" / "report.html").exists()
