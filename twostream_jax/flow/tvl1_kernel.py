"""The primal-dual updates of TV-L1 as a GPU kernel for several of them at once.

XLA compiles an update to four kernels that move 88 bytes a pixel through
memory, and an update depends on the four neighbours only. Here a program holds
a tile in registers through several updates. What neighbours in the tile need
passes through a scratch of the program's own, small enough to stay in the
caches; a border as wide as the number of updates is computed twice, by the
tiles on both sides of it. On an H200 the result has the bits of the plain
form. benchmarks/RESULTS.md has the count of bytes and the measured gain.

Written for Pallas' Triton backend, which JAX has deprecated; `tvl1` uses the
plain form where it is gone.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# Height and width of a tile with its border: powers of 2. A thread holds 4
# pixels in 96 registers, so that a multiprocessor holds two tiles. The fastest
# of 13 layouts on an H200, which all were within 40 % of each other.
_TILE = (32, 32)
_NUM_WARPS = 8
# Updates between two passes over memory. With 3, two thirds of a tile's pixels
# are not border.
_UPDATES_A_PASS = 3
# Programs in flight, two to a multiprocessor of the largest cards: a scratch
# each, and the tiles are dealt out to them. At most 512.
_PROGRAMS = 264
# Arrays of the state: u, v, and their dual variables.
_STATE = 6


def updates(
  state: tuple[Array, ...],
  linear: tuple[Array, Array, Array],
  *,
  tau: float,
  lambda_: float,
  theta: float,
  iterations: int,
  interpret: bool = False,
) -> tuple[Array, ...]:
  """Primal-dual updates; arguments and result as of `tvl1.plain_updates`.

  Args:
    state: u, v and their dual variables, float32 [b h w] each.
    linear: Residual and its derivatives, float32 [b h w] each.
    tau: Step of the dual update.
    lambda_: Weight of the data term.
    theta: Tightness of the coupling.
    iterations: Number of updates.
    interpret: Whether to run the kernel operation by operation on any device,
      which is slow, instead of compiling it.

  Returns:
    The new state.
  """
  while iterations:
    count = min(iterations, _UPDATES_A_PASS)
    state = _one_pass(
      state,
      linear,
      tau=tau,
      lambda_=lambda_,
      theta=theta,
      count=count,
      interpret=interpret,
    )
    iterations -= count
  return state


def _one_pass(state, linear, *, tau, lambda_, theta, count, interpret):
  """One call of the kernel: `count` updates, one pass over memory."""
  pairs, height, width = state[0].shape
  inner = tuple(side - 2 * count for side in _TILE)
  tiles = (pairs, pl.cdiv(height, inner[0]), pl.cdiv(width, inner[1]))
  programs = min(_PROGRAMS, tiles[0] * tiles[1] * tiles[2])
  scratch = programs * _scratch_size()
  kernel = functools.partial(
    _kernel,
    shape=(height, width),
    tiles=tiles,
    programs=programs,
    count=count,
    limit=lambda_ * theta,
    theta=theta,
    rate=tau / theta,
    barrier=(lambda: None) if interpret else triton.debug_barrier,
  )
  *new_state, _ = pl.pallas_call(
    kernel,
    grid=(programs,),
    out_shape=[
      *(jax.ShapeDtypeStruct((x.size,), x.dtype) for x in state),
      jax.ShapeDtypeStruct((scratch,), jnp.float32),
    ],
    compiler_params=triton.CompilerParams(num_warps=_NUM_WARPS, num_stages=1),
    interpret=interpret,
    name=f"tvl1_{count}_updates",
  )(*(x.reshape(-1) for x in (*state, *linear)))
  return tuple(x.reshape(pairs, height, width) for x in new_state)


def _scratch_size() -> int:
  """Floats of a program's scratch.

  One more than it holds: at no known alignment, every access is compiled to
  the same layout of threads, and nothing has to move between them.
  """
  return _STATE * _TILE[0] * _TILE[1] + 1


def _kernel(*refs, shape, tiles, programs, count, limit, theta, rate, barrier):
  """One program: its tiles; flat refs of state, linear, new state, scratch."""
  state_refs, linear_refs = refs[:_STATE], refs[_STATE : _STATE + 3]
  new_refs, scratch = refs[_STATE + 3 : -1], refs[-1]
  height, width = shape
  _, tile_rows, tile_columns = tiles
  total = tiles[0] * tile_rows * tile_columns
  # Seen to be small, offsets are folded into instructions instead of filling
  # registers with addresses: 96 registers instead of 255 and some spilled.
  program = pl.program_id(0) & 511
  row = jax.lax.broadcasted_iota(jnp.int32, _TILE, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, _TILE, 1)
  size = _TILE[0] * _TILE[1]
  place = program * _scratch_size() + row * _TILE[1] + column

  def put(slot, value):
    triton.store(scratch.at[place + slot * size], value)

  def take(slot, offset, mask):
    return triton.load(
      scratch.at[place + (slot * size + offset)], mask=mask, other=0.0
    )

  def one_tile(i, carry):
    tile = program + i * programs
    pair = tile // (tile_rows * tile_columns)
    within = tile % (tile_rows * tile_columns)
    # A border of `count` pixels becomes wrong, one more with each update.
    y = (within // tile_columns) * (_TILE[0] - 2 * count) - count + row
    x = (within % tile_columns) * (_TILE[1] - 2 * count) - count + column
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    # The derivatives at the image's edges are 0, and nothing enters there.
    has_left = inside & (x > 0) & (column > 0)
    has_above = inside & (y > 0) & (row > 0)
    has_right = inside & (x < width - 1) & (column < _TILE[1] - 1)
    has_below = inside & (y < height - 1) & (row < _TILE[0] - 1)

    # What is outside must not alias a pixel, even where it is masked out.
    index = jnp.where(
      inside, (pair * height + y) * width + x, tiles[0] * height * width
    )
    state, (constant, grad_x, grad_y) = (
      [triton.load(ref.at[index], mask=inside, other=0.0) for ref in some]
      for some in (state_refs, linear_refs)
    )
    inverse = 1.0 / (grad_x * grad_x + grad_y * grad_y + 1e-6)

    def update(_, state):
      u, v, u_x, u_y, v_x, v_y = state
      for slot, value in enumerate((u_x, u_y, v_x, v_y), start=2):
        put(slot, value)
      barrier()
      residual = constant + grad_x * u + grad_y * v
      step = jnp.clip(-residual * inverse, -limit, limit)

      def descend(component, slope, slot, dual_x, dual_y):
        before_x = take(slot, -1, has_left)
        before_y = take(slot + 1, -_TILE[1], has_above)
        divergence = dual_x - before_x + dual_y - before_y
        return component + step * slope + theta * divergence

      u = descend(u, grad_x, 2, u_x, u_y)
      v = descend(v, grad_y, 4, v_x, v_y)
      put(0, u)
      put(1, v)
      barrier()

      def ascend(component, slot, dual_x, dual_y):
        after_x = take(slot, 1, has_right)
        after_y = take(slot, _TILE[1], has_below)
        across = jnp.where(has_right, after_x - component, 0.0)
        down = jnp.where(has_below, after_y - component, 0.0)
        norm = 1.0 + rate * jnp.sqrt(across * across + down * down)
        return (dual_x + rate * across) / norm, (dual_y + rate * down) / norm

      return u, v, *ascend(u, 0, u_x, u_y), *ascend(v, 1, v_x, v_y)

    state = jax.lax.fori_loop(0, count, update, tuple(state))
    mine = (
      inside
      & (row >= count)
      & (row < _TILE[0] - count)
      & (column >= count)
      & (column < _TILE[1] - count)
    )
    for ref, value in zip(new_refs, state, strict=True):
      triton.store(ref.at[index], value, mask=mine)
    return carry

  rounds = (total - program + programs - 1) // programs
  jax.lax.fori_loop(0, rounds, one_tile, 0)
