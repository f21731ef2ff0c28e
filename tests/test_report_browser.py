"""The report as a reader meets it, in headless Chromium: both themes, a phone, paper, the keyboard, contrast, alternative texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from test_report import make_run, passing_bar, put_evaluation, video

from benchmarks.browser import PROGRAM, Browser, browser
from vicc_ray.report import write_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")

# Texts whose contrast against what is behind them is below WCAG's 4.5 to 1 (3 to 1 for large ones), as [contrast, text].
WEAK = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) { return colour; }
    }
    return [255, 255, 255];
  };
  const weak = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement, style = getComputedStyle(node);
    if (!text.data.trim() || node.closest("script, style") || !node.getClientRects().length) { continue; }
    const ink = parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color), paper = behind(node);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < (large ? 3 : 4.5) && !node.closest(".heatmaplayer, .hm")) { weak.push([contrast.toFixed(2), text.data]); }
  }
  return weak;
})()
"""
# What has no name for who cannot see it, as HTML.
NAMELESS = """
[...document.querySelectorAll("img, button, summary, dialog, [role=img], [role=region], pre[tabindex]")]
  .filter((one) => !(one.getAttribute("alt") || one.getAttribute("aria-label") || one.textContent.trim()))
  .filter((one) => !one.closest("dialog:not([open])"))
  .map((one) => one.outerHTML.slice(0, 200))
"""
# Figures are drawn when they come near; the first one is brought there.
DRAWN = (
    "(document.querySelector('.charts .plot').scrollIntoView(), "
    "document.querySelectorAll('.js-plotly-plot .main-svg').length > 0)"
)
OPEN = "for (const one of document.querySelectorAll('details')) { one.open = true; }"


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.html and three.html, with a confusion matrix, classes, neighbours and settings that differ."""
    folder = tmp_path_factory.mktemp("reports")
    videos = [video(folder / f"clip {number}.mp4", passing_bar(12 + 12 * number)) for number in range(2)]
    runs = [make_run(folder / name, videos) for name in ("first", "second", "a third one of a rather long name")]
    for number, run in enumerate(runs):
        confusion = {"RGB-2": {"labels": ["fall", "orbit"], "counts": [[5, 1], [2, 4]]}}
        classes = {"RGB-2": {label: {"queries": 6, "top-1": 0.7} for label in ("fall", "orbit")}}
        rows = [{"name": "RGB-2", "top-1": 0.75}]
        put_evaluation(run, protocol="linear", rows=rows, confusion=confusion, classes=classes)
        (run / "config.yaml").write_text(f"seed: {number}\n")
    write_report(runs[:1], folder / "one.html")
    write_report(runs, folder / "three.html")
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_it_is_drawn_fits_and_is_readable(page: Browser, reports: Path, width: int, dark: bool) -> None:
    page.errors.clear()
    page.open(reports / "three.html", width, 800, dark)
    page.run(OPEN)
    page.until(DRAWN)
    assert page.run("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
    assert page.run(WEAK) == []
    assert page.run(NAMELESS) == []
    levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.errors == [], "its own policy allows all that it does"


def test_one_run_alone(page: Browser, reports: Path) -> None:
    page.open(reports / "one.html")
    page.until(DRAWN)
    levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and set(levels[1:]) == {2}


def test_a_figure_has_the_colours_of_the_theme_and_follows_it(page: Browser, reports: Path) -> None:
    line = "document.querySelector('.js-plotly-plot .scatterlayer path.js-line').style.stroke"
    seen = []
    for dark in (False, True):
        page.open(reports / "three.html", dark=dark)
        page.until(DRAWN)
        seen.append(page.run(line))
    assert seen == ["rgb(28, 93, 153)", "rgb(127, 184, 238)"]
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    page.until(f"{line} === 'rgb(28, 93, 153)'")


def test_the_keyboard_reaches_a_video_and_comes_back(page: Browser, reports: Path) -> None:
    page.open(reports / "one.html")
    page.run("document.querySelector('button.all').focus()")
    page.press("Tab")
    assert page.run("document.activeElement.matches('button.frame')")
    still = page.run("document.querySelectorAll('button.frame img')[1].src")
    page.press("Enter")
    assert page.run("document.querySelector('dialog').open")
    shown = page.run("document.querySelector('dialog img').src")
    assert shown == page.run("document.querySelector('button.frame').dataset.moving") and shown.startswith(
        "data:image/webp"
    )
    assert page.run("document.querySelector('dialog p').textContent") == "query, orbit"
    page.press("Escape")
    assert not page.run("document.querySelector('dialog').open")
    assert page.run("document.activeElement.matches('button.frame')")
    page.run("document.querySelector('button.all').click()")
    assert page.run("document.querySelectorAll('button.frame img')[1].src") != still
    page.run("document.querySelector('button.all').click()")
    assert page.run("document.querySelectorAll('button.frame img')[1].src") == still


def test_on_paper_it_is_light_and_whole(page: Browser, reports: Path) -> None:
    page.open(reports / "three.html", dark=True)
    page.until(DRAWN)
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("document.querySelectorAll('details.print:not([open])').length") == 0
    assert page.run("document.querySelectorAll('.plot').length === document.querySelectorAll('.js-plotly-plot').length")
    assert (
        page.run("Math.max(...[...document.querySelectorAll('.js-plotly-plot')].map((one) => one.layout.width))") == 330
    )
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("document.querySelectorAll('details[open]').length") == 0
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 31)"
    assert page.print().startswith(b"%PDF")


def test_many_runs_are_folded_and_open_as_one(page: Browser, reports: Path) -> None:
    runs = []
    for number in range(9):
        run = make_run(reports / f"run {number}", ["none.mp4"] * 2)
        (run / "neighbours.json").unlink()
        runs.append(run)
    write_report(runs, reports / "nine.html")
    page.open(reports / "nine.html", 390)
    page.until(DRAWN)
    assert page.run("document.querySelectorAll('details.run:not([open])').length") == 9
    assert page.run("document.querySelectorAll('.grid tbody tr').length") >= 9, "a row a run"
    figures = page.run("document.querySelectorAll('.js-plotly-plot').length")
    page.run("document.querySelector('details.run').open = true")
    page.run("document.querySelector('details.run .charts').scrollIntoView()")  # below what a phone shows at once
    page.until(f"document.querySelectorAll('.js-plotly-plot').length > {figures}")
