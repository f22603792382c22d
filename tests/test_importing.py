"""`package.module:function`: what is imported, and what another machine would need for it."""

import sys
from pathlib import Path

import pytest

from autocompress.errors import InvalidInputError
from autocompress.task.named_data import load_data
from autocompress.task.named_models import make_model
from autocompress.task.user_code import import_function, own_source


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


def test_the_source_of_a_package_is_its_top_folder(here):
    (here / "nets_of_mine" / "small").mkdir(parents=True)
    (here / "nets_of_mine" / "__init__.py").touch()
    (here / "nets_of_mine" / "small" / "__init__.py").write_text("def make(): ...\n")
    assert Path(own_source("nets_of_mine.small:make")) == here / "nets_of_mine"


def test_the_source_of_a_module_is_its_file(here):
    (here / "net_of_mine.py").write_text("def make(): ...\n")
    assert Path(own_source("net_of_mine:make")) == here / "net_of_mine.py"


@pytest.mark.parametrize("name", ["lenet5", "digits", "torchvision:resnet18", "folder:/data/birds"])
def test_what_is_built_in_needs_nothing(name):
    assert own_source(name) is None


def test_what_cannot_be_imported(here):
    with pytest.raises(InvalidInputError, match="cannot import 'nothing_here'"):
        own_source("nothing_here:make")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def make(:\n    pass\n", r"cannot import 'faulty' .*: SyntaxError: .*faulty\.py, line 1\)"),
        ("import os\n\nx = undefined\n", r"cannot import 'faulty' .*: NameError: .*faulty\.py, line 3\)"),
        ("def make(size, depth=3): ...\n", r"'faulty:make' cannot be called without arguments \(missing .*'size'\)"),
        ("make = 3\n", r"'faulty' has no function 'make'"),
        ("import sys\nsys.exit(3)\n", r"cannot import 'faulty' .*: SystemExit: 3 \(.*faulty\.py, line 2\)"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--mine'])\n", r"cannot import .*: SystemExit: 2"),
    ],
)
def test_a_faulty_module_of_the_users_is_told_in_one_sentence(here, source, message):
    (here / "faulty.py").write_text(source)
    with pytest.raises(InvalidInputError, match=message) as error:
        import_function("faulty:make")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "raise OSError('no disk\\nat all')",
            r"'faulty:make' cannot be called: OSError: no disk \(.*faulty\.py, line 2\)",
        ),
        ("return {}['lr']", r"cannot be called: KeyError: 'lr' \("),
        ("raise SystemExit(3)", r"cannot be called: SystemExit: 3 \("),
    ],
)
def test_a_function_that_raises_is_told_in_one_sentence(here, body, message):
    (here / "faulty.py").write_text(f"def make():\n    {body}\n")
    for use in (make_model, lambda name: load_data(name, batch_size=8)):
        with pytest.raises(InvalidInputError, match=message) as error:
            use("faulty:make")
        assert len(str(error.value).splitlines()) == 1


def test_a_class_and_a_built_in_are_functions(here):
    (here / "fine.py").write_text("class Make:\n    pass\n\nmake = dict\n")
    assert import_function("fine:Make")() is not None
    assert import_function("fine:make")() == {}
