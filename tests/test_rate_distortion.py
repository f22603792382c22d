"""The priced projection: exact for fixed tables, always feasible, monotone, and a descent on its problem."""

import itertools
import math

import pytest
import torch

from autocompress.constraints.rate_distortion.assignment import (
    Layer,
    LayerTables,
    Weights,
    bits_under_tables,
    find_multiplier,
    lower_envelope,
)
from autocompress.constraints.rate_distortion.projection import BitsProjection, project_to_bits
from autocompress.constraints.rate_distortion.rates import (
    CodeLengths,
    Counts,
    as_matrix,
    code_length,
    estimate_code_lengths,
)
from autocompress.energy.accelerator import EnergyBudget, WeightEnergy
from autocompress.network.compressed_tensors import round_codebook


def random_layers(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(8, 3, 3, 3), (16, 40), (5, 16), (4, 2, 7), (3, 3)]
    return [torch.randn(shapes[i % 5], generator=generator) * (0.1 + i) for i in range(count)]


def random_tables(matrix: torch.Tensor, size: int, generator: torch.Generator) -> LayerTables:
    values = torch.randn(size, generator=generator).sort().values
    lengths = CodeLengths(
        torch.rand(size, generator=generator) * 4,
        torch.randn(matrix.shape[0], generator=generator),
        torch.randn(matrix.shape[1], generator=generator) + 2,
    )
    return LayerTables(values, lengths)


@pytest.mark.parametrize("seed", range(20))
def test_lower_envelope_agrees_with_trying_every_value(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(7, generator=generator).sort().values
    offsets = torch.rand(7, generator=generator) * 2
    kept, thresholds = map(torch.from_numpy, lower_envelope(values.numpy(), offsets.numpy()))
    x = torch.linspace(-5, 5, 1001)
    costs = (x[:, None] - values).square() + offsets
    chosen = kept[torch.bucketize(x, thresholds)]
    torch.testing.assert_close(costs.gather(1, chosen[:, None])[:, 0], costs.min(1).values, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("price", [0.0, 0.01, 0.2, 3.0])
def test_assignment_is_the_least_error_plus_price_times_bits(seed: int, price: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 6, generator=generator)
    tables = random_tables(matrix, 3, generator)
    layer = Layer(Weights(matrix), tables)
    kept = layer.assign(price)
    position = tables.lengths.position_bits()
    choices = torch.cat([torch.zeros(1), tables.values])
    extra = torch.stack([torch.zeros_like(position)] + [position + b for b in tables.lengths.code_bits])
    objective = (matrix - choices[:, None, None]).square() + price * extra
    codes = kept.codes().flatten().long()
    mine = objective.flatten(1).gather(0, codes[None])[0]
    best = objective.flatten(1).min(0).values
    if codes.count_nonzero() > 1:  # at one nonzero the floor of one per tensor may hold it
        torch.testing.assert_close(mine, best, atol=1e-5, rtol=1e-5)
    spent = tables.lengths.zero_bits() + float(extra.flatten(1).gather(0, codes[None]).sum())
    assert layer.zero_bits + kept.bits == pytest.approx(spent, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_bits_never_rise_with_the_price_under_fixed_tables(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(20, 30, generator=generator)
    layer = Layer(Weights(matrix), random_tables(matrix, 5, generator))
    bits = [bits_under_tables([layer], price) for price in torch.logspace(-5, 2, 60).tolist()]
    assert all(later <= earlier + 1e-2 for earlier, later in itertools.pairwise(bits))


def test_price_is_the_least_that_fits() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(40, 50, generator=generator)
    layer = Layer(
        Weights(matrix),
        LayerTables(torch.tensor([-1.0, 1.0]), estimate_code_lengths(Counts.of_codes((matrix.abs() > 1).short(), 2))),
    )
    price = find_multiplier([layer], 1500.0, 1e-3)
    assert bits_under_tables([layer], price) <= 1500.0
    assert bits_under_tables([layer], price / 1.02) > 1500.0 * 0.99


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget_bits", [10, 150, 400, 1000, 3000, 50_000])
def test_projection_is_feasible_and_says_what_it_used(seed: int, budget_bits: int) -> None:
    layers = random_layers(seed, 2 + seed % 4)
    found = project_to_bits(layers, budget_bits)
    counted = sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in found.quantized)
    assert found.bits == pytest.approx(counted, rel=1e-6)
    assert found.bits <= budget_bits or all(c.nonzeros == 0 for c in found.quantized)
    error = sum(float((c.dense() - x).square().sum()) for c, x in zip(found.quantized, layers, strict=True))
    assert found.error == pytest.approx(error, rel=1e-4)
    for coded in found.quantized:
        assert int(coded.codes.max()) <= coded.values.numel()
        torch.testing.assert_close(round_codebook(coded.values), coded.values, rtol=0, atol=0)


def test_error_falls_as_the_budget_grows() -> None:
    layers = random_layers(0, 4)
    errors = [project_to_bits(layers, bits).error for bits in (300, 600, 1200, 2400, 4800)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_most_of_the_budget_is_used() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(100, 200, generator=generator) ** 3, torch.randn(50, 100, generator=generator) * 0.3]
    for budget in (2_000, 8_000, 30_000):
        assert project_to_bits(layers, budget).bits > 0.97 * budget


def test_a_warm_start_is_no_worse_than_what_it_starts_from() -> None:
    layers = random_layers(1, 4)
    first = project_to_bits(layers, 1500)
    second = project_to_bits(layers, 1500, first.state)
    assert second.error <= first.error * 1.02


def test_no_tensor_goes_dead_while_there_is_room() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(50, 60, generator=generator), torch.randn(30, 30, generator=generator) * 1e-3]
    assert all(c.nonzeros >= 1 for c in project_to_bits(layers, 1000).quantized)


def test_all_zero_and_constant_tensors_pass() -> None:
    found = project_to_bits([torch.zeros(4, 5), torch.full((3, 3), 0.5)], 500)
    assert torch.equal(found.quantized[0].dense(), torch.zeros(4, 5)) or found.quantized[0].nonzeros == 1
    torch.testing.assert_close(found.quantized[1].dense(), torch.full((3, 3), 0.5), rtol=0.01, atol=0)


def test_a_structured_tensor_costs_less_than_a_scattered_one() -> None:
    structured, scattered = torch.zeros(64, 64), torch.zeros(64, 64)
    structured[:8, :16] = 1.0
    scattered.view(-1)[torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:128]] = 1.0
    assert code_length(Counts.of_codes(structured.short(), 1)) < 0.6 * code_length(
        Counts.of_codes(scattered.short(), 1)
    )


def assert_same(first: BitsProjection, second: BitsProjection) -> None:
    assert (first.state.multiplier, first.state.energy_multiplier) == (
        second.state.multiplier,
        second.state.energy_multiplier,
    )
    for one, other in zip(first.quantized, second.quantized, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget_bits", [400, 1500, 4000])
@pytest.mark.parametrize("energy_part", [None, 0.3])
def test_a_projection_with_its_own_state_changes_nothing(
    seed: int, budget_bits: int, energy_part: float | None
) -> None:
    layers = random_layers(seed)
    energy = None
    if energy_part is not None:
        costs = (WeightEnergy(500, 100), WeightEnergy(210, 0), WeightEnergy(210, 0))
        energy = EnergyBudget(costs, energy_part * EnergyBudget(costs, 0).used([x.numel() for x in layers]))
    first = project_to_bits(layers, budget_bits, None, energy)
    assert_same(first, project_to_bits(layers, budget_bits, first.state, energy))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget_bits", [400, 1500, 4000])
def test_what_is_projected_is_its_own_projection(seed: int, budget_bits: int) -> None:
    first = project_to_bits(random_layers(seed), budget_bits)
    assert_same(first, project_to_bits([c.dense() for c in first.quantized], budget_bits, first.state))


def test_nearly_the_same_weights_have_nearly_the_same_price() -> None:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(100, 200, generator=generator) ** 3, torch.randn(50, 100, generator=generator) * 0.3]
    found = project_to_bits(x, 8000)
    prices = [found.state.multiplier]
    for _ in range(12):
        x = [w + 0.01 * w.norm() * (d := torch.randn(w.shape, generator=generator)) / d.norm() for w in x]
        found = project_to_bits(x, 8000, found.state)
        assert found.bits <= 8000
        prices.append(found.state.multiplier)
    moves = sorted(abs(later / earlier - 1) for earlier, later in itertools.pairwise(prices))
    assert moves[len(moves) // 2] < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_error_against_every_pair_of_values_and_choice_of_zeros(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, generator=generator) * 10
    budget, best = 75.0, math.inf  # room for at most two values
    for groups in itertools.product(range(3), repeat=8):
        codes, size = torch.tensor(groups, dtype=torch.int16).view(2, 4), max(groups)
        known = size > 0 and all(k + 1 in groups for k in range(size))
        if known and code_length(Counts.of_codes(codes, size)) <= budget:
            means = torch.tensor([0.0] + [float(x[codes == k + 1].mean()) for k in range(size)])
            best = min(best, float((x - means[codes.long()]).square().sum()))
    found = project_to_bits([x], budget)
    assert found.bits <= budget
    assert best * 0.999 <= found.error <= best * 1.05
