"""The part of a file that holds the network: wrappers and prefixes.

Training programs put the weights in dicts beside their own state (wrappers),
and networks in larger ones, which shows in the keys (prefixes). Both are text
before the keys of a layout: "model/state_dict/" and "module.backbone.".
"""

import dataclasses
import re
from collections.abc import Collection, Iterable

from twostream_jax.pretrained.report import first_keys, printable
from twostream_jax.pretrained.sources import Source, WeightsError

# Parts that torch adds for DataParallel and torch.compile, anywhere in a key.
_ADDED = re.compile(r"(^|[./])(?:(?:module|_orig_mod)\.)+")
# Of classifiers that are trained on top of a backbone.
_HEADS = r"(^|[./])(cls_head|head|fc|fc_cls|classifier|logits|linear)[./]"


@dataclasses.dataclass(frozen=True)
class Choice:
  """Place of the network in a file, as far as a user names it.

  Attributes:
    wrapper: names of the dicts around the weights, joined by "."; None to
      find them.
    prefix: what the keys in them begin with; None to find it.
  """

  wrapper: str | None = None
  prefix: str | None = None

  def admits(self, candidate: str) -> bool:
    """Reports whether a prefix found in the keys lies where the user says."""
    wrapper, rest = split(candidate)
    if self.wrapper is not None:
      wanted = self.wrapper.replace("/", ".").strip(".")
      if wrapper != wanted and not wrapper.startswith(f"{wanted}."):
        return False
    if self.prefix is None:
      return True
    if not self.prefix:
      return not rest
    # An empty one here is of DataParallel's alone, which is cut anyway.
    starts = (self.prefix, _ADDED.sub(r"\1", self.prefix))
    return rest.startswith(starts) or candidate.startswith(starts)

  def literal(self) -> str:
    """Returns the prefix that a user writes out, if no layout is known."""
    wrapper = (self.wrapper or "").strip("./").replace(".", "/")
    return f"{wrapper}/{self.prefix or ''}" if wrapper else self.prefix or ""


def split(prefix: str) -> tuple[str, str]:
  """Splits a prefix into the wrapper, as the flag names it, and the rest."""
  wrapper, _, rest = prefix.rpartition("/")
  return wrapper.replace("/", "."), rest


def simplify(source: Source) -> Source:
  """Takes what torch's own wrappers add out of the keys.

  Nothing changes where two keys would become the same.
  """
  names = {_ADDED.sub(r"\1", key): key for key in source.arrays}
  if len(names) < len(source.arrays):
    return source
  return dataclasses.replace(
    source,
    arrays={name: source.arrays[key] for name, key in names.items()},
    names=names,
    refused={
      _ADDED.sub(r"\1", key): name for key, name in source.refused.items()
    },
  )


def choose(
  source: Source, found: Collection[str], choice: Choice
) -> str | None:
  """Chooses the prefix, of those that a layout was found behind.

  Args:
    source: the file.
    found: prefixes; see `find`.
    choice: of the user.

  Returns:
    The prefix; None where the user's choice leaves none.

  Raises:
    WeightsError: several are left.
  """
  left = sorted(filter(choice.admits, found))
  exact = [prefix for prefix in left if _is_exact(prefix, choice)]
  left = exact if len(exact) == 1 else left
  if len(left) < 2:
    return left[0] if left else None
  wrappers = sorted({split(prefix)[0] for prefix in left})
  if len(wrappers) > 1:
    flag, names = "wrapper", wrappers
  else:
    flag, names = "prefix", sorted(split(prefix)[1] for prefix in left)
  shown = [printable(name) or "(none)" for name in names]
  options = [f"--{flag}={printable(name)}" for name in names]
  raise WeightsError(
    f"{source.path}: holds {len(names)} networks, {', '.join(shown)}; choose"
    f" with {' or '.join(options)} of convert_weights.py"
  )


def _is_exact(prefix: str, choice: Choice) -> bool:
  wrapper, rest = split(prefix)
  return (choice.wrapper is None or wrapper == choice.wrapper) and (
    choice.prefix is None or rest == choice.prefix
  )


def find(keys: Iterable[str], pattern: str) -> set[str]:
  """Finds the texts before a pattern that keys end in.

  Args:
    keys: of a file.
    pattern: a regular expression for whole keys of a layout, which others
      end in behind a "." or "/".
  """
  compiled = re.compile(rf"((?:.*?[./])??)(?:{pattern})", re.DOTALL)
  matches = map(compiled.fullmatch, keys)
  return {match[1] for match in matches if match}


def cut(source: Source, prefix: str, others: Iterable[str] = ()) -> Source:
  """Selects the arrays behind a prefix and cuts it off their keys.

  Args:
    source: the file.
    prefix: what the keys begin with.
    others: prefixes of further networks, which may begin with this one.

  Raises:
    WeightsError: there are none.
  """
  longer = tuple(
    other for other in others if other != prefix and other.startswith(prefix)
  )
  inside, outside = {}, {}
  for key, array in source.arrays.items():
    if key.startswith(prefix) and not key.startswith(longer):
      inside[key.removeprefix(prefix)] = array
    else:
      outside[source.file_key(key)] = array
  refused = {
    key.removeprefix(prefix): name
    for key, name in source.refused.items()
    if key.startswith(prefix)
  }
  if not inside:
    raise WeightsError(
      f"{source.path}: no key begins with {printable(prefix)!r}; they begin"
      f" {first_keys(source.arrays)}"
    )
  return dataclasses.replace(
    source,
    arrays=inside,
    names={key: source.file_key(f"{prefix}{key}") for key in inside},
    outside=outside,
    refused=refused,
    prefix=prefix,
  )


def adopt_head(source: Source, name: str, features: int) -> Source:
  """Takes the classifier that was trained on top of a prefixed backbone.

  Args:
    source: see `cut`.
    name: of the classifier of the backbone's own.
    features: number of its inputs.

  Returns:
    The same source where the backbone has its own, or where there is not one
    pair of a matrix and a bias that fit beside it and have a usual name.
  """
  weight, bias = f"{name}.weight", f"{name}.bias"
  if weight in source.arrays:
    return source
  wrapper = source.prefix[: source.prefix.rfind("/") + 1]
  pairs = []
  for key, array in source.outside.items():
    other = f"{key.removesuffix('weight')}bias"
    relative = key.removeprefix(wrapper)
    if (
      key.startswith(wrapper)
      and key.endswith(".weight")
      and re.search(_HEADS, relative)
      and array.ndim == 2
      and array.shape[1] == features
      and other in source.outside
      and source.outside[other].shape == array.shape[:1]
    ):
      pairs.append((key, other))
  if len(pairs) != 1:
    return source
  ((kernel, offset),) = pairs
  outside = dict(source.outside)
  head = {weight: outside.pop(kernel), bias: outside.pop(offset)}
  return dataclasses.replace(
    source,
    arrays={**source.arrays, **head},
    names={**source.names, weight: kernel, bias: offset},
    outside=outside,
  )
