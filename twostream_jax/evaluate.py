"""Testing: every view of every video of a split to `Scores`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from twostream_jax import interrupts, parallel
from twostream_jax.data.loader.eval_pipeline import EvalRows
from twostream_jax.files import words
from twostream_jax.scores import Scores


def evaluate(
  predict: Callable[[Any, Mapping[str, np.ndarray]], Any],
  variables: Any,
  rows: EvalRows,
  *,
  protocol: str,
  description: str = "",
  should_stop: Callable[[], bool] = interrupts.never,
) -> Scores:
  """Scores every video exactly once, on any number of devices.

  Memory holds some batches of rows and a row of sums a video: neither depends
  on the protocol or the length of a video.

  Args:
    predict: pmapped (variables, batch [devices b v ...]) to the mean of the
      logits over the views of a row, [devices b n].
    variables: replicated.
    rows: of the split, under the test protocol.
    protocol: Description of the protocol.
    description: shown by the progress bar; empty shows no bar.
    should_stop: asked before every batch.

  Returns:
    Scores in the order of the split: the mean over the rows of each video,
    which have equally many views.

  Raises:
    FloatingPointError: a score is not finite; the message names the video.
    Interrupted: it was asked to stop.
  """
  total, seen = np.zeros(()), np.zeros(len(rows.ids), int)
  for batch in _batches(rows, description, should_stop):
    found = _run(predict, variables, batch, ())
    _check_finite(found["outputs"], found["video"], rows.ids)
    if not seen.any():
      total = np.zeros((len(rows.ids), found["outputs"].shape[1]))
    # In the order of the rows, so that neither batches nor devices matter.
    np.add.at(total, found["video"], found["outputs"])
    np.add.at(seen, found["video"], 1)
  if not np.array_equal(seen, rows.counts):
    wrong = rows.ids[int(np.flatnonzero(seen != rows.counts)[0])]
    raise RuntimeError(f"{description}: {wrong!r} was not counted as it should")
  logits = (total / seen[:, None]).astype(np.float32)
  return Scores(rows.ids, rows.labels, logits, protocol)


def extract(
  predict_features: Callable[[Any, Mapping[str, np.ndarray]], Any],
  variables: Any,
  rows: EvalRows,
  *,
  description: str,
  should_stop: Callable[[], bool] = interrupts.never,
) -> Iterator[dict[str, Any]]:
  """Features of every sequence exactly once; a batch of them at a time.

  Args:
    predict_features: pmapped (variables, batch) to features [devices b f d].
    variables: replicated.
    rows: sequences of windows, with "length".
    description: shown by the progress bar.
    should_stop: asked before every batch.

  Yields:
    "video_id" (a list), "label", "length" and "values" float32 [b f d].

  Raises:
    Interrupted: it was asked to stop.
  """
  for batch in _batches(rows, description, should_stop):
    found = _run(predict_features, variables, batch, ("length",))
    videos = found["video"].tolist()
    yield {
      "video_id": [rows.ids[video] for video in videos],
      "label": rows.labels[videos],
      "length": found["length"],
      "values": found["outputs"],
    }


def _batches(
  rows: EvalRows, description: str, should_stop: Callable[[], bool]
) -> Iterator[dict[str, np.ndarray]]:
  """The batches, with a progress bar; stops when asked to."""
  with tqdm.tqdm(
    total=rows.num_batches,
    desc=words.printable(description),
    unit="batch",
    disable=not description or not parallel.is_primary(),
    leave=False,
  ) as bar:
    for batch in rows.batches:
      if parallel.any_process(should_stop()):
        raise interrupts.Interrupted(
          f"{description}: not finished; it restarts when the run resumes"
        )
      yield batch
      bar.update()


def _run(predict, variables, batch, names) -> dict[str, np.ndarray]:
  """Outputs and named arrays of the real rows of a batch of all processes."""
  batch = dict(batch)
  found = {name: batch.pop(name) for name in (*names, "video", "mask")}
  outputs = predict(variables, parallel.shard(batch))
  found = parallel.gather_processes(
    found | {"outputs": parallel.gather(outputs)}
  )
  mask = found.pop("mask")
  return {name: array[mask] for name, array in found.items()}


def _check_finite(
  logits: np.ndarray, videos: np.ndarray, ids: Sequence[str]
) -> None:
  bad = videos[~np.isfinite(logits).all(axis=1)].tolist()
  if bad:
    names = list(dict.fromkeys(ids[video] for video in bad))
    raise FloatingPointError(
      f"the model's scores of {names[:3]} are not finite: training has"
      " diverged; lower the learning rate or clip gradients"
    )
