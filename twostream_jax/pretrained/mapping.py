"""From a file's arrays to the variables of a backbone, key by key."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twostream_jax.pretrained.layouts import Layout
from twostream_jax.pretrained.naming import FULLY_CONNECTED, Network
from twostream_jax.pretrained.report import (
  EXTRA,
  FRESH,
  LEFT_OUT,
  MISSING,
  PROBLEMS,
  USED,
  WRONG,
  Report,
  Row,
  describe_shape,
  first_keys,
  printable,
)
from twostream_jax.pretrained.sources import Source, WeightsError


def cross_modality(kernel: np.ndarray, channels: int) -> np.ndarray:
  """First kernel of a flow stream, from that of an image network.

  The mean over the input channels, repeated (Wang et al. 2015, arXiv
  1507.02159, section 3). Equal channels then add up: an input of c channels
  that all equal x gives c / 3 times what three such image channels gave.

  Args:
    kernel: [h w 3 n].
    channels: of the flow stack, 2 * its length.

  Returns:
    [h w channels n], of the kernel's type.

  Raises:
    ValueError: kernel is not one of three input channels, or channels < 1.
  """
  if kernel.ndim != 4 or kernel.shape[2] != 3 or channels < 1:
    raise ValueError(
      "cross-modality initialisation makes a kernel of 1 channel or more from"
      f" one of shape [h w 3 n]; got {channels} and {kernel.shape}"
    )
  mean = kernel.mean(axis=2, keepdims=True, dtype=np.float64)
  return np.repeat(mean, channels, axis=2).astype(kernel.dtype)


def map_weights(
  source: Source,
  layout: Layout,
  *,
  backbone: str,
  variables: Mapping[str, Any],
  partial: bool = False,
  from_images: bool = False,
) -> tuple[dict[str, Any], Report]:
  """Replaces a backbone's arrays by those of a file.

  The classifier keeps its own where the number of classes differs. Everything
  else must be in the file, and the file must hold nothing else.

  Args:
    source: the file.
    layout: its layout.
    backbone: a key of models.BACKBONES.
    variables: of that backbone, as it was initialised; arrays, or anything
      with their shape and dtype.
    partial: fully connected layers keep their own where the file lacks them
      or has them for another image size.
    from_images: a first kernel for images becomes one for flow, by
      `cross_modality`; one that is for flow already is taken as it is.

  Returns:
    Variables of the same structure, with NumPy arrays where the file's were
    used, and the report.

  Raises:
    WeightsError: an array is missing, left over or wrong; all are listed.
    ValueError: variables are none of a backbone.
  """
  network = _network(variables)
  found = _find(source, layout, network, from_images)
  keys = {layout.key(path, network, source.arrays) for path in found}
  found |= _keep_classifier(found)
  if partial:
    found |= _keep_fully_connected(found)
  rows = [row for row, _ in found.values()] + _rest(source, layout, keys)
  report = Report(source.path, layout.name, backbone, tuple(rows))
  _check(report, source)
  return _replace(variables, found), report


def count_classes(
  source: Source, layout: Layout, variables: Mapping[str, Any]
) -> int | None:
  """Number of classes of a file's classifier; None where it has none.

  Args:
    source: the file.
    layout: its layout.
    variables: of the backbone, with any number of classes.
  """
  key = layout.key("params/logits/bias", _network(variables), source.arrays)
  return source.arrays[key].size if key in source.arrays else None


def _leaves(variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _network(variables: Mapping[str, Any]) -> Network:
  network = Network({path: x.shape for path, x in _leaves(variables)})
  if not network.convs:
    raise ValueError(
      "these are not variables of a backbone; those of a Stream have them below"
      " 'backbone'"
    )
  return network


def _is_bgr(layout: Layout, source: Source) -> bool:
  convention = layout.convention(source)
  return convention is not None and convention.channel_order == "BGR"


# A row and the file's array, as this project stores it, or None.
_Found = tuple[Row, np.ndarray | None]


def _find(
  source: Source, layout: Layout, network: Network, from_images: bool
) -> dict[str, _Found]:
  """By path, what the file has for each array of the network."""
  is_bgr = _is_bgr(layout, source)
  converter = _Converter(layout, network, is_bgr, from_images)
  found = {}
  for path in network.shapes:
    key = layout.key(path, network, source.arrays)
    name = source.file_key(key)
    if key in source.refused:
      note = (
        f"refers to {source.refused[key]}, which might run code; not called"
      )
      shape = network.shapes[path]
      found[path] = Row(WRONG, name, path, shape, printable(note)), None
    else:
      found[path] = converter(path, name, source.arrays.get(key))
  return found


def _replace(
  variables: Mapping[str, Any], found: Mapping[str, _Found]
) -> dict[str, Any]:
  mapped = [
    np.ascontiguousarray(array, leaf.dtype) if row.status == USED else leaf
    for (_, leaf), (row, array) in zip(
      _leaves(variables), found.values(), strict=True
    )
  ]
  return jax.tree.unflatten(jax.tree.structure(variables), mapped)


@dataclasses.dataclass(frozen=True)
class _Converter:
  """Makes an array of a file the network's, and says whether it fits."""

  layout: Layout
  network: Network
  is_bgr: bool
  from_images: bool

  def __call__(self, path: str, key: str, array: np.ndarray | None) -> _Found:
    shape = self.network.shapes[path]
    if array is None:
      return Row(MISSING, key, path, shape), None
    try:
      converted = self._convert(path, array)
    except ValueError as error:
      note = f"{describe_shape(array.shape)} in the file: {error}"
      return Row(WRONG, key, path, shape, note), None
    if converted.shape != shape:
      note = f"{describe_shape(converted.shape)} in the file"
      note += self._why(path, converted.shape)
      return Row(WRONG, key, path, shape, note), converted
    if not np.isfinite(converted).all():
      return Row(WRONG, key, path, shape, "some values are not finite"), None
    return Row(USED, key, path, shape), converted

  def _convert(self, path: str, array: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f"{array.dtype} values are not weights")
    if array.dtype.itemsize < np.dtype(np.float32).itemsize:
      # Means over channels would be rounded.
      array = array.astype(np.float32)
    array = self.layout.convert(path, array, self.network)
    if not self._is_first_kernel(path) or array.ndim != 4:
      return array
    if self.is_bgr:
      array = array[:, :, ::-1]
    channels = self.network.shapes[path][2]
    if self.from_images and array.shape[2] == 3 != channels:
      array = cross_modality(array, channels)
    return array

  def _is_first_kernel(self, path: str) -> bool:
    return path == f"params/{self.network.convs[0]}/kernel"

  def _why(self, path: str, found: tuple[int, ...]) -> str:
    shape = self.network.shapes[path]
    if _is_for_another_size(path, found, shape):
      sides = [(n / self.network.channels) ** 0.5 for n in (found[0], shape[0])]
      return (
        ": made for images of another size (before fc6 a map of side {:.3g},"
        " here {:.3g}). Use that image size, or take the weights in part, with"
        " fresh fully connected layers (partial)"
      ).format(*sides)
    if self._is_first_kernel(path) and len(found) == 4 and found[2] != shape[2]:
      return (
        f": made for {found[2]} input channels, not {shape[2]}. For a flow"
        " stream from weights of images, ask for cross-modality initialisation"
        " (from_images)"
      )
    return ""


def _is_for_another_size(
  path: str, found: tuple[int, ...], shape: tuple[int, ...]
) -> bool:
  is_fc6 = path == "params/fc6/kernel"
  return is_fc6 and found[1:] == shape[1:] and found[0] != shape[0]


def _keep_classifier(found: Mapping[str, _Found]) -> dict[str, _Found]:
  """A classifier of another number of classes is not the network's."""
  kernel_row, kernel = found["params/logits/kernel"]
  bias_row, bias = found["params/logits/bias"]
  if kernel is None or bias is None:
    return {}
  inputs, classes = kernel_row.shape
  count = bias.size
  is_classifier = kernel.shape == (inputs, count)
  if not is_classifier or count == classes:
    return {}
  note = f"{count} classes in the file, {classes} here"
  return _fresh((kernel_row, bias_row), note)


def _keep_fully_connected(found: Mapping[str, _Found]) -> dict[str, _Found]:
  """Fully connected layers that the file lacks, or has for another size."""
  layers = {
    layer: [row for row, _ in found.values() if f"params/{layer}/" in row.path]
    for layer in FULLY_CONNECTED
  }
  _, fc6 = found.get("params/fc6/kernel", (None, None))
  if fc6 is not None and _is_for_another_size(
    "params/fc6/kernel", fc6.shape, found["params/fc6/kernel"][0].shape
  ):
    rows = [row for layer in layers.values() for row in layer]
    return _fresh(rows, "fc6 in the file is for another image size")
  lacking = [
    row
    for rows in layers.values()
    for row in rows
    if all(row.status == MISSING for row in rows)
  ]
  return _fresh(
    (dataclasses.replace(row, key="") for row in lacking), "not in the file"
  )


def _fresh(rows: Iterable[Row], note: str) -> dict[str, _Found]:
  return {
    row.path: (dataclasses.replace(row, status=FRESH, note=note), None)
    for row in rows
  }


def _rest(source: Source, layout: Layout, expected: set[str]) -> list[Row]:
  """Rows of the arrays that are the file's alone."""
  rows = []
  for key, array in source.arrays.items():
    if key not in expected:
      reason = layout.why_unused(key)
      status = LEFT_OUT if reason else EXTRA
      name = source.file_key(key)
      rows.append(Row(status, name, "", array.shape, reason or ""))
  note = f"outside of {printable(source.prefix)}"
  return rows + [
    Row(LEFT_OUT, key, "", array.shape, note)
    for key, array in source.outside.items()
  ]


def _check(report: Report, source: Source) -> None:
  problems = report.of(*PROBLEMS)
  if not problems:
    return
  message = (
    f"{report.source}, read as {report.layout}, does not fit"
    f" {report.backbone}: {report.summary()}\n{report.table(*PROBLEMS)}"
  )
  lacking = [row.path for row in problems if row.status == MISSING]
  layers = {path.split("/")[1] for path in lacking}
  if len(lacking) == len(problems) and layers <= set(FULLY_CONNECTED):
    message += (
      "\nThe file has convolutions only. Take the weights in part to keep"
      " fresh fully connected layers (partial)"
    )
  else:
    keys = first_keys(map(source.file_key, source.arrays))
    message += (
      f"\nThe file's keys begin {keys}. Another --backbone or --layout, or the"
      " --wrapper or --prefix of the network in the file, may fit"
    )
  raise WeightsError(message)
