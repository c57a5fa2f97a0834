"""The report of a run: one HTML file that needs nothing but a browser."""

from twostream_jax.report.gallery import Example, choose_examples
from twostream_jax.report.page import (
  ReportData,
  render_report,
  stages_by_protocol,
  write_report,
)

__all__ = [
  "Example",
  "ReportData",
  "choose_examples",
  "render_report",
  "stages_by_protocol",
  "write_report",
]
