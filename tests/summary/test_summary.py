"""What is said of a recipe: published numbers, sizes, operations, speed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from tests import tiny_config
from tests.recipes import NUM_CLASSES, RECIPES, ROOT, dataset_of, get_config
from tests.recipes import get_module as get_recipe_module
from tests.test_recipes import expected_size
from twostream_jax import models
from twostream_jax.stages import create
from twostream_jax.stages.flops import count_flops
from twostream_jax.summary import __main__ as summary
from twostream_jax.summary import networks, recipes, tables


@pytest.mark.parametrize(
  "name, published", [("vgg16", 15.47), ("resnet18", 1.814)]
)
def test_operations_are_those_that_torchvision_publishes(name, published):
  """Its weights state billions of multiply-adds at 224 pixels."""
  model = models.create_model(name, num_classes=1000)
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  apply = functools.partial(model.apply, train=False)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), x
  )
  counted = count_flops(apply, variables, x) / 2e9
  assert counted == pytest.approx(published, abs=0.006)


def test_loops_count_as_often_as_they_turn():
  model = models.create_feature_model(
    "lstm",
    num_classes=10,
    sources=("stream",),
    hidden_sizes=(8, 6),
    dropout_rate=0.5,
  )
  batch = {"stream": np.zeros((1, 5, 7)), "length": np.ones(1, np.int32)}
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), batch
  )
  apply = functools.partial(model.apply, train=False)
  # Four gates that read input and state, at five steps; then the classes.
  products = 5 * (4 * 8 * (7 + 8) + 4 * 6 * (8 + 6)) + 6 * 10
  assert count_flops(apply, variables, batch) == 2 * products


def test_of_alternatives_the_largest_counts():
  matrix = np.ones((3, 3), np.float32)

  def either(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert count_flops(either, matrix) == 2 * 2 * 27


def test_the_documentation_says_what_the_table_says():
  text = (ROOT / "docs/recipes.md").read_text()
  table = text.partition("<!-- published -->")[2].partition("<!-- /")[0]
  rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", table, re.M)
  assert dict(rows) == {k: r.published for k, r in recipes.RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_says_what_the_table_says(name):
  recipe = recipes.RECIPES[name]
  text = get_recipe_module(name).__doc__
  paragraph = re.search(r"^Published: (.*?)\n\n", text, re.M | re.S)[1]
  numbers = re.findall(r"\d+\.\d", recipe.published)
  assert bool(numbers) == (recipe.published != "none")
  assert set(numbers) <= set(re.findall(r"\d+\.\d", paragraph))
  if recipe.paper != "none":
    assert recipe.paper.split(", ")[-1] in text.split("\n\n")[1]
  assert recipe.dataset == dataset_of(name)
  assert recipe.num_outputs == NUM_CLASSES[recipe.dataset] + (
    NUM_CLASSES["ucf101"] if get_config(name).data.second_dir else 0
  )


def test_every_recipe_is_in_the_table():
  assert set(recipes.RECIPES) == set(RECIPES)


@pytest.mark.parametrize(
  "name", ["hmdb51_two_stream", "ucf101_conv_fusion", "ccv_multistream"]
)
def test_parameters_are_the_published_ones(name):
  config = get_config(name)
  num_classes, second, _ = tables.count_classes(name, config, own=2)
  for stage in config.stages:
    outputs = num_classes + second
    network = networks.create_network(config, stage, outputs)
    params = jax.tree.leaves(network.variables["params"])
    counted = sum(x.size for x in params)
    assert counted == expected_size(config, stage, outputs), stage


def test_rows_are_those_of_the_stages_that_train(tiny, tmp_path):
  config = tiny_config.get_config()
  rows = networks.summarise(config, num_classes=len(tiny.class_names))
  assert [row.stage for row in rows] == list(config.stages)
  for row in rows:
    stage = create.create_stage(config, row.stage, tiny, tmp_path)
    state = stage.state_shapes()
    assert row.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert row.flops == stage.flops(state.variables)
    assert row.clips_per_second is None
  assert rows[1].inputs == "flow 64 x 64 x 4"


def test_segments_and_features_are_told():
  config = get_config("ucf101_hybrid")
  network = networks.create_network(config, "fusion_network", 101)
  assert networks.describe_inputs(config, "fusion_network", network) == (
    "25 x fc6 of spatial (4096) + 25 x fc6 of temporal (4096)"
  )
  config = get_config("ucf101_tsn")
  stage = config.temporal
  assert networks.video_example(stage)["flow"].shape == (1, 3, 10, 224, 224)


def run(capsys, *arguments):
  values = flags.FlagValues()
  summary.define_flags(values)
  values(["summary", *arguments])
  tables.run(values)
  return capsys.readouterr().out


@pytest.mark.slow
def test_the_command_measures_and_prints(capsys):
  path = str(ROOT / "tests" / "tiny_config.py")
  printed = run(capsys, f"--recipe={path}", "--batch_size=2")
  title, header, *rows = printed.splitlines()[:4]
  assert title == "tiny_config: synthetic clips, 12 classes"
  assert header.split("  ")[1] == "stage" and header.endswith("clips a second")
  assert [row.split()[0] for row in rows] == ["spatial", "temporal"]
  assert all(float(row.split()[-1].replace(",", "")) > 0 for row in rows)
  assert "batches of 2 a device, 8 x cpu" in printed


def test_the_command_prints_markdown(capsys):
  path = str(ROOT / "tests" / "tiny_config.py")
  printed = run(capsys, f"--recipe={path}", "--nothroughput", "--markdown")
  table = [line for line in printed.splitlines() if line.startswith("|")]
  assert len(table) == 4
  assert len({line.count("|") for line in table}) == 1
  assert table[2].startswith("| `tiny_config` | none | spatial | cnn_m |")
  assert "batches of" not in printed


def test_numbers_are_short_and_plain():
  values = (0.000722, 1.1449, 99.9, 722.4, 17_412.0)
  assert [*map(tables.number, values)] == [
    "0.000722",
    "1.14",
    "99.9",
    "722",
    "17,412",
  ]


def test_own_videos_have_as_many_classes_as_is_said():
  config = get_config("folder_two_stream")
  found = tables.count_classes("folder_two_stream", config, own=7)
  assert found == (7, 0, "your videos, here 7 classes (--num_classes)")


def test_what_is_no_recipe_is_named(tmp_path):
  with pytest.raises(ValueError, match="no recipe 'x'.*, quickstart, "):
    tables.find_recipes(ROOT / "configs", ["x"])
  with pytest.raises(ValueError, match="no recipes in .*--configs"):
    tables.find_recipes(tmp_path, [])
  path = tmp_path / "empty.py"
  path.write_text("")
  with pytest.raises(ValueError, match="defines no get_config"):
    tables.read_config(path)


def test_every_config_but_the_default_is_found():
  found = tables.find_recipes(ROOT / "configs", [])
  assert set(RECIPES) < set(found) and "default" not in found
  for name, path in found.items():
    assert tables.read_config(path).stages, name
