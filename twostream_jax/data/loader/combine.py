"""Two datasets as one, for training with a head for each.

Multi-task learning (Simonyan & Zisserman 2014, 1406.2199, section 2 and 6): a
small set and another one share all layers but the last.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class CombinedSource:
  """Random access to the videos of a split and of a second dataset.

  Attributes:
    first: records with labels 0..num_classes - 1.
    second: records whose labels continue from num_classes.
    num_classes: of the first.
  """

  first: Any
  second: Any
  num_classes: int

  def __len__(self) -> int:
    return len(self.first) + len(self.second)

  @property
  def labels(self) -> np.ndarray:
    """Class of each video, int [v]; read without an image."""
    return np.concatenate(
      [self.first.labels, self.second.labels + self.num_classes]
    )

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A record; first come all of the first dataset."""
    if index < len(self.first):
      return self.first[index]
    record = self.second[index - len(self.first)]
    return record | {"label": record["label"] + self.num_classes}
