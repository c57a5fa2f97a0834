"""HTML from the files of the folder `templates`.

They hold the markup, Python the plain values that stand in it. Every text is
escaped where it is put in: names of classes, videos and stages come from
strangers.
"""

from pathlib import Path

import jinja2
import markupsafe

_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def render(name: str, **values: object) -> markupsafe.Markup:
  """HTML of a template, which other templates take as it is.

  Args:
    name: file in the folder `templates`.
    **values: what the template names.
  """
  # Only here does text become HTML.
  return markupsafe.Markup(_ENVIRONMENT.get_template(name).render(values))
