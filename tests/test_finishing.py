"""Finishing: gradients of codebook values, fixed assignments, parameters that hold what the file will hold."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from autocompress.network.compressed_tensors import QuantizedTensor, VectorGrid, quantized_tensor, round_codebook
from autocompress.solver.constants import DEFAULTS
from autocompress.solver.fine_tuning import FineTuning

SHAPES = [(4, 3, 2), (5, 6), (3, 3)]


def phase_of(
    seed: int, *, empty: bool = False, steps: int = 10
) -> tuple[list[nn.Parameter], list[nn.Parameter], FineTuning]:
    generator = torch.Generator().manual_seed(seed)
    coded = []
    for shape in SHAPES:
        codes = torch.randint(0, 4, shape, generator=generator)
        coded.append(quantized_tensor(codes, torch.randn(3, generator=generator)))
    if empty:
        coded[1] = QuantizedTensor(torch.zeros(SHAPES[1], dtype=torch.int16), torch.zeros(0))
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    sides = [nn.Parameter(torch.randn(4, generator=generator)) for _ in range(2)]
    return weights, sides, FineTuning(weights, coded, sides, [VectorGrid(0.25, 0.3), None], steps)


def loss_of(tensors: list[torch.Tensor], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sum((t * torch.randn(t.shape, generator=generator)).sin().square().sum() for t in tensors)


def step(phase: FineTuning, seed: int) -> None:
    for tensor in phase.weights + phase.vectors:
        tensor.grad = None
    loss_of(phase.weights + phase.vectors, seed).backward()
    phase.step()


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_of_a_value_is_the_sum_over_its_members(seed: int) -> None:
    weights, sides, phase = phase_of(seed)
    values = [round_codebook(v).requires_grad_() for v in phase.values]
    built = [torch.cat([v.new_zeros(1), v])[codes] for v, codes in zip(values, phase.codes, strict=True)]
    for weight, expected in zip(weights, built, strict=True):
        torch.testing.assert_close(weight.detach(), expected.detach(), rtol=0, atol=0)
    loss_of([*built, *sides], seed).backward()
    step(phase, seed)
    for mine, value in zip(phase.values, values, strict=True):
        torch.testing.assert_close(mine.grad, value.grad)
    for latent, side in zip(phase.latents, sides, strict=True):
        torch.testing.assert_close(latent.grad, side.grad)


@pytest.mark.parametrize("empty", [False, True])
def test_assignments_never_change_and_parameters_hold_what_the_file_will_hold(empty: bool) -> None:
    weights, sides, phase = phase_of(3, empty=empty)
    before = [codes.clone() for codes in phase.codes]
    start = [values.clone() for values in phase.values]
    for number in range(10):
        step(phase, number)
        for weight, coded in zip(weights, phase.quantized, strict=True):
            torch.testing.assert_close(weight.detach(), coded.dense(), rtol=0, atol=0)
        torch.testing.assert_close(sides[0].detach(), VectorGrid(0.25, 0.3).round(phase.latents[0]).dense())
        torch.testing.assert_close(sides[1].detach(), phase.latents[1], rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, phase.codes, strict=True))
    for coded, codes in zip(phase.quantized, before, strict=True):
        assert torch.equal(coded.codes != 0, codes != 0)
    assert any(not torch.equal(a, b) for a, b in zip(start, phase.values, strict=True))


def test_what_the_users_optimizer_did_is_overwritten() -> None:
    weights, sides, phase = phase_of(0)
    expected = [w.detach().clone() for w in weights + sides]
    with torch.no_grad():
        for tensor in weights + sides:
            tensor.add_(1)
    phase.write()
    assert all(torch.equal(a, b) for a, b in zip(expected, weights + sides, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(bad: float) -> None:
    weights, _, phase = phase_of(1)
    before = [v.clone() for v in phase.values + phase.latents]
    loss_of(phase.weights + phase.vectors, 0).backward()
    weights[1].grad[0, 0] = bad
    assert not phase.step()
    assert all(torch.equal(a, b) for a, b in zip(before, phase.values + phase.latents, strict=True))
    assert phase.step_count == 1


def test_tensors_without_a_gradient_stay() -> None:
    weights, _, phase = phase_of(1)
    before = phase.values[0].clone()
    loss_of(phase.weights[1:], 0).backward()
    phase.step()
    assert torch.equal(phase.values[0], before)
    assert weights[0].grad is None


def test_the_first_step_is_a_share_of_the_values_and_the_last_is_none() -> None:
    _, _, phase = phase_of(2, steps=2)
    before = [v.clone() for v in phase.values]
    step(phase, 0)
    for value, start in zip(phase.values, before, strict=True):
        size = start.square().mean().sqrt() * DEFAULTS.fine_tuning_step * 0.5  # half of the cosine is over
        assert float((value - start).abs().max()) == pytest.approx(float(size), rel=1e-3)
    before = [v.clone() for v in phase.values]
    step(phase, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, phase.values, strict=True))


def test_rewind_goes_back_to_the_start() -> None:
    weights, sides, phase = phase_of(4)
    before = [t.detach().clone() for t in weights + sides]
    for number in range(3):
        step(phase, number)
    phase.rewind()
    assert all(torch.equal(a, b) for a, b in zip(before, weights + sides, strict=True))


def test_a_saved_phase_goes_on_as_if_nothing_had_happened() -> None:
    weights, sides, phase = phase_of(5)
    for number in range(4):
        step(phase, number)
    buffer = io.BytesIO()
    torch.save(phase.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    others = [nn.Parameter(torch.randn(t.shape)) for t in weights + sides]
    resumed = FineTuning.from_state_dict(others[:3], others[3:], saved)
    assert all(torch.equal(a, b) for a, b in zip(others, weights + sides, strict=True))
    for number in range(4, 8):
        step(phase, number)
        step(resumed, number)
    assert all(torch.equal(a, b) for a, b in zip(others, weights + sides, strict=True))
    resumed.rewind()
    phase.rewind()
    assert all(torch.equal(a, b) for a, b in zip(others, weights + sides, strict=True))
