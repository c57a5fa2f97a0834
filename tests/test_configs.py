"""Every config is complete and says where it is from and how to run it."""

import re
import shlex
import sys
from pathlib import Path

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from configs import default
from data_prep import build_tfds, convert_weights
from tests.recipes import (
  CONFIGS,
  RECIPES,
  ROOT,
  commands,
  get_config,
  get_module,
)
from twostream_jax.configs import find_recipe
from twostream_jax.stages import create


def test_the_recipes_are_there():
  assert set(RECIPES) == {
    "ccv_hybrid",
    "ccv_multistream",
    "hmdb51_two_stream",
    "ssv2_mini_two_stream",
    "ssv2_two_stream",
    "ucf101_conv_fusion",
    "ucf101_hybrid",
    "ucf101_simonyan14",
    "ucf101_tsn",
    "ucf101_wang15",
  }
  assert {"default", "quickstart", "folder_two_stream"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_locked_and_say_what_they_are(name):
  assert get_module(name).__doc__
  config = get_config(name)
  with pytest.raises(AttributeError, match="sede"):
    config.sede = 1
  with pytest.raises(AttributeError, match="learning_rat"):
    config.temporal.optim.learning_rat = 0.1
  with pytest.raises(TypeError):
    config.temporal.total_steps = "many"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_paper_published_number_and_commands(name):
  text = get_module(name).__doc__
  assert re.search(r"^Paper: (none|.*\d{4})", text, re.M)
  assert re.search(r"\b1[4-9]\d\d\.\d{4,5}\b", text)
  published = re.search(r"^Published: (.*?)(\n\n|$)", text, re.M | re.S)
  assert re.search(r"\d\d\.\d %|no published number", published[1])
  programs = [command[1] for command in commands(name)]
  config = get_config(name)
  if any(config[s].init.weights for s in ("spatial", "temporal")):
    assert programs.pop(-2) == "data_prep/convert_weights.py"
  if config.data.second_dir:
    assert programs.pop(1) == "data_prep/build_tfds.py"
  assert programs == ["data_prep/build_tfds.py", "-m"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_commands_of_a_docstring_work_together(name, monkeypatch):
  """Flags are known, and one command's output is the next one's input."""
  monkeypatch.chdir(ROOT)
  config = get_config(name)
  built = []
  for _, *words in commands(name):
    values = flags.FlagValues()
    if words[0] == "data_prep/build_tfds.py":
      build_tfds.define_flags(values)
      assert values(words) == words[:1]
      built.append(values.out)
      if name in RECIPES and values.out == config.data.dir:
        first_line = config.data.build_command.splitlines()[0]
        assert ["python", *words] == shlex.split(first_line)
    elif words[0] == "data_prep/convert_weights.py":
      convert_weights.define_flags(values)
      assert len(values(words)) == 2
      assert {
        (config[s].model.name, config[s].init.weights)
        for s in ("spatial", "temporal")
        if config[s].init.weights
      } == {(values.backbone, values.out)}
    else:
      assert words[:2] == ["-m", "twostream_jax.main"]
      monkeypatch.setattr(sys, "argv", ["main", *words[2:]])
      config_flags.DEFINE_config_file("config", flag_values=values)
      assert values(sys.argv) == ["main"]
      path = config_flags.get_config_filename(values["config"])
      assert Path(path) == Path("configs") / f"{name}.py"
  if built:
    needed = [config.data.dir, config.data.second_dir]
    assert built == [folder for folder in needed if folder]


@pytest.mark.parametrize("name", RECIPES)
def test_build_flags_are_those_of_the_set(name, monkeypatch, tmp_path, capsys):
  """What stops the build is the folder that is not there, not its flags."""
  monkeypatch.chdir(tmp_path)
  values = flags.FlagValues()
  build_tfds.define_flags(values)
  values(commands(name)[0][1:])
  assert build_tfds.run(values) == 1
  assert values.annotations in capsys.readouterr().err


def test_a_file_that_lies_here_is_not_taken_for_a_recipe(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("quickstart").write_text("raise SystemExit")
  Path("mine.py").touch()
  assert find_recipe("quickstart").parent != Path()
  assert find_recipe("mine.py") == Path("mine.py")


@pytest.mark.parametrize("name", RECIPES)
def test_missing_weights_are_named(name, tiny, tmp_path, monkeypatch):
  """A recipe that starts from weights never starts without them."""
  monkeypatch.chdir(tmp_path)
  config = get_config(name)
  config.data.second_dir = ""
  for stage in ("spatial", "temporal"):
    if config[stage].init.weights:
      with pytest.raises(ValueError, match=config[stage].init.weights):
        create.create_stage(config, stage, tiny, tmp_path)


def test_every_key_has_a_comment():
  """A line above it, or above the run of keys that it ends."""
  lines = (ROOT / "configs" / "default.py").read_text().splitlines()
  lines = [line.strip() for line in lines]

  def is_key(line):
    return (
      re.match(r"(stage|config)\.[a-z_.]+ = ", line)
      and "ConfigDict()" not in line
      and "get_stream" not in line
      and "get_optim" not in line
    )

  keys = [i for i, line in enumerate(lines) if is_key(line)]
  assert len(keys) > 40
  bare = [
    lines[i]
    for i in keys
    if not (lines[i - 1].startswith("#") or is_key(lines[i - 1]))
  ]
  assert not bare


def test_default_keys_are_those_of_the_streams():
  config = default.get_config()
  assert set(config.spatial.keys()) == set(config.temporal.keys())
  assert isinstance(config.spatial.model.fields, ml_collections.ConfigDict)
