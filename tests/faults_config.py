"""A run of every kind of stage that chooses its checkpoints, in seconds."""

from configs import default
from tests import tiny_config

BOTH = ("spatial", "temporal")


def get_config():
  """Two streams, an LSTM, a fusion network and a joint one, on tiny videos.

  Validations fall between checkpoints, and one stream keeps an average.
  """
  config = tiny_config.get_config()
  with config.unlocked():
    config.lstm = default.get_features("lstm", ("temporal",))
    config.network = default.get_features("regularised", BOTH)
    config.joint = default.get_joint(BOTH)
  config.stages = (*BOTH, "lstm", "network", "joint")
  config.spatial.feature = "fc6"
  config.temporal.model.fields = {"normalisation": "batch"}
  config.temporal.optim.ema_decay = 0.5
  config.features.num_frames = 3
  config.lstm.model.fields = {"hidden_sizes": (6,), "output": "mean"}
  config.network.model.fields = {"hidden": 7}
  config.network.optim.penalised = "fusion/kernel"
  config.network.optim.l21 = 1e-3
  config.network.optim.max_grad_norm = 1.0
  config.joint.input = config.temporal.input
  for name in config.stages:
    config[name].batch_size = 8
    config[name].total_steps = 10
  config.train.log_every = 3
  config.train.validate_every = 2
  config.train.checkpoint_every = 3
  config.selection.metric = "loss"
  config.fusion.rules = ("average", "fitted_weights")
  return config
