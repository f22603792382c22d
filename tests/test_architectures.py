"""Networks of every kind: compressed for a few steps, saved, and the same outputs in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ALL, loaded_elsewhere
from architectures.table import PAGE, names_of
from torch import Tensor

pytestmark = pytest.mark.any_file

# One of each cause of trouble; all others take minutes.
FEW = ["one expert per example", "regressor", "normalizing flow", "GRU language model, tied", "vocoder"]


def written(name: str, path: Path) -> list[Tensor]:
    """Compresses an architecture, writes it, and returns its outputs."""
    architecture = ALL[name]
    result = architecture.compressed()
    result.save(path)
    assert path.stat().st_size == result.file_bytes <= architecture.target_bytes
    mine = architecture.outputs(result.model)
    assert mine
    assert all(bool(torch.isfinite(tensor).all()) for tensor in mine)
    return mine


def check(names: list[str], folder: Path) -> None:
    paths = {name: folder / f"{number}.safetensors" for number, name in enumerate(names)}
    mine = {name: written(name, path) for name, path in paths.items()}
    loaded = dict(loaded_elsewhere(paths))
    assert list(loaded) == names
    for name, others in loaded.items():
        assert len(others) == len(mine[name]), name
        assert all(torch.equal(a, b) for a, b in zip(mine[name], others, strict=True)), name


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_few_architectures(tmp_path: Path) -> None:
    check(FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", sorted(set(ALL) - set(FEW)))
def test_every_architecture(name: str, tmp_path: Path) -> None:
    check([name], tmp_path)


@pytest.mark.skipif(not PAGE.exists(), reason="the page is made by `python -m architectures.table FOLDER` in tests/")
def test_the_page_lists_all_of_them() -> None:
    assert len(ALL) >= 40
    assert names_of(PAGE.read_text(encoding="utf-8")) == list(ALL)
