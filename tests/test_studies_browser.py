"""The page of a study in a real browser: opened from disk, at two widths, light and dark; tables sort."""

import re

import pytest

from studies.report import report_command
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
        for width in (390, 1400):
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
                    "[...document.querySelectorAll('figure svg')].map(x => [x.getBoundingClientRect().width, "
                    "x.getBoundingClientRect().height, x.querySelectorAll('path, use').length])"
                )
                assert len(figures) == 5
                assert all(figure[0] >= 700 and figure[1] >= 200 and figure[2] > 50 for figure in figures)
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
        browser.ask(f"{head}[3].querySelector('button').click()")
        rising = [float(value) for value in column(browser, 3)]
        assert rising == sorted(rising)
        assert browser.ask(f"{head}[3].getAttribute('aria-sort')") == "ascending"
        browser.ask(f"{head}[3].querySelector('button').focus()")
        browser.press("Enter", 13, "\r")
        assert [float(value) for value in column(browser, 3)] == rising[::-1]
        assert browser.ask(f"{head}[3].getAttribute('aria-sort')") == "descending"
        browser.press("Tab", 9)
        browser.press(" ", 32, " ")
        assert browser.ask(f"{head}[4].getAttribute('aria-sort')") == "ascending"
        assert browser.ask(f"{head}[3].getAttribute('aria-sort')") is None
        browser.ask(f"{head}[5].querySelector('button').click()")
        differences = column(browser, 5)
        assert differences[-1] == ""  # the compressor, which has none, comes last
        assert [float(value) for value in differences[:-1]] == sorted(float(value) for value in differences[:-1])
        assert browser.complaints() == []
