"""The report of a run: one HTML file that needs nothing but a browser."""

from twostream_jax.report.choice import choose_examples
from twostream_jax.report.facts import SplitFacts
from twostream_jax.report.gallery import ClassMap, Example
from twostream_jax.report.headline import stages_by_protocol
from twostream_jax.report.page import (
  ReportData,
  render_report,
  write_report,
)

__all__ = [
  "ClassMap",
  "Example",
  "ReportData",
  "SplitFacts",
  "choose_examples",
  "render_report",
  "stages_by_protocol",
  "write_report",
]
