"""The two projections that hold an energy: against brute force and scipy's integer programme."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from autocompress.constraints import energy as energy_pruning
from autocompress.constraints.energy import prune_to_energy
from autocompress.constraints.rate_distortion import assignment as priced_assignment
from autocompress.constraints.rate_distortion.assignment import (
    Layer,
    LayerTables,
    Weights,
    bits_under_tables,
    energy_at,
)
from autocompress.constraints.rate_distortion.energy_multiplier import find_multipliers
from autocompress.constraints.rate_distortion.projection import project_to_bits
from autocompress.constraints.rate_distortion.rates import CodeLengths, Counts, as_matrix, code_length
from autocompress.energy.accelerator import WEIGHT_CACHE_WORDS, EnergyBudget, WeightEnergy
from autocompress.errors import InfeasibleTargetError
from autocompress.network.compressed_tensors import QuantizedTensor

COSTS = (WeightEnergy(7, 0), WeightEnergy(31, 12), WeightEnergy(210, 0), WeightEnergy(492, 1000))


def random_targets(seed: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * (0.5 + i) for i, shape in enumerate(shapes)]


def best_error(targets: list[torch.Tensor], budget: EnergyBudget, cache: int) -> float:
    """Returns the least squared error over all numbers of weights kept in each layer, its largest."""
    dropped = []
    for x in targets:
        squares = x.flatten().double().square().sort().values
        dropped.append([float(squares[: len(squares) - k].sum()) for k in range(len(squares) + 1)])
    best = math.inf
    for counts in itertools.product(*(range(1, x.numel() + 1) for x in targets)):
        used = sum(c.each * k + c.overflow * max(0, k - cache) for c, k in zip(budget.costs, counts, strict=True))
        if used <= budget.limit:
            best = min(best, sum(row[k] for row, k in zip(dropped, counts, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_pruning_against_every_choice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_pruning, "WEIGHT_CACHE_WORDS", 3)
    monkeypatch.setattr("autocompress.energy.accelerator.WEIGHT_CACHE_WORDS", 3)
    targets = random_targets(seed, [(3, 3), (2, 4), (6, 1)])
    costs = (WeightEnergy(7, 0), WeightEnergy(31, 12), WeightEnergy(20, 5))
    rng = np.random.default_rng(seed)
    budget = EnergyBudget(costs, float(rng.integers(60, 420)))
    found = prune_to_energy(targets, budget)
    assert found.used == budget.used([int(m.sum()) for m in found.masks]) <= budget.limit
    error = sum(float(x.double()[~m].square().sum()) for x, m in zip(targets, found.masks, strict=True))
    assert found.squared_error == pytest.approx(error)
    best = best_error(targets, budget, 3)
    largest = max(float(x.square().max()) for x in targets)
    assert found.bound - 1e-9 <= best <= found.squared_error + 1e-9 <= best + largest + 2e-9
    if found.squared_error == pytest.approx(found.bound):  # the price alone used the limit up: an optimum
        assert found.squared_error == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_a_price_is_an_optimum_for_what_it_uses(seed: int) -> None:
    targets = random_targets(seed, [(4, 5), (6, 5), (10, 3)])
    costs = COSTS[:3]
    price = 0.5 * (seed + 1) / 100
    counts = [max(1, int((x.double().square() > price * c.each).sum())) for x, c in zip(targets, costs, strict=True)]
    budget = EnergyBudget(costs, sum(c.of(k) for c, k in zip(costs, counts, strict=True)))
    found = prune_to_energy(targets, budget)
    squares = torch.cat([x.flatten() for x in targets]).double().square().numpy()
    sizes = np.concatenate([np.full(x.numel(), c.each) for x, c in zip(targets, costs, strict=True)])
    owner = np.concatenate([np.full(x.numel(), i) for i, x in enumerate(targets)])
    floor = np.stack([(owner == i).astype(float) for i in range(3)])
    constraints = [LinearConstraint(sizes, ub=budget.limit), LinearConstraint(floor, lb=1)]
    exact = milp(-squares, constraints=constraints, integrality=np.ones_like(squares), bounds=Bounds(0, 1))
    assert found.squared_error == pytest.approx(squares.sum() + exact.fun)


@pytest.mark.parametrize("seed", range(8))
def test_the_rest_of_the_limit_costs_at_most_one_weight(seed: int) -> None:
    targets = random_targets(seed, [(20, 10), (40, 20), (8, 8)])
    budget = EnergyBudget(COSTS[:3], 5000.0 + 700 * seed)
    found = prune_to_energy(targets, budget)
    left = budget.limit - found.used
    for x, mask, cost in zip(targets, found.masks, budget.costs, strict=True):
        assert bool(mask.all()) or cost.each > left  # whatever still fits is kept
        assert x[mask].abs().min() >= (x[~mask].abs().max() if not mask.all() else 0)
    dense = sum(float(x.double().square().sum()) for x in targets)
    assert found.squared_error - found.bound < 0.02 * dense


def test_what_does_not_fit_the_cache_costs_more() -> None:
    x = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    cost = WeightEnergy(10, 1000)
    inside = prune_to_energy([x], EnergyBudget((cost,), 10.0 * WEIGHT_CACHE_WORDS + 900))
    assert int(inside.masks[0].sum()) == WEIGHT_CACHE_WORDS
    beyond = prune_to_energy([x], EnergyBudget((cost,), 10.0 * WEIGHT_CACHE_WORDS + 5 * 1010))
    assert int(beyond.masks[0].sum()) == WEIGHT_CACHE_WORDS + 5


def test_everything_fits_and_nothing_fits() -> None:
    targets = random_targets(0, [(4, 4), (3, 3)])
    assert all(bool(m.all()) for m in prune_to_energy(targets, EnergyBudget(COSTS[:2], 1e6)).masks)
    with pytest.raises(InfeasibleTargetError, match="one weight per tensor takes 38"):
        prune_to_energy(targets, EnergyBudget(COSTS[:2], 37.0))


# --- with bits ----------------------------------------------------------------------------------------------------


def small_layer(matrix: torch.Tensor, energy: WeightEnergy, generator: torch.Generator) -> Layer:
    tables = LayerTables(
        torch.tensor([-1.0, 0.7]),
        CodeLengths(
            torch.rand(2, generator=generator) * 3,
            torch.rand(matrix.shape[0], generator=generator),
            torch.rand(matrix.shape[1], generator=generator) + 2,
        ),
    )
    return Layer(Weights(matrix), tables, energy)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("energy_multiplier", [0.0, 0.02, 0.1])
def test_assignment_at_two_prices_against_every_choice(
    seed: int, energy_multiplier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priced_assignment, "WEIGHT_CACHE_WORDS", 3)
    generator = torch.Generator().manual_seed(seed)
    matrix, price = torch.randn(2, 3, generator=generator), 0.05
    layer = small_layer(matrix, WeightEnergy(3, 4), generator)
    layer.energy_multiplier = energy_multiplier
    kept = layer.assign(price)

    def objective(codes: torch.Tensor) -> float:
        values = torch.cat([torch.zeros(1), layer.tables.values])[codes]
        nonzero = codes != 0
        count = int(nonzero.sum())
        each = torch.cat([torch.zeros(1), layer.tables.lengths.code_bits])[codes] + layer.tables.lengths.position_bits()
        spent = layer.zero_bits + float(each[nonzero].sum())
        energy = 3 * count + 4 * max(0, count - 3)
        return float((matrix - values).square().sum()) + price * spent + energy_multiplier * energy

    choices = (torch.tensor(c).view(2, 3) for c in itertools.product(range(3), repeat=6))
    best = min(objective(codes) for codes in choices if bool(codes.any()))
    assert objective(kept.codes().long()) == pytest.approx(best, rel=1e-5)
    assert kept.bits <= 6 * 10


def _error(coded: list[QuantizedTensor], targets: list[torch.Tensor]) -> float:
    return sum(float((c.dense() - x).square().sum()) for c, x in zip(coded, targets, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_prices_hold_both_budgets_and_no_more(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        small_layer(torch.randn(30, 40, generator=generator), WeightEnergy(30, 0), generator),
        small_layer(torch.randn(20, 20, generator=generator), WeightEnergy(200, 0), generator),
    ]
    free = (bits_under_tables(layers, 1e-6), energy_at(layers, 1e-6))
    for part in (0.3, 0.6):
        budgets = free[0] * 0.7, free[1] * part
        price, energy_multiplier = find_multipliers(layers, *budgets, (0.01, 0.0), bits_under_tables)
        assert bits_under_tables(layers, price) <= budgets[0]
        assert energy_at(layers, price) <= budgets[1]
        assert bits_under_tables(layers, price) > 0.95 * budgets[0] or energy_at(layers, price) > 0.95 * budgets[1]
        warm = find_multipliers(layers, *budgets, (price, energy_multiplier), bits_under_tables)
        assert warm[1] == pytest.approx(energy_multiplier, rel=0.05)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("part", [0.05, 0.3, 0.9])
def test_projection_holds_both(seed: int, part: float) -> None:
    targets = random_targets(seed, [(8, 3, 3, 3), (16, 40), (5, 16)])
    costs = (WeightEnergy(500, 100), WeightEnergy(210, 0), WeightEnergy(210, 0))
    dense = EnergyBudget(costs, 0).used([x.numel() for x in targets])
    energy = EnergyBudget(costs, part * dense)
    bits = 1500.0
    free = project_to_bits(targets, bits)
    found = project_to_bits(targets, bits, None, energy)
    warm = project_to_bits(targets, bits, found.state, energy)
    for each in (found, warm):
        counts = [c.nonzeros for c in each.quantized]
        assert min(counts) >= 1
        assert each.error == pytest.approx(_error(each.quantized, targets))
        assert energy.holds(counts)
        assert sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in each.quantized) <= bits
    assert found.error >= free.error * 0.97
    if energy.holds([c.nonzeros for c in free.quantized]):
        assert found.error == pytest.approx(free.error, rel=0.03)
    else:
        assert energy.used([c.nonzeros for c in found.quantized]) > 0.9 * energy.limit
