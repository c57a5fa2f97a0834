"""Content of weight files: named arrays, from trees of containers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax.files import limits
from twostream_jax.files.pickles import Call, Persistent

# Containers, arrays and calls that are looked at. A file of a few hundred bytes
# whose containers contain each other ten times would be walked for ever.
_MOST_NODES = 100_000
# Items of containers, of numbers and texts too: a list may be there a thousand
# times. An optimiser of 1,000 arrays has 10,000.
_MOST_ITEMS = 2_000_000
# Characters of all keys. A text of a file is a part of each key below it.
# 16,000 arrays may have keys of 1,000 characters; 1,000 arrays of torch have
# 50,000 in all.
_MOST_TEXT = 2**24
# Containers inside of each other; one that contains itself ends here.
_DEEPEST = 64


class WeightsError(ValueError):
  """A weight file can't be read, or does not fit the network."""


@dataclasses.dataclass(frozen=True)
class Content:
  """Result of the reader of one format.

  Attributes:
    arrays: by key; the keys of nested containers are joined by "/".
    metadata: text that came with them (.safetensors only).
    refused: by key, names of what a pickle would call in place of an array.
  """

  arrays: Mapping[str, np.ndarray]
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
  refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Source(Content):
  """Content of a weight file.

  Attributes:
    path: of the file.
    prefix: what was cut off the keys; "" for a file as it was read.
    names: by key, the keys in the file, where they differ.
    outside: arrays whose keys do not begin with the prefix, by their keys in
      the file.
  """

  path: Path = Path()
  prefix: str = ""
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  outside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def file_key(self, key: str) -> str:
    """Returns the key of an array in the file, or where it would be."""
    return self.names.get(key, f"{self.prefix}{key}")


# What may be or hold an array; text and numbers can't.
_NODES = (dict, list, tuple, Call, Persistent, np.ndarray)


def flatten(
  root: Any, as_array: Callable[[Any], np.ndarray | list | None], size: int
) -> Content:
  """Collects the arrays of a tree of containers, modules and calls.

  Args:
    root: of dicts, lists and `Call`s.
    as_array: makes an array, or a list of further nodes, of a leaf; None
      where a leaf is neither.
    size: bytes of the file.

  Returns:
    Arrays and refused calls. Modules of torch join their keys by ".", as
    their state dicts do. Text and numbers are dropped.

  Raises:
    WeightsError: there are more containers, characters of keys or bytes of
      arrays than a file of weights has.
  """
  arrays, refused = {}, {}
  unpacked = characters = items = 0
  # Keys, what joins the names below them, depths, and nodes. A stack, since
  # files may nest deeper than Python calls.
  stack, count = [("", "/", 0, root)], 0
  while stack:
    key, separator, depth, node = stack.pop()
    count += 1
    if count > _MOST_NODES:
      raise WeightsError(
        f"more than {_MOST_NODES} containers and arrays, or containers that"
        " contain each other; this is not a file of weights"
      )
    made = as_array(node)
    if isinstance(made, np.ndarray):
      arrays[key] = made
      # An array may be there a million times, and some readers copy it.
      unpacked += made.nbytes
      require_bounded(unpacked, size, "its arrays")
      continue
    children = _children(node if made is None else made)
    if children is None:
      if isinstance(node, Call | Persistent):
        refused[key] = str(node)
      continue
    start = f"{key}{separator}" if key else ""
    below = "." if _is_module(node) else "/"
    items += len(children)
    if items > _MOST_ITEMS:
      raise WeightsError(
        f"more than {_MOST_ITEMS} items of its containers; this is not a file"
        " of weights"
      )
    named = (
      children.items() if isinstance(children, dict) else enumerate(children)
    )
    found = []
    for name, child in named if depth < _DEEPEST else ():
      if isinstance(child, _NODES):
        name = str(name)
        characters += len(start) + len(name)
        require_short(characters)
        found.append((f"{start}{name}", below, depth + 1, child))
    stack += reversed(found)
  return Content(arrays, refused=refused)


def require_short(characters: int) -> None:
  """Refuses keys of so many characters together.

  Raises:
    WeightsError: Those of a file of weights are fewer.
  """
  if characters > _MOST_TEXT:
    raise WeightsError(
      f"the names of its arrays have more than {_MOST_TEXT} characters; this"
      " is not a file of weights"
    )


def require_bounded(unpacked: int, packed: int, name: str) -> None:
  """Refuses a file that would fill the memory with what is not in it.

  Args:
    unpacked: bytes that it says to hold.
    packed: bytes of the file.
    name: of the file or of the part of it.

  Raises:
    WeightsError: it is compressed more than weights can be.
  """
  if unpacked > limits.most_unpacked(packed):
    raise WeightsError(
      f"{name}: {packed} bytes that would unpack to {unpacked}; this is"
      " not a file of weights"
    )


def _is_module(node: Any) -> bool:
  """Reports whether a node is a module of torch, saved as a whole."""
  if not isinstance(node, Call) or not isinstance(node.state, dict):
    return False
  # Those of TorchScript have their parameters as plain attributes.
  return "_modules" in node.state or str(node).startswith("__torch__.")


def _children(node: Any) -> dict[Any, Any] | Sequence[Any] | None:
  """Returns the nodes below a node, by name or in order; None for a leaf."""
  if isinstance(node, dict | list | tuple):
    return node
  if _is_module(node):
    if "_modules" not in node.state:
      return node.state
    parts = (
      node.state.get(part) for part in ("_parameters", "_buffers", "_modules")
    )
    return {
      name: child
      for part in parts
      if isinstance(part, dict)
      for name, child in part.items()
    }
  if isinstance(node, Call) and node.items:
    # Of a class of its own that is a dict.
    return node.items
  return None
