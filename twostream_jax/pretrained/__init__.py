"""Weights of other projects, in and out.

    variables, convention, report = load_pretrained(
      "vgg16.pth", backbone="vgg16", variables=model.init(...)
    )

A file is read without running anything that is in it (`readers`), its layout
is told by its keys (`layouts`), and each of its arrays is brought to the shape
and order of this project's (`mapping`). The images that the weights were
trained on come as an `InputConvention`; `save_weights` keeps it with them.
"""

import os
from collections.abc import Mapping
from typing import Any

from twostream_jax.pretrained.convention import (
  CAFFE,
  IMAGENET,
  InputConvention,
)
from twostream_jax.pretrained.layouts import LAYOUTS, fit_layout
from twostream_jax.pretrained.mapping import (
  count_classes,
  cross_modality,
  map_weights,
)
from twostream_jax.pretrained.prefixes import Choice
from twostream_jax.pretrained.readers import read_source
from twostream_jax.pretrained.report import Report, Row, printable
from twostream_jax.pretrained.saving import (
  Metadata,
  read_metadata,
  save_weights,
)
from twostream_jax.pretrained.sources import Source, WeightsError

__all__ = [
  "CAFFE",
  "IMAGENET",
  "LAYOUTS",
  "Choice",
  "InputConvention",
  "Metadata",
  "Report",
  "Row",
  "Source",
  "WeightsError",
  "count_classes",
  "cross_modality",
  "fit_layout",
  "load_pretrained",
  "map_weights",
  "printable",
  "read_metadata",
  "read_source",
  "save_weights",
]


def load_pretrained(
  path: str | os.PathLike,
  *,
  backbone: str,
  variables: Mapping[str, Any],
  layout: str | None = None,
  partial: bool = False,
  from_images: bool = False,
  choice: Choice | None = None,
) -> tuple[dict[str, Any], InputConvention | None, Report]:
  """Gives a freshly initialised backbone the weights of a file.

  Args:
    path: a weight file; see `read_source` for the formats.
    backbone: a key of models.BACKBONES.
    variables: {"params": ..., "batch_stats": ...} of that backbone, arrays of
      one replica. A `Stream` has them below "backbone" in both.
    layout: a key of LAYOUTS; None to let the file's keys tell.
    partial: fully connected layers (fc6, fc7, logits) keep their initial
      values where the file lacks them, or has fc6 for another image size.
    from_images: a first kernel for images becomes one for flow, by
      `cross_modality`; one that is for flow already is taken as it is.
    choice: which part of the file; None for the only one that fits.

  Returns:
    Variables of the same structure; what images they expect, in RGB and 0..1
    (None for a network of flow); and what became of every array.

  Raises:
    WeightsError: the file can't be read, or does not fit; the message lists
      every array that is missing, left over or wrong.
    ValueError: variables are none of a backbone.
  """
  source, chosen = fit_layout(
    read_source(path), backbone, layout, choice or Choice()
  )
  mapped, report = map_weights(
    source,
    chosen,
    backbone=backbone,
    variables=variables,
    partial=partial,
    from_images=from_images,
  )
  convention = chosen.convention(source)
  return mapped, convention and convention.as_rgb(), report
