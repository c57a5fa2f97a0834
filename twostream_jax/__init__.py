"""Two-stream video classification in JAX, from videos to a report."""

__version__ = "0.1.0"
