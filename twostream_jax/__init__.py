"""Two-stream video classification in JAX, from videos to a report."""

__version__ = "0.1.0"


def load(workdir, protocol=None):
  """Opens a finished run to score any video with it.

  `load("runs/my_videos").predict("clip.mp4").top("average")` gives the most
  probable classes; see `twostream_jax.predict.predictor.load`.
  """
  # Not above: the package itself is imported in no time.
  from twostream_jax.predict import predictor

  return predictor.load(workdir, protocol)
