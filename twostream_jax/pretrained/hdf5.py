"""Arrays and names of layers of an HDF5 file.

`apart` runs this file in a process of its own before this one reads the same:
it imports nothing but NumPy and h5py.
"""

import math
import re
from typing import BinaryIO

import h5py
import numpy as np

# Groups inside of each other.
_DEEPEST = 64
# Groups and arrays, and characters of their paths. A group may be there many
# times, and its name is a part of each path below it. 100,000 arrays may have
# paths of 160 characters; 1,000 of Keras have 40,000.
_MOST_ITEMS = 100_000
_MOST_TEXT = 2**24


def read(
  content: BinaryIO, most: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns arrays by path, and given names of layers by their groups.

  Args:
    content: The file.
    most: Bytes that it may unpack to.

  Raises:
    ValueError: Its arrays are in other files, or it has links to what may be,
      or they unpack to too much.
    OSError, RuntimeError, KeyError: It is damaged.
  """
  datasets, names = {}, {}

  def add(key: str, item: h5py.Group | h5py.Dataset) -> None:
    # Written with the separators of Windows by some versions.
    key = key.replace("\\", "/")
    key = re.sub(r"(^|/)_layer_checkpoint_dependencies/", r"\1layers/", key)
    if isinstance(item, h5py.Group):
      given = item.attrs.get("name")
      if key.endswith("/vars") and isinstance(given, str):
        names[key.removesuffix("/vars")] = given
    elif item.dtype.kind in "iuf":
      datasets[key] = item

  with h5py.File(content, "r") as file:
    _check_tree(file)
    # Whoever wrote the file would choose what of this machine is read.
    link = file.visititems_links(
      lambda key, link: None if isinstance(link, h5py.HardLink) else key
    )
    if link is not None:
      raise ValueError(f"{link!r:.200} is a link; copy its array here")
    file.visititems(add)
    for key, item in datasets.items():
      if item.is_virtual or item.external:
        raise ValueError(f"{key!r:.200} lies in another file")
    unpacked = sum(map(_unpacked, datasets.values()))
    if unpacked > most:
      raise ValueError(
        f"it would unpack to {unpacked} bytes; this is not a file of weights"
      )
    return {key: np.asarray(item) for key, item in datasets.items()}, names


def _check_tree(file: h5py.File) -> None:
  """Refuses trees that are walked for ever: HDF5 does it by recursion."""
  # Lengths of paths, and groups.
  level: list[tuple[int, h5py.Group]] = [(0, file)]
  items = characters = 0
  for _ in range(_DEEPEST):
    below: list[tuple[int, h5py.Group]] = []
    for start, group in level:
      items += len(group)
      if items > _MOST_ITEMS:
        raise ValueError(
          f"more than {_MOST_ITEMS} groups and arrays; this is not a file of"
          " weights"
        )
      for name in map(str, group):
        length = start + len(name) + 1
        characters += length
        if characters > _MOST_TEXT:
          raise ValueError(
            f"the names of its arrays have more than {_MOST_TEXT} characters;"
            " this is not a file of weights"
          )
        # A link would be followed.
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
          item = group.get(name)
          if isinstance(item, h5py.Group):
            below.append((length, item))
    level = below
    if not level:
      return
  raise ValueError(
    f"groups in {_DEEPEST} others; this is not a file of weights"
  )


def _unpacked(item: h5py.Dataset) -> int:
  """Bytes that reading takes: a whole chunk, also where the array is less."""
  chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
  return max(item.nbytes, chunk)


def serve(content: BinaryIO, size: int, answer: BinaryIO) -> None:
  """Reads a file, to see whether it can be read; see `apart.call`."""
  # The caller's limit is stricter.
  read(content, 2**27 + 8 * size)
  answer.write(b"read")
