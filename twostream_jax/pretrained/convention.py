"""What images a set of weights expects."""

import dataclasses

CHANNEL_ORDERS = ("RGB", "BGR")


@dataclasses.dataclass(frozen=True)
class InputConvention:
  """How the pixels were prepared that weights were trained on.

  A network trained on (pixel - mean) / std, with pixels in 0..max_value and
  channels in channel_order. `rgb_mean` and `rgb_std` say the same of pixels in
  0..1 in the order R, G, B: what `preprocess.Preprocess` takes.

  Attributes:
    channel_order: "RGB" or "BGR"; also the order of mean and std.
    max_value: 1 or 255, the value of white.
    mean: of each channel, in 0..max_value.
    std: of each channel, in 0..max_value; 1 where nothing was divided.
  """

  channel_order: str
  max_value: float
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def __post_init__(self):
    if self.channel_order not in CHANNEL_ORDERS:
      raise ValueError(
        f"channel_order must be RGB or BGR, got {self.channel_order!r}"
      )
    if self.max_value not in (1, 255):
      raise ValueError(f"max_value must be 1 or 255, got {self.max_value}")
    if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
      raise ValueError(
        "mean and std must have three values, std above 0;"
        f" got {self.mean} and {self.std}"
      )

  @property
  def rgb_mean(self) -> tuple[float, float, float]:
    """Mean of R, G, B in 0..1."""
    return self._as_rgb(self.mean)

  @property
  def rgb_std(self) -> tuple[float, float, float]:
    """Standard deviation of R, G, B in 0..1."""
    return self._as_rgb(self.std)

  def as_rgb(self) -> "InputConvention":
    """The same for the same weights with an RGB first layer, in 0..1."""
    return InputConvention("RGB", 1.0, self.rgb_mean, self.rgb_std)

  def flow_scale(self, bound: float) -> float:
    """Pixels of motion that should become an input of 1.

    Flow of -bound..bound then spreads as pixels of 0..255 would, which is the
    range that the kernels of a cross-modality initialisation are made for
    (Wang et al. 2016, arXiv 1608.00859, section 3.2).

    Args:
      bound: of the stored flow, in pixels.
    """
    return 2.0 * bound * sum(self.rgb_std) / 3.0

  def _as_rgb(self, values) -> tuple[float, float, float]:
    if self.channel_order == "BGR":
      values = values[::-1]
    red, green, blue = (float(value) / self.max_value for value in values)
    return red, green, blue


# torchvision's and timm's.
IMAGENET = InputConvention(
  "RGB", 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
# Of the networks that Caffe trained, and of their copies.
CAFFE = InputConvention("BGR", 255.0, (103.939, 116.779, 123.68), (1, 1, 1))
