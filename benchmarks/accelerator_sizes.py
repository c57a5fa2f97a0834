"""Sizes of `accelerator.py`: at full size, and for a CPU."""

import dataclasses
from collections.abc import Mapping

from twostream_jax import models


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How large everything is; see `FULL` and `SMALL`.

  Attributes:
    copied_mib: MiB of the array whose passes measure the memory.
    matrix: Side of the matrices whose product measures the peak.
    flow: Height and width of the images of optical flow, pixels.
    pairs: Pairs at once, in rising order.
    networks: Networks that are timed, keys of `step_sides.NETWORKS`.
    backbones: Backbones whose logits and losses are compared.
    batch: Videos per training step, by dtype.
    size: Height and width of the networks' input, pixels.
    width: Factor on the networks' channels.
    repeats: Counted turns of each side.
    steps: Training steps of the losses and of the checkpoint.
    views: Views of the evaluated video.
    clips: Videos of the dataset that the loader reads.
    loaded: Batches that are timed, four times as many of RGB.
    compiled: Whether torch.compile takes part.
  """

  copied_mib: int
  matrix: int
  flow: tuple[int, int]
  pairs: tuple[int, ...]
  networks: tuple[str, ...]
  backbones: tuple[str, ...]
  batch: Mapping[str, int]
  size: int
  width: float
  repeats: int
  steps: int
  views: int
  clips: int
  loaded: int
  compiled: bool


FULL = Sizes(
  copied_mib=4096,
  matrix=8192,
  flow=(256, 340),
  pairs=(8, 128),
  networks=("vgg16", "cnn_m", "resnet50", "two_stream"),
  backbones=tuple(models.BACKBONES),
  batch={"bfloat16": 128, "float32": 64},
  size=224,
  width=1.0,
  repeats=5,
  steps=50,
  views=250,
  clips=24,
  loaded=24,
  compiled=True,
)
SMALL = Sizes(
  copied_mib=16,
  matrix=256,
  flow=(32, 40),
  pairs=(2,),
  networks=("cnn_m",),
  backbones=("cnn_m",),
  batch={"bfloat16": 2, "float32": 2},
  size=64,
  width=0.05,
  repeats=1,
  steps=3,
  views=4,
  clips=4,
  loaded=1,
  compiled=False,  # torch.compile takes a minute for the smallest.
)
