"""Adds the pages of the repository that lie outside of docs/ to the site.

Links are written as they work in the repository; here they become links between
the pages of the site.
"""

import posixpath
import re
from typing import Any

# Path in the repository to name on the site.
OUTSIDE = {
  "benchmarks/RESULTS.md": "results.md",
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
  "SECURITY.md": "reporting.md",
}
_LINK = re.compile(r"(\]\()([^)#:\s]+)([)#])")


def on_files(files: Any, config: Any) -> Any:
  """Adds the pages."""
  from mkdocs.structure.files import File

  root = posixpath.dirname(config.config_file_path)
  for path, name in OUTSIDE.items():
    source = posixpath.join(root, path)
    files.append(File.generated(config, name, abs_src_path=source))
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Rewrites the links of a page."""
  name = page.file.src_uri
  paths = {name: path for path, name in OUTSIDE.items()}
  folder = posixpath.dirname(paths.get(name, f"docs/{name}"))

  def rewrite(match: re.Match[str]) -> str:
    path = posixpath.normpath(posixpath.join(folder, match[2]))
    target = OUTSIDE.get(path, posixpath.relpath(path, "docs"))
    return f"{match[1]}{target}{match[3]}"

  return _LINK.sub(rewrite, markdown)
