"""The recipes of the folder configs/, importable from anywhere.

  from twostream_jax.configs import default

In a clone the modules of this package are the files of the top-level folder
configs/; a wheel has them beside this file, in recipes/.
"""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "recipes"
# Folder of the recipes.
FOLDER = (
  _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"
)
__path__ = [str(FOLDER)]


def list_recipes(folder: Path = FOLDER) -> dict[str, Path]:
  """Returns the files of the recipes in a folder by name, without default."""
  found = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
  found.pop("default", None)
  return found


def find_recipe(name: str, folder: Path = FOLDER) -> Path:
  """Returns the file of a recipe.

  Args:
    name: Name of a recipe in `folder` ("quickstart"), whatever the current
      folder holds; or path of a file; or, where there is no such file, a recipe
      as the clone has it ("configs/quickstart.py").
    folder: Folder of the recipes.

  Raises:
    ValueError: There is neither; the message lists the recipes.
    OSError: The file can't be read.
  """
  path = Path(name)
  files = {file.stem: file for file in folder.glob("*.py")}
  # A config is run: none that happens to lie here is taken for a recipe.
  if name in files or not path.is_file():
    if (
      path.parent not in (Path(), Path("configs"))
      or path.suffix not in ("", ".py")
      or path.stem not in files
    ):
      raise ValueError(
        f"no recipe {name!r}: it is not a file, and {folder} has"
        f" {', '.join(list_recipes(folder)) or 'none'}"
      )
    path = files[path.stem]
  with open(path, "rb"):
    return path
