r"""UCF-101 with LSTMs and a feature fusion network on two streams.

Paper: Wu et al. 2015, "Modeling Spatial-Temporal Clues in a Hybrid Deep
Learning Framework for Video Classification" (1504.01561).
Published: top-1 91.3 %, mean of 3 splits.

  python data_prep/build_tfds.py --dataset=ucf101 --videos=UCF-101 \
    --annotations=ucfTrainTestlist --split=1 --flow=tvl1 --bound=20 \
    --out=data/ucf101_1
  python data_prep/convert_weights.py vgg19-dcbb9e9d.pth \
    --backbone=vgg19 --out=weights/vgg19.safetensors
  python -m twostream_jax.main --config=configs/ucf101_hybrid.py

VGG-19 on frames from ImageNet weights (torchvision's), CNN-M on stacks of flow
from random ones. An LSTM of 1024 and 512 units reads fc6 of each stream in
time; the regularised fusion network, of 200 units a layer, reads the means of
both. The rule "weighted" takes the LSTMs and the fusion network, which is the
paper's final score; it chose the weights by cross-validation, here they are
equal. "average" takes all five stages.

From memory and uncertain: that fc6 is read; the flow (TV-L1 here); for the
LSTMs batches of 10, a learning rate of 1e-4 and 150,000 steps (here batches of
16, which divide over devices, and as many clips); for the fusion network the
weights of the penalties, 3e-5 for each. Its learning rate of 0.7, from memory
as well, is not used: 0.02 and a limit on the gradient are this recipe's choice,
and so are the number of steps, the 25 frames a video and that features are
standardised. The streams are trained as in the papers before it: temporal as in
ucf101_simonyan14, spatial with the schedule of ucf101_wang15 and the crops, the
jitter of colours and the balance of classes of ucf101_simonyan14.
"""

from twostream_jax.configs import default, ucf101_simonyan14


def get_config():
  """Two streams and three stages on their features."""
  config = ucf101_simonyan14.get_config()
  with config.unlocked():
    config.spatial_lstm = default.get_features("lstm", ("spatial",))
    config.temporal_lstm = default.get_features("lstm", ("temporal",))
    config.fusion_network = default.get_features(
      "regularised", ("spatial", "temporal")
    )
  config.stages = (
    "spatial",
    "temporal",
    "spatial_lstm",
    "temporal_lstm",
    "fusion_network",
  )

  spatial = config.spatial
  spatial.model.name = "vgg19"
  spatial.model.dropout_rate = 0.9
  spatial.model.fields = {}
  spatial.init.weights = "weights/vgg19.safetensors"
  spatial.total_steps = 10_000
  spatial.optim.learning_rate = 0.001
  spatial.optim.boundaries = (4_000, 8_000)
  spatial.optim.multipliers = ()

  config.features.num_frames = 25
  for stage in (config.spatial_lstm, config.temporal_lstm):
    stage.model.fields = {"hidden_sizes": (1024, 512), "output": "last"}
    stage.batch_size = 16
    stage.total_steps = 94_000
    stage.optim.learning_rate = 1e-4
    stage.optim.schedule = "constant"
  network = config.fusion_network
  network.model.fields = {"hidden": 200}
  network.batch_size = 256
  network.total_steps = 5_000
  network.optim.learning_rate = 0.02
  network.optim.momentum = 0.0
  network.optim.max_grad_norm = 1.0
  network.optim.weight_decay = 3e-5
  network.optim.penalised = "fusion/kernel"
  network.optim.l1 = 3e-5
  network.optim.l21 = 3e-5

  config.fusion.rules = ("average", "weighted")
  config.fusion.weights = (0.0, 0.0, 1.0, 1.0, 1.0)
  config.fusion.fit_split = ""
  return config
