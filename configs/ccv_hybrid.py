r"""Columbia Consumer Video with LSTMs and a feature fusion network.

Paper: Wu et al. 2015, "Modeling Spatial-Temporal Clues in a Hybrid Deep
Learning Framework for Video Classification" (1504.01561).
Published: mean average precision 83.5 % over the 20 classes.

  python data_prep/build_tfds.py --dataset=ccv --videos=CCV_videos \
    --annotations=CCV --keep_unlabelled --allow_missing --flow=tvl1 \
    --bound=20 --out=data/ccv
  python data_prep/convert_weights.py vgg19-dcbb9e9d.pth \
    --backbone=vgg19 --out=weights/vgg19.safetensors
  python -m twostream_jax.main --config=configs/ccv_hybrid.py

A video shows any number of classes, and 1996 of the 9317 show none: each class
is scored by a sigmoid, and the clips without a label stay as negatives.
Networks, schedules and what is uncertain are those of ucf101_hybrid, but videos
are drawn uniformly, not over the classes; weights are torchvision's. What
--allow_missing leaves out (many of these YouTube videos are gone) makes the
number another test set's. In the paper the LSTMs alone are far below the
networks they read on these long clips (43.3 and 54.7 % against 75.0 and 58.9 %,
from memory); the gain is in the combination.
"""

from twostream_jax.configs import ucf101_hybrid


def get_config():
  """The hybrid, on CCV."""
  config = ucf101_hybrid.get_config()
  for stage in (config.spatial, config.temporal):
    stage.balanced = False
  config.data.dir = "data/ccv"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=ccv --videos=CCV_videos"
    " --annotations=CCV --keep_unlabelled --allow_missing --flow=tvl1"
    " --bound=20 --out=data/ccv"
  )
  return config
