"""The report and a comparison in a real browser: console, requests, links, width on a phone and a screen, colours, print."""

import re

import pytest
from browser import Browser, command
from test_compare import compare
from test_compare import evaluation as compared
from test_report import make_run, with_details, with_merge

pytestmark = pytest.mark.skipif(
    command() is None, reason="no browser on the PATH (Debian: apt-get install --no-install-recommends chromium)"
)

SECTIONS = {
    "report": ["scores", "tokenizer", "data", "embeddings", "instructions", "training", "ablations", "answers", "stages", "sources"],
    "compare": ["differences", "answers", "settings"],
}  # fmt: skip
# What is wider than the page and can't be scrolled to on its own.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect(), kept = element.closest('.scroll');
  return box.right > document.documentElement.clientWidth + 1 && (!kept || kept === element || PRINTED)
}).map(element => element.outerHTML.slice(0, 80))
"""
# Contrast of text and what it stands on (WCAG 2.2, 1.4.3: at least 4.5), for all text that is not empty.
PALE = """
(() => {
  const parse = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > .99) return colour;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.data.trim()) continue;
    const ink = parse(element.closest('svg') ? style.fill : style.color);
    const [light, dark] = [luminance(ink), luminance(ground(element))].sort((a, b) => b - a);
    const ratio = (light + .05) / (dark + .05);
    if (ratio < 4.5) found.add(`${element.tagName}.${element.className.baseVal ?? element.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with every part that it may have, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder)
    with_details(run)
    with_merge(run)
    flags = (f"--leaks={run.data / 'leaks'}", f"--merge={run.data / 'merge'}")
    done = run(*flags, evaluated=("base", "merge", "sft"))
    assert done.returncode == 0, done.stderr
    first, second = compared(folder / "base", flagged=1), compared(folder / "cpt", bits=19, right=17, flagged=2)
    done = compare(first, second, folder / "out")
    assert done.returncode == 0, done.stderr
    return {"report": run.data / "report" / "report.html", "compare": folder / "out" / "compare.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture(params=SECTIONS)
def page(request, pages):
    return request.param, pages[request.param]


def test_the_console_stays_empty_and_nothing_else_is_asked_for(browser, page):
    browser.open(page[1])
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.complaints() == []
    assert browser.requests() == [page[1].as_uri()]


def test_what_the_page_must_not_do_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta charset=utf-8><script>console.warn('w'); setTimeout(() => { throw Error('e') })</script><img src=gone.png>"
        "<p style='width: 2000px; color: #999'>x</p>"
    )
    browser.open(bad)
    browser.ask("new Promise(done => setTimeout(done, 100))")
    told = browser.complaints()
    assert any(line.startswith("warning") for line in told)
    assert any("Uncaught" in line for line in told)
    assert any("ERR_FILE_NOT_FOUND" in line for line in told)
    assert browser.requests() == [bad.as_uri(), (tmp_path / "gone.png").as_uri()]
    assert len(browser.ask(TOO_WIDE.replace("PRINTED", "false"))) == 1
    assert browser.ask(PALE) == ["P. 2.85"]


def test_all_sections_are_there_and_each_link_leads_to_something_that_shows(browser, page):
    name, path = page
    browser.open(path)
    assert browser.ask("[...document.querySelectorAll('section')].map(section => section.id)") == SECTIONS[name]
    assert browser.ask(
        "[...document.querySelectorAll('section')].every(s => s.offsetHeight > 100 && s.querySelector('h2'))"
    )
    links = browser.ask("[...new Set([...document.querySelectorAll('a')].map(link => link.getAttribute('href')))]")
    assert {f"#{section}" for section in SECTIONS[name]} <= set(links)
    for link in links:
        assert link.startswith("#")
        # Going there opens what the target is hidden in.
        seen = f"location.hash = '{link}', document.getElementById('{link[1:]}')?.checkVisibility({{contentVisibilityAuto: true}})"
        assert browser.ask(seen), link


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(browser, page, width):
    browser.open(page[1], width=width)
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.ask("document.documentElement.clientWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask(TOO_WIDE.replace("PRINTED", "false")) == []
    assert (
        browser.ask(
            "Math.min(...[...document.querySelectorAll('p, td, li')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        >= 11
    )


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"media": "print"}, {"media": "print", "dark": True}], ids=str)
def test_all_text_stands_out_from_its_ground(browser, page, look):
    browser.open(page[1], **look)
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(23, 25, 27)" if look == {"dark": True} else "rgb(255, 255, 255)")
    assert browser.ask(PALE) == []


def test_print_shows_what_is_folded_and_fits_the_paper(browser, page):
    browser.open(page[1], width=718, media="print")  # A4 without its margins, at 96 dots an inch
    hidden = "[...document.querySelectorAll('details > :not(summary)')].filter(e => !e.checkVisibility({contentVisibilityAuto: true})).length"
    assert browser.ask(hidden) == 0
    assert not browser.ask("document.querySelector('nav').checkVisibility()")
    assert browser.ask(TOO_WIDE.replace("PRINTED", "true")) == []
    browser.open(page[1], width=718)
    assert browser.ask(hidden) > 0
    pages = len(re.findall(rb"/Type /Page\b", browser.pdf()))
    assert 1 < pages < 25
