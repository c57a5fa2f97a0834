"""The embedded default: two streams that fail alone and succeed together.

  python -m twostream_jax.main --config=configs/quickstart.py

Renders 12 classes = 3 appearances x 4 motions as video files, computes flow,
builds the dataset, trains both streams and fuses them. A single frame can't
tell the motion and flow can't tell the appearance, so the best possible top-1
is 0.25 for the spatial stream, 0.33 for the temporal one and 1 for the fusion
(see twostream_jax/data/synthetic.py). About 80 seconds on 2 CPU cores.
"""

from twostream_jax.configs import default


def get_config():
  """The quickstart: small networks, 64 px."""
  config = default.get_config()
  config.data.dir = "data/quickstart"
  config.data.synthetic = {"train": 40, "validation": 8, "test": 10}
  config.data.validation_split = "validation"
  # The clips are small: to start processes would take longer than they save.
  config.data.processes = 0

  for stage in (config.spatial, config.temporal):
    stage.batch_size = 32
    stage.input.image_size = 64
    stage.input.crop_scale = (0.8, 1.0)
    stage.input.max_ratio = 1.1
    stage.optim.warmup_steps = 20
    stage.optim.max_grad_norm = 1.0

  config.spatial.model.name = "resnet18"
  config.spatial.model.width = 0.125
  config.spatial.model.dropout_rate = 0.0
  config.spatial.total_steps = 120
  config.spatial.optim.learning_rate = 0.05

  config.temporal.model.name = "cnn_m"
  config.temporal.model.width = 0.25
  # Learns in half the steps that it takes with the paper's LRN.
  config.temporal.model.fields = {"normalisation": "batch"}
  config.temporal.model.dropout_rate = 0.3
  config.temporal.input.stack_length = 5
  config.temporal.input.flow_scale = 2.0
  config.temporal.total_steps = 160
  config.temporal.optim.learning_rate = 0.05
  # Less, and the stream learns the training clips' hues by heart.
  config.temporal.optim.weight_decay = 0.02

  config.train.log_every = 20
  config.train.validate_every = 60
  config.train.checkpoint_every = 60

  config.eval.protocol = "8x1"
  config.eval.crop_fraction = 1.0
  config.features.crop_fraction = 1.0

  config.fusion.rules = ("average", "fitted_weights")
  config.fusion.fit_split = "validation"
  config.report.note = (
    "The best that each can do on this set: spatial 1/4 (a frame shows the"
    " colour, not which of 4 motions), temporal 1/3 (flow shows the motion, not"
    " which of 3 colours), fused 1."
  )
  return config
