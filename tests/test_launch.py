"""Starting: what is missing to join processes is said; programs are kept."""

import os
import re

import jax
import pytest

from twostream_jax import launch


@pytest.mark.parametrize(
  "arguments", [("localhost:1234", None, None), (None, 2, 1)]
)
def test_half_of_the_arguments_are_refused(arguments):
  with pytest.raises(ValueError, match="belong together"):
    launch.join_processes(*arguments)


def test_without_a_cluster_the_message_says_how_to_name_the_processes():
  # JAX has computed before in this process, or knows of no cluster.
  with pytest.raises(ValueError, match="--coordinator=HOST:PORT"):
    launch.join_processes(None, None, None)


@pytest.fixture
def cache_setting():
  settings = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in settings}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_where_the_user_says(
  monkeypatch, tmp_path, cache_setting
):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "env"))
  smallest = "jax_persistent_cache_min_compile_time_secs"
  monkeypatch.setenv(smallest.upper(), "1.5")
  jax.config.update(smallest, 1.5)
  before = jax.config.jax_compilation_cache_dir
  launch.cache_compilations("program", tmp_path / "flag")
  assert jax.config.jax_compilation_cache_dir == before
  assert getattr(jax.config, smallest) == 1.5
  # Small programs are kept wherever the folder's name is from.
  monkeypatch.delenv(smallest.upper())
  launch.cache_compilations("program", tmp_path / "flag")
  assert getattr(jax.config, smallest) == 0.2
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  launch.cache_compilations("program", tmp_path / "flag")
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "flag")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
  launch.cache_compilations("program")
  chosen = jax.config.jax_compilation_cache_dir
  assert chosen.startswith(str(tmp_path / "user" / "twostream_jax"))


@pytest.mark.parametrize(
  "home, reason",
  [
    (None, "this user has no home folder"),
    ("FILE", "can't write to .*FILE/.cache/.*: Not a directory"),
    # As in /root for anyone else; of a read-only folder, and also for root.
    ("/proc", "can't write to /proc/.cache/.*: No such file or directory"),
  ],
)
def test_without_a_home_nothing_is_kept_and_one_sentence_says_so(
  monkeypatch, tmp_path, cache_setting, capsys, home, reason
):
  for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
    monkeypatch.delenv(name, raising=False)
  if home is None:
    # A user id without an entry in the list of users.
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
  else:
    (tmp_path / "FILE").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
  before = jax.config.jax_compilation_cache_dir
  launch.cache_compilations("program")
  assert jax.config.jax_compilation_cache_dir == before
  (line,) = capsys.readouterr().err.splitlines()
  assert re.match(f"program: compiled programs are not kept .*{reason}", line)


def test_a_folder_of_programs_that_is_named_must_be_writable(
  monkeypatch, tmp_path, cache_setting
):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="--compilation_cache=.*file: can't"):
    launch.cache_compilations("program", tmp_path / "file")


@pytest.mark.parametrize("how", ["writable", "foreign"])
def test_programs_of_others_are_not_run(
  monkeypatch, tmp_path, cache_setting, how
):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  folder = tmp_path / "shared"
  folder.mkdir()
  if how == "writable":
    folder.chmod(0o777)
  else:  # As seen by a user that is neither its owner nor root.
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    if os.geteuid() == 0:
      os.chown(folder, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
  with pytest.raises(ValueError, match="others can write to .*shared"):
    launch.cache_compilations("program", folder)


def test_a_new_folder_of_programs_is_the_user_s(
  monkeypatch, tmp_path, cache_setting
):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  launch.cache_compilations("program", tmp_path / "new")
  assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
