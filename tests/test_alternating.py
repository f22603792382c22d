"""The weight-data projection as a whole: feasible, idempotent, monotone, and its joint start."""

import itertools

import pytest
import torch

from autocompress.constraints.weight_bits import WeightBitsState, project_plan, project_weight_bits, squared_error
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.compressed_tensors import (
    QuantizedTensor,
    smallest_weight_data_bits,
    weight_data_bits,
    weight_data_factor,
)

SHAPES = [(6, 1, 3, 3), (40, 54), (10, 40)]


def draw(seed: int, shapes=SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("budget", [3, 4, 17, 300, 3000, 10**6])
def test_is_feasible_and_consistent(seed, budget):
    weights = draw(seed)
    targets = [weight + 0.1 * other for weight, other in zip(weights, draw(seed + 50), strict=True)]
    state = None
    for _ in range(3):
        result = project_weight_bits(weights, targets, budget, state)
        assert weight_data_bits(result.quantized) == result.used_bits <= budget
        assert result.nonzeros == [tensor.nonzeros for tensor in result.quantized]
        assert min(result.nonzeros) >= 1
        assert result.bits == [tensor.bits for tensor in result.quantized]
        assert result.exact
        assert result.squared_error == pytest.approx(squared_error(result.quantized, targets))
        for weight, pruned, coded in zip(weights, result.pruned, result.quantized, strict=True):
            kept = coded.codes != 0
            assert torch.equal(pruned, weight * kept)
        state = result.state


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("budget", [40, 600, 4000])
def test_is_idempotent(seed, budget):
    weights = draw(seed)
    first = project_weight_bits(weights, weights, budget)
    compressed = [tensor.dense() for tensor in first.quantized]
    again = project_weight_bits(compressed, compressed, budget, first.state)
    assert all(torch.equal(a.dense(), b) for a, b in zip(again.quantized, compressed, strict=True))
    assert again.squared_error == 0


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_error_falls_with_the_budget(seed):
    """Both knapsacks are exact, their alternation is not: a larger budget may err by 5 % more, never by more."""
    weights = draw(seed)
    errors = [project_weight_bits(weights, weights, budget).squared_error for budget in range(50, 6000, 1900)]
    assert all(later <= earlier * 1.05 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize(("seed", "budget"), [(0, 100), (1, 1000), (2, 5000)])
def test_joint_start_is_no_worse_than_any_uniform_start(seed, budget):
    weights = draw(seed)
    joint = project_weight_bits(weights, weights, budget).squared_error
    for bit in range(1, 9):
        uniform = project_weight_bits(weights, weights, budget, WeightBitsState([bit] * 3, []))
        assert joint <= uniform.squared_error * (1 + 1e-3)  # rounding of the codebooks comes after the choice


@pytest.mark.parametrize("budget", [100, 1500])
def test_joint_start_is_near_the_best_of_all_starts(budget):
    weights = draw(1)
    joint = project_weight_bits(weights, weights, budget).squared_error
    best = min(
        project_weight_bits(weights, weights, budget, WeightBitsState(list(bits), [])).squared_error
        for bits in itertools.product([1, 2, 4], repeat=3)
        if sum(bits) <= budget
    )
    assert joint <= 1.02 * best


def test_bits_that_no_longer_fit_are_replaced():
    weights = draw(0)
    result = project_weight_bits(weights, weights, 4, WeightBitsState([8, 8, 8], []))
    assert result.used_bits <= 4


def test_state_warm_starts_and_pure():
    weights = draw(2)
    before = [weight.clone() for weight in weights]
    first = project_weight_bits(weights, weights, 900)
    second = project_weight_bits(weights, weights, 900, first.state)
    assert second.squared_error <= first.squared_error * 1.02
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert [len(row) for row in first.state.centroids] == [8, 8, 8]


def test_a_layer_of_zeros_and_half_precision():
    weights = [torch.zeros(4, 4), torch.randn(5, 5).to(torch.bfloat16)]
    result = project_weight_bits(weights, weights, 30)
    assert result.pruned[1].dtype == torch.bfloat16
    assert result.quantized[0].nonzeros == 1
    assert float(result.quantized[0].dense().abs().max()) < 1e-30


def test_infeasible_budget_names_the_smallest():
    weights = draw(0)
    with pytest.raises(InfeasibleTargetError, match="2 bits of weight data, but the smallest is 3") as caught:
        project_weight_bits(weights, weights, 2)
    assert caught.value.smallest == smallest_weight_data_bits(weights) == 3
    assert project_weight_bits(weights, weights, caught.value.smallest).used_bits == 3


@pytest.mark.parametrize(
    ("weights", "targets", "message"),
    [
        ([torch.ones(2, 2)], [torch.ones(4)], "same shapes"),
        ([torch.ones(0, 2)], [torch.ones(0, 2)], "no elements"),
        ([torch.ones(2, 2)], [torch.full((2, 2), float("nan"))], "not finite"),
    ],
)
def test_bad_tensors(weights, targets, message):
    with pytest.raises(InvalidInputError, match=message):
        project_weight_bits(weights, targets, 100)


def test_no_layers_cost_nothing():
    assert project_weight_bits([], [], 0).used_bits == 0


@pytest.mark.parametrize("keep_fraction", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("codebook", [1, 2, 5, 256])
def test_a_plan_is_applied_as_given(keep_fraction, codebook):
    weight = draw(3)[1]
    coded = project_plan(weight, keep_fraction, codebook)
    assert coded.nonzeros == max(1, round(keep_fraction * weight.numel()))
    assert len(coded.values) <= codebook
    kept = coded.codes != 0
    assert weight[kept].abs().min() >= (weight[~kept].abs().max() if bool((~kept).any()) else 0)


def test_a_bad_plan():
    with pytest.raises(InvalidInputError, match=r"got 1\.5 and 3"):
        project_plan(torch.ones(2, 2), 1.5, 3)
    with pytest.raises(InvalidInputError, match=r"got 0\.5 and 257"):
        project_plan(torch.ones(2, 2), 0.5, 257)


def test_weight_data_is_bits_times_nonzeros():
    ternary = QuantizedTensor(torch.tensor([[0, 1], [2, 2]], dtype=torch.int16), torch.tensor([-1.0, 1.0]))
    five = QuantizedTensor(torch.arange(6, dtype=torch.int16).view(2, 3), torch.arange(1.0, 6.0))
    assert weight_data_bits([ternary, five]) == 3 * 1 + 5 * 3
    assert weight_data_factor([ternary, five]) == pytest.approx(32 * 10 / 18)


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [17, 900])
def test_the_same_on_a_gpu(budget):
    weights = draw(5)
    on_cpu = project_weight_bits(weights, weights, budget)
    moved = [weight.cuda() for weight in weights]
    on_gpu = project_weight_bits(moved, moved, budget)
    assert on_gpu.used_bits <= budget
    assert on_gpu.quantized[0].codes.is_cuda
    assert on_gpu.squared_error == pytest.approx(on_cpu.squared_error, rel=1e-3)
