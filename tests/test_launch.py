"""Starting: what is missing to join processes is said; programs are kept."""

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
  before = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_where_the_user_says(
  monkeypatch, tmp_path, cache_setting
):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "env"))
  before = jax.config.jax_compilation_cache_dir
  launch.cache_compilations(tmp_path / "flag")
  assert jax.config.jax_compilation_cache_dir == before
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  launch.cache_compilations(tmp_path / "flag")
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "flag")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
  launch.cache_compilations(None)
  chosen = jax.config.jax_compilation_cache_dir
  assert chosen.startswith(str(tmp_path / "user" / "twostream_jax"))
