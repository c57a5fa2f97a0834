"""What decoders do to the process they are in, for tests of their isolation.

Apart from the tests, so that a process that is started imports nothing else.
"""

import dataclasses
import os
import signal
import time

from twostream_jax.predict.reading import Reader


@dataclasses.dataclass(frozen=True)
class BadReader:
  """A reader that some paths crash or hang."""

  reader: Reader

  def __call__(self, source):
    if "crash" in source.path:
      os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in source.path:
      time.sleep(60)
    return self.reader(source)
