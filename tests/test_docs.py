"""The documentation: links, words, and what it repeats of the code."""

import functools
import importlib.util
import posixpath
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from absl import flags

import twostream_jax.main  # noqa: F401  # It defines flags.
from configs import default
from data_prep import browse, build_tfds, convert_weights
from tests.paths import ROOT
from tests.recipes import get_config
from twostream_jax.export import __main__ as export
from twostream_jax.files.workdir import flatten
from twostream_jax.fuse import __main__ as fuse
from twostream_jax.predict import __main__ as predict
from twostream_jax.summary import __main__ as summary

PAGES = sorted(
  str(path.relative_to(ROOT))
  for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"))
)
# House style: terms that have a plainer word.
BANNED = (
  *("likewise", "anew", "whence", "lest", "stands for", "stand for"),
  *("in words", "the other way round", "nobody", "may have been"),
  *("that which", r"(?<!there )is no (?!longer\b|way\b)\w+"),
)


@functools.cache
def read(path):
  return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def prose(path):
  """A page without its fenced blocks."""
  return re.sub(r"^( *)```.*?^\1```$", "", read(path), flags=re.M | re.S)


@functools.cache
def load(name):
  """A program of docs/, which is no package."""
  path = ROOT / f"docs/{name}.py"
  spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def anchors(path):
  """Anchors of a page's headings, on the repository's page and on the site."""
  found = set()
  for heading in re.findall(r"^#+ (.+)$", prose(path), re.M):
    text = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
    hosted, built = re.sub(r"\s", "-", text), re.sub(r"[\s-]+", "-", text)
    assert hosted == built, f"{path}: two anchors for {heading!r}"
    assert hosted not in found, f"{path}: {heading!r} occurs twice"
    found.add(hosted)
  return found


def test_pages_are_there():
  assert {"README.md", "CONTRIBUTING.md", "docs/index.md"} <= set(PAGES)
  assert len(read("README.md").splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
  for link in links:
    if re.match(r"https?://", link):
      continue
    path, _, anchor = link.partition("#")
    target = posixpath.normpath(
      posixpath.join(posixpath.dirname(page), path) if path else page
    )
    assert (ROOT / target).is_file(), f"{page}: {link}"
    if anchor:
      assert anchor in anchors(target), f"{page}: {link}"


def test_every_page_is_reached():
  """From the README by a link, and from the site's navigation."""
  linked = set(re.findall(r"\]\((docs/\w+\.md)", read("README.md")))
  pages = {page for page in PAGES if page.startswith("docs/")}
  assert pages - linked == {"docs/index.md"}
  nav = re.findall(r": (\w+\.md)$", read("mkdocs.yml"), re.M)
  outside = set(load("hooks").OUTSIDE.values())
  assert sorted(nav) == sorted({p.partition("/")[2] for p in pages} | outside)


def test_figures_of_the_quickstart_are_the_same_everywhere():
  pattern = r"^\| model \| top-1 \| best possible \|\n(?:\|.*\n)+"
  first, second = (
    re.search(pattern, read(page), re.M)[0]
    for page in ("README.md", "docs/index.md")
  )
  assert first == second


def test_scripts_are_those_of_the_package():
  project = tomllib.loads(read("pyproject.toml"))["project"]
  named = re.findall(r"^\| `(twostream-\w+)` \|", read("docs/index.md"), re.M)
  assert set(named) == set(project["scripts"])


PROGRAMS = {
  "data_prep/build_tfds.py": build_tfds,
  "data_prep/browse.py": browse,
  "data_prep/convert_weights.py": convert_weights,
  "twostream_jax.main": None,
  "twostream_jax.export": export,
  "twostream_jax.fuse": fuse,
  "twostream_jax.predict": predict,
  "twostream_jax.summary": summary,
}


def commands():
  """Commands of all pages, as page and words."""
  return [
    (page, shlex.split(line, comments=True))
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", read(page), re.S)
    for line in block.replace("\\\n", " ").splitlines()
  ]


def known_flags(program):
  values = flags.FlagValues()
  if PROGRAMS[program] is None:
    return set(flags.FLAGS)  # Its module defines them.
  PROGRAMS[program].define_flags(values)
  return set(values)


def has_setting(config, key):
  for part in key.split("."):
    if part not in config:
      return False
    config = config[part]
  return True


def test_commands_have_flags_that_there_are():
  seen = set()
  for page, words in commands():
    program = next((word for word in words if word in PROGRAMS), None)
    if program is None:
      continue
    seen.add(program)
    given = [w[2:].partition("=")[::2] for w in words if w.startswith("--")]
    known, config = known_flags(program), default.get_config()
    for name, value in given:
      if name == "config" and value != "CONFIG":
        config = get_config(Path(value).stem)
      if name.startswith("config."):
        found = has_setting(config, name.removeprefix("config."))
      else:
        found = {name, name.removeprefix("no")} & known
      assert found, f"{page}: {program} has no --{name}"
  assert seen >= PROGRAMS.keys() - {"twostream_jax.summary"}


def test_the_first_commands_are_those_of_a_walkthrough():
  """So they are run, see test_walkthroughs."""
  section = read("README.md").partition("## Your own videos")[2]
  lines = re.search(r"```sh\n(.*?)```", section, re.S)[1].splitlines()
  assert len(lines) == 3
  assert all(line in read("docs/walkthroughs.md") for line in lines)


@pytest.mark.parametrize("page", PAGES)
def test_words_are_plain(page):
  text = " ".join(read(page).split())
  for word in BANNED:
    found = re.search(rf"\b{word}\b", text, re.IGNORECASE)
    assert not found, f"{page}: {found[0]!r}"


@pytest.mark.parametrize(
  "text, is_banned",
  [
    ("x, which is no stream", True),
    ("there is no such file", False),
    ("it is no longer there", False),
    ("the latest one", False),
  ],
)
def test_only_those_words_are_banned(text, is_banned):
  found = [word for word in BANNED if re.search(rf"\b{word}\b", text)]
  assert bool(found) == is_banned


def table(page, name):
  """The table between the marks of a name."""
  between = read(page).partition(f"<!-- {name} -->\n\n")[2]
  return between.partition(f"\n<!-- /{name} -->")[0]


def test_the_settings_are_those_of_the_code():
  """Where this fails: python docs/generate.py."""
  page = "docs/configuration.md"
  tables = load("generate").settings_tables()
  assert set(tables) == set(re.findall(r"<!-- ([\w.]+) -->", read(page)))
  for name, expected in tables.items():
    assert table(page, name) == expected, name


def test_every_setting_is_documented():
  named = re.findall(r"^\| `([\w.]+)` \|", read("docs/configuration.md"), re.M)
  config = default.get_config()
  expected = set(flatten(default.get_stream("flow").to_dict()))
  for key in flatten(config.to_dict()):
    stage, _, rest = key.partition(".")
    if stage not in config.stages:
      expected.add(f"config.{key}")
    else:
      expected.add(rest)
  fields = {"config.data.synthetic", "model.fields"}
  expected = {
    next((f for f in fields if key.startswith(f"{f}.")), key)
    for key in expected
  }
  assert expected <= set(named)


def test_published_numbers_are_those_of_the_code():
  """Where this fails: python docs/generate.py."""
  assert (
    table("docs/recipes.md", "published") == load("generate").published_table()
  )


@pytest.mark.slow
def test_sizes_are_those_of_the_code():
  """Where this fails: python docs/generate.py."""
  assert table("docs/recipes.md", "sizes") == load("generate").sizes_table()


@functools.cache
def sources():
  """The code, with adjacent strings as one."""
  return [
    re.sub(r'"\s+f?"', "", path.read_text(encoding="utf-8"))
    for folder in ("twostream_jax", "data_prep")
    for path in (ROOT / folder).rglob("*.py")
  ]


def quoted():
  text = read("docs/troubleshooting.md")
  return re.findall(r"^```text\n(.*?)\n```$", text, re.M | re.S)


def is_in_the_code(message):
  """Whether the parts between "…" are in one place, in this order."""
  pieces = [piece.strip() for piece in message.split("…")]
  pattern = ".{0,200}?".join(re.escape(p) for p in pieces if len(p) > 1)
  return any(re.search(pattern, text, re.S) for text in sources())


@pytest.mark.parametrize("message", quoted())
def test_quoted_messages_are_those_of_the_code(message):
  assert is_in_the_code(message)


def test_other_messages_are_not():
  assert not is_in_the_code("no dataset in … or above (looked for …)")
  assert not is_in_the_code("build one with … no dataset in …")


def test_messages_are_the_likely_ones():
  assert len(quoted()) >= 25
