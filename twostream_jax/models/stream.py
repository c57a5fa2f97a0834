"""One stream: a backbone over the frames, or flow stacks, of a sample."""

from flax import linen as nn


class Stream(nn.Module):
  """Applies an image backbone to one modality and averages over time.

  Averaging logits over t is the segmental consensus of temporal segment
  networks (Wang et al. 2016, eq. 1); with t = 1 it is a plain image network
  (Simonyan & Zisserman 2014).

  Attributes:
    modality: "rgb" or "flow": the input it reads.
    backbone: maps [b h w c] to logits [b n] and a dict of features.
  """

  modality: str
  backbone: nn.Module

  @nn.compact
  def __call__(self, inputs, *, train: bool):
    """Maps {modality: float [b t h w c]} to logits [b n] and features.

    Features keep the time axis: [b t ...].
    """
    images = inputs[self.modality]
    b, t = images.shape[:2]
    logits, features = self.backbone(
      images.reshape((b * t,) + images.shape[2:]), train=train
    )
    features = {
      name: value.reshape((b, t) + value.shape[1:])
      for name, value in features.items()
    }
    return logits.reshape((b, t, -1)).mean(axis=1), features
