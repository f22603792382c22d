"""`package.module:function`: what is imported, and what another machine would need for it."""

import sys
from pathlib import Path

import pytest

from autocompress.errors import InvalidInputError
from autocompress.importing import own_source


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
