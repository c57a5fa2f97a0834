"""Shows a built dataset as one HTML page that needs nothing but a browser.

  python data_prep/browse.py DIR [--out=FILE.html] [--clips=24] [--seed=0]

DIR is the folder of a dataset, or one above that holds exactly one. The page
has the counts by split and class, what the flow means, the files that were
rejected, and frames and flow of some clips. Every stored record is read once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging


def define_flags(values: flags.FlagValues) -> None:
  """Adds this program's flags to `values`."""
  flags.DEFINE_string(
    "out",
    None,
    "Page to write, replaced if it exists; by default the dataset's name with"
    " .html, in the current folder.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "clips", 24, "Clips to show.", lower_bound=0, flag_values=values
  )
  flags.DEFINE_integer(
    "seed", 0, "Of the choice of the clips.", lower_bound=0, flag_values=values
  )


def run(
  values: flags.FlagValues, folder: str | os.PathLike, *, progress: bool = True
) -> int:
  """Writes the page of the dataset in `folder` and prints where it is.

  Returns:
    The exit code: 0; 1 after an error that is explained on stderr; 130 after
    Ctrl-C.
  """
  # Not above: wrong flags are answered without what reads and draws.
  from twostream_jax.data.dataset import open_dataset
  from twostream_jax.files import words
  from twostream_jax.report.browse import render_dataset
  from twostream_jax.report.shell import write_page

  try:
    data = open_dataset(folder)
    out = Path(values.out or f"{data.name}.html")
    if out.is_dir():
      # Before the dataset is read, which can take long.
      raise IsADirectoryError(
        f"--out={out} is a folder; pass the name of a file"
      )
    page = render_dataset(
      data, num_clips=values.clips, seed=values.seed, progress=progress
    )
    try:
      write_page(out, page)
    except OSError as error:
      # Where writing fails, the system does not say in which file.
      raise OSError(
        error.errno, f"no page was written: {error.strerror}", str(out)
      ) from error
  except (ValueError, OSError) as error:
    lines = [line.strip() for line in str(error).splitlines()]
    print(f"error: {words.printable(' '.join(lines))}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("interrupted; no page was written", file=sys.stderr)
    return 130
  print(f"{out.absolute()} ({len(page.encode()) / 2**20:.1f} MiB)")
  return 0


def main(argv: Sequence[str]) -> int:
  """Runs the program on the flags of the command line."""
  if len(argv) != 2:
    print(
      "error: pass the folder of one dataset: python data_prep/browse.py DIR"
      f" (given: {' '.join(argv[1:]) or 'nothing'})",
      file=sys.stderr,
    )
    return 1
  logging.set_verbosity(logging.WARNING)
  return run(flags.FLAGS, argv[1])


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
