"""Failures that are the machine's fault, not the file's.

What is the machine's fault passes: memory was short, a network folder was away,
files ran out. Nothing about the file may be concluded from it.
"""

import errno
import mmap
import os
import stat

import av.error
import cv2

from twostream_jax.data.video.frames import VideoError

FILE_NOT_FOUND = "file not found"
OUT_OF_MEMORY = "out of memory"
_CHUNK = 1 << 20
# FFmpeg refuses to allocate more at once, however much memory there is.
_LARGEST_ALLOCATION = (1 << 31) - 1
# What FFmpeg has from the system only; it calls damage EIO and ENOMEM too.
_OF_THE_SYSTEM = {
  errno.EACCES,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOTCONN,
  errno.ESTALE,
  errno.ETIMEDOUT,
}
# Known by their names, because importing JAX takes seconds.
_JAX_ERRORS = {"JaxRuntimeError", "XlaRuntimeError"}


def machine_fault(error: BaseException) -> str | None:
  """Why the machine is to blame for an error, in a few words.

  A VideoError is judged by the error that it was raised from. Call this where
  the error is caught, while the memory of what failed is still held.

  Returns:
    None where the file is, or where that can't be told.
  """
  if isinstance(error, VideoError) and error.__cause__ is not None:
    error = error.__cause__
  if isinstance(error, av.error.MemoryError):
    # A damaged file can ask for any amount.
    return None if _can_allocate(_LARGEST_ALLOCATION) else OUT_OF_MEMORY
  if isinstance(error, MemoryError) or _is_opencv_memory(error):
    return OUT_OF_MEMORY
  if isinstance(error, OSError):
    damage = (
      isinstance(error, av.error.FFmpegError)
      and error.errno not in _OF_THE_SYSTEM
    )
    return None if damage else _describe(error)
  if type(error).__name__ in _JAX_ERRORS:
    if "RESOURCE_EXHAUSTED" in str(error):
      return f"{OUT_OF_MEMORY} on the device"
    # Once a device has failed, so do the clips after.
    return f"the device failed: {(str(error).splitlines() or [''])[0][:200]}"
  if isinstance(error, RuntimeError) and "start new thread" in str(error):
    return "no more threads can be started"
  return None


def read_fault(path: str | os.PathLike) -> str | None:
  """Why the machine can't read a file, in a few words, or None.

  The whole file is read, which takes little where it was decoded just now.
  FFmpeg does not tell: it takes an error in reading for the end of the file.
  A folder is only looked for: its images are read without FFmpeg.
  """
  try:
    if stat.S_ISREG(os.stat(path).st_mode):
      with open(path, "rb", buffering=0) as file:
        while file.read(_CHUNK):
          pass
  except OSError as error:
    return _describe(error)
  return None


def _describe(error: OSError) -> str:
  if isinstance(error, FileNotFoundError):
    return FILE_NOT_FOUND
  return f"can't be read: {error.strerror or error}"


def _is_opencv_memory(error: BaseException) -> bool:
  return isinstance(error, cv2.error) and (
    getattr(error, "code", None) == cv2.Error.StsNoMem
    or "bad_alloc" in str(error)
  )


def _can_allocate(size: int) -> bool:
  try:
    mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
  except OSError:
    return False
  return True
