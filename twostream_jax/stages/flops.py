"""How much a function computes, without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *args: Any) -> int:
  """Operations of a function's matrix products and convolutions.

  A multiply-add is two operations. What goes element by element is left out, as
  in published tables (which often count a multiply-add as one: twice their
  number is meant here). A loop of known length counts as often as it turns, any
  other loop once, and of alternatives the largest.

  Args:
    function: anything that JAX can trace.
    *args: its arguments, or their shapes as `jax.ShapeDtypeStruct`.
  """
  return _of_equations(jax.make_jaxpr(function)(*args).jaxpr)


def _of_equations(jaxpr: Any) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracting, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return _twice(equation, math.prod(left[i] for i in contracting))
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    return _twice(equation, math.prod(kernel) // outputs)
  inner = [_of_equations(jaxpr) for jaxpr in _inner(params)]
  if name == "cond":
    return max(inner)
  return sum(inner) * (params["length"] if name == "scan" else 1)


def _twice(equation: Any, summands: int) -> int:
  """Operations where each number of the result is a sum of products."""
  return 2 * summands * equation.outvars[0].aval.size


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The programs that an operation is made of."""
  for value in params.values():
    for item in value if isinstance(value, tuple) else (value,):
      if hasattr(item, "eqns"):
        yield item
