"""ADMM against hand-written steps, and on problems whose constrained optimum is known."""

import math

import pytest
import torch

from autocompress.constraints.rate_distortion.projection import project_to_bits
from autocompress.network.compressed_tensors import QuantizedTensor
from autocompress.solver.admm import Admm, proximal_strength

CONTRACTION = 0.5


def coded(dense: list[list[float]]) -> QuantizedTensor:
    matrix = torch.tensor(dense)
    values = matrix[matrix != 0].unique()
    codes = torch.zeros(matrix.shape, dtype=torch.int16)
    for i, value in enumerate(values):
        codes[matrix == value] = i + 1
    return QuantizedTensor(codes, values)


def test_two_updates_by_hand() -> None:
    w = torch.tensor([[1.0, 0.2]])
    admm = Admm([w], 1, CONTRACTION)
    strength = -math.log(1 - CONTRACTION)
    # First update: V = [1, 0], U = 0 + W - V = [0, 0.2], V - U = [1, -0.2].
    assert admm.update([coded([[1.0, 0.0]])]) == pytest.approx(0.2)
    torch.testing.assert_close(admm.duals[0], torch.tensor([[0.0, 0.2]]))
    # Proximal step: W = (W + s (V - U)) / (1 + s).
    admm.after_step(1.0)
    second = (0.2 + strength * -0.2) / (1 + strength)
    torch.testing.assert_close(w, torch.tensor([[1.0, second]]))
    # Second update: V = [1, 0] again, U = [0, 0.2 + second].
    admm.update([coded([[1.0, 0.0]])])
    torch.testing.assert_close(admm.duals[0], torch.tensor([[0.0, 0.2 + second]]))
    torch.testing.assert_close(admm.points()[0], torch.tensor([[1.0, 0.2 + 2 * second]]))


def test_the_contraction_between_two_updates_is_what_was_said() -> None:
    w = torch.ones(3, 3)
    admm = Admm([w], 100, CONTRACTION)
    admm.centers[0].zero_()
    for _ in range(100):
        admm.after_step(1.0)
    assert float(w[0, 0]) == pytest.approx(1 - CONTRACTION, abs=0.01)
    assert proximal_strength(100, 0.5, 0.5) == pytest.approx(proximal_strength(100, 0.5, 1.0) / 2)


def test_a_pruned_weight_is_taken_in_place() -> None:
    w = torch.tensor([[1.0, 0.2]])
    admm = Admm([w], 1, CONTRACTION)
    admm.update([coded([[1.0, 0.0]])], pruned=[torch.tensor([[1.0, 0.0]])])
    assert w.tolist() == [[1.0, 0.0]]
    assert admm.duals[0].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("seed", range(5))
def test_a_convex_quadratic_reaches_its_constrained_optimum(seed: int) -> None:
    """minimise sum_i a_i/2 (w_i - c_i)^2 subject to w >= 0, the projection being clamping: optimum max(c, 0)."""
    generator = torch.Generator().manual_seed(seed)
    a, c = torch.rand(4, 4, generator=generator) + 0.5, torch.randn(4, 4, generator=generator)
    w = torch.zeros(4, 4)
    admm = Admm([w], 20, CONTRACTION)
    for step in range(1, 4001):
        w -= 0.05 * a * (w - c)
        admm.after_step(1.0)
        if step % 20 == 0:
            dense = admm.points()[0].clamp(min=0)
            codes = torch.where(dense > 0, torch.arange(1, 17, dtype=torch.int16).view(4, 4), 0).to(torch.int16)
            residual = admm.update([QuantizedTensor(codes, dense.flatten())])
    torch.testing.assert_close(w, c.clamp(min=0), atol=2e-3, rtol=0)
    assert residual < 1e-3


def test_a_sparse_quadratic_keeps_the_right_weights() -> None:
    """With equal curvature the constrained optimum keeps the largest entries of c; ADMM has to find them."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(10, 20, generator=generator) * 0.05
    chosen = torch.randperm(200, generator=generator)[:12]
    c.view(-1)[chosen] = 1.0
    w = c.clone()
    admm = Admm([w], 10, CONTRACTION)
    for step in range(1, 601):
        w -= 0.1 * (w - c)
        admm.after_step(1.0)
        if step % 10 == 0:
            projection = project_to_bits(admm.points(), 132)
            admm.update(projection.quantized)
    kept = projection.quantized[0].codes.flatten().nonzero().flatten()
    assert set(kept.tolist()) == set(chosen.tolist())


def test_the_state_round_trips() -> None:
    admm, other = Admm([torch.ones(2, 2)], 1, CONTRACTION), Admm([torch.ones(2, 2)], 1, CONTRACTION)
    admm.update([coded([[1.0, 0.0], [0.5, 0.0]])])
    other.load_state_dict(admm.state_dict())
    assert torch.equal(other.duals[0], admm.duals[0])
    assert torch.equal(other.centers[0], admm.centers[0])
