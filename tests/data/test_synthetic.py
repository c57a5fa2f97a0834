"""The ceilings hold by construction."""

import cv2
import numpy as np
import pytest

from twostream_jax.data import synthetic


@pytest.mark.parametrize("appearance", synthetic.APPEARANCES)
def test_hues_are_of_equal_luminance(appearance):
  gray = np.full((8, 8, 3), 120.0) + synthetic.chroma(appearance)
  luma = cv2.cvtColor(np.round(gray).astype(np.uint8), cv2.COLOR_RGB2GRAY)
  assert np.abs(luma.astype(int) - 120).max() <= 1


def test_clips_of_different_hue_have_the_same_luminance():
  clips = [
    synthetic.render_clip(np.random.default_rng(3), appearance, "spin")
    for appearance in synthetic.APPEARANCES
  ]
  lumas = [
    np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip]).astype(int)
    for clip in clips
  ]
  assert np.abs(lumas[0] - lumas[1]).max() <= 2
  assert np.abs(lumas[0] - lumas[2]).max() <= 2
  assert np.abs(clips[0].astype(int) - clips[1]).max() > 30


def test_the_first_frame_does_not_depend_on_the_motion():
  # All draws but the motion are the same, so a single frame can't tell it.
  frames = [
    synthetic.render_clip(np.random.default_rng(5), "teal", motion)[0]
    for motion in synthetic.MOTIONS
  ]
  for frame in frames[1:]:
    np.testing.assert_array_equal(frame, frames[0])


def test_motions_differ_over_time():
  last = [
    synthetic.render_clip(np.random.default_rng(5), "teal", motion)[8]
    for motion in synthetic.MOTIONS
  ]
  for i, one in enumerate(last):
    for other in last[i + 1 :]:
      assert np.abs(one.astype(int) - other).max() > 40


def test_files_are_a_function_of_the_seed(tmp_path):
  counts = {"train": 1, "test": 1}
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    synthetic.write_videos(tmp_path / name, counts, seed=seed)
  files = sorted(
    p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.avi")
  )
  assert len(files) == 24

  def contents(name):
    return [(tmp_path / name / f).read_bytes() for f in files]

  assert contents("a") == contents("b")
  assert all(x != y for x, y in zip(contents("a"), contents("c"), strict=True))
  train, test = contents("a")[12:], contents("a")[:12]
  assert not set(train) & set(test)


def test_processes_render_the_same_files(tmp_path, monkeypatch):
  monkeypatch.setattr(synthetic, "_CLIPS_A_PROCESS", 6)
  for name, workers in (("one", 1), ("two", 2)):
    synthetic.write_videos(
      tmp_path / name, {"test": 1}, seed=0, num_workers=workers
    )
  one, two = (
    {p.relative_to(tmp_path / n): p.read_bytes() for p in files}
    for n in ("one", "two")
    for files in [sorted((tmp_path / n).rglob("*.avi"))]
  )
  assert len(one) == 12 and one == two


def test_an_interrupted_set_is_not_taken_for_whole(tmp_path, monkeypatch):
  def fail(path, frames):
    raise OSError("disk full")

  with monkeypatch.context() as patched:
    patched.setattr(synthetic, "_write_video", fail)
    with pytest.raises(OSError, match="disk full"):
      synthetic.write_videos(tmp_path / "videos", {"train": 1}, seed=0)
  assert not (tmp_path / "videos").exists()
  synthetic.write_videos(tmp_path / "videos", {"train": 1}, seed=0)
  assert [p.name for p in tmp_path.iterdir()] == ["videos"]


def test_an_existing_folder_is_left_alone(tmp_path):
  with pytest.raises(FileExistsError):
    synthetic.write_videos(tmp_path, {"train": 1}, seed=0)
