"""Weight files of other projects, as flat dicts of named arrays.

No reader runs code that a file brings: pickles are restricted and torch loads
weights only.
"""

import dataclasses
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors
import scipy.io

from twostream_jax.pretrained import pickles

# The key of the mean image of a MatConvNet file.
AVERAGE_IMAGE = "averageImage"


# The arrays of a file, and its metadata.
_Content = tuple[dict[str, np.ndarray], dict[str, str]]
_Reader = Callable[[Path], _Content]


class WeightsError(ValueError):
  """A weight file can't be read, or does not fit the network."""


@dataclasses.dataclass(frozen=True)
class Source:
  """What a weight file holds.

  Attributes:
    path: of the file.
    arrays: by key, in the order and shape of the file. The keys of nested
      containers are joined by "/".
    metadata: text that came with them (.safetensors only).
  """

  path: Path
  arrays: dict[str, np.ndarray]
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def read_source(path: str | os.PathLike) -> Source:
  """Reads a weight file; its content, not its name, tells the format.

  .safetensors; .pth of torch (needs torch); .h5 of Keras; .npy and pickles of
  (nested) dicts of arrays; .npz; .mat of MatConvNet, up to version 7.

  Raises:
    WeightsError: the file is missing, of no known format, damaged, or holds
      more than arrays; or torch is needed and missing.
  """
  path = Path(path)
  try:
    with path.open("rb") as file:
      head = file.read(128)
  except OSError as error:
    raise WeightsError(f"{path}: {error.strerror or error}") from error
  name, reader = _format(path, head)
  try:
    arrays, metadata = reader(path)
  except WeightsError:
    raise
  # Each library has its own, and a damaged file may raise any.
  except Exception as error:
    reason = str(error) or type(error).__name__
    raise WeightsError(f"{path}: can't be read as {name}: {reason}") from error
  if not arrays:
    raise WeightsError(f"{path}: there is no array in this {name}")
  return Source(path, arrays, metadata)


def _format(path: Path, head: bytes) -> tuple[str, _Reader]:
  if head.startswith(b"\x93NUMPY"):
    return "a .npy file", _read_npy
  if head.startswith(b"\x89HDF"):
    return "an HDF5 file", _read_hdf5
  if head.startswith(b"MATLAB 5.0"):
    return "a MATLAB file", _read_matconvnet
  if head.startswith(b"MATLAB 7.3"):
    raise WeightsError(
      f"{path}: a MATLAB file of version 7.3; save it with -v7 in MATLAB"
    )
  if head.startswith(b"PK"):
    return _zip_format(path)
  if head.startswith(b"\x80"):
    # The first thing that torch pickled before it wrote zip files.
    if b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head:
      return "a torch file", _read_torch
    return "a pickle", _read_pickle
  if head[8:9] == b"{":
    return "a .safetensors file", _read_safetensors
  raise WeightsError(
    f"{path}: not a weight file of a known format (.safetensors, .pth, .h5,"
    " .npy, .npz, .mat or a pickle of arrays)"
  )


def _zip_format(path: Path) -> tuple[str, _Reader]:
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
  except zipfile.BadZipFile as error:
    raise WeightsError(
      f"{path}: a damaged or incomplete .pth or .npz file: {error}"
    ) from error
  if all(name.endswith(".npy") for name in names):
    return "a .npz file", _read_npz
  return "a torch file", _read_torch


def _read_safetensors(path: Path) -> _Content:
  with safetensors.safe_open(path, framework="numpy") as file:
    arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return arrays, dict(file.metadata() or {})


def _read_torch(path: Path) -> _Content:
  try:
    import torch
  except ImportError as error:
    raise WeightsError(
      f"{path}: a file of torch needs torch to be read:"
      " pip install 'twostream-jax[torch]' (or take a .safetensors file)"
    ) from error

  if torch.__version__ < "2.6":
    raise WeightsError(
      f"{path}: torch {torch.__version__} can be made to run code by a file of"
      " weights (CVE-2025-32434); install torch 2.6 or newer"
    )
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise WeightsError(
      f"{path}: damaged, or holds more than arrays, which might run code; it"
      f" was not opened ({str(error).strip().splitlines()[-1].strip()})"
    ) from error
  if isinstance(loaded, Mapping):
    # Training programs wrap the weights, and DataParallel their names.
    for wrapper in ("state_dict", "model"):
      if isinstance(loaded.get(wrapper), Mapping):
        loaded = loaded[wrapper]
        break
  arrays = _flatten(
    loaded, {}, lambda x: _from_torch(x) if torch.is_tensor(x) else None
  )
  return {key.removeprefix("module."): x for key, x in arrays.items()}, {}


def _from_torch(tensor) -> np.ndarray:
  # NumPy has no bfloat16.
  return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_hdf5(path: Path) -> _Content:
  arrays = {}

  def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
    if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
      arrays[name] = np.asarray(item)

  with h5py.File(path, "r") as file:
    file.visititems(add)
  return arrays, {}


def _read_npy(path: Path) -> _Content:
  with path.open("rb") as file:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
      _, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
      _, _, dtype = np.lib.format.read_array_header_2_0(file)
    if not dtype.hasobject:
      raise WeightsError(
        f"{path}: holds one array of numbers, not a dict of named arrays"
      )
    # An array without dimensions, around the one dict.
    (content,) = pickles.load(file)
    return _flatten(content, {}, _from_numpy), {}


def _read_pickle(path: Path) -> _Content:
  with path.open("rb") as file:
    return _flatten(pickles.load(file), {}, _from_numpy), {}


def _read_npz(path: Path) -> _Content:
  with np.load(path, allow_pickle=False) as file:
    return _flatten({key: file[key] for key in file.files}, {}, _from_numpy), {}


def _from_numpy(value: Any) -> np.ndarray | None:
  is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
  return value if is_array else None


def _flatten(
  value: Any,
  arrays: dict[str, np.ndarray],
  as_array: Callable[[Any], np.ndarray | None],
  prefix: str = "",
) -> dict[str, np.ndarray]:
  """Fills `arrays` with what `as_array` takes for one; the rest is dropped."""
  if isinstance(value, Mapping):
    items = value.items()
  elif isinstance(value, list | tuple):
    items = enumerate(value)
  else:
    array = as_array(value)
    if array is not None:
      arrays[prefix.removesuffix("/")] = array
    return arrays
  for key, item in items:
    _flatten(item, arrays, as_array, f"{prefix}{key}/")
  return arrays


def _read_matconvnet(path: Path) -> _Content:
  # From memory: scipy leaves the file open where it fails on it.
  content = scipy.io.loadmat(
    io.BytesIO(path.read_bytes()), squeeze_me=True, struct_as_record=False
  )
  if "layers" not in content:
    raise WeightsError(f"{path}: a MATLAB file without MatConvNet's `layers`")
  arrays = {}
  for layer in np.atleast_1d(content["layers"]):
    for kind, array in _layer_weights(layer):
      arrays[f"{layer.name}/{kind}"] = np.asarray(array)
  meta = getattr(content.get("meta"), "normalization", None)
  meta = content.get("normalization", meta)
  if hasattr(meta, "averageImage"):
    arrays[AVERAGE_IMAGE] = np.asarray(meta.averageImage)
  return arrays, {}


def _layer_weights(layer: Any) -> Iterable[tuple[str, np.ndarray]]:
  kinds = ("filters", "biases")
  # Until version 1.0-beta10 each had its own field.
  if hasattr(layer, "filters"):
    return [(kind, getattr(layer, kind)) for kind in kinds]
  return zip(kinds, getattr(layer, "weights", ()), strict=False)
