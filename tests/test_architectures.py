"""Networks of every kind: compressed for a few steps, saved, and the same outputs in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ALL, loaded_elsewhere
from architectures.table import PAGE, names_of

# One of each cause of trouble; all others take minutes.
FEW = ["one expert per example", "regressor", "normalizing flow", "GRU language model, tied", "vocoder"]


def check(name: str, folder: Path) -> None:
    architecture = ALL[name]
    result = architecture.compressed()
    path = folder / "net.safetensors"
    result.save(path)
    assert path.stat().st_size == result.file_bytes <= architecture.target_bytes
    mine = architecture.outputs(result.model)
    assert mine
    assert all(bool(torch.isfinite(tensor).all()) for tensor in mine)
    ((_, others),) = loaded_elsewhere({name: path})
    assert len(others) == len(mine)
    assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", FEW)
def test_a_few_architectures(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", sorted(set(ALL) - set(FEW)))
def test_every_architecture(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.skipif(not PAGE.exists(), reason="the page is made by `python -m architectures.table FOLDER` in tests/")
def test_the_page_lists_all_of_them() -> None:
    assert len(ALL) >= 40
    assert names_of(PAGE.read_text(encoding="utf-8")) == list(ALL)
