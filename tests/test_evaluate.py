"""Every video is scored once, whatever the batch size."""

import jax.numpy as jnp
import numpy as np
import pytest

from twostream_jax import evaluate, parallel
from twostream_jax.data import input_pipeline
from twostream_jax.data.input_pipeline import EvalTransform, InputSpec

TRANSFORM = EvalTransform(
  InputSpec(("flow",), 32, 2, 1, "loop"), 3, 5, crop_fraction=0.9
)


def mean_pixel(variables, batch):
  """Logits that say which pixels the views hold: [b 4]."""
  values = batch["flow"].astype(jnp.float32).mean(axis=(1, 2, 3, 4))
  return variables["scale"] * values


def score(data, batch_size, scale=1.0):
  source = data.sources["test"]
  return evaluate.evaluate(
    parallel.pmap_predict_step(mean_pixel),
    parallel.replicate({"scale": np.float32(scale)}),
    input_pipeline.eval_batches(
      source, TRANSFORM, batch_size=batch_size, threads=1
    ),
    num_videos=len(source),
    protocol="3x5",
  )


def test_scores_equal_one_video_at_a_time(tiny):
  source = tiny.sources["test"]
  expected = [
    TRANSFORM.load([source[i]], 1)["flow"].mean(axis=(0, 1, 2, 3, 4))
    for i in range(len(source))
  ]
  for batch_size in (8, 16):
    got = score(tiny, batch_size)
    np.testing.assert_allclose(got.logits, expected, rtol=1e-5)
    assert got.ids == tuple(
      source[i]["video_id"].decode() for i in range(len(source))
    )
    assert got.labels.tolist() == [
      source[i]["label"] for i in range(len(source))
    ]


def test_a_model_that_diverged_is_not_scored(tiny):
  with pytest.raises(FloatingPointError, match="amber-bob/000.avi"):
    score(tiny, 8, scale=np.nan)
