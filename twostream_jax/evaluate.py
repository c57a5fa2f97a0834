"""Dense testing: every view of every video of a split to `Scores`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from twostream_jax import parallel
from twostream_jax.scores import Scores


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


def extract(
  predict_features: Callable[[Any, Mapping[str, np.ndarray]], Any],
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  num_videos: int,
  description: str,
) -> Iterator[dict[str, Any]]:
  """Features of every video exactly once; a batch of them at a time.

  Args:
    predict_features: pmapped (variables, batch) to features [devices b f d].
    variables: replicated.
    batches: padded batches of frames, with "mask", "label", "length" and
      "video_id".
    num_videos: of the split.
    description: shown by the progress bar.

  Yields:
    "video_id" (a list), "label", "length" and "values" float32 [b f d].
  """
  with tqdm.tqdm(
    total=num_videos, desc=description, unit="video", leave=False
  ) as bar:
    for batch in batches:
      batch = dict(batch)
      mask = batch.pop("mask")
      kept = {
        name: batch.pop(name)[mask] for name in ("video_id", "label", "length")
      }
      outputs = predict_features(variables, parallel.shard(batch))
      values = parallel.gather(outputs)[mask]
      bar.update(len(values))
      yield kept | {"video_id": kept["video_id"].tolist(), "values": values}


def _check_finite(logits: np.ndarray, video_ids: list[str]) -> None:
  bad = ~np.isfinite(logits).all(axis=1)
  if bad.any():
    names = [v for v, b in zip(video_ids, bad, strict=True) if b]
    raise FloatingPointError(
      f"the model's scores of {names[:3]} are not finite: training has"
      " diverged; lower the learning rate or clip gradients"
    )
