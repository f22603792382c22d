"""The page of a study: what stands in it, that it needs nothing else, and how it behaves in a real browser."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autocompress.errors import InvalidInputError
from studies.report.write import report_command, write_file
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
    kinds = ("2KB-layers", "bytes", "cost", "differences", "solver")
    names = [f"lenet5-digits-{kind}.{suffix}" for kind in kinds for suffix in ("pdf", "png")]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == names


def test_a_second_report_gives_the_same_files(study, folder, tmp_path):
    report_command("digits", study, [r.key for r in study], tmp_path, description="Two targets,\n<five> seeds.")
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_figures_of_an_earlier_report_go_away_and_an_error_leaves_all_as_it_was(study, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.report.write.draw_figures", lambda *_: [])
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
    monkeypatch.setattr("studies.report.write.draw_figures", lambda *_: [])
    empty = {"test_accuracy": None, "validation_accuracy": None, "file_bytes": None, "correct": "", "layers": []}
    broken = replace(study[-1], state="failed", error="Traceback: <out of memory>", revision="9876543210", **empty)
    records = [*study[:-1], broken]
    text = report_command("digits", records, [r.key for r in study], tmp_path, partial=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "4 of 5, 1 failed" in text
    assert "4 of 5, 1 failed" in page
    assert "Traceback: &lt;out of memory&gt;" in page
    assert "0123456789 (39 records); 9876543210 (1 records)" in page
