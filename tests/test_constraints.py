"""Constraints are pure: asking changes nothing, and a state that went through a checkpoint asks the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Constraint, Network, Projection
from autocompress.constraints.factory import count_energy, make_constraint
from autocompress.network.network_state import vector_tensors
from autocompress.network.selection import original_bytes, select
from autocompress.targets import combined

pytestmark = pytest.mark.any_file

TARGETS = [
    "600B",
    "600B and energy:60%",
    "drop:1",
    "weights:40x",
    "weights-in-place:40x",
    "codes:20x",
    "energy:60%",
    "energy-channels:50%",
]


def make(target: str) -> tuple[Constraint, Network]:
    """Returns the constraint of a target for a small network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    network, targets = Network(model, select(model)), combined(target)
    energy = count_energy(targets, network, torch.zeros(1, 1, 6, 6), None)
    return make_constraint(targets, network, original_bytes(model), energy), network


def points(network: Network, seed: int) -> list[Tensor]:
    """Returns points near the weights."""
    generator = torch.Generator().manual_seed(seed)
    return [w.detach() + 0.02 * torch.randn(w.shape, generator=generator) for w in network.weights]


def assert_same(one: Projection, other: Projection) -> None:
    for mine, yours in zip(one.quantized, other.quantized, strict=True):
        assert torch.equal(mine.dense(), yours.dense())
    assert (one.error, one.multiplier, one.greedy) == (other.error, other.multiplier, other.greedy)


@pytest.mark.parametrize("target", TARGETS)
def test_asking_changes_nothing(target):
    constraint, network = make(target)
    before = [w.detach().clone() for w in network.weights]
    first, state = constraint.project(
        points(network, 1), constraint.budget(0.2), constraint.start(), points(network, 1)
    )
    saved = copy.deepcopy(constraint.to_plain(state))
    asked = []
    for _ in range(2):  # twice the same question from the same state
        nearer, _ = constraint.project(points(network, 2), constraint.budget(0.4), state, points(network, 2))
        last, end = constraint.project_last(points(network, 3), constraint.budget(1.0), state, points(network, 3))
        _, data = constraint.writer(end).fit(last.quantized, vector_tensors(network.selection))
        asked.append((nearer, last, data))
    assert_same(asked[0][0], asked[1][0])
    assert_same(asked[0][1], asked[1][1])
    assert asked[0][2] == asked[1][2]
    assert_same(
        first, constraint.project(points(network, 1), constraint.budget(0.2), constraint.start(), points(network, 1))[0]
    )
    assert_equal_plain(saved, constraint.to_plain(state))
    assert all(torch.equal(w, kept) for w, kept in zip(network.weights, before, strict=True))


@pytest.mark.parametrize("target", TARGETS)
def test_a_state_goes_on_from_a_checkpoint(target, tmp_path):
    constraint, network = make(target)
    _, state = constraint.project(points(network, 1), constraint.budget(0.2), constraint.start(), points(network, 1))
    torch.save(constraint.to_plain(state), tmp_path / "state.pt")
    back = constraint.from_plain(torch.load(tmp_path / "state.pt", weights_only=True))
    ends = [
        constraint.project_last(points(network, 3), constraint.budget(1.0), each, points(network, 3))
        for each in (state, back)
    ]
    assert_same(ends[0][0], ends[1][0])
    sides = vector_tensors(network.selection)
    files = [constraint.writer(end).fit(found.quantized, sides)[1] for found, end in ends]
    assert files[0] == files[1]


def assert_equal_plain(one: object, other: object) -> None:
    """Compares nested containers with tensors in them."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_plain(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, yours in zip(one, other, strict=True):
            assert_equal_plain(mine, yours)
    else:
        assert one == other
