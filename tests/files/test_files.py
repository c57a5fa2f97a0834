"""Files that are written, shared and removed, where others put things."""

import errno
import os

import pytest

from twostream_jax import files
from twostream_jax.files import ForeignFileError


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a\0", 3])
def test_a_name_from_a_file_is_of_one_file(tmp_path, name):
  with pytest.raises(ValueError, match="is not the name of a file"):
    files.inside(tmp_path, name)


def test_a_name_from_a_file_is_no_link_out_of_its_folder(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "link").symlink_to("../secret")
  (tmp_path / "in" / "near").symlink_to("a")
  with pytest.raises(ValueError, match="is a link out of"):
    files.inside(tmp_path / "in", "link")
  assert files.inside(tmp_path / "in", "near") == tmp_path / "in" / "near"


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "folder", "pipe"])
def test_a_lock_is_no_file_of_somebody(tmp_path, kind):
  lock, thesis = tmp_path / "lock", tmp_path / "thesis"
  thesis.write_text("thesis")
  if kind == "folder":
    lock.mkdir()
  elif kind == "pipe":
    os.mkfifo(lock)
  elif kind == "file":
    lock.write_text("thesis")
  else:
    lock.symlink_to(thesis if kind == "link" else tmp_path / "nowhere")
  with pytest.raises(ForeignFileError, match="lock"), files.locked(lock):
    pass
  assert thesis.read_text() == "thesis"
  assert os.path.lexists(lock) and not (tmp_path / "nowhere").exists()


def test_a_lock_is_held_by_one_and_removed(tmp_path):
  with files.locked(tmp_path / "lock") as held:
    assert held
    with files.locked(tmp_path / "lock") as again:
      assert not again
  assert not list(tmp_path.iterdir())


def test_a_file_that_is_replaced_is_not_written_through_a_link(
  tmp_path, monkeypatch
):
  thesis = tmp_path / "thesis"
  thesis.write_text("thesis")
  target = tmp_path / "page"
  target.symlink_to(thesis)
  with files.replaced(target) as temporary:
    temporary.write_text("page")
  assert target.read_text() == "page" and not target.is_symlink()
  # As if the name could be guessed.
  monkeypatch.setattr(files, "_beside", lambda path: tmp_path / "guessed")
  (tmp_path / "guessed").symlink_to(thesis)
  with pytest.raises(FileExistsError), files.replaced(target):
    pass
  assert thesis.read_text() == "thesis"


@pytest.mark.parametrize(
  "name", ["x" * 255, "\u6f22" * 83 + ".mp4"], ids=["ascii", "chinese"]
)
def test_a_file_of_a_long_name_is_replaced(tmp_path, name):
  path = tmp_path / name
  with files.replaced(path, ".mp4") as temporary:
    assert temporary.suffix == ".mp4"
    temporary.write_text("new")
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def _fill(folder):
  (folder / "sub").mkdir(parents=True)
  (folder / "sub" / "1.bin").touch()
  return folder


OWN = (r"sub/\d\.bin", r"index")


def test_a_folder_is_removed_where_all_is_known(tmp_path):
  folder = _fill(tmp_path / "a")
  (folder / f".index.{'0a' * 16}").touch()
  (folder / "index").touch()
  files.remove_folder(folder, OWN)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.tex", "sub/2.txt", ".git/config"])
def test_a_folder_with_another_file_is_kept(tmp_path, name):
  folder = _fill(tmp_path / "a")
  (folder / name).parent.mkdir(exist_ok=True)
  (folder / name).touch()
  with pytest.raises(ForeignFileError, match=f"a/{name}', which .*/a holds"):
    files.remove_folder(folder, OWN)
  assert (folder / name).exists() and (folder / "sub" / "1.bin").exists()


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_link_is_no_file_of_ours(tmp_path, target):
  folder = _fill(tmp_path / "a")
  _fill(tmp_path / "folder")
  (tmp_path / "file").touch()
  (folder / "index").symlink_to(tmp_path / target)
  with pytest.raises(ForeignFileError, match="a/index'"):
    files.remove_folder(folder, OWN)
  with pytest.raises(ForeignFileError, match="index' was|index', was"):
    files.remove_folder(folder / "index", OWN)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
  left = _fill(tmp_path / f".a.{'0' * 32}")
  with files.replaced_folder(tmp_path / "a", OWN) as new:
    _fill(new)
  assert not left.exists()
  with files.replaced_folder(tmp_path / "a", OWN) as new:
    (new / "index").touch()
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["index"]
  with (
    pytest.raises(LookupError),
    files.replaced_folder(tmp_path / "a", OWN) as new,
  ):
    raise LookupError
  assert [p.name for p in tmp_path.iterdir()] == ["a"]
  assert (tmp_path / "a" / "index").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_folder_that_can_not_be_written_is_named(tmp_path, number):
  with (
    pytest.raises(OSError, match=f"'{tmp_path}/b/a'$") as caught,
    files.replaced_folder(tmp_path / "b" / "a", OWN) as new,
  ):
    named = () if number == errno.ENOSPC else (os.fspath(new / "index"),)
    raise OSError(number, os.strerror(number), *named)
  assert caught.value.errno == number
  assert [p.name for p in tmp_path.rglob("*")] == ["b"]
  (tmp_path / "file").touch()
  with (
    pytest.raises(OSError, match=f"'{tmp_path}/file/b/a'$"),
    files.replaced_folder(tmp_path / "file" / "b" / "a", OWN),
  ):
    raise AssertionError("the work began")


def test_a_folder_is_not_blamed_for_files_elsewhere(tmp_path):
  with (
    pytest.raises(FileNotFoundError, match="'elsewhere'"),
    files.replaced_folder(tmp_path / "a", OWN),
  ):
    os.stat("elsewhere")
  with (
    pytest.raises(OSError, match="^.Errno 32. broken$"),
    files.replaced_folder(tmp_path / "a", OWN),
  ):
    raise OSError(errno.EPIPE, "broken")


@pytest.mark.parametrize("where", ["a", f".a.{'0' * 32}"])
def test_a_folder_of_somebody_is_not_replaced(tmp_path, where):
  (tmp_path / where).mkdir()
  (tmp_path / where / "thesis").touch()
  with (
    pytest.raises(ForeignFileError, match="thesis"),
    files.replaced_folder(tmp_path / "a", OWN),
  ):
    raise AssertionError("the work began")
  assert (tmp_path / where / "thesis").exists()


def test_a_folder_is_replaced_where_a_link_leads(tmp_path):
  (tmp_path / "link").symlink_to("real/a")
  with files.replaced_folder(tmp_path / "link", OWN) as new:
    _fill(new)
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "real" / "a" / "sub" / "1.bin").exists()
