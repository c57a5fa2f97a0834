"""Optical flow between frames, by name.

To add an algorithm: write a function (previous, following, *, parameters with
defaults) -> float32 [h, w, 2] and add it to `FLOWS`.
"""

import collections
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twostream_jax.flow.opencv import check_images, dis, farneback
from twostream_jax.flow.spec import EXTRACTED, FlowSpec, FlowSpecError


def _tvl1(
  previous: np.ndarray,
  following: np.ndarray,
  *,
  tau: float = 0.25,
  lambda_: float = 0.3,
  theta: float = 0.4,
  nscales: int = 5,
  scale_step: float = 0.5,
  warps: int = 5,
  iterations: int = 15,
  texture: float = 1.0,
) -> np.ndarray:
  """`twostream_jax.flow.tvl1.tvl1` from and to NumPy, for one pair.

  JAX is imported here, not above: who only reads stored flow needs none.
  """
  from twostream_jax.flow.tvl1 import tvl1

  check_images(previous, following)
  # As a chunk of one, which runs the program that `compute_flows` runs on a
  # CPU: another one differs in the last bits.
  flow = tvl1(
    previous[None],
    following[None],
    tau=tau,
    lambda_=lambda_,
    theta=theta,
    nscales=nscales,
    scale_step=scale_step,
    warps=warps,
    iterations=iterations,
    texture=texture,
  )
  return np.asarray(flow)[0]


FLOWS: dict[str, Callable[..., np.ndarray]] = {
  "dis": dis,
  "farneback": farneback,
  "tvl1": _tvl1,
}

# Parameters that an algorithm has gained since datasets were first built with
# it, with the value that changes nothing. They complete a spec that does not
# name them, so that its flow is computed as it was when the spec was stored.
_ADDED_PARAMETERS: dict[str, dict[str, Any]] = {"tvl1": {"texture": 0.0}}


def default_parameters(algorithm: str) -> dict[str, Any]:
  """Returns every parameter of an algorithm with its default.

  Raises:
    FlowSpecError: there is no such algorithm.
  """
  parameters = inspect.signature(_find(algorithm)).parameters.values()
  return {
    parameter.name: parameter.default
    for parameter in parameters
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }


def compute_flow(
  spec: FlowSpec, previous: np.ndarray, following: np.ndarray
) -> np.ndarray:
  """Computes one field with the algorithm and the parameters of `spec`.

  Args:
    spec: names the algorithm; step, bound and quality play no part here.
    previous: gray uint8 [h, w].
    following: gray uint8 [h, w], `spec.step` frames later.

  Returns:
    float32 [h, w, 2]: pixels, x (right) then y (down).

  Raises:
    FlowSpecError: no such algorithm, or it lacks one of the parameters.
    ValueError: the algorithm can't work with the images or the values of the
      parameters.
  """
  parameters = _parameters(spec)
  return FLOWS[spec.algorithm](previous, following, **parameters)


def compute_flows(
  spec: FlowSpec, frames: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
  """Computes the fields of a video, as its frames come.

  Memory holds `spec.step` frames and, for TV-L1 on an accelerator, one chunk of
  pairs with their fields, however long the video is.

  Args:
    spec: names the algorithm, its parameters, the step and the direction.
    frames: gray uint8 [h, w], in order, of one size. They are kept for a while:
      the arrays must not be written to again.

  Returns:
    For each frame i from `spec.step` on, in order, float32 [d, h, w, 2]:
    pixels, x (right) then y (down). d is 1 for "forward": the field from frame
    i - step to frame i; 2 for "bidirectional": that field, then the one from
    frame i back to frame i - step.

  Raises:
    FlowSpecError: no such algorithm, or it lacks one of the parameters; at
      once.
    ValueError: the algorithm can't work with the frames or the values of the
      parameters, or frames differ in size; when it gets there.
  """
  parameters = _parameters(spec)
  pairs = _pairs(spec, frames)
  if spec.algorithm == "tvl1":
    from twostream_jax.flow.tvl1 import tvl1_of_pairs

    fields = tvl1_of_pairs(pairs, **parameters)
  else:
    algorithm = FLOWS[spec.algorithm]
    fields = (algorithm(*pair, **parameters) for pair in pairs)
  return _stack(fields, 2 if spec.direction == "bidirectional" else 1)


def prepare_process(spec: FlowSpec, cache_dir: Path | None = None) -> None:
  """Sets up one of several processes that compute flow, before its first flow.

  Only TV-L1 needs it. What the user has set already stays. JAX reads some of it
  once, when it starts its devices: a process that has used JAX keeps what it
  had.

  * CPU: one thread a process (NPROC=1). With the default, every process has a
    thread for every core, and all together are slower. Flow is the same, to the
    bit, for every number of threads and processes.
  * GPU: memory is taken as it is needed
    (XLA_PYTHON_CLIENT_PREALLOCATE=false), not three quarters of it by the first
    process.
  * With `cache_dir`, compiled programs are kept, so that each image size is
    compiled by one process instead of all.

  Args:
    spec: names the algorithm.
    cache_dir: folder for compiled programs, made where missing.
  """
  if spec.algorithm != "tvl1":
    return
  os.environ.setdefault("NPROC", "1")
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  import jax

  config: Any = jax.config  # It gets its settings at run time.
  if cache_dir is not None and config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", os.fspath(cache_dir))
    # By default only what took a second is kept, which small images do not.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _pairs(
  spec: FlowSpec, frames: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Pairs of frames a step apart, each also turned round if bidirectional."""
  earlier = collections.deque(maxlen=spec.step)
  for frame in frames:
    check_images(earlier[0] if earlier else frame, frame)
    if len(earlier) == spec.step:
      yield earlier[0], frame
      if spec.direction == "bidirectional":
        yield frame, earlier[0]
    earlier.append(frame)


def _stack(fields: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
  while directions := list(itertools.islice(fields, size)):
    yield np.stack(directions)


def _parameters(spec: FlowSpec) -> dict[str, Any]:
  """Parameters to call the algorithm of `spec` with."""
  known = default_parameters(spec.algorithm)
  unknown = sorted(set(spec.parameters) - set(known))
  if unknown:
    raise FlowSpecError(
      f"{spec.algorithm} has no parameter {', '.join(unknown)};"
      f" it has: {', '.join(known)}"
    )
  return {**_ADDED_PARAMETERS.get(spec.algorithm, {}), **spec.parameters}


def _find(algorithm: str) -> Callable[..., np.ndarray]:
  if algorithm == EXTRACTED:
    raise FlowSpecError(
      f"flow {algorithm!r} was computed by another program and can't be"
      f" computed here; algorithms that can: {', '.join(FLOWS)}"
    )
  if algorithm not in FLOWS:
    raise FlowSpecError(
      f"no optical flow algorithm {algorithm!r}; known: {', '.join(FLOWS)}"
    )
  return FLOWS[algorithm]
