"""The README and the pages of docs/: links lead somewhere, what is named exists, commands are those of the parsers."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from functools import cache
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.cli.parser import build_parser as autocompress_parser
from baselines.methods import METHODS
from baselines.options import build_parser as baselines_parser
from studies.cli import build_parser as studies_parser
from studies.experiments import int8_onnx, ray_train
from studies.experiments.store import load_records
from studies.finding import own_specs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSERS = {
    "autocompress": autocompress_parser(),
    "python -m baselines": baselines_parser(),
    "python -m studies": studies_parser(),
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')
PATH = re.compile(r"(?:autocompress|baselines|studies|tests|docs|examples)/[\w./-]+")
# Words of our own where the field has a term.
OURS = r"twins?|anchors?|pull(?:s|ed)?|births?|hold together|errs|goes dead|price of|dearest|says? backwards"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(text_of(page)) if name == language]


def prose(page: Path) -> str:
    """Returns a page without its blocks of code."""
    return FENCE.sub("", text_of(page))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and mkdocs make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in ("".join(found) for found in LINK.findall(prose(page))):
        assert "://" not in link, f"{link}: the pages are read without a network"
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_paths_that_are_named_exist(page):
    for code in CODE.findall(prose(page)):
        if PATH.fullmatch(code):
            pattern = re.sub(r"\b[A-Z]{2,}\b|(?<=[a-z])N\b", "*", code)  # a NAME stands for any
            assert list(ROOT.glob(pattern)), code


@every_page
def test_python_blocks_compile_and_name_what_exists(page):
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            elif isinstance(node, ast.Import):
                assert all(importlib.import_module(alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ac":
                assert node.attr in ac.__all__, node.attr


def parse(command: str) -> None:
    """Reads a command as its own parser does; what is no command of ours has to be a module or a well-known tool."""
    program = next((name for name in PARSERS if f"{command} ".startswith(f"{name} ")), None)
    words = shlex.split(command)
    if program:
        PARSERS[program].parse_args(words[len(program.split()) :])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), command
    else:
        assert words[0].rpartition("/")[2] in {".", "pip", "python", "python3", "ruff", "mypy"}, command


@every_page
def test_console_blocks_are_commands_of_the_parsers(page):
    for line in (line for block in blocks(page, "console") for line in block.splitlines()):
        assert line.startswith(("$ ", "python -m ")), line
        try:
            parse(line.removeprefix("$ "))
        except SystemExit:
            pytest.fail(f"the parser refuses: {line}")


def options_of(parser: ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            found |= set().union(*map(options_of, action.choices.values()))
    return found


OPTIONS = set().union(*map(options_of, PARSERS.values()))
ELSEWHERE = {"--strict", "--steps", "--nproc-per-node"}  # of mkdocs, of an experiment, of torchrun


@every_page
def test_options_and_modules_that_are_named_exist(page):
    for code in CODE.findall(prose(page)):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", code):
            assert option in OPTIONS | ELSEWHERE, code
        for module in re.findall(r"python -m ([\w.]+)", code):
            name = module.removesuffix(".NAME")
            assert importlib.util.find_spec(name), code


def test_what_stands_in_the_tables_of_targets_can_be_asked_for():
    count = 0
    for page in (ROOT / "README.md", ROOT / "docs" / "targets.md"):
        (table,) = re.findall(r"^\| target \| what is met \|\n\|[-|]+\|\n((?:\|.*\n)+)", text_of(page), re.MULTILINE)
        for row in table.splitlines():
            for code in CODE.findall(row.split("|")[1]):
                assert isinstance(ac.parse_target(code), ac.Target)
                count += 1
    assert count >= 20


@pytest.mark.parametrize(
    ("page", "names"), [("searches", METHODS), ("studies", own_specs())], ids=["searches", "studies"]
)
def test_every_search_and_every_study_has_its_line(page, names):
    named = set(CODE.findall(text_of(ROOT / "docs" / f"{page}.md")))
    assert set(names) <= named


@cache
def classes() -> dict[str, ast.ClassDef]:
    """Returns the classes of autocompress by name."""
    nodes = [node for path in (ROOT / "autocompress").rglob("*.py") for node in ast.parse(text_of(path)).body]
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def defined(kind: str) -> set[str]:
    """Returns the names that a class defines, its own among them: fields, methods, attributes that it sets."""
    node = classes()[kind]
    fields = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
    methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store))
    return {kind} | fields | methods | {each.attr for each in stored if ast.unparse(each.value) == "self"}


def test_the_notation_is_that_of_the_code():
    table = [line for line in text_of(ROOT / "docs" / "notation.md").splitlines() if line.startswith("| ")]
    source = text_of(ROOT / "autocompress" / "solver" / "lazy_projection.py")
    own = [line for line in source.splitlines() if line.startswith("| ")]
    assert len(own) > 10
    assert own == table[: len(own)]  # one table in two places
    for code in (code for line in own[1:] for code in CODE.findall(line.split("|")[3])):
        kind, _, name = code.partition(".")
        assert (name or kind) in defined(kind), code


@every_page
def test_words_are_the_fields_own(page):
    words = CODE.sub("", prose(page))
    assert re.findall(rf"\b(?:{OURS})\b", words, re.IGNORECASE) == []


@pytest.mark.parametrize(("page", "experiment"), [("deployment", int8_onnx), ("own-loop", ray_train)])
def test_tables_of_experiments_are_those_of_the_records(page, experiment):
    table = experiment.table(load_records(experiment.RECORDS))
    assert table.strip() in text_of(ROOT / "docs" / f"{page}.md")


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 180


def test_the_site_builds(tmp_path):
    pytest.importorskip("material", reason="the extra [docs] is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the extra [docs] is not installed")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for given, quick in [  # the words for the search and the colours of the sources take most of the time
        ("  - search\n", ""),
        ("show_source: true", "show_source: false"),
        ("paths: [.]", f"paths: ['{ROOT}']"),
        ("docs/doctests.py", f"{ROOT}/docs/doctests.py"),
        ("site_dir: build/site", f"site_dir: '{tmp_path}/site'\ndocs_dir: '{ROOT}/docs'"),
    ]:
        assert settings.count(given) == 1
        settings = settings.replace(given, quick)
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(tmp_path / "mkdocs.yml")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))  # and the one for addresses that do not exist
    outside = [
        address
        for page in pages
        for address in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', text_of(page))
    ]
    assert outside == []
