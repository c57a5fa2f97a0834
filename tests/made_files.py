"""Placeholder video files, and lists of them, for tests."""


def write_files(root, *names):
  """Writes files of one byte below a folder; returns the folder."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
  return root
