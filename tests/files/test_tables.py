"""Tables as text."""

from twostream_jax.files import tables


def test_words_begin_and_numbers_end_below_each_other():
  rows = [["model", "top1", "top5"], ["spatial", "0.5 (0.4-0.6)", "1.000"]]
  assert tables.columns(rows, words=1).splitlines() == [
    "model             top1   top5",
    "spatial  0.5 (0.4-0.6)  1.000",
  ]
  assert tables.columns([["a", "bb"], ["ccc", ""]]) == "a    bb\nccc"
  assert tables.columns([]) == ""


def test_cells_of_markdown_stay_cells():
  table = tables.markdown(("a", "b|c"), [(1, "x|y\nz"), (None, "\x1b")])
  assert table.splitlines() == [
    "| a | b\\|c |",
    "|---|---|",
    r"| 1 | x\|y\nz |",
    r"| None | \x1b |",
  ]
