"""Folders of extracted frames and flow: which images they hold, in order.

A frame is an image <prefix><digits>.jpg, .jpeg or .png, with one prefix in a
folder (img_00001.jpg, frame000001.jpg, 00001.png) and numbers without gaps from
any first one. flow_x... and flow_y..., the components of extracted flow, and
hidden files are not frames. Only names are read here, each folder once: a set
of videos has millions of images.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_NUMBERED = re.compile(
  r"(?P<prefix>|.*[^0-9])(?P<number>[0-9]+)\.(?:jpg|jpeg|png)", re.IGNORECASE
)
_NO_FRAMES = (".", "flow_x", "flow_y")
# What FFmpeg's demuxers call their own, and cameras and browsers write.
_VIDEO_EXTENSIONS = (
  *(".264", ".265", ".3g2", ".3gp", ".asf", ".av1", ".avi", ".divx", ".dv"),
  *(".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t"),
  *(".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod", ".mov", ".mp4"),
  *(".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm"),
  *(".ogv", ".ogx", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm"),
  *(".wmv", ".wtv", ".xvid", ".y4m"),
)
# What archives, file systems and file managers leave behind, in lower case.
_LEFT_BEHIND = {
  "__macosx",
  "@eadir",
  "$recycle.bin",
  "system volume information",
  "lost+found",
  "thumbs.db",
  "ehthumbs.db",
  "desktop.ini",
}


class VideoError(Exception):
  """A video can't be used.

  Attributes:
    reason: why, in a few words, without the video's name.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


def hold_frames(names: Iterable[str]) -> bool:
  """Whether a folder of files with these names is one clip.

  It is where at least one of them is a frame and none is a video: a folder of
  videos may hold numbered stills of them.
  """
  names = [name for name in names if not name.startswith(".")]
  return any(_is_frame(name) for name in names) and not any(
    name.lower().endswith(_VIDEO_EXTENSIONS) for name in names
  )


def is_frame_folder(path: str | os.PathLike) -> bool:
  """Whether a path is a folder that directly holds the frames of one clip."""
  return os.path.isdir(path) and hold_frames(os.listdir(path))


def enclosing(
  folder: str | os.PathLike, around: frozenset[str] = frozenset()
) -> frozenset[str] | None:
  """Real paths of a folder and of those around it, for a walk that ends.

  Args:
    folder: The folder to enter.
    around: Result for the folder that it stands in.

  Returns:
    None where the folder is a link to one of those around it.
  """
  real = os.path.realpath(folder)
  return None if real in around else around | {real}


def is_left_behind(name: str) -> bool:
  """Whether a file or folder is hidden or made by a system, not by people."""
  return name.startswith(".") or name.casefold() in _LEFT_BEHIND


def without_video_extension(name: str) -> str:
  """Returns the name that a video's folder of frames has: v.avi gives v."""
  stem, extension = os.path.splitext(name)
  return stem if extension.lower() in _VIDEO_EXTENSIONS else name


def frame_files(folder: str | os.PathLike) -> list[Path]:
  """Lists the frames of a folder by number.

  Raises:
    VideoError: there are none, a number is missing or there twice, or the
      images have several prefixes.
  """
  names = [name for name in os.listdir(folder) if _is_frame(name)]
  if not names:
    raise VideoError("the folder holds no numbered images")
  return _in_order(folder, names)


def flow_files(
  folder: str | os.PathLike, step: int
) -> tuple[list[Path], list[Path]]:
  """Lists the images of extracted flow by number, the x and the y components.

  They are flow_x_<digits> and flow_y_<digits>. denseflow names fields over a
  step of 2 flow_x_p2_<digits>: with a step above 1 such names come first.

  Raises:
    VideoError: there are none, a number is missing or there twice, or the two
      components are not there for the same numbers.
  """
  names = os.listdir(folder)
  marks = ["", f"p{step}_"] if step > 1 else [""]
  for mark in reversed(marks):
    x, y = (
      [n for n in names if _prefix(n) == f"flow_{axis}_{mark}"] for axis in "xy"
    )
    if x or y:
      break
  else:
    wanted = " or ".join(f"flow_x_{mark}<digits>" for mark in marks)
    raise VideoError(
      f"the folder holds no extracted flow: no {wanted} with its flow_y_ file,"
      " .jpg, .jpeg or .png"
    )
  if len(x) != len(y):
    raise VideoError(f"{len(x)} images of flow in x, {len(y)} in y")
  x, y = _in_order(folder, x), _in_order(folder, y)
  if _number(x[0].name) != _number(y[0].name):
    raise VideoError(f"flow starts with {x[0].name}, but {y[0].name}")
  return x, y


def _is_frame(name: str) -> bool:
  return not name.startswith(_NO_FRAMES) and bool(_NUMBERED.fullmatch(name))


def _prefix(name: str) -> str | None:
  match = _NUMBERED.fullmatch(name)
  return match["prefix"] if match else None


def _number(name: str) -> int:
  match = _NUMBERED.fullmatch(name)
  assert match is not None
  return int(match["number"])


def _in_order(folder: str | os.PathLike, names: Sequence[str]) -> list[Path]:
  """Paths of numbered images by number; VideoError as in `frame_files`."""
  prefixes = sorted({_prefix(name) or "" for name in names})
  if len(prefixes) > 1:
    some = ", ".join(f"{prefix}<digits>" for prefix in prefixes[:3])
    raise VideoError(f"images of several kinds in one folder: {some}")
  names = sorted(names, key=lambda name: (_number(name), name))
  for name, following in zip(names, names[1:], strict=False):
    number = _number(name)
    if _number(following) == number:
      raise VideoError(f"{name} and {following} have the same number")
    if _number(following) != number + 1:
      stem, extension = os.path.splitext(name)
      digits = len(stem) - len(prefixes[0])
      raise VideoError(
        f"{prefixes[0]}{number + 1:0{digits}}{extension} is missing"
      )
  return [Path(folder, name) for name in names]
