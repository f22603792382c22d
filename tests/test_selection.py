"""Which tensor goes where: each in one place, batch norms folded only where that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.codec.layout import shared_names
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor
from autocompress.network.network_state import build_state, fill, filled_copy, vector_grids, vector_tensors
from autocompress.network.selection import folded_parameters, original_bytes, select, unwrap


class Everything(nn.Module):
    """Every kind of tensor that a state_dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.convolution = nn.Conv1d(4, 6, 2, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.plain_norm = nn.BatchNorm1d(6, affine=False)
        self.same_norm = self.norm
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("places", torch.arange(5))


def places(model: nn.Module, **kwargs) -> list[str]:
    found = select(model, **kwargs)
    return [n for n, _ in found.weights] + [n for n, _ in found.vectors] + list(found.raw) + list(found.aliases)


@pytest.mark.parametrize("ignore", [[], ["norm"], [nn.Embedding], ["*.bias", "convolution"]])
def test_every_tensor_is_in_exactly_one_place(ignore) -> None:
    model = Everything()
    assert sorted(places(model, ignore=ignore)) == sorted(model.state_dict())


def test_what_goes_where() -> None:
    found = select(Everything())
    assert [name for name, _ in found.weights] == ["embedding.weight", "convolution.weight"]
    assert [name for name, _ in found.vectors] == ["norm.weight", "norm.bias", "output.bias"]
    assert [name for name, _ in found.folded] == ["norm"]
    assert found.aliases["output.weight"] == "embedding.weight"
    assert found.aliases["same_norm.running_mean"] == "norm.running_mean"
    assert found.raw["plain_norm.running_var"] == "buffer"
    assert {"scale", "nothing", "places", "norm.running_mean", "norm.num_batches_tracked"} <= set(found.raw)
    assert found.compressible == 7 * 4 + 4 * 6 * 2


def test_shared_tensors_count_once() -> None:
    tied, loose = Everything(), Everything()
    loose.output.weight = nn.Parameter(torch.rand(7, 4))
    assert original_bytes(loose) - original_bytes(tied) == 4 * 28


def share_data(a: nn.Linear, b: nn.Linear) -> None:
    b.weight.data = a.weight.data


@pytest.mark.parametrize("tie", [lambda a, b: setattr(b, "weight", a.weight), share_data])
def test_the_file_and_the_selection_agree_on_what_is_shared(tie) -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    tie(*model)
    assert select(model).aliases == shared_names(model) == {"1.weight": "0.weight"}


@pytest.mark.parametrize(
    "view", [lambda w: w.t(), lambda w: w.view(2, 8), lambda w: w[:2], lambda w: w[:, 1:3], lambda w: w.view(-1)[8:]]
)
def test_parameters_that_share_memory_under_other_views_are_refused(view) -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = nn.Parameter(view(model[0].weight.detach()))
    with pytest.raises(InvalidInputError, match=r"0\.weight \[4, 4\] and 1\.weight .* share memory under different"):
        select(model)


def test_views_side_by_side_in_one_storage_are_no_ties() -> None:
    flat = torch.rand(4, 8)  # as an LSTM's weights on a GPU
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[0].weight, model[1].weight = nn.Parameter(flat[:, :4]), nn.Parameter(flat[:, 4:])
    assert select(model).aliases == {}
    assert shared_names(model) == {}


def test_tensors_without_an_address_are_no_ties() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]).to("meta")
    assert shared_names(model) == {}
    model[1].weight = model[0].weight
    assert shared_names(model) == {"1.weight": "0.weight"}
    with pytest.raises(InvalidInputError, match=r"0\.weight is on the meta device"):
        select(model)


def test_a_lazy_network_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"0\.weight has no shape yet; pass a batch"):
        select(nn.Sequential(nn.LazyLinear(4)))


class Norms(nn.Module):
    """Two batch norms, sharing what `share` says."""

    def __init__(self, share: str = "") -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.one, self.two = nn.BatchNorm1d(4), nn.BatchNorm1d(4, eps=1e-3)
        if share:
            setattr(self.two, share, getattr(self.one, share))
        for norm in (self.one, self.two):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.copy_(torch.randn(4))
            norm.running_var.copy_(torch.rand(4) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(self.linear(x))))


@pytest.mark.parametrize("share", ["", "weight", "bias", "running_mean", "running_var"])
def test_folding_changes_no_output_in_evaluation(share: str) -> None:
    torch.manual_seed(0)
    model, x = Norms(share).eval(), torch.randn(5, 3)
    expected = model(x)
    found = select(model)
    assert len(found.folded) == (0 if share else 2)
    with torch.no_grad():
        for _, norm in found.folded:
            weight, bias = folded_parameters(norm)
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", ["", "weight", "running_var"])
def test_the_state_of_a_folded_network_gives_its_outputs(share: str) -> None:
    torch.manual_seed(1)
    model, x = Norms(share).eval(), torch.randn(5, 3)
    expected = model(x)
    found = select(model)
    sides = vector_tensors(found)
    grids = vector_grids(sides, set(sides), multiplier=0.0, relative_error=0.0, coarsening=1e-2)
    values = model.linear.weight.detach().unique()
    codes = torch.searchsorted(values, model.linear.weight.detach()) + 1
    state = build_state(model, found, [QuantizedTensor(codes.short(), values)], sides, grids)
    torch.testing.assert_close(filled_copy(model, state)(x), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)  # the network itself is left alone
    torch.testing.assert_close(fill(model, state)(x), expected, rtol=1e-3, atol=1e-3)


def test_ignored_norms_keep_their_statistics() -> None:
    found = select(Norms(), ["one"])
    assert [name for name, _ in found.folded] == ["two"]
    assert found.raw["one.running_mean"] == "buffer"
    assert found.raw["one.weight"] == "ignored"


def test_ignore_by_glob_and_by_type() -> None:
    model = Everything()
    assert "convolution.weight" in select(model, ["conv*"]).raw
    assert "convolution.weight" in select(model, [nn.Conv1d]).raw
    assert "embedding.weight" in select(model, ["output.weight"]).raw  # one tensor under two names


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (["convolutoin"], "convolutoin.*close to it: convolution"),
        (["zzz"], "zzz.*names are such as scale"),
        ([nn.LSTM], "LSTM"),
        ([3], "3; each entry is a glob"),
        (["embedding", "output", "convolution"], "nothing to compress.*not ignored"),
    ],
)
def test_ignore_that_cannot_be(ignore, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        select(Everything(), ignore)


def test_wrappers_are_removed() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model
    assert places(torch.compile(model, backend="eager")) == ["weight", "bias"]
