"""Recipes and programs from any folder: of a clone, and of a wheel."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from absl import flags

from tests.paths import ROOT
from tests.recipes import CONFIGS
from tests.xla_flags import COMPILE_FAST
from twostream_jax import (
  configs,
  data_prep,
  main,  # noqa: F401, it defines the flags
)
from twostream_jax.summary import tables

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """Another current folder, from which the clone can't be imported."""
  monkeypatch.chdir(tmp_path)
  path = [p for p in sys.path if Path(p).resolve() not in (ROOT, tmp_path)]
  monkeypatch.setattr(sys, "path", path)
  for name in [n for n in sys.modules if n.split(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)
  # Where ml_collections loads every config; what was there would stay.
  monkeypatch.delitem(sys.modules, "config_config", raising=False)
  return tmp_path


def parse(path):
  """The config of --config=PATH."""
  return flags.FLAGS["config"].parser.parse(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recipe_is_read_from_any_folder(elsewhere, name):
  path = ROOT / "configs" / f"{name}.py"
  assert tables.read_config(path).stages == parse(str(path)).stages


@pytest.mark.parametrize("name", ["quickstart", "configs/quickstart.py"])
def test_a_recipe_is_found_by_its_name_and_the_file_is_told(
  elsewhere, name, capsys
):
  assert parse(name).data.dir == "data/quickstart"
  found = ROOT / "configs" / "quickstart.py"
  assert f"--config={name} is {found}" in capsys.readouterr().err


def test_a_file_comes_before_the_recipe_of_its_name(elsewhere, capsys):
  (elsewhere / "configs").mkdir()
  (elsewhere / "configs" / "quickstart.py").write_text(
    "from twostream_jax.configs import quickstart\n"
    "def get_config(stages='spatial,temporal'):\n"
    "  config = quickstart.get_config()\n"
    "  config.stages = tuple(stages.split(','))\n"
    "  return config\n"
  )
  assert parse("configs/quickstart.py:temporal").stages == ("temporal",)
  assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["quickstop", "runs/quickstart.py", "", "."])
def test_without_a_file_the_recipes_are_listed(elsewhere, name):
  with pytest.raises(ValueError, match=f"no recipe '{name}'.*, quickstart, "):
    parse(name)


@pytest.mark.parametrize(
  "text, reason",
  [
    ("from configs import default", "from twostream_jax.configs import"),
    ("", "defines no get_config"),
  ],
)
def test_what_is_no_recipe_says_why(elsewhere, text, reason):
  (elsewhere / "mine.py").write_text(text)
  with pytest.raises(ValueError, match=reason):
    parse("mine.py")


def test_a_command_that_builds_runs_where_it_is_told():
  command = "python data_prep/build_tfds.py --out=a\npython data_prep/x.py"
  assert data_prep.runnable(command, ROOT) == command
  assert data_prep.runnable(command, ROOT / "tests") == (
    "python -m twostream_jax.data_prep.build_tfds --out=a\n"
    "python data_prep/x.py"
  )


def test_a_wheel_has_every_package_and_file():
  setup = PROJECT["tool"]["setuptools"]
  inside = {
    ".".join(path.parent.relative_to(ROOT).parts): path.parent
    for path in (ROOT / "twostream_jax").rglob("__init__.py")
  }
  assert set(setup["packages"]) == {*inside, *setup["package-dir"]}
  shipped = {
    path
    for package, folder in inside.items()
    for pattern in ("*.py", *setup["package-data"].get(package, []))
    for path in folder.glob(pattern)
  }
  assert shipped == {
    path
    for path in (ROOT / "twostream_jax").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  assert {ROOT / folder for folder in setup["package-dir"].values()} == {
    configs.FOLDER,
    Path(data_prep.__path__[0]),
  }


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """Folder with what a wheel of this clone installs."""
  version = importlib.metadata.version("setuptools")
  if int(re.match("[0-9]+", version)[0]) < 77:
    pytest.skip("a wheel is built by setuptools >= 77")
  folder = tmp_path_factory.mktemp("wheel")
  clone = folder / "clone"
  ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
  for name in ("twostream_jax", "configs", "data_prep"):
    shutil.copytree(ROOT / name, clone / name, ignore=ignore)
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, clone / name)
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
  subprocess.run(
    [*pip, "--no-build-isolation", f"--wheel-dir={folder}", str(clone)],
    check=True,
    timeout=300,
  )
  (wheel,) = folder.glob("*.whl")
  zipfile.ZipFile(wheel).extractall(folder / "site")
  shutil.rmtree(clone)
  return folder / "site"


@pytest.mark.walkthroughs
@pytest.mark.parametrize(
  "words, code, expected",
  [
    (
      "main --config=configs/quickstart.py --config.train.log_every=0",
      1,
      ["site/twostream_jax/configs/recipes/quickstart.py", "log_every=0 must"],
    ),
    (
      "main --config=folder_two_stream",
      1,
      ["python -m twostream_jax.data_prep.build_tfds --dataset=folder"],
    ),
    (
      "data_prep.build_tfds --dataset=folder --videos=gone --out=data",
      1,
      ["no such folder of videos: gone"],
    ),
    ("data_prep.browse gone", 1, ["no dataset in"]),
    (
      "data_prep.convert_weights gone.pth --backbone=vgg16 --out=x.safetensors",
      1,
      ["gone.pth"],
    ),
    (
      "summary --recipe=quickstart --recipe=ucf101_tsn --nothroughput",
      0,
      ["quickstart: synthetic clips", "ucf101_tsn: UCF-101"],
    ),
  ],
)
def test_a_wheel_has_recipes_and_programs(
  installed, tmp_path, words, code, expected
):
  """Also without a home folder."""
  module, *arguments = words.split()
  environment = {k: v for k, v in os.environ.items() if k != "HOME"}
  done = subprocess.run(
    [sys.executable, "-m", f"twostream_jax.{module}", *arguments],
    cwd=tmp_path,
    env=environment | {"PYTHONPATH": str(installed), "XLA_FLAGS": COMPILE_FAST},
    capture_output=True,
    text=True,
    timeout=300,
  )
  printed = done.stdout + done.stderr
  assert done.returncode == code, printed
  assert "Traceback" not in printed
  assert all(text in printed for text in expected), printed
