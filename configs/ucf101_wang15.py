r"""UCF-101 with very deep streams: VGG-16 twice, both from ImageNet weights.

Paper: Wang et al. 2015, "Towards Good Practices for Very Deep Two-Stream
ConvNets" (1507.02159).
Published: top-1 91.4 %, mean of 3 splits (90.9 on split 1); spatial 78.4 %,
temporal 87.0 %.

  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 \
    --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20 \
    --out=data/ucf101_1
  python data_prep/convert_weights.py vgg16-397923af.pth \
    --backbone=vgg16 --out=weights/vgg16.safetensors
  python -m twostream_jax.main --config=configs/ucf101_wang15.py

The weights are torchvision's; reading them takes the extra "torch" once. The
temporal stream starts from them too (cross-modality): the first kernel is
averaged over R, G, B and repeated for the 20 channels of flow.

Crops are the paper's: height and width drawn from 256, 224, 192 and 168 of 256
pixels, each for itself, at a corner or the centre, and resized to 224 x 224.

What differs from the paper: its weights are Caffe's VGG-16, and its batch size
is not stated: 256 is this recipe's choice. Flow is used as it is, without
subtraction of its mean, of which the paper says nothing. On a smaller
accelerator divide batch_size and learning_rate by the same number, and multiply
the steps.
"""

from twostream_jax.configs import default


def get_config():
  """Sections 3 and 4; one split."""
  config = default.get_config()
  config.data.dir = "data/ucf101_1"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101"
    " --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20"
    " --out=data/ucf101_1"
  )

  for stage in (config.spatial, config.temporal):
    stage.batch_size = 256
    stage.feature = "fc6"
    stage.model.name = "vgg16"
    stage.model.dropout_rate = 0.9
    stage.model.fields = {}
    stage.init.weights = "weights/vgg16.safetensors"
    stage.input.crop = "corner"
    # 256, 224, 192 and 168 of 256 pixels, in any pair.
    stage.input.corner_scales = (1.0, 0.875, 0.75, 0.65625)
    stage.input.max_distort = 3
    stage.input.subtract_mean_flow = False
    stage.optim.schedule = "step"

  config.spatial.total_steps = 10_000
  config.spatial.optim.learning_rate = 0.001
  config.spatial.optim.boundaries = (4_000, 8_000)

  # 0.9 after fc6; the spatial network has 0.9 after both.
  config.temporal.model.fields = {"fc7_dropout_rate": 0.8}
  config.temporal.input.stack_length = 10
  config.temporal.total_steps = 30_000
  config.temporal.optim.learning_rate = 0.005
  config.temporal.optim.boundaries = (10_000, 20_000)

  config.train.checkpoint_every = 1000
  config.eval.protocol = "25x10"
  # Motion counts twice.
  config.fusion.rules = ("average", "weighted")
  config.fusion.weights = (1.0, 2.0)
  return config
