r"""Two streams on Something-Something v2, 174 classes.

Paper: Simonyan & Zisserman 2014 (1406.2199), with a ResNet-50 on one frame as
the spatial network, a CNN-M-2048 on 10 flow fields as the temporal one, and the
average of class probabilities. No clip is mirrored, in training or testing: the
classes name directions ("pushing something from left to right").
Published: no published number of these two networks.

  python data_prep/build_tfds.py --dataset=ssv2 --annotations=labels \
    --videos=20bn-something-something-v2 --out=data/ssv2
  python -m twostream_jax.main --config=configs/ssv2_two_stream.py

Order matters in this set and one frame shows little of it: 2D networks on RGB
frames reach about 30 to 37 % top-1 in published zoos (mmaction2's TSN-R50:
28.6 to 36.9 %, with 8 to 16 segments and ImageNet weights). Made for
accelerators.
"""

from twostream_jax.configs import default


def get_config():
  """The mission's recipe, at full size."""
  config = default.get_config()
  config.data.dir = "data/ssv2"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=ssv2 --annotations=labels"
    " --videos=20bn-something-something-v2 --out=data/ssv2"
    "\n  (labels: the folder of something-something-v2-*.json)"
  )

  for stage in (config.spatial, config.temporal):
    stage.batch_size = 256
    stage.input.flip = False

  config.spatial.model.name = "resnet50"
  config.spatial.total_steps = 30_000
  config.spatial.optim.learning_rate = 0.1
  config.spatial.optim.warmup_steps = 1000
  config.spatial.optim.weight_decay = 1e-4

  config.temporal.model.name = "cnn_m"
  config.temporal.input.stack_length = 10
  config.temporal.total_steps = 80_000
  # Simonyan & Zisserman 2014, section 5.
  config.temporal.optim.learning_rate = 0.01
  config.temporal.optim.schedule = "step"
  config.temporal.optim.boundaries = (50_000, 70_000)

  config.eval.protocol = "25x5"
  # Equal weights: the score average.
  config.fusion.weights = (1.0, 1.0)
  return config
