"""Data parallelism over all devices: the only module that names pmap."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

AXIS = "replica"


def num_replicas() -> int:
  """Devices of all processes, each of which holds one replica."""
  return jax.device_count()


def check_batch_size(name: str, batch_size: int) -> None:
  """Refuses a global batch that does not divide over the devices.

  Raises:
    ValueError: names the setting and the nearest sizes that fit.
  """
  n = num_replicas()
  if batch_size < 1 or batch_size % n:
    below, above = batch_size // n * n, (batch_size // n + 1) * n
    fitting = f"{below} or {above}" if below > 0 else f"{above}"
    raise ValueError(
      f"{name}={batch_size} does not divide over {n} devices: use {fitting}"
    )


def replicate(tree: Any) -> Any:
  """Copies a tree of arrays to every local device, with a leading axis."""
  # Mapped over the same named axis as the steps: a state laid out in any other
  # way would make them compile a second time.
  copy = jax.pmap(lambda _, leaves: leaves, axis_name=AXIS, in_axes=(0, None))
  return copy(np.zeros(jax.local_device_count()), tree)


def unreplicate(tree: Any) -> Any:
  """The first replica of every leaf, as NumPy arrays on the host."""

  def first(x):
    # [0] alone would make a scalar of a step counter, not an array.
    return np.asarray(np.asarray(x.addressable_data(0))[0])

  return jax.tree.map(first, tree)


def shard(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits [b ...] into [local devices, b / local devices, ...]."""
  n = jax.local_device_count()
  return {
    name: array.reshape((n, array.shape[0] // n) + array.shape[1:])
    for name, array in batch.items()
  }


def pmap_train_step(train_step: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a train step over replicas; the old state's memory is given up.

  Args:
    train_step: (state, batch, rng, *, axis_name) to (state, metrics).

  Returns:
    A compiled function of the replicated state, the sharded batch and one key.
  """
  return jax.pmap(
    functools.partial(train_step, axis_name=AXIS),
    axis_name=AXIS,
    in_axes=(0, 0, None),
    donate_argnums=(0,),
  )


def pmap_predict_step(predict_step: Callable[..., Any]) -> Callable[..., Any]:
  """Maps (variables, batch) to logits over replicas."""
  return jax.pmap(predict_step, axis_name=AXIS)


def gather(sharded: jax.Array) -> np.ndarray:
  """[devices, b, ...] of this process to [devices * b, ...] on the host."""
  host = np.asarray(sharded)
  return host.reshape((-1,) + host.shape[2:])
