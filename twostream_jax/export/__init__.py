"""Export: a finished run as programs that need neither flax nor this package.

A folder of one program per stage and platform, weights, fusion rules as plain
numbers, a small runner and a model card; see `write`. Nothing is imported here,
so that the command answers wrong flags at once.
"""

# As JAX names them.
PLATFORMS = ("cpu", "cuda", "tpu")
