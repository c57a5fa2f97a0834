"""What a network is shown: a batch drawn as images."""

from collections.abc import Callable, Mapping

import numpy as np

from twostream_jax.flow.colorwheel import flow_to_rgb
from twostream_jax.flow.spec import dequantise, flip_codes

MAX_CLIPS = 8


def draw(
  batch: Mapping[str, np.ndarray], *, flow_bound: float
) -> dict[str, np.ndarray]:
  """Rows of clips, one image for each modality.

  Args:
    batch: "rgb" uint8 [... t h w 3] and / or "flow" uint8 [... t 2l h w], and
      maybe "flip" bool [...], as laid out over devices; other arrays are passed
      over.
    flow_bound: of the dataset's FlowSpec, pixels. A quarter of it is drawn at
      full saturation.

  Returns:
    RGB uint8 [h, clips * w, 3] by modality: the first frame, and the first
    field of the first stack, of up to `MAX_CLIPS` clips.
  """
  images = {}
  if "rgb" in batch:
    images["rgb"] = _row(_first(batch, "rgb", lambda x: x[..., ::-1, :]))
  if "flow" in batch:
    fields = _first(batch, "flow", flip_codes)[:, :2]
    flow = dequantise(np.moveaxis(fields, 1, -1), flow_bound)
    images["flow"] = flow_to_rgb(_row(flow), flow_bound / 4)
  return images


def _first(batch, name: str, mirror: Callable) -> np.ndarray:
  """The first image of some clips, mirrored where they are."""
  clips = batch[name].reshape((-1,) + batch[name].shape[-4:])[:MAX_CLIPS, 0]
  if "flip" not in batch:
    return clips
  flip = batch["flip"].reshape(-1, 1, 1, 1)[:MAX_CLIPS]
  return np.where(flip, mirror(clips), clips)


def _row(images: np.ndarray) -> np.ndarray:
  return np.concatenate(list(images), axis=1)
