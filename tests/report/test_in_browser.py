"""The page in a real browser: silent, alone, and no wider than a phone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Page, browser, find_browser
from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun, write_merged

EXECUTABLE = find_browser()
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

pytestmark = pytest.mark.skipif(
    EXECUTABLE is None and not IN_CI, reason="no Chromium on this machine -> apt-get install chromium"
)

OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll('svg.plot')].map(plot =>
    [...plot.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]));
  const found = [];
  for (const texts of boxes) for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [texts[i][1], texts[j][1]];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 4) found.push([texts[i][0], texts[j][0]]);
  }
  return found;
})()"""
"""Texts of one chart that cover each other (line boxes are taller than letters, by up to 4 pixels)."""

CLIPPED = """[...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBoundingClientRect();
  return box.left < 0 || box.right > document.documentElement.clientWidth;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert EXECUTABLE is not None, "CI has no Chromium to open the report in -> install Debian's chromium there"
    with browser(EXECUTABLE, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def url(finished: FinishedRun) -> str:
    report_of(finished)
    return (finished.models / "report.html").resolve().as_uri()


def test_a_page_that_does_something_wrong_would_be_caught(tab: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('oh'); undefined.x</script><img src='http://127.0.0.1:9/x.png'>")
    tab.open(bad.as_uri(), 1200)
    assert len(tab.requests()) == 2
    assert len(tab.complaints()) >= 2


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_asks_for_nothing_and_complains_of_nothing(tab: Page, url: str, width: int, dark: bool) -> None:
    tab.open(url, width, dark=dark)
    assert tab.requests() == [url]
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_it_is_no_wider_than_the_window(tab: Page, url: str, width: int) -> None:
    tab.open(url, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.documentElement.clientWidth") == width


@pytest.mark.parametrize("width", [360, 1200])
def test_no_text_of_a_chart_is_covered_or_cut_off(tab: Page, url: str, width: int) -> None:
    tab.open(url, width)
    assert tab.evaluate("document.querySelectorAll('svg.plot').length") >= 4
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate(CLIPPED) == []


def test_a_warning_is_seen_without_scrolling(tab: Page, spoilt: FinishedRun) -> None:
    write_merged(spoilt, seed=9)
    report_of(spoilt)
    tab.open((spoilt.models / "report.html").resolve().as_uri(), 1200)
    place = tab.evaluate("document.querySelector('.warning').getBoundingClientRect().bottom")
    assert 0 < place < 800


def test_dark_and_light_differ_and_both_can_be_read(tab: Page, url: str) -> None:
    def luminance(dark: bool, what: str) -> float:
        tab.open(url, 1200, dark=dark)
        colour = str(tab.evaluate(f"getComputedStyle(document.body).{what}"))
        red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.1

    for dark in (False, True):
        ink, paper = luminance(dark, "color"), luminance(dark, "backgroundColor")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
        assert (ink > paper) == dark


def test_print_shows_what_is_folded_away(tab: Page, url: str, tmp_path: Path) -> None:
    tab.open(url, 1200)
    assert tab.evaluate("document.querySelector('details td').checkVisibility()") is False
    tab.call("Emulation.setEmulatedMedia", media="print")
    hidden = tab.evaluate("[...document.querySelectorAll('details td')].filter(cell => !cell.checkVisibility()).length")
    assert tab.evaluate("document.querySelectorAll('details:not([open])').length") > 3
    assert hidden == 0
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_of_it_can_be_taken(tab: Page, url: str, tmp_path: Path) -> None:
    """Where PICTURES_DIR is set they are kept, to be looked at."""
    kept = Path(os.environ.get("PICTURES_DIR", "") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    for name, width, dark in (("desktop", 1200, False), ("dark", 1200, True), ("phone", 360, False)):
        tab.open(url, width, dark=dark)
        tab.screenshot(kept / f"report-{name}.png")
        assert (kept / f"report-{name}.png").stat().st_size > 50_000
