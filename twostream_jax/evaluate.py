"""Dense testing: every view of every video of a split to `Scores`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from twostream_jax import interrupts, parallel
from twostream_jax.scores import Scores


def evaluate(
  predict: Callable[[Any, Mapping[str, np.ndarray]], Any],
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  num_videos: int,
  protocol: str,
  description: str = "",
  should_stop: Callable[[], bool] = interrupts.never,
) -> Scores:
  """Scores every video exactly once, on any number of devices.

  Args:
    predict: pmapped (variables, batch) to logits [devices b n].
    variables: replicated.
    batches: padded batches with "mask", "label" and "video_id".
    num_videos: of the split.
    protocol: how the views were taken, in words.
    description: shown by the progress bar; empty shows no bar.
    should_stop: asked before every batch.

  Returns:
    Scores in the order of the split.

  Raises:
    FloatingPointError: a score is not finite; the message names the video.
    Interrupted: it was asked to stop.
  """
  ids, labels, logits = [], [], []
  bar = tqdm.tqdm(
    total=num_videos,
    desc=description,
    unit="video",
    disable=not description or not parallel.is_primary(),
    leave=False,
  )
  with bar:
    for batch in batches:
      _check_stop(should_stop, description)
      rows = _run(predict, variables, batch, ("video_id", "label"))
      video_ids = rows["video_id"].tolist()
      _check_finite(rows["outputs"], video_ids)
      ids.extend(video_ids)
      labels.append(rows["label"])
      logits.append(rows["outputs"])
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
  should_stop: Callable[[], bool] = interrupts.never,
) -> Iterator[dict[str, Any]]:
  """Features of every video exactly once; a batch of them at a time.

  Args:
    predict_features: pmapped (variables, batch) to features [devices b f d].
    variables: replicated.
    batches: padded batches of frames, with "mask", "label", "length" and
      "video_id".
    num_videos: of the split.
    description: shown by the progress bar.
    should_stop: asked before every batch.

  Yields:
    "video_id" (a list), "label", "length" and "values" float32 [b f d].

  Raises:
    Interrupted: it was asked to stop.
  """
  with tqdm.tqdm(
    total=num_videos,
    desc=description,
    unit="video",
    leave=False,
    disable=not parallel.is_primary(),
  ) as bar:
    for batch in batches:
      _check_stop(should_stop, description)
      rows = _run(
        predict_features, variables, batch, ("video_id", "label", "length")
      )
      values = rows.pop("outputs")
      bar.update(len(values))
      yield rows | {"video_id": rows["video_id"].tolist(), "values": values}


def _run(predict, variables, batch, names) -> dict[str, np.ndarray]:
  """Outputs and named arrays of the real videos of a batch of all processes."""
  batch = dict(batch)
  rows = {name: batch.pop(name) for name in (*names, "mask")}
  outputs = predict(variables, parallel.shard(batch))
  rows = parallel.gather_processes(rows | {"outputs": parallel.gather(outputs)})
  mask = rows.pop("mask")
  return {name: array[mask] for name, array in rows.items()}


def _check_stop(should_stop: Callable[[], bool], description: str) -> None:
  if parallel.any_process(should_stop()):
    raise interrupts.Interrupted(
      f"{description}: not finished; it begins anew when the run goes on"
    )


def _check_finite(logits: np.ndarray, video_ids: list[str]) -> None:
  bad = ~np.isfinite(logits).all(axis=1)
  if bad.any():
    names = [v for v, b in zip(video_ids, bad, strict=True) if b]
    raise FloatingPointError(
      f"the model's scores of {names[:3]} are not finite: training has"
      " diverged; lower the learning rate or clip gradients"
    )
