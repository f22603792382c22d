"""Projection A against brute force, scipy's MILP and its linear relaxation."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, milp

from autocompress.errors import InfeasibleTargetError
from autocompress.numerics.knapsack import largest, prune, rank_weights


def draw(seed: int, sizes: tuple[int, ...], *, ties: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(size, generator=generator) * 2.0 ** (-index) for index, size in enumerate(sizes)]
    return [(layer * 4).round() / 4 for layer in layers] if ties else layers


def problem(layers, bits):
    """Profits, sizes and the constraint rows that keep one weight per layer."""
    profits = torch.cat(layers).double().square().numpy()
    sizes = np.repeat(bits, [layer.numel() for layer in layers])
    owner = np.repeat(np.arange(len(layers)), [layer.numel() for layer in layers])
    return profits, sizes, (owner[None] == np.arange(len(layers))[:, None]).astype(float)


def milp_error(layers, bits, budget):
    profits, sizes, rows = problem(layers, bits)
    limits = [LinearConstraint(sizes[None], ub=budget), LinearConstraint(rows, lb=1)]
    result = milp(
        -profits, integrality=np.ones_like(profits), bounds=(0, 1), constraints=limits, options={"mip_rel_gap": 0}
    )
    return profits.sum() + result.fun


def relaxed_error(layers, bits, budget):
    profits, sizes, rows = problem(layers, bits)
    result = linprog(-profits, np.vstack([sizes, -rows]), np.append(budget, -np.ones(len(layers))), bounds=(0, 1))
    return profits.sum() + result.fun


@pytest.mark.parametrize("seed", range(30))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    layers = draw(seed, (4, 3, 4), ties=seed % 2 == 1)
    bits = rng.integers(1, 9, 3).tolist()
    budget = int(rng.integers(sum(bits), 40))
    profits, sizes, rows = problem(layers, bits)
    best = min(
        float(profits[~keep].sum())
        for keep in (np.array(k, dtype=bool) for k in itertools.product([0, 1], repeat=11))
        if sizes[keep].sum() <= budget and (rows[:, keep].sum(1) >= 1).all()
    )
    assert prune([rank_weights(layer) for layer in layers], bits, budget).squared_error == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_equals_milp_and_is_bounded_by_the_relaxation(seed):
    rng = np.random.default_rng(seed)
    layers = draw(seed, (30, 80, 12, 60), ties=seed % 3 == 0)
    bits = rng.integers(1, 9, 4).tolist()
    budget = int(rng.integers(sum(bits), 400))
    result = prune([rank_weights(layer) for layer in layers], bits, budget)
    assert result.squared_error == pytest.approx(milp_error(layers, bits, budget), rel=1e-7, abs=1e-9)
    assert result.bound == pytest.approx(relaxed_error(layers, bits, budget), rel=1e-7, abs=1e-7)
    assert result.bound <= result.squared_error <= result.greedy_squared_error + 1e-12
    used = sum(bit * count for bit, count in zip(bits, result.nonzeros, strict=True))
    assert used == result.used_bits <= budget
    dropped = sum(rank_weights(w).dropped_square(n) for w, n in zip(layers, result.nonzeros, strict=True))
    assert dropped == pytest.approx(result.squared_error, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equal_bits_keep_the_largest_and_spend_everything(seed):
    layers = draw(seed, (500, 700))
    result = prune([rank_weights(layer) for layer in layers], [3, 3], 300)
    largest = torch.cat(layers).double().square().sort().values
    assert sum(result.nonzeros) == 100
    assert result.squared_error == pytest.approx(float(largest[:-100].sum()))
    assert result.squared_error == result.greedy_squared_error


def test_greedy_goes_on_past_a_weight_that_does_not_fit():
    layers = [torch.tensor([4.0, 3.9]), torch.tensor([1.0, 0.5, 0.4])]
    result = prune([rank_weights(layer) for layer in layers], [4, 1], 7, exact=False)
    assert result.nonzeros == [1, 3]


def test_error_never_rises_with_the_budget():
    ranked = [rank_weights(layer) for layer in draw(7, (200, 300, 50))]
    errors = [prune(ranked, [5, 2, 7], budget).squared_error for budget in range(14, 600, 13)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))


def test_keeps_one_weight_per_layer_even_of_zeros():
    result = prune([rank_weights(torch.zeros(2, 3)), rank_weights(torch.ones(4))], [2, 1], 4)
    assert result.nonzeros == [1, 2]


def test_zero_weights_cost_nothing_under_a_loose_budget():
    result = prune([rank_weights(torch.tensor([1.0, 0.0, 2.0]))], [8], 10**6)
    assert (result.nonzeros, result.squared_error, result.bound) == ([2], 0.0, 0.0)


def test_mask_takes_the_largest_and_breaks_ties_repeatably():
    weight = torch.tensor([[1.0, -3.0], [3.0, 3.0]])
    masks = [rank_weights(weight).mask(count, weight.shape) for count in range(5)]
    assert [int(mask.sum()) for mask in masks] == [0, 1, 2, 3, 4]
    assert masks[3].tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_are_those_of_the_ranking_also_where_magnitudes_are_equal(seed):
    torch.manual_seed(seed)
    weight = torch.randint(-3, 4, (7, 11)).float() if seed % 2 else torch.randn(7, 11)
    for count in (0, 1, 13, 38, 76, 77):
        assert torch.equal(largest(weight, count), rank_weights(weight).mask(count, weight.shape)), count


def test_infeasible_budget_names_the_smallest():
    layers = [rank_weights(layer) for layer in draw(0, (5, 5))]
    with pytest.raises(InfeasibleTargetError, match="takes 11") as caught:
        prune(layers, [8, 3], 10)
    assert prune(layers, [8, 3], caught.value.smallest).nonzeros == [1, 1]
