r"""UCF-101 with two VGG-16 that are fused at their last convolution.

Paper: Feichtenhofer et al. 2016, "Convolutional Two-Stream Network Fusion for
Video Action Recognition" (1604.06573).
Published: top-1 91.8 % (one tower after the fusion), 92.5 % (and the temporal
tower), mean of 3 splits, both with fusion over time. Fusion of one frame, which
is what this recipe does, is published for VGG-M only (85.96 %, split 1).

  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 \
    --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20 \
    --out=data/ucf101_1
  python data_prep/convert_weights.py vgg16-397923af.pth \
    --backbone=vgg16 --out=weights/vgg16.safetensors
  python -m twostream_jax.main --config=configs/ucf101_conv_fusion.py

The streams are trained first, by the recipe of ucf101_wang15; the weights are
torchvision's. Then a stage joins them: a 1 x 1 convolution on both last maps,
which starts as their sum, and the layers of the spatial network after it. Only
these are trained ("we only propagate back to the injected fusion layer": from
memory). The rule "weighted" averages the joint network and the temporal stream,
as the paper's two towers; "average" takes all three.

What differs from the paper: no 3D convolution and pooling over 5 moments; flow
is TV-L1, not that of Brox et al. 2004; dropout is 0.9 (0.85 there, from
memory); crops are those of ucf101_wang15 in all three stages (there the sides
vary by up to 25 % and the place by as much, from memory). Batch 96 and the
learning rate of 0.001 are the paper's; it lowers the rate when validation stops
improving, where the steps here are this recipe's choice.
"""

from twostream_jax.configs import default, ucf101_wang15


def get_config():
  """Both streams, then the joint network."""
  config = ucf101_wang15.get_config()
  with config.unlocked():
    config.joint = default.get_joint(("spatial", "temporal"))
  config.stages = ("spatial", "temporal", "joint")

  joint = config.joint
  joint.model.name = "conv"
  joint.input = config.temporal.input.copy_and_resolve_references()
  joint.batch_size = 96
  joint.total_steps = 20_000
  joint.optim.learning_rate = 0.001
  joint.optim.schedule = "step"
  joint.optim.boundaries = (14_000,)
  joint.optim.multipliers = (("(spatial|temporal)/conv", 0.0),)

  config.fusion.weights = (0.0, 1.0, 1.0)
  return config
