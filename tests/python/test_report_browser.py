"""The report as a browser lays it out, at the widths of a desk and of a phone. Opt-in: skips where no Chromium is."""

import pytest
from browser_pipe import PROGRAM, Browser
from test_report import CONTRACT, report, training_lines, write_run

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium: apt-get install chromium to run these")

# Elements wider than their place, and texts of charts outside their picture.
TOO_WIDE = """(() => {
  const out = [];
  document.querySelectorAll('details').forEach(d => d.open = true);
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) out.push(`page ${page.scrollWidth} > ${page.clientWidth}`);
  for (const e of document.querySelectorAll('main, main *:not(svg *):not(svg)')) {
    if (getComputedStyle(e).display !== 'inline' && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
      out.push(`${e.tagName} ${e.className} ${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.slice(0, 60)}`);
  }
  for (const t of document.querySelectorAll('svg text, svg circle')) {
    const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
    if (a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1)
      out.push(`outside its chart: ${t.tagName} ${t.textContent} in ${t.ownerSVGElement.getAttribute('aria-label')}`);
  }
  return out; })()"""


@pytest.fixture(scope="module")
def browser():
    one = Browser()
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    long = "a_run_with_quite_a_long_name_" * 4
    for number, name in enumerate(("distilled-seed0", "distilled-seed1", long)):
        lines = training_lines(20.0 + number, steps=20_000 if number == 2 else 30, tiny=1.25e-7, huge=-1.23456e17)
        lines.append({"step": 30, "phase": "eval", "teacher_perplexity": 12.5, "targets": 4096 + number, "kl": 0.123456,
                      "top1_agreement": 0.5, "top5_overlap": 0.25, "ce": 2.5})  # fmt: skip
        lines.append({"step": 30, "phase": "checkpoint", "saved_step": 20, "bytes": 406978, "write_seconds": 3.5e-4})
        module = {**CONTRACT["modules"][0], "from": "/a/rather/long/path/of/the/recipe/that/said/it/my_recipe.ini:37"}
        contract = {**CONTRACT, "modules": [module] * 3}
        recipe = f"[data]\nvalidation = /data/{'deep/' * 20}{number}  # {'/a/long/path' * 9}\n"
        write_run(folder / name, lines, recipe=recipe, contract=contract)
    done = report(*sorted(folder.iterdir()), "--output", folder / "report.html")
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_is_wider_than_its_place(browser, page, width):
    browser.open(page, width)
    assert browser.ask("innerWidth") == width
    assert browser.ask(TOO_WIDE) == []


def test_on_a_phone_each_value_says_its_column(browser, page):
    browser.open(page, 400)
    cell = "document.querySelector('td[data-label=kl]')"
    assert browser.ask(f"getComputedStyle({cell}, '::before').content") == '"kl"'
    browser.open(page, 1200)
    assert browser.ask(f"getComputedStyle({cell}, '::before').content") == "none"


def test_dark_is_dark(browser, page):
    browser.open(page, 1200, dark=True)
    dark = browser.ask("getComputedStyle(document.body).backgroundColor")
    browser.open(page, 1200)
    assert (dark, browser.ask("getComputedStyle(document.body).backgroundColor")) == ("rgb(20, 23, 27)", "rgb(255, 255, 255)")
