"""Dense testing: every view of every video of a split to `Scores`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tqdm

from twostream_jax import parallel
from twostream_jax.data.input_pipeline import EvalTransform
from twostream_jax.scores import Scores


def protocol(transform: EvalTransform) -> str:
  """The test protocol in words, as it stands beside every number."""
  clips, crops = transform.num_clips, transform.num_crops
  kind = {1: "centre crop", 5: "5 crops", 10: "10 crops"}[crops]
  return (
    f"{clips}x{crops}: {clips} equally spaced clips, {kind} of"
    f" {transform.crop_fraction:g} of the short side at"
    f" {transform.spec.image_size} px, mean of logits"
  )


def evaluate(
  predict: Callable[[Any, Mapping[str, np.ndarray]], Any],
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  num_videos: int,
  protocol: str,
  description: str = "",
) -> Scores:
  """Scores every video exactly once, on any number of devices.

  Args:
    predict: pmapped (variables, batch) to logits [devices b n].
    variables: replicated.
    batches: padded batches with "mask", "label" and "video_id".
    num_videos: of the split.
    protocol: how the views were taken, in words.
    description: shown by the progress bar; empty shows no bar.

  Returns:
    Scores in the order of the split.

  Raises:
    FloatingPointError: a score is not finite; the message names the video.
  """
  ids, labels, logits = [], [], []
  bar = tqdm.tqdm(
    total=num_videos,
    desc=description,
    unit="video",
    disable=not description,
    leave=False,
  )
  with bar:
    for batch in batches:
      batch = dict(batch)
      video_ids, mask = batch.pop("video_id"), batch.pop("mask")
      label = batch.pop("label")
      outputs = parallel.gather(predict(variables, parallel.shard(batch)))[mask]
      video_ids = video_ids[mask].tolist()
      _check_finite(outputs, video_ids)
      ids.extend(video_ids)
      labels.append(label[mask])
      logits.append(outputs)
      bar.update(len(video_ids))
  return Scores(
    tuple(ids), np.concatenate(labels), np.concatenate(logits), protocol
  )


def _check_finite(logits: np.ndarray, video_ids: list[str]) -> None:
  bad = ~np.isfinite(logits).all(axis=1)
  if bad.any():
    names = [v for v, b in zip(video_ids, bad, strict=True) if b]
    raise FloatingPointError(
      f"the model's scores of {names[:3]} are not finite: training has"
      " diverged; lower the learning rate or clip gradients"
    )
