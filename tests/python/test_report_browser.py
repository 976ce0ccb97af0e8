"""The report as a browser lays it out, at the widths of a desk and of a phone. Opt-in: skips where no Chromium is."""

import pytest
from browser_pipe import PROGRAM, Browser
from report_examples import curve, profile, sweep
from test_report import CONTRACT, report, training_lines, write_run
from test_report_results import tool, written

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


RESULTS = ("sweep", "profile", "budgets", "pareto", "all")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of each kind, with names as long as a real model's and with numbers at both ends, and all of it in one."""
    folder = tmp_path_factory.mktemp("results")
    long = sweep(layers=12)
    long["candidates"][0] |= {"module": "student.bert.encoder.layer.11.attention.output." + "a_rather_long_name_" * 3, "seconds": 1.25e-7, "drop": 61.25}
    long["candidates"][-1]["reason"] = "/a/path/without/a/blank" * 6
    with_energy = profile(joules=True)
    with_energy["rows"][1]["energy"] |= {"joules": None, "reason": "the_counter_was_reset_" * 5}
    with_energy["rows"][0]["modules"][0]["module"] = "layers." + "deeply.nested." * 6 + "q_proj"
    files = [written(folder, name, made) for name, made in (("sweep", long), ("profile", with_energy), ("budgets", curve()))]
    for file in files:
        assert tool(f"report_{file.stem}", file).returncode == 0
    assert tool("report_pareto", *files, "--output", folder / "pareto.html").returncode == 0
    run = write_run(folder / "run", training_lines(9.0))
    assert tool("report", run, *files, "--output", folder / "all.html").returncode == 0
    return {name: folder / f"{name}.html" for name in RESULTS}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("name", RESULTS)
def test_results_fit_at_every_width(browser, pages, name, width, dark):
    browser.open(pages[name], width, dark)
    assert browser.ask("innerWidth") == width
    assert browser.ask(TOO_WIDE) == []
    colour = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    # What is drawn is seen against what it is drawn on: no mark, line or text has the colour of its card.
    alike = """(() => { const card = getComputedStyle(document.querySelector('figure')).backgroundColor;
      return [...document.querySelectorAll('svg text, svg .dot')].filter(e => getComputedStyle(e).fill === card).length
        + [...document.querySelectorAll('svg .run, svg .bad')].filter(e => getComputedStyle(e).stroke === card).length })()"""
    assert browser.ask(alike) == 0


@pytest.mark.parametrize("name", RESULTS)
def test_texts_of_a_chart_do_not_lie_on_each_other(browser, pages, name):
    browser.open(pages[name], 1200)
    overlapping = """(() => { const out = [];
      document.querySelectorAll('details').forEach(d => d.open = true);
      for (const svg of document.querySelectorAll('svg')) {
        const boxes = [...svg.querySelectorAll('text')].filter(t => t.textContent.length > 2).map(t => [t.textContent, t.getBoundingClientRect()]);
        boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
          if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4)
            out.push(`${a} and ${b} in ${svg.getAttribute('aria-label')}`); })); }
      return out; })()"""
    assert browser.ask(overlapping) == []


@pytest.mark.parametrize("name", RESULTS)
def test_results_print_on_paper_without_a_word_of_a_script(browser, pages, name, tmp_path):
    browser.heard.clear()
    browser.open(pages[name], 1200, dark=True)
    assert browser.ask("document.scripts.length") == 0
    browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"  # ink is for what is drawn
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    data = browser.pdf()
    assert data.startswith(b"%PDF-") and len(data) > 10_000
    said = [message for message in browser.heard if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")]
    assert said == []
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
