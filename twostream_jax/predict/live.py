"""Frames of cameras and streams, taken as they come."""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator

import cv2

from twostream_jax.data.video import decode
from twostream_jax.data.video.frame_times import DEFAULT_FPS, ROUNDING, Frame
from twostream_jax.data.video.frames import VideoError

# Seconds until a camera or stream has to answer.
_PATIENCE = 10.0


def read_stream(url: str, seconds: float) -> Iterator[Frame]:
  """Decodes the first seconds of a stream, by the stream's own times.

  Raises:
    VideoError: At the first frame: the stream can't be opened or gives none.
  """
  yield from _first(decode.read_url(url, _PATIENCE), seconds)


def read_camera(index: int, seconds: float) -> Iterator[Frame]:
  """Reads a camera for some seconds; a frame's time is that of its arrival.

  Raises:
    VideoError: At the first frame: the camera can't be opened or gives none.
  """
  with contextlib.closing(_camera_frames(index)) as frames:
    yield from _first(frames, seconds)


def _first(frames: Iterable[Frame], seconds: float) -> Iterator[Frame]:
  return itertools.takewhile(
    lambda frame: frame.time < seconds - ROUNDING, frames
  )


def _camera_frames(index: int) -> Generator[Frame, None, None]:
  capture = cv2.VideoCapture(index)
  try:
    if not capture.isOpened():
      raise VideoError("the camera can't be opened")
    began = held = None
    while True:
      more, image = capture.read()
      arrived = time.monotonic()
      if not more:
        break
      if held is not None:
        yield _camera_frame(*held, arrived)
      began = began or arrived
      held = image, began, arrived
    if held is None:
      raise VideoError("no frame could be decoded")
    yield _camera_frame(*held, held[-1] + 1 / DEFAULT_FPS)
  finally:
    capture.release()


def _camera_frame(
  image, began: float, arrived: float, next_one: float
) -> Frame:
  return Frame(
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
    time=round(arrived - began, 6),
    duration=next_one - arrived,
  )


def read_ahead(frames: Iterable[Frame], limit: int = 1000) -> Iterator[Frame]:
  """Takes frames in a thread as they come, while others are computed with.

  Args:
    frames: Of a camera or stream.
    limit: Frames that are held; beyond it the source waits, and a camera drops
      frames, as the times then tell.
  """
  waiting = queue.Queue(limit)
  stopped = threading.Event()

  def put(item) -> bool:
    while not stopped.is_set():
      with contextlib.suppress(queue.Full):
        waiting.put(item, timeout=0.1)
        return True
    return False

  def take() -> None:
    try:
      for frame in frames:
        if not put((frame, None)):
          return
    except BaseException as error:
      put((None, error))
    else:
      put((None, None))

  thread = threading.Thread(target=take, daemon=True)
  thread.start()
  try:
    while True:
      frame, error = waiting.get()
      if error is not None:
        raise error
      if frame is None:
        return
      yield frame
  finally:
    stopped.set()
