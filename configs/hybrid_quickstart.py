"""The hybrid in small: streams, their LSTMs, a fusion network, all fusions.

  python -m twostream_jax.main --config=configs/hybrid_quickstart.py

The road of Wu et al. 2015 (1504.01561) on the embedded set of the quickstart
(12 classes = 3 appearances x 4 motions): two streams are trained on frames and
on stacks of flow; their features of 8 windows a video are stored; an LSTM on
each, and the regularised fusion network on both, are trained on them; then
every rule of score fusion is applied. Known ceilings: 1/4 for what sees frames
alone, 1/3 for what sees flow alone, 1 for what sees both. Under 10 minutes on 2
CPU cores.
"""

from twostream_jax.configs import default, quickstart


def get_config():
  """The quickstart's streams and three stages on their features."""
  config = quickstart.get_config()
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
  config.features.num_frames = 8
  for stage in (config.spatial_lstm, config.temporal_lstm):
    stage.model.fields = {"hidden_sizes": (64, 32)}
    stage.total_steps = 200
    stage.optim.name = "adam"
    stage.optim.learning_rate = 0.001
    stage.optim.max_grad_norm = 1.0
  network = config.fusion_network
  network.total_steps = 300
  network.optim.learning_rate = 0.05
  network.optim.momentum = 0.0
  network.optim.max_grad_norm = 1.0
  network.optim.penalised = "fusion/kernel"
  network.optim.l1 = 1e-4
  network.optim.l21 = 1e-4

  config.fusion.rules = (
    "average",
    "average_logits",
    "fitted_weights",
    "svm",
    "logistic",
    "adaptive",
  )
  config.report.note = (
    "The best that each can do on this set: what sees frames alone 1/4, what"
    " sees flow alone 1/3, what sees both 1."
  )
  return config
