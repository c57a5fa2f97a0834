r"""UCF-101 with temporal segments: three windows of a video in every sample.

Paper: Wang et al. 2016, "Temporal Segment Networks: Towards Good Practices for
Deep Action Recognition" (1608.00859).
Published: top-1 94.0 %, mean of 3 splits (93.5 on split 1; spatial 85.7 %,
temporal 87.9 %), all with BN-Inception; no published number of these networks.

  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 \
    --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20 \
    --out=data/ucf101_1
  python data_prep/convert_weights.py resnet50-0676ba61.pth \
    --backbone=resnet50 --out=weights/resnet50.safetensors
  python -m twostream_jax.main --config=configs/ucf101_tsn.py

A sample is one frame, or one stack of 5 flow fields, from each third of the
video; the loss is on the mean of their logits (segmental consensus). Both
streams start from ImageNet weights (torchvision's; the first kernel averaged
and repeated for flow) and keep all batch norms but the first as they are.
Crops have sides of 256, 224, 192 and 168 of 256 pixels, at a corner or the
centre. From the code that the authors released, not the paper: sides of a crop
are at most one step of that list apart, gradients are limited to a norm of 40
(spatial) and 20 (temporal), and the first kernel of the temporal stream learns
at five times the rate.

What differs from the paper: ResNet-50 takes the place of BN-Inception, so the
published numbers are not this recipe's to reach; the streams are fused after
the softmax, where the paper fuses before it; and its third stream, of warped
flow (94.2 %), is absent. On a smaller accelerator divide batch_size and
learning_rate by the same number, and multiply the steps.
"""

from twostream_jax.configs import default


def get_config():
  """Sections 3.2, 3.3 and 4.2; one split."""
  config = default.get_config()
  config.data.dir = "data/ucf101_1"
  config.data.build_command = (
    "python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101"
    " --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20"
    " --out=data/ucf101_1"
  )

  for stage in (config.spatial, config.temporal):
    stage.batch_size = 256
    stage.feature = "pool"
    stage.model.name = "resnet50"
    stage.model.fields = {"partial_batch_norm": True}
    stage.init.weights = "weights/resnet50.safetensors"
    stage.input.num_segments = 3
    stage.input.crop = "corner"
    stage.input.corner_scales = (1.0, 0.875, 0.75, 0.65625)
    stage.input.max_distort = 1
    stage.input.subtract_mean_flow = False
    stage.optim.schedule = "step"

  spatial = config.spatial
  spatial.model.dropout_rate = 0.8
  spatial.total_steps = 4_500
  spatial.optim.learning_rate = 0.001
  spatial.optim.boundaries = (2_000, 4_000)
  spatial.optim.max_grad_norm = 40.0

  temporal = config.temporal
  temporal.model.dropout_rate = 0.7
  temporal.input.stack_length = 5
  temporal.total_steps = 20_000
  temporal.optim.learning_rate = 0.005
  temporal.optim.boundaries = (12_000, 18_000)
  temporal.optim.max_grad_norm = 20.0
  temporal.optim.multipliers = (("backbone/conv1", 5.0),)

  config.eval.protocol = "25x10"
  config.fusion.rules = ("average", "weighted")
  config.fusion.weights = (1.0, 1.5)
  return config
