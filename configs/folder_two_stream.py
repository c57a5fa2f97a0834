r"""Two streams on your own labelled videos, small enough for 2 CPU cores.

  python data_prep/build_tfds.py --dataset=folder --videos=VIDEOS \
    --short_side=128 --bound=8 --out=data/my_videos
  python -m twostream_jax.main --config=configs/folder_two_stream.py \
    --config.data.dir=data/my_videos

Both networks start from random weights, so a small set is learned from motion
more than from appearance. Where labels name a direction, turn mirroring off:
--config.spatial.input.flip=False --config.temporal.input.flip=False
--config.eval.protocol=10x5.
"""

from twostream_jax.configs import default


def get_config():
  """112 px, reduced width."""
  config = default.get_config()
  config.data.dir = "data/my_videos"

  for stage in (config.spatial, config.temporal):
    stage.batch_size = 32
    stage.input.image_size = 112
    stage.input.crop_scale = (0.8, 1.0)
    stage.optim.warmup_steps = 20
    stage.optim.max_grad_norm = 1.0

  config.spatial.model.name = "resnet18"
  config.spatial.model.width = 0.25
  config.spatial.model.dropout_rate = 0.5
  config.spatial.total_steps = 400
  config.spatial.optim.learning_rate = 0.05

  config.temporal.model.name = "cnn_m"
  config.temporal.model.width = 0.25
  config.temporal.model.dropout_rate = 0.3
  config.temporal.model.fields = {"normalisation": "batch"}
  config.temporal.input.stack_length = 10
  # People seen from afar move by a fraction of a pixel at 128 px.
  config.temporal.input.flow_scale = 0.5
  config.temporal.total_steps = 800
  config.temporal.optim.learning_rate = 0.02

  config.train.log_every = 25
  config.train.validate_every = 100
  config.train.checkpoint_every = 100

  config.eval.protocol = "10x10"

  # Wang et al. 2015: motion counts twice.
  config.fusion.weights = (1.0, 2.0)
  return config
