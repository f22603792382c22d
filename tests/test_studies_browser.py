"""The page of a study in a real browser: opened from disk, at two widths, light and dark; tables sort."""

import re

import pytest

from studies.report.write import report_command
from tests.chromium import CHROMIUM, Browser
from tests.study_records import make_study

METHODS = ("compressor", "uniform", "optuna-tpe", "ray-asha")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    records = make_study(methods=METHODS)
    report_command("digits", records, [record.key for record in records], out)
    return out / "page.html"


def column(browser, number):
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    return browser.ask(f"{rows}.map(row => row.cells[{number}].dataset.value)")


def test_page_in_a_browser(page):
    with Browser() as browser:
        for width in (390, 1280):
            for dark in (False, True):
                browser.open(page, width, dark=dark)
                wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
                assert browser.ask(wide)
                browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
                assert browser.ask(wide)
                assert browser.ask("document.documentElement.clientWidth") == pytest.approx(width, abs=20)
                small = (
                    "[...document.querySelectorAll('p, li, td, dd')].map(x => parseFloat(getComputedStyle(x).fontSize))"
                )
                assert browser.ask(f"Math.min(...{small})") >= 13
                figures = browser.ask(
                    "[...document.querySelectorAll('figure svg')].map(x => [x.getBoundingClientRect().left, "
                    "x.getBoundingClientRect().right, x.getBoundingClientRect().height, "
                    "x.querySelectorAll('path, use').length])"
                )
                assert len(figures) == 5
                # whole on the screen, without scrolling sideways
                assert all(left >= 0 and right <= width and height >= 150 for left, right, height, _ in figures)
                assert all(marks > 50 for *_, marks in figures)
                assert browser.ask("document.querySelector('.finding').textContent").startswith("Of 6 comparisons")
                if width > 1000:  # a phone shows the sentence and where the figure begins
                    assert browser.ask("document.querySelector('.first').getBoundingClientRect().bottom") <= 900
                ink, paper = browser.ask(
                    "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
                )
                brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
                assert (brightness[0] > brightness[1]) == dark
                assert browser.complaints() == []
                assert browser.requests() == [page.resolve().as_uri()]


def test_tables_sort_by_mouse_and_keyboard(page):
    with Browser() as browser:
        browser.open(page, 1400)
        as_written = column(browser, 0)
        assert as_written == list(METHODS)
        head = "document.querySelectorAll('table')[0].tHead.rows[0].cells"
        browser.ask(f"{head}[2].querySelector('button').click()")
        rising = [float(value) for value in column(browser, 2)]
        assert rising == sorted(rising)
        assert browser.ask(f"{head}[2].getAttribute('aria-sort')") == "ascending"
        browser.ask(f"{head}[2].querySelector('button').focus()")
        browser.press("Enter", 13, "\r")
        assert [float(value) for value in column(browser, 2)] == rising[::-1]
        assert browser.ask(f"{head}[2].getAttribute('aria-sort')") == "descending"
        browser.press("Tab", 9)
        browser.press(" ", 32, " ")
        assert browser.ask(f"{head}[3].getAttribute('aria-sort')") == "ascending"
        assert browser.ask(f"{head}[2].getAttribute('aria-sort')") is None
        differences = column(browser, 3)
        assert differences[-1] == ""  # the compressor, which has none, comes last
        assert [float(value) for value in differences[:-1]] == sorted(float(value) for value in differences[:-1])
        assert browser.complaints() == []


def test_the_pointer_shows_values(page):
    with Browser() as browser:
        browser.open(page, 1280)
        tips = browser.ask("[...document.querySelectorAll('.first .tip title')].map(x => x.textContent)")
        assert len(tips) == 2 * (len(METHODS) - 1)
        assert all(re.fullmatch(r".+: [+-]?\d+\.\d\d \[.+\] points, \w+", tip) for tip in tips)
        middle = (
            "(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector('.tip').getBoundingClientRect())"
        )
        x, y = browser.ask(middle)
        under = f"document.elementFromPoint({x}, {y}).closest('.tip').querySelector('title').textContent"
        assert browser.ask(under) == tips[0]
