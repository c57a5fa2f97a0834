"""Every video is scored once, whatever the size of the batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from twostream_jax import evaluate, parallel
from twostream_jax.data.loader import eval_pipeline, protocols
from twostream_jax.data.loader.eval_pipeline import EvalTransform
from twostream_jax.data.loader.views import InputSpec

TRANSFORM = EvalTransform(
  InputSpec(("flow",), 32, 2, 1, "loop"), protocols.parse("3x5"), 0.9
)


def mean_pixel(variables, batch):
  """Logits that say which pixels the views hold: [b 12]."""
  values = batch["flow"].astype(jnp.float32).mean(axis=(1, 2, 4, 5))
  return variables["scale"] * jnp.tile(values, (1, 3))


def rows_of(source, views_per_pass):
  return eval_pipeline.eval_rows(
    source,
    TRANSFORM,
    source.labels,
    views_per_pass=views_per_pass,
    replicas=8,
    threads=1,
  )


def score(rows, scale=1.0):
  return evaluate.evaluate(
    parallel.pmap_predict_step(mean_pixel),
    parallel.replicate({"scale": np.float32(scale)}),
    rows,
    protocol="3x5",
  )


def test_scores_equal_one_video_at_a_time(tiny):
  source = tiny.sources["test"]
  every = next(iter(rows_of(source, 1000).batches))["flow"][:36]
  means = every.reshape(12, 15, 4, -1).mean(axis=(1, 3))
  expected = np.tile(means, (1, 3))
  for views_per_pass in (1, 10, 20):
    got = score(rows_of(source, views_per_pass))
    np.testing.assert_allclose(got.logits, expected, rtol=1e-5)
    assert got.logits.dtype == np.float32
    assert got.ids == tuple(
      source[i]["video_id"].decode() for i in range(len(source))
    )
    assert got.labels.tolist() == [
      source[i]["label"] for i in range(len(source))
    ]


def test_a_model_that_diverged_is_not_scored(tiny):
  with pytest.raises(FloatingPointError, match="amber-bob/000.avi"):
    score(rows_of(tiny.sources["test"], 8), scale=np.nan)


def test_a_video_that_is_not_counted_is_noticed(tiny):
  rows = rows_of(tiny.sources["test"], 8)
  lost = rows._replace(batches=list(rows.batches)[1:])
  with pytest.raises(RuntimeError, match="amber-bob/000.avi"):
    score(lost)
