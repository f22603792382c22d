"""What a new kind of target takes: a class and its word, a constraint, and one line that joins the two."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import small_task
import torch
from torch import Tensor

import autocompress as ac
from autocompress.constraints import factory
from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.constraints.file_writer import WeightsOnlyConstraint
from autocompress.network.compressed_tensors import QuantizedTensor
from autocompress.numerics.kmeans import encode, fit_codebook, sort_values
from autocompress.solver.constants import SolverConstants, bits_on_path
from autocompress.targets import kinds


# 1. targets/kinds.py
@dataclass(frozen=True)
class Nonzeros(kinds.Target):
    """At most this part of the compressed weights is not zero."""

    fraction: Fraction

    def __str__(self) -> str:
        return f"nonzeros:{kinds.decimal(100 * self.fraction)}%"


def parse_nonzeros(whole: str, word: str, rest: str) -> Nonzeros:
    amount, unit = kinds.split(whole, rest, "5%")
    if unit != "%" or amount > 100:
        kinds.refuse(whole, "nonzeros are given in percent of the weights, at most 100 (nonzeros:5%)")
    return Nonzeros(amount / 100)


# 2. constraints/nonzeros.py
class NonzerosConstraint(WeightsOnlyConstraint):
    """The largest weights of all layers together, at the nearest of 16 values per layer."""

    def __init__(self, network: Network, count: int, constants: SolverConstants) -> None:
        super().__init__(network)
        self.count, self.constants = count, constants

    def start(self) -> None:
        return None

    def budget(self, fraction: float) -> int:
        return bits_on_path(self.count, self.network.selection.compressible, fraction, self.constants)

    def project(
        self, x: Sequence[Tensor], budget: int, state: None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, None]:
        magnitudes = torch.cat([each.flatten().abs() for each in x])
        kept = torch.zeros(magnitudes.shape, dtype=torch.bool)
        kept[magnitudes.topk(min(budget, kept.numel())).indices] = True
        masks = [part.view(each.shape) for part, each in zip(kept.split([each.numel() for each in x]), x, strict=True)]
        coded = [self._coded(each, mask) for each, mask in zip(x, masks, strict=True)]
        error = sum(float((each - c.dense()).square().sum()) for each, c in zip(x, coded, strict=True))
        return Projection(coded, None, error, relative_error(error, x), 0.0), None

    def _coded(self, x: Tensor, mask: Tensor) -> QuantizedTensor:
        if not mask.any():
            return QuantizedTensor(torch.zeros(x.shape, dtype=torch.int16), torch.zeros(0))
        return encode(x, mask, fit_codebook(sort_values(x[mask]), 16).centroids)

    project_last = project

    def to_plain(self, state: None) -> dict[str, Any]:
        return {}

    def from_plain(self, saved: dict[str, Any]) -> None:
        return None


# 3. constraints/factory.py
def make_nonzeros(each: Sequence[Nonzeros], network: Network, original_bytes: int, constants: SolverConstants) -> Any:
    fraction = min(one.fraction for one in each)
    return NonzerosConstraint(network, int(fraction * network.selection.compressible), constants)


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setitem(kinds.WORDS, "nonzeros", parse_nonzeros)
    monkeypatch.setitem(factory.ALONE, Nonzeros, make_nonzeros)


@pytest.mark.usefixtures("_registered")
def test_a_new_kind_of_target():
    assert str(ac.parse_target("nonzeros:5%")) == "nonzeros:5%"
    task = small_task.make_task()
    model = small_task.train_reference(task)
    settings: dict[str, Any] = {"train": task.train, "val": task.validation, "recipe": task.recipe, "progress": False}
    for epochs in (0, 3):
        result = ac.compress(model, target=["nonzeros:20%", "nonzeros:5%"], epochs=epochs, **settings)
        weights = [parameter for parameter in result.model.parameters() if parameter.dim() > 1]
        total = sum(weight.numel() for weight in weights)
        nonzeros = sum(int(weight.count_nonzero()) for weight in weights)
        assert 0.04 * total < nonzeros <= 0.05 * total
        assert str(result.target) == "nonzeros:20% and nonzeros:5%"
    with pytest.raises(ac.InvalidInputError, match="not supported together"):
        ac.compress(model, target=["nonzeros:5%", "1KB"], **settings)
    with pytest.raises(ac.InvalidInputError, match="in percent of the weights"):
        ac.parse_target("nonzeros:5x")


def test_without_it_the_word_is_no_target():
    with pytest.raises(ac.InvalidInputError, match="'nonzeros' is no kind of target"):
        ac.parse_target("nonzeros:5%")
