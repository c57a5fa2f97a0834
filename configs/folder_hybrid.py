r"""The hybrid on your own labelled videos, with ImageNet weights.

  python data_prep/build_tfds.py --dataset=folder --videos=VIDEOS \
    --short_side=128 --bound=8 --out=data/my_videos
  python -m twostream_jax.main --config=configs/folder_hybrid.py \
    --config.data.dir=data/my_videos --config.spatial.init.weights=vgg16.npz

Spatial: the convolutions of a VGG-16 that was trained on ImageNet, frozen but
for the last stage, under new layers. Temporal: a reduced CNN-M with batch norm,
from random weights. Then an LSTM on each stream's features and the regularised
fusion network on both (Wu et al. 2015, 1504.01561), and the fusions of all five
scores. Small enough for 2 CPU cores. Where labels name a direction, turn
mirroring off, as in folder_two_stream.
"""

from twostream_jax.configs import default, folder_two_stream


def get_config():
  """112 px; VGG-16 at full width, the temporal network reduced."""
  config = folder_two_stream.get_config()
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
  spatial.model.name = "vgg16"
  spatial.model.width = 1.0
  spatial.model.dropout_rate = 0.5
  # Convolutions alone are enough; the layers after them are learned here.
  spatial.init.partial = True
  spatial.feature = "fc6"
  spatial.batch_size = 16
  spatial.total_steps = 300
  spatial.optim.name = "adam"
  spatial.optim.learning_rate = 0.0003
  spatial.optim.weight_decay = 0.0
  spatial.optim.max_grad_norm = 0.0
  spatial.optim.multipliers = (
    ("backbone/conv[1-4]", 0.0),
    ("backbone/conv5", 0.1),
  )

  for stage in (config.spatial_lstm, config.temporal_lstm):
    stage.model.fields = {"hidden_sizes": (128, 64), "output": "mean"}
    stage.batch_size = 16
    stage.total_steps = 300
    stage.optim.name = "adam"
    stage.optim.learning_rate = 0.0005
    stage.optim.max_grad_norm = 1.0
  network = config.fusion_network
  network.batch_size = 16
  network.total_steps = 400
  network.optim.learning_rate = 0.02
  network.optim.momentum = 0.0
  network.optim.max_grad_norm = 1.0
  network.optim.penalised = "fusion/kernel"
  network.optim.l1 = 1e-4
  network.optim.l21 = 1e-4

  config.features.num_frames = 16
  config.fusion.rules = ("average", "average_logits", "weighted")
  # Motion counts twice (Wang et al. 2015), in every pair.
  config.fusion.weights = (1.0, 2.0, 1.0, 2.0, 2.0)
  return config
