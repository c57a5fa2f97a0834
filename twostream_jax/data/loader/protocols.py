"""Test protocols by name: which windows of a video, and which crops of each.

  single  one view: the middle window, centre crop
  KxM     K equally spaced windows, M crops of each: 1 (centre), 5 (and the
          corners) or 10 (and the mirror images of these); "25x10" is that of
          Simonyan & Zisserman 2014, section 5
  dense   every window, centre crop

A network that reads sequences of windows sees one sequence of a video whatever
K and M; under "dense" as many sequences, of the same length, as it takes to
show it every window.
"""

import dataclasses
import re

import numpy as np

from twostream_jax.data.loader import augment, sampling

# "dense" shows more of any video, and each of its windows once.
_MAX_WINDOWS = 10_000
_CROPS = {1: "centre crop", 5: "5 crops", 10: "10 crops"}


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A test protocol; `parse` makes one of its name.

  Attributes:
    num_windows: of a video, at least 1; None: all of them.
    num_crops: of each window: 1, 5 or 10.
  """

  num_windows: int | None
  num_crops: int

  @property
  def name(self) -> str:
    """What `parse` takes."""
    if self.num_windows is None:
      return "dense"
    if (self.num_windows, self.num_crops) == (1, 1):
      return "single"
    return f"{self.num_windows}x{self.num_crops}"

  def starts(self, available: int) -> np.ndarray:
    """The windows of a video: int [k] in 0..available - 1.

    Args:
      available: windows that the video has, at least 1. Where they are fewer
        than K, some are shown again.
    """
    if self.num_windows is None:
      return np.arange(available)
    return sampling.even_starts(available, self.num_windows)

  def describe(self, crop_fraction: float, image_size: int) -> str:
    """Describes the protocol, as shown beside every number; name first.

    Args:
      crop_fraction: side of a crop, as a share of the short side.
      image_size: side of the network's input, pixels.
    """
    if self.num_windows is None:
      windows = "every clip"
    elif self.num_windows == 1:
      windows = "the middle clip"
    else:
      windows = f"{self.num_windows} equally spaced clips"
    return (
      f"{self.name}: {windows}, {_CROPS[self.num_crops]} of"
      f" {crop_fraction:g} of the short side at {image_size} px, mean of logits"
    )


SINGLE = Protocol(1, 1)
DENSE = Protocol(None, 1)


def parse(name: str) -> Protocol:
  """The protocol of a name.

  Raises:
    ValueError: there is none of that name; the message lists what there is.
  """
  if name == "single":
    return SINGLE
  if name == "dense":
    return DENSE
  match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", name)
  if (
    not match
    or int(match[1]) > _MAX_WINDOWS
    or int(match[2]) not in augment.CROP_COUNTS
  ):
    raise ValueError(
      f"config.eval.protocol={name!r} must be 'single', 'dense' or 'KxM': K"
      f" equally spaced clips (at most {_MAX_WINDOWS}) and M of"
      f" {augment.CROP_COUNTS} crops, as in '25x10'"
    )
  return Protocol(int(match[1]), int(match[2]))


def sequence_starts(
  available: int, length: int, count: int = 1
) -> list[np.ndarray]:
  """The sequences of windows that a network of sequences sees of a video.

  Args:
    available: windows that the video has, at least 1.
    length: windows of a sequence; where the video has fewer, some of them come
      more than once.
    count: sequences, equally spaced each, and shifted against each other. With
      count times length at least `available` every window is in one of them,
      some in two where their number does not divide.

  Returns:
    int [length] in 0..available - 1, for each sequence.
  """
  starts = sampling.even_starts(available, length * count)
  return [starts[i::count] for i in range(count)]
