"""Batches go to the devices and come back in order."""

import jax
import numpy as np
import pytest

from twostream_jax import parallel


def test_shards_come_back_in_order():
  batch = {"x": np.arange(48).reshape(16, 3), "mask": np.ones(16, bool)}
  sharded = parallel.shard(batch)
  assert sharded["x"].shape == (8, 2, 3)
  out = parallel.pmap_predict_step(lambda _, b: b["x"] + 1)(
    parallel.replicate({}), sharded
  )
  np.testing.assert_array_equal(parallel.gather(out), batch["x"] + 1)


def test_replicas_are_copies():
  tree = {"a": np.arange(3.0, dtype=np.float32), "b": np.int32(7)}
  replicated = parallel.replicate(tree)
  assert replicated["a"].shape == (8, 3)
  assert len(replicated["a"].sharding.device_set) == 8
  back = parallel.unreplicate(replicated)
  np.testing.assert_array_equal(back["a"], tree["a"])
  assert back["b"] == 7 and back["b"].dtype == np.int32


def test_a_train_step_compiles_once():
  traces = []

  def step(state, batch, rng, *, axis_name):
    traces.append(axis_name)
    return {"w": state["w"] + jax.lax.psum(batch.sum(), axis_name)}, rng

  mapped = parallel.pmap_train_step(step)
  state = parallel.replicate({"w": np.zeros(3, np.float32)})
  with jax.log_compiles(False):
    for _ in range(3):
      state, _ = mapped(state, np.ones((8, 2), np.float32), jax.random.key(0))
  assert traces == [parallel.AXIS]
  np.testing.assert_array_equal(parallel.unreplicate(state)["w"], [48.0] * 3)


@pytest.mark.parametrize(
  "size, advice", [(12, "8 or 16"), (3, "use 8"), (0, "use 8")]
)
def test_a_batch_that_does_not_divide_is_refused(size, advice):
  with pytest.raises(ValueError, match=f"config.x={size}.*8 devices.*{advice}"):
    parallel.check_batch_size("config.x", size)
  parallel.check_batch_size("config.x", 24)
