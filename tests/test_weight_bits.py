"""The two ways to meet a weight-data target: W left dense on a path of budgets, and W pruned in place as published."""

import itertools

import pytest
import torch
from torch import nn

from autocompress.constraints.constraint import Network, Projector
from autocompress.constraints.weight_bits import InPlaceWeightBitsConstraint, WeightBitsConstraint
from autocompress.network.selection import select
from autocompress.solver.compressor import Compressor
from autocompress.solver.constants import DEFAULTS, budget_on_path
from autocompress.targets import WeightBits, parse_target


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    return Network(model, select(model))


def weights(net: Network) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.weights]


def test_in_place_prunes_w_to_the_zeros_of_v() -> None:
    net = network()
    projection = Projector(InPlaceWeightBitsConstraint(net, 300)).project(weights(net), weights(net), 0.0)
    assert projection.pruned is not None
    for pruned, coded, before in zip(projection.pruned, projection.quantized, weights(net), strict=True):
        kept = coded.codes != 0
        assert torch.equal(pruned, before * kept)
    assert sum(c.weight_data_bits for c in projection.quantized) <= 300


def test_dense_follows_the_path_and_ends_at_the_target() -> None:
    net = network()
    method = Projector(WeightBitsConstraint(net, 60))
    start = method.project(weights(net), weights(net), 0.0)
    assert start.pruned is None
    assert 60 < sum(c.weight_data_bits for c in start.quantized) <= 60 * DEFAULTS.path_start
    end = method.project(weights(net), weights(net), DEFAULTS.path_fraction)
    assert sum(c.weight_data_bits for c in end.quantized) <= 60
    closed = method.project_last(weights(net), weights(net))
    assert sum(c.weight_data_bits for c in closed.quantized) <= 60
    assert closed.error <= end.error * (1 + 1e-6)


def test_the_path_is_geometric_and_never_below_the_target() -> None:
    budgets = [budget_on_path(100.0, 1e9, fraction / 20, DEFAULTS) for fraction in range(21)]
    assert budgets[0] == pytest.approx(100 * DEFAULTS.path_start)
    assert budgets[-1] == 100.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(budgets))
    assert budget_on_path(100.0, 150.0, 0.0, DEFAULTS) == 150.0
    assert budget_on_path(100.0, 50.0, 0.0, DEFAULTS) == 100.0


@pytest.mark.parametrize("word", ["weights", "weights-in-place"])
def test_the_word_chooses_the_method(word: str) -> None:
    target = parse_target(f"{word}:100x")
    assert isinstance(target, WeightBits)
    assert str(target) == f"{word}:100x"
    assert parse_target(str(target)) == target
    model = network().model
    compressor = Compressor(model, torch.optim.SGD(model.parameters(), lr=0.1), target=target, total_steps=3)
    assert isinstance(compressor.method.constraint, InPlaceWeightBitsConstraint) == (word == "weights-in-place")


def test_the_two_words_are_two_targets() -> None:
    assert parse_target("weights:100x") != parse_target("weights-in-place:100x")
