"""A predictor without networks, and frames without a video, for fast tests."""

import types

import cv2
import numpy as np

from twostream_jax.flow import default_parameters
from twostream_jax.flow.spec import FlowSpec
from twostream_jax.predict.reading import Coded
from twostream_jax.scores import Scores

SPEC = FlowSpec("dis", default_parameters("dis"), short_side=64)


def coded(times, size=(16, 24)):
  """Frames that are full of 25 times their number, without flow."""
  found = []
  ends = [*times[1:], 2 * times[-1] - times[-2]] if times else []
  for number, (begin, end) in enumerate(zip(times, ends, strict=True)):
    image = np.full((*size, 3), 25 * number % 256, np.uint8)
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    found.append(Coded(jpeg, (), size, begin, end - begin))
  return found


class StubPredictor:
  """Takes every video for the first of two classes."""

  def __init__(self, workdir, weights=0.0):
    stage = types.SimpleNamespace(
      protocol="single", step=3, variables={"w": np.full(2, weights)}
    )
    self.rgb_quality = 90
    self.run = types.SimpleNamespace(
      workdir=workdir,
      flow_spec=SPEC,
      class_names=("run", "jump"),
      multi_label=False,
      stages={"spatial": stage},
      rules={},
    )

  def score(self, path, record):
    logits = np.float32([[1.0, 0.0]])
    return {"spatial": Scores((path,), np.zeros(1, np.int32), logits, "single")}


def write_video(path, count=10, fps=25.0, size=(64, 64)):
  """A video whose frames are ever brighter."""
  code = cv2.VideoWriter.fourcc(*"MJPG")
  writer = cv2.VideoWriter(str(path), code, fps, size[::-1])
  for number in range(count):
    writer.write(np.full((*size, 3), 20 * number, np.uint8))
  writer.release()
