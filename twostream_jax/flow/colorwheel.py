"""Flow as colour: hue is direction, saturation is speed."""

import numpy as np

# Lengths of the six transitions of the wheel (Baker et al. 2011, "A Database
# and Evaluation Methodology for Optical Flow", after Shepard's perceptual
# spacing): red-yellow, yellow-green, green-cyan, cyan-blue, blue-magenta,
# magenta-red.
_TRANSITIONS = (15, 6, 4, 11, 13, 6)


def color_wheel() -> np.ndarray:
  """Returns the colours of the wheel, float64 [55, 3], RGB in 0..1."""
  corners = np.array(
    [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], float
  )
  ends = np.roll(corners, -1, axis=0)
  parts = [
    start + (end - start) * np.arange(n)[:, None] / n
    for start, end, n in zip(corners, ends, _TRANSITIONS, strict=True)
  ]
  return np.concatenate(parts)


def flow_to_rgb(flow: np.ndarray, max_speed: float) -> np.ndarray:
  """Draws flow with the Middlebury colour wheel.

  Args:
    flow: pixels per step, x then y (x right, y down), [..., 2].
    max_speed: the speed, in pixels, drawn at full saturation; faster motion is
      drawn darker, no motion white.

  Returns:
    RGB uint8 [..., 3].

  Raises:
    ValueError: the last axis is not 2, or `max_speed` is not positive.
  """
  if flow.shape[-1] != 2:
    raise ValueError(f"flow needs a last axis of x, y; its shape: {flow.shape}")
  if max_speed <= 0:
    raise ValueError(f"max_speed must be positive: {max_speed}")
  x, y = flow[..., 0] / max_speed, flow[..., 1] / max_speed
  speed = np.hypot(x, y)[..., None]
  wheel = color_wheel()
  position = (np.arctan2(-y, -x) / np.pi + 1) / 2 * len(wheel)
  low = np.floor(position).astype(int)
  part = (position - low)[..., None]
  hue = (1 - part) * wheel[low % len(wheel)]
  hue += part * wheel[(low + 1) % len(wheel)]
  rgb = np.where(speed <= 1, 1 - speed * (1 - hue), 0.75 * hue)
  return np.round(255 * rgb).astype(np.uint8)
