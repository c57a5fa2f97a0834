"""Overlays in a browser: they play, with the right duration and colours."""

import base64
import json

import numpy as np
import pytest

from tests import chromium
from twostream_jax.predict import video_file

pytestmark = [
  pytest.mark.optional,
  pytest.mark.skipif(
    chromium.find() is None,
    reason=f"no Chromium: none of {', '.join(chromium.NAMES)} is installed",
  ),
]

TYPES = {
  ".mp4": 'video/mp4; codecs="avc1.640028"',
  ".webm": 'video/webm; codecs="vp9"',
}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 180, 240), (9, 9, 9)]
# Chromium rounds the matrix; that of BT.601 would be 20 off in red and green.
TOLERANCE = 13
CONSTANT = [n / 25 for n in range(5)]
VARIED = [0.0, 0.1, 0.15, 0.9, 2.5]

# Loads a file, seeks to times and reads a pixel, and plays the end. A frame may
# be painted some time after the browser says that it is there: pixels are read
# until they are as expected, for 5 seconds at most.
PLAY = """(async (uri, times, colours, tolerance) => {
  const video = document.createElement("video");
  const came = name => new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, {once: true});
    video.addEventListener("error", () => reject(video.error.message));
  });
  video.muted = true;
  const loaded = came("loadeddata");
  video.src = uri;
  await loaded;
  const canvas = document.createElement("canvas").getContext("2d");
  const pixels = [];
  for (const [i, time] of times.entries()) {
    const there = came("seeked");
    video.currentTime = time;
    await there;
    const end = performance.now() + 5000;
    let pixel;
    do {
      await new Promise(resolve => setTimeout(resolve, 5));
      canvas.drawImage(video, 0, 0);
      pixel = [...canvas.getImageData(20, 20, 1, 1).data.slice(0, 3)];
    } while (performance.now() < end &&
      pixel.some((value, c) => Math.abs(value - colours[i][c]) > tolerance));
    pixels.push(pixel);
  }
  const over = came("ended");
  await video.play();
  await over;
  return {
    size: [video.videoHeight, video.videoWidth],
    duration: video.duration,
    end: video.currentTime,
    pixels: pixels,
  };
})(%s)"""


@pytest.fixture(scope="module")
def browser():
  with chromium.opened(chromium.find()) as page:
    yield page


@pytest.mark.parametrize("extension", TYPES)
@pytest.mark.parametrize(
  "times, fps", [(CONSTANT, 25.0), (VARIED, 2.0)], ids=["constant", "varied"]
)
def test_an_overlay_plays(browser, tmp_path, times, fps, extension):
  kind = TYPES[extension]
  can_play = f"document.createElement('video').canPlayType({json.dumps(kind)})"
  if not browser.run(can_play):
    pytest.skip(f"this Chromium does not play {kind}")
  path = tmp_path / f"shown{extension}"
  ends = [*times[1:], times[-1] + 1 / fps]
  frames = [
    video_file.Shown(start, end, np.full((47, 64, 3), colour, np.uint8))
    for start, end, colour in zip(times, ends, COLOURS, strict=True)
  ]
  video_file.write(path, frames)
  data = base64.b64encode(path.read_bytes()).decode()
  middles = [(a + b) / 2 for a, b in zip(times, ends, strict=True)]
  # The last of them is played to the end from.
  uri = f"data:{kind.split(';')[0]};base64,{data}"
  asked = [uri, middles, COLOURS, TOLERANCE]
  found = browser.run(PLAY % ", ".join(map(json.dumps, asked)))
  assert found["size"] == [48, 64]
  assert found["duration"] == pytest.approx(ends[-1], abs=2e-3)
  assert found["end"] == pytest.approx(ends[-1], abs=0.01)
  np.testing.assert_allclose(found["pixels"], COLOURS, atol=TOLERANCE)
