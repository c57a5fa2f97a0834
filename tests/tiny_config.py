"""A whole run in seconds: the tests' stand-in for a recipe."""

from configs import default


def get_config():
  """Two very narrow CNN-Ms, a few steps, on 12 synthetic classes."""
  config = default.get_config()
  config.data.dir = "unset"
  config.data.synthetic = {"train": 2, "validation": 1, "test": 1}
  config.data.validation_split = "validation"
  config.data.threads = 1
  config.data.processes = 0
  for stage in (config.spatial, config.temporal):
    stage.batch_size = 8
    stage.total_steps = 8
    stage.model.name = "cnn_m"
    stage.model.width = 0.02
    stage.model.fields = {"normalisation": "none"}
    stage.input.image_size = 64
    stage.optim.warmup_steps = 2
    stage.optim.max_grad_norm = 1.0
  config.temporal.input.stack_length = 2
  config.train.log_every = 2
  config.train.validate_every = 4
  config.train.checkpoint_every = 2
  config.eval.protocol = "2x1"
  config.fusion.rules = ("average", "fitted_weights")
  config.fusion.fit_split = "validation"
  config.report.num_examples = 3
  # Compiles each network once more; tests/experiment/test_hybrid.py has it on.
  config.report.class_maps = False
  return config
