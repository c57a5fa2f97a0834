"""A finished run in seconds: every kind of stage, weights as they are drawn.

Only the training is left out: features, scores, fusion and report are made by
the run itself, from checkpoints that say they are the last ones.
"""

from configs import default
from tests import tiny_config
from twostream_jax import checkpoints, train
from twostream_jax.data.dataset import identity
from twostream_jax.experiment import run
from twostream_jax.stages import create, warm_start

BOTH = ("spatial", "temporal")


def get_config(directory):
  """Two streams, a network of their features and a joint one."""
  config = tiny_config.get_config()
  config.data.dir = str(directory)
  with config.unlocked():
    config.network = default.get_features("regularised", BOTH)
    config.joint = default.get_joint(BOTH)
  config.stages = (*BOTH, "network", "joint")
  config.spatial.feature = "fc6"
  config.features.num_frames = 3
  config.network.model.fields = {"hidden": 7}
  config.joint.input = config.temporal.input
  for name in ("network", "joint"):
    config[name].batch_size = 8
    config[name].total_steps = 3
  config.fusion.rules = (
    "average",
    "average_logits",
    "weighted",
    "fitted_weights",
  )
  config.fusion.weights = (1.0, 2.0, 1.0, 0.5)
  return config


def make(config, workdir, data):
  """Runs a config whose stages begin with their last checkpoint."""
  for name in config.stages:
    run.compute_features(config, name, workdir, data, train.Watch())
    save_checkpoint(config, name, workdir, data)
  return run.train_and_evaluate(config, workdir, data)


def save_checkpoint(config, name, workdir, data, step=None):
  """Writes a stage's fresh weights as its checkpoint, by default its last."""
  stage = create.create_stage(config, name, data, workdir)
  facts = {"config": config.to_dict()} | stage.facts()
  facts[warm_start.ORIGINS] = stage.origins()
  with checkpoints.open_manager(
    workdir / name / "checkpoints", keep=2
  ) as manager:
    checkpoints.save(
      manager,
      step or stage.total_steps,
      stage.init_state(),
      progress={"window": [], "next_batch": 0, "rng": [0, 0]},
      metadata=identity(data) | facts,
    )
    checkpoints.finish(manager)
