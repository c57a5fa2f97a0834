"""Settings that every test shares: eight CPU devices, strict ranks."""

import os

# Before the first import of jax, anywhere.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# grain reads absl flags, which only a program's main would parse.
flags.FLAGS.mark_as_parsed()
