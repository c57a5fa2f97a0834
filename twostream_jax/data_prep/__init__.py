"""The programs of the folder data_prep/, as modules.

  python -m twostream_jax.data_prep.build_tfds --help

is `python data_prep/build_tfds.py --help` from any folder. In a clone the
modules of this package are the files of the top-level folder data_prep/; a
wheel has them beside this file, in programs/.
"""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "programs"
__path__ = [
  str(
    _INSTALLED
    if _INSTALLED.is_dir()
    else Path(__file__).parents[2] / "data_prep"
  )
]


def runnable(command: str, folder: Path = Path()) -> str:
  """Returns a command with its programs as modules where they are not files.

  Args:
    command: As the docstrings of recipes have it, such as
      "python data_prep/build_tfds.py --dataset=folder".
    folder: Folder that the command is to be run in.
  """
  for path in sorted(Path(__path__[0]).glob("*.py")):
    if not (folder / "data_prep" / path.name).is_file():
      command = command.replace(
        f"python data_prep/{path.name}",
        f"python -m twostream_jax.data_prep.{path.stem}",
      )
  return command
