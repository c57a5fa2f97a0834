"""The datasets that can be built by name.

Files and folders of frames are found by their names, wherever they lie below
the folder of videos: flat, in class folders, in split folders.
"""

import os
from collections.abc import Callable

from twostream_jax.data.datasets import kinetics, lists, ssv2
from twostream_jax.data.datasets.annotations import read_csv, read_folder
from twostream_jax.data.datasets.clips import Clip
from twostream_jax.data.datasets.find_videos import find_videos


def read_ucf101(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  split: int = 1,
  allow_missing: bool = False,
  drop_shared_groups: bool = False,
) -> list[Clip]:
  """Reads UCF-101; see `lists.list_ucf101` and `find_videos`."""
  listed = lists.list_ucf101(annotations, split)
  return find_videos(
    videos,
    listed,
    allow_missing=allow_missing,
    drop_shared_groups=drop_shared_groups,
  )


def read_hmdb51(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  split: int = 1,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads HMDB-51; see `lists.list_hmdb51` and `find_videos`."""
  listed = lists.list_hmdb51(annotations, split)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_ssv2(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads SSv2; see `ssv2.list_ssv2` and `find_videos`."""
  listed = ssv2.list_ssv2(annotations)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_ssv2_mini(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  mini_train: int = 20,
  mini_test: int = 3,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads part of SSv2; see `ssv2.list_ssv2_mini` and `find_videos`."""
  listed = ssv2.list_ssv2_mini(annotations, mini_train, mini_test)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_ccv(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  keep_unlabelled: bool = False,
  allow_missing: bool = False,
) -> list[Clip]:
  """Reads CCV, multi-label; see `lists.list_ccv` and `find_videos`."""
  listed = lists.list_ccv(annotations, keep_unlabelled)
  return find_videos(videos, listed, allow_missing=allow_missing)


def read_kinetics(
  videos: str | os.PathLike,
  annotations: str | os.PathLike,
  *,
  allow_missing: bool = False,
  drop_shared_groups: bool = False,
) -> list[Clip]:
  """Reads a Kinetics set; see `kinetics.list_kinetics` and `find_videos`."""
  listed = kinetics.list_kinetics(annotations)
  return find_videos(
    videos,
    listed,
    allow_missing=allow_missing,
    drop_shared_groups=drop_shared_groups,
  )


# Name to function. Its parameters are the options that the dataset takes.
DATASETS: dict[str, Callable[..., list[Clip]]] = {
  "folder": read_folder,
  "csv": read_csv,
  "ucf101": read_ucf101,
  "hmdb51": read_hmdb51,
  "ssv2": read_ssv2,
  "ssv2_mini": read_ssv2_mini,
  "ccv": read_ccv,
  "kinetics": read_kinetics,
}
