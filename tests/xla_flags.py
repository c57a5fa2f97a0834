"""What XLA is told in tests, also in the processes that they start."""

from importlib import metadata

# Most of the time of a few small steps goes into compiling them.
COMPILE_FAST = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# jaxlib 0.12 ends where it is told what it no longer knows.
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
  COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"


def with_devices(count):
  """For the environment of a process: so many CPU devices."""
  return f"--xla_force_host_platform_device_count={count} {COMPILE_FAST}"
