"""Batches go to the devices and come back in order."""

import threading

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


def test_micro_batches_are_split_over_the_devices_one_by_one():
  sharded = parallel.shard({"x": np.arange(32)}, micro_batches=2)
  # Device 0 has the first places of both micro-batches.
  assert sharded["x"].shape == (8, 2, 2)
  np.testing.assert_array_equal(sharded["x"][0], [[0, 1], [16, 17]])
  np.testing.assert_array_equal(sharded["x"][7], [[14, 15], [30, 31]])


def numbered(count):
  for i in range(count):
    yield {"x": np.full(8, i), "video_id": np.array([f"clip {i}"] * 8)}


def test_batches_come_prefetched_in_order_where_the_steps_want_them():
  with parallel.prefetch(numbered(5)) as ready:
    found = [(ids[0], np.asarray(arrays["x"])) for ids, arrays in ready]
  assert [ids for ids, _ in found] == [f"clip {i}" for i in range(5)]
  for i, (_, x) in enumerate(found):
    np.testing.assert_array_equal(x, np.full((8, 1), i))
  with parallel.prefetch(numbered(1)) as ready:
    _, arrays = next(ready)
  out = parallel.pmap_predict_step(lambda _, b: b["x"])(
    parallel.replicate({}), arrays
  )
  assert arrays["x"].sharding.is_equivalent_to(out.sharding, 2)


def test_an_error_of_the_data_comes_out_in_its_turn():
  def failing():
    yield from numbered(2)
    raise ValueError("image 3 is damaged")

  with parallel.prefetch(failing()) as ready:
    next(ready), next(ready)
    with pytest.raises(ValueError, match="image 3"):
      next(ready)


def test_prefetching_ends_with_its_block():
  taken = []

  def endless():
    for batch in numbered(10**6):
      taken.append(1)
      yield batch

  with parallel.prefetch(endless(), depth=2) as ready:
    next(ready)
  assert len(taken) <= 5
  assert "prefetch" not in {t.name for t in threading.enumerate()}


@pytest.mark.parametrize(
  "size, advice", [(12, "8 or 16"), (3, "use 8"), (0, "use 8")]
)
def test_a_batch_that_does_not_divide_is_refused(size, advice):
  with pytest.raises(ValueError, match=f"config.x={size}.*8 devices.*{advice}"):
    parallel.check_batch_size("config.x", size)
  parallel.check_batch_size("config.x", 24)
  with pytest.raises(ValueError, match="2 micro-batches: use 16 or 32"):
    parallel.check_batch_size("config.x", 24, micro_batches=2)


def test_rows_of_one_process_are_its_own():
  gathered = parallel.gather_processes({"mask": [True, False], "n": [1, 2]})
  assert gathered["mask"].dtype == bool
  assert gathered["n"].tolist() == [1, 2]
