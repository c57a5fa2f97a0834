"""The report in a browser: what it is to do there, and what it must not."""

import base64

import cv2
import numpy as np
import pytest

from tests import chromium
from tests.report.test_report import make_data, make_multi_label
from twostream_jax.report import write_report

pytestmark = [
  pytest.mark.optional,
  pytest.mark.skipif(
    chromium.find() is None,
    reason=f"no Chromium: none of {', '.join(chromium.NAMES)} is installed",
  ),
]

CARDS = "[...document.querySelectorAll('.card')]"
SHOWN = f"{CARDS}.filter(c => c.offsetParent !== null)"
CHANGE = "dispatchEvent(new Event('change', {bubbles: true}))"
MANY = tuple(f"Pretending to do something {i}" for i in range(40))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """Files of reports, by what is special about them."""
  folder = tmp_path_factory.mktemp("reports")
  reports = {
    "few": make_data(num_examples=12),
    "many": make_data(MANY, per_class=3, num_examples=3),
    "multi-label": make_multi_label(),
  }
  for name, data in reports.items():
    write_report(folder / f"{name}.html", data)
  return {name: folder / f"{name}.html" for name in reports}


@pytest.fixture(scope="module")
def browser():
  with chromium.opened(chromium.find()) as page:
    yield page


@pytest.fixture
def few(browser, pages):
  """The report of a few classes, freshly loaded, as on a desk."""
  browser.resize(1200, 900)
  browser.prefer(prefers_color_scheme="light")
  browser.open(pages["few"])
  yield browser
  assert complaints(browser) == []


def complaints(page):
  """What went wrong in the page so far, and what it asked of a network."""
  found = []
  for event in page.events:
    method, told = event["method"], event["params"]
    if method == "Runtime.exceptionThrown":
      found.append(told["exceptionDetails"])
    if method == "Runtime.consoleAPICalled" and told["type"] != "log":
      found.append(told)
    if method == "Log.entryAdded" and told["entry"]["level"] == "error":
      found.append(told["entry"])
    if method == "Network.requestWillBeSent":
      url = told["request"]["url"]
      if not url.startswith(("file:", "data:")):
        found.append(url)
  return found


def test_complaints_are_heard(browser, tmp_path):
  """What the other tests hold to be empty is not always so."""
  path = tmp_path / "bad.html"
  path.write_text(
    "<img src='http://127.0.0.1:9/x.png'><script>undefined.x</script>"
    "<script>console.error('no')</script>"
  )
  browser.open(path)
  found = complaints(browser)
  browser.events.clear()
  texts = " ".join(map(str, found))
  assert "127.0.0.1" in texts and "TypeError" in texts and "'no'" in texts


@pytest.mark.parametrize("name", ["few", "many", "multi-label"])
@pytest.mark.parametrize("width", [1200, 768, 390, 320])
def test_nothing_is_wider_than_the_screen(browser, pages, name, width):
  browser.resize(width, 844)
  browser.open(pages[name])
  assert browser.run("document.documentElement.scrollWidth") <= width
  # What scrolls sideways in a box of its own may be wider.
  wide = browser.run(
    "[...document.querySelectorAll('main *')].filter(e =>"
    " !e.closest('.scroll, pre, .hidden') && !e.closest('svg *')"
    f" && e.getBoundingClientRect().right > {width} + 1"
    ").map(e => e.outerHTML.slice(0, 80))"
  )
  assert wide == []
  assert complaints(browser) == []


def test_clips_are_filtered_by_what_fusion_did(few):
  total = few.run(f"{CARDS}.length")
  assert few.run(f"{SHOWN}.length") == total == 12
  kinds = few.run(
    "[...document.querySelectorAll('.pills button')]"
    ".map(b => b.dataset.show).filter(k => k)"
  )
  assert "rescued" in kinds and len(kinds) > 1
  left = 0
  for kind in kinds:
    # The number in the button is a target too.
    few.run(f"document.querySelector('[data-show={kind}] b').click()")
    shown = few.run(f"{SHOWN}.map(c => c.dataset.kind)")
    assert set(shown) == {kind}
    left += len(shown)
    tally = few.run("document.querySelector('.tally').textContent")
    assert tally == f"{len(shown)} of 12"
  assert left == total
  few.run("document.querySelector('[data-show=\"\"]').click()")
  assert few.run(f"{SHOWN}.length") == total


def test_clips_are_filtered_by_class_and_by_who_is_right(few):
  cards = few.run(f"{CARDS}.map(c => [c.dataset.classes, c.dataset.right])")

  def choose(selector, value):
    select = f"document.querySelector('{selector}')"
    few.run(f"{select}.value = '{value}'")
    few.run(f"{select}.{CHANGE}")
    return few.run(f"{SHOWN}.length")

  assert choose('[data-model="0"]', "0") == sum(r[0] == "0" for _, r in cards)
  assert choose('[data-model="2"]', "1") == sum(
    (r[0], r[2]) == ("0", "1") for _, r in cards
  )
  name = cards[0][0]
  count = choose("[data-by=class]", name)
  assert count == sum((c, r[0], r[2]) == (name, "0", "1") for c, r in cards)
  assert choose('[data-model="0"]', "") >= count
  # Nothing fits: it is said.
  few.run("document.querySelector('[data-show=agreed]').click()")
  choose('[data-model="0"]', "0")
  none = "document.querySelector('.none').offsetParent !== null"
  assert few.run(f"{SHOWN}.length") == 0 and few.run(none)


def test_confusion_matrices_are_sorted_together(few):
  orders = few.run(
    "JSON.parse(document.querySelector('.sorter').dataset.facts).orders"
  )
  for number in (2, 4, 0):
    few.run(f"document.querySelector('.sorter select').selectedIndex={number}")
    few.run(f"document.querySelector('.sorter select').{CHANGE}")
    for place in few.run(
      "[...document.querySelectorAll('[data-cells]')].map(m => ["
      "[...m.querySelectorAll('.row')]"
      ".map(g => g.transform.baseVal[0].matrix.f),"
      "JSON.parse(m.dataset.cells),"
      "[...m.querySelectorAll('.filled')].map(g =>"
      " [g.transform.baseVal[0].matrix.f, g.transform.baseVal[0].matrix.e]),"
      "m.querySelector('.frame').x.baseVal.value])"
    ):
      rows, cells, places, left = place
      assert np.argsort(rows).tolist() == orders[number]
      for (true, guess, _), (y, x) in zip(cells, places, strict=True):
        assert (y, x - left) == pytest.approx((rows[true], rows[guess]))


def test_a_cell_is_read_where_it_is_pointed_at(few):
  few.run("document.querySelector('.sorter select').selectedIndex = 1")
  few.run(f"document.querySelector('.sorter select').{CHANGE}")
  few.run("document.getAnimations().forEach(a => a.finish())")
  title = few.run(
    "(() => {const g = document.querySelectorAll('.filled')[3];"
    "const at = g.querySelector('rect').getBoundingClientRect();"
    "g.dispatchEvent(new PointerEvent('pointermove', {bubbles: true,"
    "clientX: at.x + at.width / 2, clientY: at.y + at.height / 2}));"
    "return g.querySelector('title').textContent})()"
  )
  said = few.run("document.querySelector('.sorter .note').textContent")
  pair, count = title.split(": ")
  true, guess = pair.split(" → ")
  assert said.startswith(f"spatial: {true} ")
  assert (f"taken for {guess} " in said) == (true != guess)
  assert f" in {count.split()[0]} of 10 clips." in said


def test_a_large_confusion_matrix_is_drawn_anew(browser, pages):
  browser.resize(1200, 900)
  browser.open(pages["many"])
  href = "document.querySelector('.heats image').getAttribute('href')"
  before = decode(browser.run(href))
  select = "document.querySelector('.sorter select')"
  browser.run(f"{select}.selectedIndex = {select}.options.length - 1")
  browser.run(f"{select}.{CHANGE}")
  after = decode(browser.run(href))
  order = browser.run(
    "JSON.parse(document.querySelector('.sorter').dataset.facts).orders"
  )[-1]
  assert order != sorted(order)
  np.testing.assert_array_equal(after, before[np.ix_(order, order)])
  assert complaints(browser) == []


def decode(uri):
  """The opacities of a PNG in a data: URI."""
  data = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
  return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[..., 3]


def test_tables_are_sorted_by_a_click(few):
  column = (
    "[...document.querySelector('.sortable').tBodies[0].rows]"
    ".map(r => r.cells[%d].textContent)"
  )
  head = "document.querySelectorAll('.sortable th button')[%d].click()"
  few.run(head % 0)
  names = few.run(column % 0)
  assert names == sorted(names)
  few.run(head % 1)
  figures = [int(x.rstrip("%")) for x in few.run(column % 2)]
  assert figures == sorted(figures, reverse=True) and len(set(figures)) > 1


def test_without_scripts_everything_is_there(browser, pages):
  browser.resize(390, 844)
  browser.call("Emulation.setScriptExecutionDisabled", value=True)
  try:
    browser.open(pages["few"])
    assert browser.run(f"{SHOWN}.length") == 12
    controls = "[...document.querySelectorAll('.filter, .sorter')]"
    assert browser.run(f"{controls}.every(c => c.offsetParent === null)")
    assert browser.run("document.querySelectorAll('.filled').length") > 10
  finally:
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_have_contrast(few, scheme):
  few.prefer(prefers_color_scheme=scheme)
  image = cv2.imdecode(
    np.frombuffer(few.photograph(), np.uint8), cv2.IMREAD_GRAYSCALE
  )
  assert image.shape == (900, 1200)
  page = np.median(image)
  assert (page > 200) if scheme == "light" else (page < 60)
  # Ink of the other end, and enough of it to be text.
  ink = image < 90 if scheme == "light" else image > 170
  assert 0.005 < ink.mean() < 0.3
  # Of every element with text of its own, by WCAG 2's formula: 3 for all.
  worst = few.run(CONTRAST)
  assert worst[0] >= 3, worst


CONTRAST = """(() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => numbers(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const below = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((numbers(c)[3] ?? 1) === 1) return c;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(
      n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg, script, option") || !e.offsetParent) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(below(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 120)];
  }
  return worst;
})()"""
