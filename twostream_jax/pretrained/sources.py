"""What is read of a weight file: named arrays, from trees of containers."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax.pickles import Call, Persistent

# Of containers and arrays. A file of a few hundred bytes whose containers
# contain each other ten times would otherwise be walked for ever.
_MOST_STEPS = 1_000_000
# Weights hardly compress, so what unpacks to more than this is made to.
_MOST_COMPRESSED = 64
_SMALL = 64 * 2**20


class WeightsError(ValueError):
  """A weight file can't be read, or does not fit the network."""


@dataclasses.dataclass(frozen=True)
class Content:
  """What a reader of one format returns.

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
  """What a weight file holds.

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
    """The key in the file of an array, or the one that it would have."""
    return self.names.get(key, f"{self.prefix}{key}")


def flatten(
  root: Any, as_array: Callable[[Any], np.ndarray | list | None]
) -> Content:
  """Collects the arrays of a tree of containers, modules and calls.

  Args:
    root: of dicts, lists and `Call`s.
    as_array: makes an array, or a list of further nodes, of a leaf; None
      where a leaf is neither.

  Returns:
    Arrays and refused calls. Modules of torch join their keys by ".", as
    their state dicts do. Text and numbers are dropped.
  """
  arrays, refused = {}, {}
  # Keys, what joins the names below them, and nodes. A stack, since files may
  # nest deeper than Python calls.
  stack, steps = [("", "/", root)], 0
  while stack:
    key, separator, node = stack.pop()
    steps += 1
    if steps > _MOST_STEPS:
      raise WeightsError("its containers contain each other too often")
    made = as_array(node)
    if isinstance(made, np.ndarray):
      arrays[key] = made
      continue
    children = _children(node if made is None else made)
    if children is None:
      if isinstance(node, Call | Persistent):
        refused[key] = str(node)
      continue
    start = f"{key}{separator}" if key else ""
    below = "." if _is_module(node) else "/"
    found = [(f"{start}{name}", below, child) for name, child in children]
    stack += reversed(found)
  return Content(arrays, refused=refused)


def require_bounded(unpacked: int, packed: int, name: str) -> None:
  """Refuses a file that would fill the memory with what is not in it.

  Args:
    unpacked: bytes that it says to hold.
    packed: bytes of the file.
    name: of the file or of the part of it.

  Raises:
    WeightsError: it is compressed more than weights can be.
  """
  if unpacked > _SMALL + _MOST_COMPRESSED * packed:
    raise WeightsError(
      f"{name}: {packed} bytes that would unpack to {unpacked}; this is no"
      " file of weights"
    )


def _is_module(node: Any) -> bool:
  """Whether a node is a module of torch that was saved as a whole."""
  if not isinstance(node, Call) or not isinstance(node.state, Mapping):
    return False
  # Those of TorchScript have their parameters as plain attributes.
  return "_modules" in node.state or str(node).startswith("__torch__.")


def _children(node: Any) -> Iterable[tuple[Any, Any]] | None:
  """Names and nodes below a node; None for a leaf."""
  if isinstance(node, Mapping):
    return node.items()
  if isinstance(node, list | tuple):
    return enumerate(node)
  if _is_module(node):
    if "_modules" not in node.state:
      return node.state.items()
    parts = (
      node.state.get(part) for part in ("_parameters", "_buffers", "_modules")
    )
    return [
      item
      for part in parts
      if isinstance(part, Mapping)
      for item in part.items()
    ]
  if isinstance(node, Call) and node.items:
    # Of a class of its own that is a dict.
    return node.items.items()
  return None
