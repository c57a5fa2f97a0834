"""This project's own weight files: .safetensors with what they mean."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from twostream_jax import files
from twostream_jax.files import json_files
from twostream_jax.files.words import printable
from twostream_jax.pretrained.convention import InputConvention
from twostream_jax.pretrained.readers import read_source
from twostream_jax.pretrained.sources import Source, WeightsError

_FORMAT = "twostream_jax"


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What weights are worth little without.

  Attributes:
    backbone: a key of models.BACKBONES.
    num_classes: of the classifier; None where the file holds none.
    convention: of the images they expect; None for a network of flow.
    notes: other JSON-ready facts, such as class names and the FlowSpec.
  """

  backbone: str
  num_classes: int | None
  convention: InputConvention | None
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def save_weights(
  path: str | os.PathLike, variables: Mapping[str, Any], metadata: Metadata
) -> None:
  """Writes the variables of a backbone to a .safetensors file.

  The keys are paths such as params/conv1_1/kernel. The file appears as a
  whole or not at all.

  Args:
    path: of the file; an existing one is replaced.
    variables: {"params": ..., "batch_stats": ...} of a backbone (below
      "backbone" in those of a `Stream`), arrays; one replica.
    metadata: kept in the file's header.
  """
  path = Path(path)
  arrays = {
    key: np.ascontiguousarray(array)
    for key, array in traverse_util.flatten_dict(variables, sep="/").items()
  }
  header = {
    "format": _FORMAT,
    "metadata": json.dumps(dataclasses.asdict(metadata), sort_keys=True),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replaced(path) as temporary:
    # save_file would make the file unreadable for other users.
    temporary.write_bytes(safetensors.numpy.save(arrays, metadata=header))


def read_metadata(path: str | os.PathLike) -> Metadata:
  """The metadata of a file of `save_weights`.

  Raises:
    WeightsError: the file can't be read, or is not of `save_weights`.
  """
  return metadata_of(read_source(path))


def is_own(source: Source) -> bool:
  """Whether `save_weights` wrote a file."""
  return source.metadata.get("format") == _FORMAT


def metadata_of(source: Source) -> Metadata:
  """The metadata of a file of `save_weights`.

  Raises:
    WeightsError: the file is not of `save_weights`.
  """
  try:
    fields = json_files.parse(source.metadata["metadata"].encode())
    convention = fields["convention"]
    if convention is not None:
      triples = {name: tuple(convention[name]) for name in ("mean", "std")}
      fields["convention"] = InputConvention(**convention | triples)
    found = Metadata(**fields)
    _check(found)
    return found
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise WeightsError(
      f"{source.path}: without the metadata that this project's own weight"
      f" files have ({printable(repr(error))})"
    ) from error


def _check(found: Metadata) -> None:
  """Refuses metadata of other types; a file may hold any."""
  classes = found.num_classes
  if not isinstance(found.backbone, str):
    raise ValueError("backbone: not a text")
  if classes is not None and (type(classes) is not int or classes < 1):
    raise ValueError("num_classes: not a number of classes")
  if not isinstance(found.notes, dict):
    raise ValueError("notes: not facts by name")
