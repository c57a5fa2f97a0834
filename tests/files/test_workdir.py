"""A run is resumed with its own settings or not at all."""

import json
from pathlib import Path

import pytest

from twostream_jax.files import workdir
from twostream_jax.files.workdir import ConfigMismatchError


def settings(**changes):
  config = {
    "seed": 0,
    "spatial": {"optim": {"boundaries": (1, 2), "learning_rate": 0.1}},
    "eval": {"protocol": "5x1"},
    "data": {"dir": "here", "train_split": "train"},
    "selection": {"metric": ""},
  }
  return {"config": config | changes, "dataset": {"clips": {"train": 3}}}


def test_the_same_settings_resume(tmp_path):
  workdir.write_config(tmp_path, settings())
  before = (tmp_path / "config.json").read_bytes()
  workdir.check_config_file(tmp_path, settings())
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_changed_setting_is_named_with_both_values(tmp_path):
  workdir.write_config(tmp_path, settings())
  changed = settings(
    spatial={"optim": {"boundaries": (1, 2), "learning_rate": 0.2}}
  )
  with pytest.raises(
    ConfigMismatchError,
    match=r"config\.spatial\.optim\.learning_rate: 0\.1 .*0\.2 now",
  ):
    workdir.check_config_file(tmp_path, changed)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["config"]["spatial"]["optim"]["learning_rate"] == 0.1


def test_another_dataset_is_named(tmp_path):
  workdir.write_config(tmp_path, settings())
  with pytest.raises(ConfigMismatchError, match=r"dataset\.clips\.train"):
    workdir.check_config_file(
      tmp_path, settings() | {"dataset": {"clips": {"train": 4}}}
    )


def test_what_does_not_change_training_may_change(tmp_path):
  workdir.write_config(tmp_path, settings())
  moved = settings(
    eval={"protocol": "25x1"}, data={"dir": "there", "train_split": "train"}
  )
  workdir.write_config(tmp_path, moved)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["config"]["eval"]["protocol"] == "25x1"


def test_text_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a" / "results.json"
  workdir.write_text(path, "old")

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(Path, "rename", fail)
  with pytest.raises(OSError, match=f"disk full: '{path}'"):
    workdir.write_text(path, "new")
  assert path.read_text() == "old"
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
  "path, found",
  [
    ("file", "file .Not a directory."),
    ("file/run", "file .Not a directory."),
    # A folder that files can't be written to, also not by root.
    ("/proc/runs/run", "/proc .No such file or directory."),
  ],
)
def test_a_workdir_that_can_not_be_written_is_refused(tmp_path, path, found):
  (tmp_path / "file").touch()
  path = tmp_path / path
  with pytest.raises(OSError, match=f"^--workdir={path}: can't write.*{found}"):
    workdir.require_writable(path, "workdir")


def test_a_workdir_that_is_a_link_to_nothing_is_refused(tmp_path):
  (tmp_path / "run").symlink_to("nowhere")
  with pytest.raises(OSError, match="a link to nothing"):
    workdir.require_writable(tmp_path / "run" / "a", "workdir")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b"])
def test_names_of_a_config_stay_in_the_workdir(tmp_path, name):
  for path in (
    lambda: workdir.features_path(tmp_path, "spatial", name, "train"),
    lambda: workdir.features_path(tmp_path, "spatial", "fc6", name),
    lambda: workdir.scores_path(tmp_path, name, "test"),
  ):
    with pytest.raises(ValueError, match="is not the name of a file"):
      path()


def test_a_workdir_is_not_made_by_looking(tmp_path):
  workdir.require_writable(tmp_path / "runs" / "run", "workdir")
  assert not list(tmp_path.iterdir())
