"""The page of a study: what stands in it, that it needs nothing else, and how it behaves in a real browser."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autocompress.errors import InvalidInputError
from studies.report import report_command, write_file
from tests.chromium import CHROMIUM, Browser
from tests.study_records import make_study

METHODS = ("compressor", "uniform", "optuna-tpe", "ray-asha")
FILES = ["page.html", "table.csv", "table.md", "table.tex"]


@pytest.fixture(scope="module")
def study():
    return make_study(methods=METHODS)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "digits"
    answer = report_command("digits", study, [r.key for r in study], out, description="Two targets,\n<five> seeds.")
    assert answer == (out / "table.md").read_text(encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "page.html").read_text(encoding="utf-8")


def test_report_writes_every_file_and_no_other(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["figures", *FILES]
    kinds = ("bytes", "cost", "layers", "size", "solver")
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [f"lenet5-digits-{k}.png" for k in kinds]


def test_a_second_report_gives_the_same_files(study, folder, tmp_path):
    report_command("digits", study, [r.key for r in study], tmp_path, description="Two targets,\n<five> seeds.")
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_figures_of_an_earlier_report_go_away_and_an_error_leaves_all_as_it_was(study, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.report.draw_figures", lambda blocks: [])
    few = [record for record in study if record.seed == 0]
    old = tmp_path / "figures" / "other-task-size.png"
    write_file(old, b"old")
    with pytest.raises(InvalidInputError, match="missing"):
        report_command("digits", few, [r.key for r in study], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    assert old.read_bytes() == b"old"
    report_command("digits", few, [r.key for r in few], tmp_path)
    assert not old.exists()


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they are closed in order."""

    VOID = frozenset({"meta", "link", "br", "use", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_well_formed_and_loads_nothing(page):
    parsed = Tags(page)
    assert parsed.open == []
    addresses = [value for _, attributes in parsed.tags for key, value in attributes.items()
                 if key in ("src", "href", "xlink:href", "action")]  # fmt: skip
    assert all(value.startswith(("#", "data:")) for value in addresses)
    assert not re.search(r"@import|url\((?!#)", page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_tells_configuration_and_provenance(page, study):
    assert "Two targets,\n&lt;five&gt; seeds." in page
    for fact in (
        "40 finished",
        "0123456789",
        "torch 2.15.0",
        "cpu, 1 thread",
        "2026-01-01T12:00:00+00:00 to 2026-01-05",
    ):
        assert fact in page
    assert page.count(">5f2a91c0<") == len(study)  # the specification of each cell
    assert "Holm" in page


def test_page_of_a_partial_study_shows_failures(study, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.report.draw_figures", lambda blocks: [])
    empty = {"test_accuracy": None, "validation_accuracy": None, "file_bytes": None, "correct": "", "layers": []}
    broken = replace(study[-1], state="failed", error="Traceback: <out of memory>", revision="9876543210", **empty)
    records = [*study[:-1], broken]
    text = report_command("digits", records, [r.key for r in study], tmp_path, partial=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "4 of 5, 1 failed" in text
    assert "4 of 5, 1 failed" in page
    assert "Traceback: &lt;out of memory&gt;" in page
    assert "0123456789 (39 records); 9876543210 (1 records)" in page


def column(browser, number):
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    return browser.ask(f"{rows}.map(row => row.cells[{number}].dataset.value)")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_page_in_a_browser(folder):
    page = folder / "page.html"
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


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_tables_sort_by_mouse_and_keyboard(folder):
    with Browser() as browser:
        browser.open(folder / "page.html", 1400)
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
