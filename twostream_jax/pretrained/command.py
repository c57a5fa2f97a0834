"""Converts the weights that `data_prep/convert_weights.py` is asked for."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import traverse_util

from twostream_jax.files import words
from twostream_jax.models import create_model
from twostream_jax.pretrained import (
  Choice,
  Metadata,
  count_classes,
  fit_layout,
  map_weights,
  printable,
  read_source,
  save_weights,
)

# Of the images that every published network here was trained on, in pixels.
_IMAGE_SIZE = 224


def run(source: str, values: flags.FlagValues) -> int:
  """Converts a file as the flags ask for and prints a report.

  Args:
    source: path of the file to convert.
    values: see `define_flags`.

  Returns:
    The exit code: 0; 1 after an error that is explained on stderr.
  """
  try:
    _convert(source, values)
  except (ValueError, OSError) as error:
    print(f"error: {words.lines(str(error))}", file=sys.stderr)
    return 1
  return 0


def _convert(path: str, values: flags.FlagValues) -> None:
  source, layout = fit_layout(
    read_source(path),
    values.backbone,
    values.layout,
    Choice(values.wrapper, values.prefix),
  )
  shapes = _shapes(values.backbone, num_classes=2)
  num_classes = count_classes(source, layout, shapes)
  if num_classes is not None:
    shapes = _shapes(values.backbone, num_classes)
  variables, report = map_weights(
    source,
    layout,
    backbone=values.backbone,
    variables=shapes,
    partial=values.partial,
  )
  convention = layout.convention(source)
  metadata = Metadata(
    values.backbone, num_classes, convention and convention.as_rgb()
  )
  try:
    save_weights(values.out, _only_arrays(variables), metadata)
  except OSError as error:
    # Where writing fails, the system does not say in which file.
    raise OSError(
      error.errno, f"no weights were written: {error.strerror}", values.out
    ) from error
  print(report.table())
  print(f"{report.layout}: {report.summary()}")
  if source.prefix:
    print(f"prefix    {printable(source.prefix)}")
  if convention:
    print(f"rgb_mean  {convention.rgb_mean}\nrgb_std   {convention.rgb_std}")
  print(f"written   {values.out}")


def _shapes(backbone: str, num_classes: int) -> dict[str, Any]:
  """Shapes of a backbone's variables; nothing is computed."""
  model = create_model(backbone, num_classes=max(2, num_classes))
  images = jnp.zeros((1, _IMAGE_SIZE, _IMAGE_SIZE, 3))
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )


def _only_arrays(variables: dict[str, Any]) -> dict[str, Any]:
  """Leaves out what is only a shape, because the file did not have it."""
  flat = traverse_util.flatten_dict(variables)
  return traverse_util.unflatten_dict(
    {
      path: leaf
      for path, leaf in flat.items()
      if not isinstance(leaf, jax.ShapeDtypeStruct)
    }
  )
