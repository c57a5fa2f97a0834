"""Every command answers --help and wrong flags before it imports what works."""

import os
import subprocess
import sys
import tomllib

import pytest

from data_prep import build_tfds, convert_weights
from tests.paths import ROOT
from twostream_jax import fuse, models, pretrained, scripts
from twostream_jax.data.datasets import official
from twostream_jax.flow import FLOWS, spec
from twostream_jax.fuse import __main__ as fuse_command

# Libraries that take a command seconds to import.
HEAVY = {
  "array_record",
  "av",
  "cv2",
  "flax",
  "grain",
  "h5py",
  "jax",
  "jinja2",
  "optax",
  "orbax",
  "scipy",
  "simplejpeg",
  "sklearn",
  "tensorboardX",
  "tensorflow_datasets",
  "tqdm",
}
# By command: flags that are wrong, and words of the answer.
WRONG = {
  "twostream_jax.main": {
    "": "--config=FILE is missing",
    "--config=nowhere": "no recipe 'nowhere'",
    "--config=quickstart --config.seed=-1": "config.seed=-1 must be",
    "--config=quickstart --config.sede=1": "there is no such setting",
    "--config=quickstart --split=test": "--split is for --mode=evaluate",
    "--config=quickstart --workdir=/proc/x": "can't write to /proc",
    "--config=quickstart x": "not a flag: x",
  },
  "twostream_jax.predict": {
    "": "--workdir=RUN is missing",
    "--workdir=x": "name a video",
    "--workdir=x --top=0 a.mp4": "flag --top=0",
  },
  "twostream_jax.fuse": {
    "": "name at least two score files",
    "--rule=best a b": "flag --rule=best",
  },
  "twostream_jax.export": {
    "": "--workdir is not given",
    "--workdir=x": "--out is not given",
    "x": "not a flag",
  },
  "twostream_jax.summary": {
    "x": "not a flag: x",
    "--batch_size=0": "flag --batch_size=0",
  },
  "twostream_jax.data_prep.build_tfds": {
    "": "flag --dataset",
    "--dataset=ucf": "flag --dataset=ucf",
    "--dataset=folder --videos=x": "--out is needed to build",
    "--dataset=folder --videos=x --out=y z": "not a flag: z",
  },
  "twostream_jax.data_prep.browse": {
    "": "pass the folder of one dataset",
    "--clips=-1 x": "flag --clips=-1",
  },
  "twostream_jax.data_prep.convert_weights": {
    "": "flag --backbone",
    "--backbone=vgg --out=x": "flag --backbone=vgg",
    "--backbone=vgg16 --out=x": "give one file to convert",
  },
}

# Runs a command with each of several lines of flags, in children of itself,
# and says what each ended with and which heavy libraries it had imported.
PROBE = """
import os, runpy, sys
import numpy  # Once, not in every child.
from ml_collections import config_flags

module, heavy, *lines = sys.argv[1:]
for line in lines:
  child = os.fork()
  if not child:
    sys.argv = [module, *line.split()]
    os.dup2(1, 2)
    code = "none"
    try:
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
      code = end.code
      if isinstance(code, str):
        print(code)
    found = sorted(set(heavy.split(",")) & set(sys.modules))
    print(f"ENDED {int(bool(code))} {' '.join(found)}", flush=True)
    os._exit(0)
  os.waitpid(child, 0)
"""


def answers(module, lines, folder):
  """Output of a command, exit code and heavy imports, for lines of flags."""
  done = subprocess.run(
    [sys.executable, "-c", PROBE, module, ",".join(HEAVY), *lines],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  found, text = [], []
  for line in done.stdout.splitlines():
    if line.startswith("ENDED "):
      _, code, *imported = line.split()
      found.append(("\n".join(text), int(code), imported))
      text = []
    else:
      text.append(line)
  assert len(found) == len(lines), done.stdout
  return found


@pytest.mark.parametrize("module", WRONG)
def test_help_and_wrong_flags_are_answered_without_heavy_imports(
  module, tmp_path
):
  cases = {"--help": "--helpfull", **WRONG[module], "--nosuch": "flag 'nosuch'"}
  found = answers(module, list(cases), tmp_path)
  for (line, words), (text, code, imported) in zip(
    cases.items(), found, strict=True
  ):
    assert words in text, (line, text)
    assert code == 1, line  # absl's --help ends with 1 as well.
    assert not imported, line
  assert not list(tmp_path.iterdir())


def test_every_command_is_known_here():
  programs = {
    f"twostream_jax.data_prep.{path.stem}"
    for path in (ROOT / "data_prep").glob("*.py")
  }
  modules = set()
  for path in (ROOT / "twostream_jax").rglob("*.py"):
    text = path.read_text()
    if "app.run(" in text:
      name = path.relative_to(ROOT).with_suffix("").as_posix()
      modules.add(name.replace("/", ".").removesuffix(".__main__"))
  assert programs | modules == set(WRONG)


def test_every_command_is_a_console_script(monkeypatch):
  started = []
  monkeypatch.setattr(
    scripts.runpy,
    "run_module",
    lambda module, run_name, alter_sys: started.append(module),
  )
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  for target in project["scripts"].values():
    module, _, function = target.partition(":")
    assert module == scripts.__name__
    getattr(scripts, function)()
  assert sorted(started) == sorted(WRONG)


def test_a_console_script_answers_as_its_module(tmp_path):
  help_texts = [
    subprocess.run(
      [sys.executable, *how, "--help"],
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
    ).stdout
    for how in (
      ["-m", "twostream_jax.fuse"],
      ["-c", "from twostream_jax import scripts; scripts.fuse()"],
    )
  ]
  assert "--rule" in help_texts[0]
  assert help_texts[0] == help_texts[1]


def test_names_that_flags_offer_are_those_that_there_are():
  assert {*build_tfds.FLOWS} == {*FLOWS, spec.EXTRACTED}
  assert build_tfds.DIRECTIONS == spec.DIRECTIONS
  assert list(build_tfds.DATASETS) == list(official.DATASETS)
  assert tuple(models.BACKBONES) == convert_weights.BACKBONES
  assert tuple(pretrained.LAYOUTS) == convert_weights.LAYOUTS
  assert tuple(fuse.FITS) == fuse_command.FITTED
