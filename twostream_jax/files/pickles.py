"""Pickle files as data: nothing that they name is imported or called.

A pickle is a program of a stack machine, and unpickling it calls whatever it
names. The machine here writes the calls down instead. Who reads the result
interprets the few calls that make arrays and has no use for the rest, such as
the settings and the optimiser that a checkpoint holds beside its weights.
"""

import dataclasses
import io
import pickle
import pickletools
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from twostream_jax.files import limits

_KINDS = "biuf"
# Arguments and items of containers, of all calls together. A pickle can name
# one list in each of a million calls.
_MOST_COPIED = 10_000_000
# Instructions that any pickle may have, and bytes for each further one: a
# million take a second. A dump of mmaction2 has 67 for a video: those of 60,000
# videos are read, and of any number with 50 classes or more. torch has 30 for
# an array.
_MOST_FREE = 1_000_000
_BYTES_PER_INSTRUCTION = 12
# Bytes of memory that an instruction takes: where it makes a container, a call
# or an entry of the memo; and else, beside its argument.
_LARGE = 100
_SMALL = 16
# Characters of a module and a name: they are compared at every call.
_LONGEST_NAME = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
  """A function or class, by name only.

  Attributes:
    module: name of its module.
    name: its name there.
  """

  module: str
  name: str

  def __str__(self) -> str:
    # NumPy 2 renamed the module; both names are in files.
    module = self.module.replace("numpy._core", "numpy.core")
    return f"{module}.{self.name}"


@dataclasses.dataclass(eq=False, slots=True)
class Call:
  """A call that a pickle asks for; it is not made.

  Attributes:
    function: usually a Global.
    arguments: of the call.
    state: given to the object that it would make; None without one.
    items: put into that object, as into a dict.
  """

  function: Any
  arguments: tuple
  state: Any = None
  items: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    named = isinstance(self.function, Global)
    return str(self.function) if named else "something without a name"


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Persistent:
  """An object that is stored outside of the pickle.

  Attributes:
    name: what the pickle calls it.
  """

  name: Any

  def __str__(self) -> str:
    return "an object outside of the pickle"


def load(file: BinaryIO, persistent: Callable[[Any], Any] = Persistent) -> Any:
  """Reads one pickle of protocol 2 or newer.

  Dicts and their relatives become dicts with strings as keys, sets become
  lists, byte strings of Python 2 are read as Latin-1, and whatever a call
  would make becomes a `Call`.

  Args:
    file: open for reading, at the start of the pickle; afterwards at its end.
    persistent: from the name of an object outside of the pickle to what is
      put in its place.

  Raises:
    pickle.UnpicklingError: the pickle is damaged, cut off, or of a form that
      has no use in a file.
  """
  machine = _Machine(persistent)
  begin = file.tell()
  size = file.seek(0, io.SEEK_END) - begin
  file.seek(begin)
  left = _MOST_FREE + size // _BYTES_PER_INSTRUCTION
  memory = limits.most_memory(size)
  try:
    # All that it needs of a file; its declared type is a whole one.
    bounded: Any = _Bounded(file, size)
    while True:
      # Not pickletools.genops, which asks for the place of each.
      opcode = _OPCODES[file.read(1)]
      argument = opcode.arg and opcode.arg.reader(bounded)
      name = opcode.name
      left -= 1
      memory -= _SMALL if name in _ALLOCATES_LITTLE else _LARGE
      if argument is not None:
        memory -= sys.getsizeof(argument)
      if left < 0 or memory < 0:
        raise ValueError("more instructions than a file has use for")
      if name == "STOP":
        return machine.stack.pop()
      machine.run(opcode, argument)
  except KeyError as error:
    raise pickle.UnpicklingError(
      "damaged pickle: cut off, or no pickle"
    ) from error
  # Whatever the instructions do to what they find on the stack.
  except Exception as error:
    raise pickle.UnpicklingError(f"damaged pickle: {error}") from error


class _Bounded:
  """A file that is asked for no more bytes than it has.

  A read of as many as a pickle claims takes the memory of them first.
  """

  def __init__(self, file: BinaryIO, size: int):
    self._file = file
    self._size = size
    self.readline = file.readline

  def read(self, count: int) -> bytes:
    return self._file.read(min(count, self._size))


def as_array(call: Any) -> np.ndarray | list | None:
  """Makes the NumPy array that a call asks for.

  Returns:
    An array of numbers, read-only; a list for an array of objects; None for
    anything else.

  Raises:
    ValueError, TypeError, AttributeError: the values do not fit shape or type.
  """
  if not isinstance(call, Call):
    return None
  name = str(call)
  if name == "numpy.core.numeric._frombuffer":
    data, kind, shape, order = call.arguments
  elif name == "numpy.core.multiarray._reconstruct":
    if str(call.arguments[0]) != "numpy.ndarray":
      return None
    _, shape, kind, is_fortran, data = call.state
    order = "F" if is_fortran else "C"
  else:
    return None
  if not isinstance(kind, Call) or str(kind) != "numpy.dtype":
    return None
  code, *_ = kind.arguments
  try:
    dtype = np.dtype(code) if isinstance(code, str) else None
  except SyntaxError as error:
    raise ValueError(f"{code!r} is not a type of numbers") from error
  if dtype is not None and dtype.kind == "O":
    return list(data)
  # Records and text are left out: nothing here needs them.
  if dtype is None or dtype.kind not in _KINDS:
    return None
  if kind.state is not None:
    dtype = dtype.newbyteorder(kind.state[1])
  return np.frombuffer(as_bytes(data), dtype).reshape(shape, order=order)


def as_bytes(data: Any) -> bytes | bytearray:
  """Returns the bytes of a node, as every protocol writes them.

  Raises:
    ValueError: they are text in another encoding than that of bytes, or not
      bytes at all.
  """
  if isinstance(data, Call) and str(data) == "_codecs.encode":
    # How Python 3 writes bytes in the protocols of Python 2.
    data, encoding = data.arguments
    if encoding != "latin1":
      raise ValueError(f"an array's values are text in {encoding!r}")
  # A string of Python 2, or the above.
  if isinstance(data, str):
    return data.encode("latin1")
  if not isinstance(data, bytes | bytearray):
    raise ValueError("an array's values are not bytes")
  return data


_DICTS = (
  "collections.OrderedDict",
  "collections.defaultdict",
  "collections.Counter",
  "builtins.dict",
  "__builtin__.dict",
)
_LISTS = tuple(
  f"{module}.{name}"
  for module in ("builtins", "__builtin__")
  for name in ("list", "tuple", "set", "frozenset")
)


def _put(target: Any, key: Any, value: Any) -> None:
  """Sets an item, where it can name an array; others are dropped.

  Only strings become keys: hashing a tuple of tuples can take for ever, and
  whoever writes a file can choose numbers whose hashes are equal.
  """
  items = target.items if isinstance(target, Call) else target
  if isinstance(key, str | int) and isinstance(items, dict):
    items[str(key)] = value


def _extend(target: Any, items: list) -> None:
  if isinstance(target, list):
    target.extend(items)


def _named(module: str, name: str) -> Global:
  if len(module) + len(name) > _LONGEST_NAME:
    raise ValueError("a name is longer than any")
  return Global(module, name)


class _Machine:
  """The stack, the marks and the memo of a pickle that is read."""

  def __init__(self, persistent: Callable[[Any], Any]):
    self.stack: list = []
    self._below: list[list] = []
    self._memo: dict[int, Any] = {}
    self._persistent = persistent
    self._copied = 0

  def run(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
    """Executes one instruction."""
    name = opcode.name
    if name in _IGNORED:
      return
    if name in _STEPS:
      _STEPS[name](self)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
      self._memo[argument] = self.stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
      self.stack.append(self._memo[argument])
    elif name == "GLOBAL":
      self.stack.append(_named(*argument.split(" ", 1)))
    elif name == "INST":
      arguments = self._marked()
      made = self._call(_named(*argument.split(" ", 1)), arguments)
      self.stack.append(made)
    elif name == "PERSID":
      self.stack.append(self._persistent(argument))
    elif name in _REFUSED or opcode.arg is None:
      raise ValueError(f"{name} has no place in a file")
    else:
      self.stack.append(argument)

  def _call(self, function: Any, arguments: Any) -> Any:
    """Makes a container, or notes any other call."""
    name = str(function) if isinstance(function, Global) else ""
    arguments = self._copy(arguments)
    pairs = arguments[0] if arguments else ()
    if name in _DICTS:
      made = {}
      # A defaultdict has a function here.
      for pair in self._copy(pairs) if isinstance(pairs, list) else ():
        _put(made, *pair)
      return made
    if name in _LISTS and isinstance(pairs, list | tuple):
      return list(self._copy(pairs))
    return Call(function, arguments)

  def _copy(self, items: Any) -> tuple:
    items = tuple(items)
    self._copied += len(items)
    if self._copied > _MOST_COPIED:
      raise ValueError("its calls copy more than a file has use for")
    return items

  def _marked(self) -> list:
    """Takes what was put on the stack since the last mark."""
    items, self.stack = self.stack, self._below.pop()
    return items

  def _pop(self, count: int) -> list:
    items = self.stack[-count:]
    if len(items) < count:
      raise ValueError("the stack is empty")
    del self.stack[-count:]
    return items

  def mark(self) -> None:
    self._below.append(self.stack)
    self.stack = []

  def pop(self) -> None:
    if self.stack:
      self.stack.pop()
    else:
      self._marked()

  def pop_mark(self) -> None:
    self._marked()

  def dup(self) -> None:
    self.stack.append(self.stack[-1])

  def memoize(self) -> None:
    self._memo[len(self._memo)] = self.stack[-1]

  def push(self, make: Callable[[], Any]) -> None:
    self.stack.append(make())

  def gather(self, make: Callable[[list], Any]) -> None:
    items = self._marked()
    self.stack.append(make(items))

  def make_tuple(self, count: int) -> None:
    self.stack.append(tuple(self._pop(count)))

  def make_dict(self) -> None:
    items = self._marked()
    self.stack.append({})
    self._set(items)

  def append(self) -> None:
    items = self._pop(1)
    _extend(self.stack[-1], items)

  def extend(self) -> None:
    items = self._marked()
    _extend(self.stack[-1], items)

  def set_item(self) -> None:
    self._set(self._pop(2))

  def set_items(self) -> None:
    self._set(self._marked())

  def _set(self, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
      _put(self.stack[-1], key, value)

  def stack_global(self) -> None:
    module, name = self._pop(2)
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError("a name is not text")
    self.stack.append(_named(module, name))

  def call(self) -> None:
    self.stack.append(self._call(*self._pop(2)))

  def call_with_keywords(self) -> None:
    self.stack.append(self._call(*self._pop(3)[:2]))

  def call_marked(self) -> None:
    function, *arguments = self._marked()
    self.stack.append(self._call(function, arguments))

  def build(self) -> None:
    (state,) = self._pop(1)
    if isinstance(self.stack[-1], Call):
      self.stack[-1].state = state

  def persistent(self) -> None:
    (name,) = self._pop(1)
    self.stack.append(self._persistent(name))


# Instructions that make no object but their argument, or a small one.
_ALLOCATES_LITTLE = frozenset(
  {
    *("PROTO", "FRAME", "STOP", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE"),
    *("NEWFALSE", "EMPTY_TUPLE", "LIST", "TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"),
    *("BUILD", "BINGET", "LONG_BINGET", "GET", "BININT", "BININT1"),
    *("BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"),
  }
)
_IGNORED = ("PROTO", "FRAME")
# Objects of another process, and of a table that each program has its own of.
_REFUSED = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
_OPCODES = {op.code.encode("latin1"): op for op in pickletools.opcodes}
_STEPS: dict[str, Callable[[_Machine], None]] = {
  "MARK": _Machine.mark,
  "POP": _Machine.pop,
  "POP_MARK": _Machine.pop_mark,
  "DUP": _Machine.dup,
  "MEMOIZE": _Machine.memoize,
  "NONE": lambda machine: machine.push(lambda: None),
  "NEWTRUE": lambda machine: machine.push(lambda: True),
  "NEWFALSE": lambda machine: machine.push(lambda: False),
  "EMPTY_LIST": lambda machine: machine.push(list),
  "EMPTY_SET": lambda machine: machine.push(list),
  "EMPTY_DICT": lambda machine: machine.push(dict),
  "EMPTY_TUPLE": lambda machine: machine.push(tuple),
  "LIST": lambda machine: machine.gather(list),
  "FROZENSET": lambda machine: machine.gather(list),
  "TUPLE": lambda machine: machine.gather(tuple),
  "TUPLE1": lambda machine: machine.make_tuple(1),
  "TUPLE2": lambda machine: machine.make_tuple(2),
  "TUPLE3": lambda machine: machine.make_tuple(3),
  "DICT": _Machine.make_dict,
  "APPEND": _Machine.append,
  "APPENDS": _Machine.extend,
  "ADDITEMS": _Machine.extend,
  "SETITEM": _Machine.set_item,
  "SETITEMS": _Machine.set_items,
  "STACK_GLOBAL": _Machine.stack_global,
  "REDUCE": _Machine.call,
  "NEWOBJ": _Machine.call,
  "NEWOBJ_EX": _Machine.call_with_keywords,
  "OBJ": _Machine.call_marked,
  "BUILD": _Machine.build,
  "BINPERSID": _Machine.persistent,
}
