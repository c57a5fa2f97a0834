"""Data parallelism over all devices: the only module that names pmap."""

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AXIS = "replica"

# jaxlib 0.10 gives convolutions on CPUs to YNNPACK. XLA's own take half the
# time forward and for the gradient of the input, and down to an eighth for the
# gradient of the kernel (benchmarks/RESULTS.md, train step).
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}


def num_replicas() -> int:
  """Devices of all processes, each of which holds one replica."""
  return jax.device_count()


def is_primary() -> bool:
  """Whether this process writes the files that all share."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for all processes to come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
  """Whether a flag is set in any process; all must ask together."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def check_batch_size(
  name: str, batch_size: int, micro_batches: int = 1
) -> None:
  """Refuses a global batch that does not divide over the devices.

  Args:
    name: of the setting.
    batch_size: examples a batch.
    micro_batches: parts of it that pass through the network one by one.

  Raises:
    ValueError: names the setting and the nearest sizes that fit.
  """
  if micro_batches < 1:
    raise ValueError(f"micro_batches={micro_batches} must be at least 1")
  n = num_replicas() * micro_batches
  if batch_size < 1 or batch_size % n:
    below, above = batch_size // n * n, (batch_size // n + 1) * n
    fitting = f"{below} or {above}" if below > 0 else f"{above}"
    parts = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
    raise ValueError(
      f"{name}={batch_size} does not divide over {num_replicas()}"
      f" devices{parts}: use {fitting}"
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


def shard(
  batch: Mapping[str, np.ndarray], micro_batches: int = 1
) -> dict[str, np.ndarray]:
  """Splits this process's part of a batch over its devices.

  Args:
    batch: [b ...]; with k micro-batches the first of them, then the second and
      so on.
    micro_batches: k.

  Returns:
    [local devices, b / local devices, ...], or with micro-batches [local
    devices, k, b / k / local devices, ...].
  """
  n = jax.local_device_count()

  def split(x):
    if micro_batches == 1:
      return x.reshape((n, x.shape[0] // n) + x.shape[1:])
    parts = x.reshape((micro_batches, n, -1) + x.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(0, 1))

  return {name: split(array) for name, array in batch.items()}


@contextlib.contextmanager
def prefetch(
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  micro_batches: int = 1,
  depth: int = 2,
) -> Iterator[Iterator[tuple[np.ndarray, dict[str, jax.Array]]]]:
  """Sends batches to the devices while those compute.

  Args:
    batches: dicts of arrays [b ...] and "video_id".
    micro_batches: see `shard`.
    depth: batches that lie ready on the devices.

  Yields:
    An iterator of the video ids [b] and the arrays, laid out as the mapped
    steps take them. An error of `batches` comes out of it in its turn.
  """
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  ready = queue.Queue(maxsize=depth)
  ended = threading.Event()

  def put(item) -> None:
    while not ended.is_set():
      with contextlib.suppress(queue.Full):
        return ready.put(item, timeout=0.1)

  def send() -> None:
    try:
      for batch in batches:
        arrays = dict(batch)
        ids = arrays.pop("video_id")
        put((ids, jax.device_put(shard(arrays, micro_batches), layout)))
        if ended.is_set():
          return
      put(None)
    except BaseException as error:
      put(error)

  def receive():
    while (item := ready.get()) is not None:
      if isinstance(item, BaseException):
        raise item
      yield item

  thread = threading.Thread(target=send, name="prefetch", daemon=True)
  thread.start()
  try:
    yield receive()
  finally:
    ended.set()
    thread.join()


def pmap_train_step(train_step: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a train step over replicas; the old state's memory is given up.

  Args:
    train_step: (state, batch, rng, *, axis_name) to (state, metrics).

  Returns:
    A compiled function of the replicated state, the sharded batch and one key.
  """
  mapped = jax.pmap(
    functools.partial(train_step, axis_name=AXIS),
    axis_name=AXIS,
    in_axes=(0, 0, None),
    donate_argnums=(0,),
  )
  return _with_compiler_options(mapped, donate_argnums=(0,))


def pmap_predict_step(predict_step: Callable[..., Any]) -> Callable[..., Any]:
  """Maps (variables, batch) to logits over replicas."""
  return _with_compiler_options(jax.pmap(predict_step, axis_name=AXIS))


def _with_compiler_options(
  mapped: Callable[..., Any], donate_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
  """The same function, compiled for speed where XLA needs to be told how.

  A pmap takes no options of the compiler, but a jit around it does. Such a jit
  would see the devices of one process only, so several processes go without.
  """
  options = compiler_options(jax.default_backend())
  if not options or jax.process_count() > 1:
    return mapped
  return jax.jit(
    mapped, donate_argnums=donate_argnums, compiler_options=options
  )


@functools.cache
def compiler_options(backend: str) -> dict[str, str]:
  """What the steps are compiled with on a platform, such as "cpu"."""
  if backend != "cpu":
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
  except jax.errors.JaxRuntimeError:
    # No such option: a jaxlib without YNNPACK, whose convolutions are XLA's.
    return {}
  return _CPU_OPTIONS


def options_of_one_call(backend: str) -> dict[str, int]:
  """What a program is compiled with that is called once, on a platform.

  LLVM takes longer to optimise the initialisers of a network than those run.
  """
  return {"xla_backend_optimization_level": 0} if backend == "cpu" else {}


def gather(sharded: jax.Array) -> np.ndarray:
  """[devices, b, ...] of this process to [devices * b, ...] on the host."""
  host = np.asarray(sharded)
  return host.reshape((-1,) + host.shape[2:])


def gather_processes(rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Rows of a batch of all processes, on each of them, in order.

  Args:
    rows: [b ...] by name, of one length in every process; numbers or truth
      values.

  Returns:
    [processes * b ...] by name.
  """
  arrays = {name: np.asarray(array) for name, array in rows.items()}
  if jax.process_count() == 1:
    return arrays
  return multihost_utils.process_allgather(arrays, tiled=True)
