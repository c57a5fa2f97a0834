"""Checkpoints: which stay, which count, and what damage does to them."""

import errno
import os
import shutil

import numpy as np
import pytest

from twostream_jax import checkpoints


def state(value):
  return {
    "params": {"kernel": np.full((30, 40), value, np.float32)},
    "batch_stats": {},
    "ema_params": {},
    "ema_batch_stats": {},
    "step": np.int32(value),
  }


def write(folder, scores, keep=2, unscheduled=()):
  """Checkpoints 1, 2, ... with these scores."""
  with checkpoints.open_manager(folder, keep=keep) as manager:
    for step, score in enumerate(scores, start=1):
      checkpoints.save(
        manager,
        step,
        state(step),
        progress={"next_batch": step, "window": [[0.1, step]]},
        metadata={"step": step},
        score=score,
        scheduled=step not in unscheduled,
      )
    checkpoints.finish(manager)


def listed(folder):
  with checkpoints.open_reader(folder) as reader:
    return sorted(reader.all_steps())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Folder of the checkpoints 1 and 2."""
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  write(folder, [None, None])
  return folder


@pytest.mark.parametrize(
  "scores, kept, counts",
  [
    ([None] * 4, [3, 4], 4),
    ([0.1, 0.9, 0.5, 0.2], [2, 3, 4], 2),
    ([0.1, 0.2, 0.3, 0.9], [3, 4], 4),
    # Of equals the first, also when the other is among the newest.
    ([0.5, 0.9, 0.5, 0.9], [2, 3, 4], 2),
  ],
)
def test_the_newest_and_the_best_stay_and_the_best_counts(
  tmp_path, scores, kept, counts
):
  write(tmp_path / "c", scores)
  with checkpoints.open_manager(tmp_path / "c", keep=2) as manager:
    assert sorted(manager.all_steps()) == kept
    assert checkpoints.chosen_step(manager) == counts
    found = checkpoints.restore_variables(manager)["params"]["kernel"]
    np.testing.assert_array_equal(found, state(counts)["params"]["kernel"])
    newest = checkpoints.restore_newest(manager, state(0))
    assert newest.step == 4 and newest.state["step"] == 4
    assert newest.progress == {
      "next_batch": 4,
      "window": [[0.1, 4]],
      "score": scores[-1],
      "scheduled": True,
    }


def test_the_best_gives_way_to_a_better_one_at_once(tmp_path):
  """The policy knows the score of what it saves, whatever the disk says."""
  folder = tmp_path / "c"
  write(folder, [0.1, 0.9, 0.3, 0.95], keep=1)
  assert listed(folder) == [4]


def test_an_interruption_s_checkpoint_displaces_no_other(tmp_path):
  folder = tmp_path / "c"
  write(folder, [0.9, 0.1, None, None], unscheduled=(4,))
  assert listed(folder) == [1, 2, 3, 4]
  with checkpoints.open_manager(folder, keep=2) as manager:
    # As the newest it is where training resumes.
    assert checkpoints.restore_newest(manager, state(0)).step == 4
    checkpoints.save(manager, 5, state(5), {}, {})
    checkpoints.finish(manager)
  assert listed(folder) == [1, 3, 5]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_removal_that_was_cut_off_is_made_good(tmp_path, whole, training):
  folder, aside = tmp_path / "c", tmp_path / "aside"
  write(folder, [None] * 3, unscheduled=(3,))
  shutil.copytree(folder / "3", aside)
  with checkpoints.open_manager(folder, keep=2) as manager:
    checkpoints.save(manager, 4, state(4), {}, {})
    checkpoints.finish(manager)
  if not whole:
    shutil.rmtree(aside / "progress")
  aside.rename(folder / "3")
  # As resumed training does, and a stage that was at its end.
  if training:
    checkpoints.open_manager(folder, keep=2).close()
  else:
    checkpoints.finish_removals(folder, keep=2)
  assert listed(folder) == [2, 4]


def test_where_nothing_is_left_to_remove_nothing_is_written(two, monkeypatch):
  def forbidden(*args, **kwargs):
    pytest.fail("opened to write")

  monkeypatch.setattr(checkpoints, "open_manager", forbidden)
  checkpoints.finish_removals(two, keep=2)


def test_a_score_that_is_not_a_number_is_none(tmp_path):
  write(tmp_path / "c", [float("nan"), 0.5, float("nan"), 0.4], keep=9)
  with checkpoints.open_reader(tmp_path / "c") as reader:
    assert checkpoints.chosen_step(reader) == 2


def test_averaged_parameters_come_with_their_statistics(tmp_path):
  tree = {"bn": {"mean": np.ones(3, np.float32)}}
  double = {"bn": {"mean": np.full(3, 2.0, np.float32)}}
  averaged = state(1) | {
    "ema_params": {"kernel": np.zeros((30, 40), np.float32)},
    "batch_stats": tree,
    "ema_batch_stats": double,
  }
  earlier = {k: v for k, v in averaged.items() if k != "ema_batch_stats"}
  with checkpoints.open_manager(tmp_path, keep=2) as manager:
    for step, tree in enumerate((averaged, earlier)):
      checkpoints.save(manager, step, tree, {}, {})
    checkpoints.finish(manager)
  with checkpoints.open_reader(tmp_path) as reader:
    found = checkpoints.restore_variables(reader, 0)
    assert not found["params"]["kernel"].any()
    np.testing.assert_array_equal(found["batch_stats"]["bn"]["mean"], 2.0)
    with pytest.raises(checkpoints.CheckpointError, match="earlier version"):
      checkpoints.restore_variables(reader, 1)


def test_reading_leaves_a_save_that_is_under_way(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  under_way = folder / "3.orbax-checkpoint-tmp-7"
  shutil.copytree(folder / "2", under_way)

  def tree():
    paths = (folder, *sorted(folder.rglob("*")))
    return [(path, path.stat().st_mtime_ns) for path in paths]

  before = tree()
  with checkpoints.open_reader(folder) as reader:
    checkpoints.restore_variables(reader)
  checkpoints.read_metadata(folder)
  assert tree() == before
  # It is the trainer that tidies up.
  with checkpoints.open_manager(folder, keep=2) as manager:
    checkpoints.save(manager, 3, state(3), {}, {})
    checkpoints.finish(manager)
  assert not under_way.exists()


def test_a_reader_opens_a_folder_whose_checkpoints_are_being_removed(
  two, tmp_path, monkeypatch
):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  standard = checkpoints.ocp.path.step.Metadata.commit_timestamp

  def removed(metadata):
    if metadata.step == 1 and metadata.path.exists():
      shutil.rmtree(metadata.path)
    return standard.fget(metadata)

  monkeypatch.setattr(
    checkpoints.ocp.path.step.Metadata, "commit_timestamp", property(removed)
  )
  with checkpoints.open_reader(folder) as reader:
    found = checkpoints.restore_variables(reader)
  np.testing.assert_array_equal(found["params"]["kernel"], 2.0)


def test_a_reader_follows_a_trainer_that_removes_what_it_reads(tmp_path):
  write(tmp_path, [None])
  with checkpoints.open_reader(tmp_path) as reader:
    assert checkpoints.chosen_step(reader) == 1
    with checkpoints.open_manager(tmp_path, keep=1) as manager:
      checkpoints.save(manager, 2, state(2), {}, {})
      checkpoints.finish(manager)
    found = checkpoints.restore_variables(reader)
  np.testing.assert_array_equal(found["params"]["kernel"], 2.0)


def test_no_checkpoint_is_none(tmp_path):
  with checkpoints.open_manager(tmp_path / "c", keep=2) as manager:
    assert checkpoints.restore_newest(manager, state(0)) is None
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint"):
      checkpoints.restore_variables(manager)


def cut_in_half(path):
  os.truncate(path, path.stat().st_size // 2)


def remove(path):
  path.unlink()


@pytest.mark.filterwarnings("ignore:checkpoint 2")
# Orbax closes its event loop before TensorStore has told it of the damage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [cut_in_half, remove])
def test_whatever_file_is_damaged_the_state_is_whole_or_the_one_before(
  two, tmp_path, damage
):
  files = sorted(
    path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file()
  )
  fell_back = 0
  for index, file in enumerate(files):
    folder = tmp_path / str(index) / "checkpoints"
    shutil.copytree(two, folder)
    damage(folder / file)
    with checkpoints.open_manager(folder, keep=2) as manager:
      found = checkpoints.restore_newest(manager, state(0))
      # Some files are not needed to read: then nothing was lost.
      assert found.progress["next_batch"] == found.step
      for name, value in state(found.step)["params"].items():
        np.testing.assert_array_equal(found.state["params"][name], value)
      if found.step == 1:
        fell_back += 1
        aside = folder.parent / checkpoints.DAMAGED / "2"
        assert aside.is_dir() and sorted(manager.all_steps()) == [1]
        # Training comes to step 2 again, and may save it.
        checkpoints.save(manager, 2, state(2), {"next_batch": 2}, {})
        checkpoints.finish(manager)
        assert checkpoints.restore_newest(manager, state(0)).step == 2
  assert fell_back >= 4


def test_a_damaged_checkpoint_is_warned_of(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  cut_in_half(folder / "2" / "progress" / "progress.json")
  with checkpoints.open_manager(folder, keep=2) as manager:
    with pytest.warns(
      UserWarning, match="checkpoint 2 .*can't be read.*before"
    ):
      assert checkpoints.restore_newest(manager, state(0)).step == 1
    # Again at the same step: the name in the other folder is taken.
    write(folder, [None, None])
  cut_in_half(folder / "2" / "progress" / "progress.json")
  with (
    checkpoints.open_manager(folder, keep=2) as manager,
    pytest.warns(UserWarning, match="damaged_checkpoints/2-1"),
  ):
    checkpoints.restore_newest(manager, state(0))


def test_metadata_that_can_not_be_read_is_passed_over(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  cut_in_half(folder / "2" / "metadata" / "metadata")
  path, metadata = checkpoints.read_metadata(folder)
  assert path == folder / "1" and metadata == {"step": 1}


def test_what_a_thread_writes_later_is_a_copy(tmp_path, monkeypatch):
  json_save, handed_over = checkpoints.ocp.args.JsonSave, []
  monkeypatch.setattr(
    checkpoints.ocp.args,
    "JsonSave",
    lambda item: handed_over.append(item) or json_save(item),
  )
  progress, metadata = {"window": [[1.0]]}, {"names": ["a"]}
  with checkpoints.open_manager(tmp_path, keep=2) as manager:
    checkpoints.save(manager, 1, state(1), progress, metadata)
    # Training resumes: the next step adds to its sums.
    progress["window"].append([2.0])
    metadata["names"].append("b")
  assert handed_over == [
    {"window": [[1.0]], "score": None, "scheduled": True},
    {"names": ["a"]},
  ]


@pytest.mark.parametrize("found_out", ["before", "while writing"])
def test_a_full_disk_is_explained_and_leaves_the_last_good_one(
  two, tmp_path, monkeypatch, found_out
):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)

  def fail(*args, **kwargs):
    raise ValueError(f"RESOURCE: {os.strerror(errno.ENOSPC)} [os_error 28]")

  def almost_full(path):
    return shutil._ntuple_diskusage(10**9, 10**9 - 4000, 4000)

  with monkeypatch.context() as patched:
    if found_out == "before":
      patched.setattr(checkpoints.shutil, "disk_usage", almost_full)
    else:
      patched.setattr(checkpoints.ocp.JsonCheckpointHandler, "save", fail)
      patched.setattr(checkpoints.ocp.JsonCheckpointHandler, "async_save", fail)
    with (
      checkpoints.open_manager(folder, keep=2) as manager,
      pytest.raises(
        checkpoints.CheckpointError,
        match=r"No space left on device.*\nThe last good one is of step 2\.",
      ),
    ):
      checkpoints.save(manager, 3, state(3), {"next_batch": 3}, {})
      checkpoints.finish(manager)
  with checkpoints.open_manager(folder, keep=2) as manager:
    assert checkpoints.restore_newest(manager, state(0)).step == 2
    # What a thread of the save still wrote goes when the next run opens it.
    saved = sorted(p.name for p in folder.iterdir() if "tmp" not in p.name)
    assert saved == ["1", "2"]
