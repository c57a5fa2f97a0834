"""Random changes of files that know a little of what files look like."""

import copy
import io
import json
import re
import struct
import zipfile

import numpy as np

_SIZES = (1, 2, 4, 8)
_NUMBERS = (
  *(b"0", b"-1", b"1", b"2", b"255", b"65536", b"2147483647", b"4294967296"),
  *(b"9223372036854775807", b"1e999", b"-1e999", b"NaN", b"Infinity", b"1.5"),
  *(b"99999999999999999999999999", b"1" * 5000, b"1e-400", b"0x10"),
)
_WORDS = (
  *(b"\x1b[2J", b"\n", b"\r", b"\0", b"=1+1", b"@a", b"\xff\xfe", b"\xed\xa0"),
  *(b"../", b"/", b"\xe2\x80\xae", b"[" * 3000, b"{" * 3000, b'"', b"'", b","),
)
_VALUES = (
  *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -1.5),
  *(float("nan"), float("inf"), 1e308, "", "a", "\x1b[2Jx", "a\nb", "\ud800"),
  *("=1+1", [], {}, [1], ["a"], {"a": 1}, [[[]]], "x" * 5000, list(range(99))),
)


def mutate(data: bytes, others, rng: np.random.Generator) -> bytes:
  """Changes a file.

  Args:
    data: of the file.
    others: bytes of files, this one among them, to splice in.
    rng: of the changes.
  """
  kinds = [_mutate_bytes]
  if data[:2] == b"PK":
    kinds = [_mutate_bytes, _mutate_zip, _mutate_zip]
  elif data.lstrip()[:1] in (b"{", b"["):
    kinds = [_mutate_bytes, _mutate_json, _mutate_json]
  elif data[8:9] == b"{":
    kinds = [_mutate_bytes, _mutate_safetensors]
  return kinds[rng.integers(len(kinds))](data, others, rng)


def _mutate_bytes(data: bytes, others, rng) -> bytes:
  for _ in range(int(rng.choice([1, 1, 1, 2, 3, 8]))):
    change = _CHANGES[rng.integers(len(_CHANGES))]
    data = change(data, others, rng)
  return data


def _flip(data, others, rng):
  changed = bytearray(data)
  for _ in range(int(rng.choice([1, 1, 2, 8, 64]))):
    if changed:
      changed[_at(changed, rng)] ^= 1 << int(rng.integers(8))
  return bytes(changed)


def _at(data, rng) -> int:
  """A place; files say what they are at their beginning and end."""
  share = rng.integers(4)
  n = len(data)
  if n and share == 0:
    return int(rng.integers(min(n, 128)))
  if n and share == 1:
    return n - 1 - int(rng.integers(min(n, 256)))
  return int(rng.integers(max(1, n)))


def _set_bytes(data, others, rng):
  at = _at(data, rng)
  size = int(rng.choice([1, 1, 2, 4, 16, 64]))
  fill = int(rng.choice([0, 255, 127, 128, 32, int(rng.integers(256))]))
  return data[:at] + bytes([fill]) * size + data[at + size :]


def _truncate(data, others, rng):
  return data[: _at(data, rng)]


def _cut(data, others, rng):
  at = _at(data, rng)
  return data[:at] + data[at + int(rng.choice([1, 2, 4, 8, 64, 1024])) :]


def _insert(data, others, rng):
  at, size = _at(data, rng), int(rng.choice([1, 2, 4, 8, 64]))
  return data[:at] + rng.bytes(size) + data[at:]


def _insert_word(data, others, rng):
  at = _at(data, rng)
  word = _WORDS[rng.integers(len(_WORDS))]
  return data[:at] + word + data[at + int(rng.integers(2)) * len(word) :]


def _splice(data, others, rng):
  other = others[rng.integers(len(others))]
  begin, at = _at(other, rng), _at(data, rng)
  size = int(rng.choice([1, 8, 64, 512, 4096]))
  part = other[begin : begin + size]
  over = int(rng.integers(2)) * len(part)
  return data[:at] + part + data[at + over :]


def _repeat(data, others, rng):
  at, size = _at(data, rng), int(rng.choice([1, 2, 8, 64]))
  times = int(rng.choice([2, 10, 1000]))
  return data[:at] + data[at : at + size] * times + data[at:]


def _edit_length(data, others, rng):
  """Changes a number that may be a length: it is smaller than the file."""
  size = int(rng.choice(_SIZES))
  order = "little" if rng.integers(2) else "big"
  places = []
  begin = _at(data, rng)
  for at in range(begin, min(len(data) - size, begin + 400)):
    value = int.from_bytes(data[at : at + size], order)
    if 0 < value <= len(data):
      places.append((at, value))
  if not places:
    return _set_bytes(data, others, rng)
  at, value = places[rng.integers(len(places))]
  full = 256**size - 1
  new = rng.choice(
    np.array(
      [value + 1, value - 1, value * 2, value * 1000, value << 16, 0]
      + [full, full >> 1, (full >> 1) + 1, len(data), 1 << 20],
      dtype=object,
    )
  )
  return data[:at] + (int(new) & full).to_bytes(size, order) + data[at + size :]


def _edit_number(data, others, rng):
  """Changes a number that is written in digits."""
  found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
  if not found:
    return _set_bytes(data, others, rng)
  match = found[rng.integers(len(found))]
  new = _NUMBERS[rng.integers(len(_NUMBERS))]
  if rng.integers(3) == 0:
    new = match[0] + b"0" * int(rng.choice([1, 3, 9, 18]))
  return data[: match.start()] + new + data[match.end() :]


_CHANGES = (
  *(_flip, _flip, _flip, _set_bytes, _set_bytes, _truncate, _cut, _insert),
  *(_insert_word, _splice, _splice, _repeat, _edit_length, _edit_length),
  *(_edit_length, _edit_number, _edit_number),
)


def _mutate_json(data: bytes, others, rng) -> bytes:
  """Changes values of a JSON file, which stays JSON."""
  try:
    tree = json.loads(data)
  except ValueError:
    return _mutate_bytes(data, others, rng)
  holder = {"root": tree}
  for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
    places = list(_places(holder))
    parent, key = places[rng.integers(len(places))]
    how = rng.integers(5)
    if how == 0 and parent is not holder:
      del parent[key]
    elif how == 1 and isinstance(parent, dict) and parent is not holder:
      parent[f"{key}\x1b"] = parent.pop(key)
    elif how == 2:
      other, other_key = places[rng.integers(len(places))]
      parent[key] = copy.deepcopy(other[other_key])
    else:
      parent[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
  return json.dumps(holder["root"]).encode("utf-8", "surrogatepass")


def _places(tree):
  """Containers and keys of all values."""
  stack = [tree]
  while stack:
    node = stack.pop()
    keys = node if isinstance(node, dict) else range(len(node))
    for key in list(keys):
      yield node, key
      if isinstance(node[key], dict | list):
        stack.append(node[key])


def _mutate_zip(data: bytes, others, rng) -> bytes:
  """Changes a member of an archive; its check sum is right."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      infos = archive.infolist()
      contents = [archive.read(info) for info in infos]
  except Exception:
    return _mutate_bytes(data, others, rng)
  i = int(rng.integers(len(infos)))
  parts = [c for c in contents if c]
  contents[i] = mutate(contents[i], parts or [b""], rng)
  packed = rng.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED])
  whole = io.BytesIO()
  with zipfile.ZipFile(whole, "w", int(packed)) as archive:
    for info, content in zip(infos, contents, strict=True):
      archive.writestr(info.filename, content)
  return whole.getvalue()


def _mutate_safetensors(data: bytes, others, rng) -> bytes:
  """Changes the header of a .safetensors file; its length is right."""
  size = int.from_bytes(data[:8], "little")
  header = mutate(data[8 : 8 + size], others, rng)
  return struct.pack("<Q", len(header)) + header + data[8 + size :]
