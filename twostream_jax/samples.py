"""What a network is shown: a batch drawn as images."""

from collections.abc import Mapping

import numpy as np

from twostream_jax.flow.colorwheel import flow_to_rgb
from twostream_jax.flow.spec import dequantise

MAX_CLIPS = 8


def draw(
  batch: Mapping[str, np.ndarray], *, flow_bound: float
) -> dict[str, np.ndarray]:
  """Rows of clips, one image for each modality.

  Args:
    batch: "rgb" uint8 [... t h w 3] and / or "flow" uint8 [... t h w 2l], as
      laid out over devices; other arrays are passed over.
    flow_bound: of the dataset's FlowSpec, pixels. A quarter of it is drawn at
      full saturation.

  Returns:
    RGB uint8 [h, clips * w, 3] by modality: the first frame, and the first
    field of the first stack, of up to `MAX_CLIPS` clips.
  """
  images = {}
  if "rgb" in batch:
    images["rgb"] = _row(batch["rgb"])
  if "flow" in batch:
    fields = _row(batch["flow"][..., :2])
    images["flow"] = flow_to_rgb(
      dequantise(fields.astype(np.float32), flow_bound), flow_bound / 4
    )
  return images


def _row(images: np.ndarray) -> np.ndarray:
  clips = images.reshape((-1,) + images.shape[-4:])[:MAX_CLIPS, 0]
  return np.concatenate(list(clips), axis=1)
