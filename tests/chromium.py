"""Drives a headless Chromium through its DevTools protocol, over a pipe.

Nothing but the browser is needed: no driver, no port, no package. From the
command line it photographs a page:

  python -m tests.chromium report.html picture.png --width=390 --height=1600
"""

import argparse
import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
  """Path of an installed Chromium."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
  """A tab of a running browser.

  Attributes:
    events: those of the protocol so far, in their order.
  """

  def __init__(self, commands: int, answers: int):
    """Takes the descriptors that the browser reads from and writes to."""
    self._commands, self._answers = commands, answers
    self._numbers, self._rest = itertools.count(1), b""
    self._session = None
    self.events = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call(
      "Target.attachToTarget", targetId=target, flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Sends a command and returns its result; RuntimeError: it was refused."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._commands, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._receive()
      if answer.get("id") == number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

  def open(self, path: Path) -> None:
    """Loads a file and waits until all of it is there."""
    seen = len(self.events)
    self.call("Page.navigate", url=path.absolute().as_uri())
    while not any(
      e["method"] == "Page.loadEventFired" for e in self.events[seen:]
    ):
      self._receive()

  def run(self, expression: str) -> Any:
    """The value of a JavaScript expression; RuntimeError: it throws.

    That of a promise is what it resolves to.
    """
    answer = self.call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if "exceptionDetails" in answer:
      raise RuntimeError(json.dumps(answer["exceptionDetails"]))
    return answer["result"].get("value")

  def resize(self, width: int, height: int, scale: float = 1) -> None:
    """Makes the window so large, in CSS pixels of `scale` device pixels."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=scale,
      mobile=width < 600,
    )

  def prefer(self, **features: str) -> None:
    """Sets media features, such as prefers_color_scheme="dark"."""
    self.call(
      "Emulation.setEmulatedMedia",
      features=[
        {"name": name.replace("_", "-"), "value": value}
        for name, value in features.items()
      ],
    )

  def photograph(self, top: int = 0, height: int | None = None) -> bytes:
    """A PNG of the window, or of a part of the page as wide as it."""
    view = self.call("Page.getLayoutMetrics")["cssLayoutViewport"]
    clip = {
      "x": 0,
      "y": top,
      "width": view["clientWidth"],
      "height": height or view["clientHeight"],
      "scale": 1,
    }
    shot = self.call(
      "Page.captureScreenshot", clip=clip, captureBeyondViewport=True
    )
    return base64.b64decode(shot["data"])

  def _receive(self, timeout_s: float = 60) -> dict[str, Any]:
    """The next message; events are kept."""
    end = time.monotonic() + timeout_s
    while b"\0" not in self._rest:
      left = end - time.monotonic()
      if left <= 0 or not select.select([self._answers], [], [], left)[0]:
        raise TimeoutError("Chromium does not answer")
      data = os.read(self._answers, 2**20)
      if not data:
        raise RuntimeError("Chromium ended")
      self._rest += data
    message, self._rest = self._rest.split(b"\0", 1)
    message = json.loads(message)
    if "method" in message:
      self.events.append(message)
    return message


@contextlib.contextmanager
def opened(executable: str) -> Iterator[Page]:
  """Starts a browser and ends it."""
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    commands_in, commands = os.pipe()
    answers, answers_out = os.pipe()
    # The protocol wants 3 and 4. The first pipe has the lowest descriptors, so
    # that neither overwrites what the other is copied from.
    command = f'exec "$@" 3<&{commands_in} 4>&{answers_out}'
    process = subprocess.Popen(
      [
        *("bash", "-c", command, "chromium", executable),
        *("--headless=new", "--remote-debugging-pipe", "--disable-gpu"),
        *("--no-sandbox", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-dev-shm-usage"),
        *("--hide-scrollbars", f"--user-data-dir={profile}"),
      ],
      pass_fds=(commands_in, answers_out),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(commands_in)
    os.close(answers_out)
    try:
      yield Page(commands, answers)
    finally:
      os.close(commands)
      os.close(answers)
      process.terminate()
      try:
        process.wait(10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
  """Photographs a page; see the top of the file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("page", type=Path)
  parser.add_argument("picture", type=Path)
  parser.add_argument("--width", type=int, default=1000)
  parser.add_argument("--height", type=int, default=1600)
  parser.add_argument("--scale", type=float, default=1)
  parser.add_argument("--top", type=int, default=0)
  parser.add_argument("--script", default="", help="JavaScript to run before")
  parser.add_argument("--dark", action="store_true")
  given = parser.parse_args()
  executable = find()
  if executable is None:
    parser.error(f"none of {', '.join(NAMES)} is installed")
  with opened(executable) as page:
    page.resize(given.width, 900, given.scale)
    page.prefer(prefers_color_scheme="dark" if given.dark else "light")
    page.open(given.page)
    if given.script:
      print(page.run(given.script))
      time.sleep(0.6)  # What moves comes to rest.
    given.picture.write_bytes(page.photograph(given.top, given.height))


if __name__ == "__main__":
  main()
