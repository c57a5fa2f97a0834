"""What a check finds wrong with a clip, a file or a folder of frames."""

import cv2
import numpy as np
import pytest

from twostream_jax.data.build.check import Rejection, check_clip
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.flow.spec import FlowSpec


def _clip(path):
  return Clip(path.name, path, "train", "a", "")


def spec(**values):
  return FlowSpec("dis", {}, short_side=16, **values)


@pytest.fixture
def folder(tmp_path):
  for number in range(4):
    image = np.full((24, 32, 3), 20 * number, np.uint8)
    cv2.imwrite(str(tmp_path / f"img_{number:05d}.jpg"), image)
  return tmp_path


def test_a_folder_of_frames_is_used(folder):
  assert check_clip(_clip(folder), spec(step=3)) is None
  assert check_clip(_clip(folder), spec(step=4)) == Rejection(
    "4 frames decoded, at least 5 needed"
  )


def test_what_is_not_there(folder):
  assert check_clip(_clip(folder / "no.avi"), spec()) == Rejection(
    "file not found", transient=True
  )


def test_folders_that_can_not_be_used(folder):
  (folder / "empty").mkdir()
  assert check_clip(_clip(folder / "empty"), spec()) == Rejection(
    "the folder holds no numbered images"
  )
  (folder / "img_00003.jpg").write_bytes(b"")
  assert check_clip(_clip(folder), spec()) == Rejection(
    "img_00003.jpg can't be decoded: it is not a JPEG, PNG, WebP, BMP or GIF"
    " image"
  )
  (folder / "img_00002.jpg").unlink()
  assert check_clip(_clip(folder), spec()) == Rejection(
    "img_00002.jpg is missing"
  )
