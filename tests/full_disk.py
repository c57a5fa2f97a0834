"""A disk that is too small, for tests of what becomes of files."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
  """No file of this process can be larger; the system says so in writing."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
