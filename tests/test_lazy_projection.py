"""Lazy projection against hand-written steps, on a problem whose answer is known, and its rules against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from autocompress.constraints.rate_distortion.projection import fixed_tables, project_to_bits
from autocompress.network.compressed_tensors import QuantizedTensor, quantized_tensor
from autocompress.network.kernel_tensor import kernel_tensor
from autocompress.solver.lazy_projection import LazyProjection, Nearest, NearestKernel, nearest_rule


def coded(dense: list[list[float]]) -> QuantizedTensor:
    matrix = torch.tensor(dense)
    values = matrix[matrix != 0].unique()
    return QuantizedTensor(((torch.bucketize(matrix, values) + 1) * (matrix != 0)).to(torch.int16), values)


def test_two_steps_by_hand() -> None:
    w = torch.tensor([[1.0, 0.25, -0.5]])
    lazy = LazyProjection([w], pruned_rate=0.25)
    w += torch.tensor([[0.5, 0.0, 0.0]])  # the optimizer's first step, before there is a V
    assert lazy.points()[0].tolist() == [[1.5, 0.25, -0.5]]
    assert lazy.update([coded([[1.25, 0.0, 0.0]])]) == pytest.approx((0.0625 + 0.0625 + 0.25) ** 0.5)
    assert w.tolist() == [[1.25, 0.0, 0.0]]
    w -= 0.5  # the second: W takes it whole where V is not zero, a quarter of it where it is
    lazy.after_step(1.0)
    assert lazy.points()[0].tolist() == [[1.0, 0.125, -0.625]]
    lazy.reassign()  # by magnitude, between 0.5 (the largest that was dropped) and 1.5
    assert w.tolist() == [[0.0, 0.0, 0.0]] or w.tolist() == [[1.25, 0.0, 0.0]]
    lazy.restore_dense()
    assert w.tolist() == [[1.0, 0.125, -0.625]]


def test_the_distance_of_w_from_v_is_forgotten() -> None:
    w = torch.tensor([[1.5, 0.25]])
    lazy = LazyProjection([w], pruned_rate=0.5, memory_steps=4)
    lazy.points()
    lazy.update([coded([[1.0, 0.0]])])
    kept, pruned = 0.5, 0.25
    for relative_lr, forgotten in (
        (1.0, 1 / 16),
        (1.0, 2 / 16),
        (0.5, 3 / 16),
        (1.0, 1 / 4),
        (0.2, 1 / 4),
        (0.0, 1 / 4),
    ):
        w -= 0.2
        lazy.after_step(relative_lr)
        w.copy_(torch.tensor([[1.0, 0.0]]))
        kept = (1 - forgotten) * kept - 0.2
        pruned = (1 - relative_lr * forgotten) * pruned - 0.5 * 0.2
        assert lazy.hidden[0].tolist() == [pytest.approx([1 + kept, pruned])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_step_that_the_optimizer_skips_moves_nothing(dtype: torch.dtype) -> None:
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    lazy = LazyProjection([w], 0.3)
    found = project_to_bits(lazy.points(), 150)
    lazy.update(found.quantized)
    before = lazy.hidden[0].clone()
    for _ in range(3):
        lazy.after_step(1.0)
        assert torch.equal(lazy.hidden[0], before)
        lazy.reassign()


def test_a_sparse_quadratic_keeps_the_right_weights_under_noise() -> None:
    """loss = ||x - c||^2 / 2 with noisy gradients: 12 entries of c matter, the other 388 are zero."""
    generator = torch.Generator().manual_seed(0)
    c = torch.zeros(20, 20)
    chosen = torch.randperm(400, generator=generator)[:12]
    c.view(-1)[chosen] = 1.0
    w = torch.randn(20, 20, generator=generator) * 0.3
    lazy = LazyProjection([w], 0.3)
    state = None
    for step in range(1, 401):
        w -= 0.1 * (1 - step / 400) * (w - c + 0.3 * torch.randn(20, 20, generator=generator))
        lazy.after_step(1.0) if state else None
        if step % 10 == 1:
            found = project_to_bits(lazy.points(), 140, state)
            state = found.state
            lazy.update(found.quantized, rules=fixed_tables(state, None, w.device))
        else:
            lazy.reassign()
    kept = found.quantized[0].codes.flatten().nonzero().flatten()
    assert set(kept.tolist()) == set(chosen.tolist())
    assert float((w - c).abs().max()) < 0.15


# --- the rules between two projections ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_fixed_tables_assign_by_least_error_and_bits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 9, generator=generator) ** 3
    state = project_to_bits([x], 120).state
    moved = x + 0.05 * torch.randn(6, 9, generator=generator)
    (rule,) = fixed_tables(state, None, x.device)
    index, values = rule.assign(moved)
    found = torch.zeros(54).index_put((index,), values).view(6, 9)
    tables, price = state.tables[0], state.multiplier
    for row, column in itertools.product(range(6), range(9)):
        weight = float(moved[row, column])
        position = float(tables.lengths.row_bits[row] + tables.lengths.column_bits[column])
        choices = {0.0: weight**2} | {
            float(value): (weight - float(value)) ** 2 + price * (position + float(bits))
            for value, bits in zip(tables.values, tables.lengths.code_bits, strict=True)
        }
        assert choices[float(found[row, column])] == pytest.approx(min(choices.values()), abs=1e-6)


def test_a_layer_of_fixed_tables_never_loses_its_largest_weight() -> None:
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    (rule,) = fixed_tables(project_to_bits([x], 100).state, None, x.device)
    index, values = rule.assign(x * 1e-4)
    assert index.tolist() == [int(x.abs().argmax())]
    assert bool(values.all())


def test_by_magnitude_v_stays_where_w_stays() -> None:
    w = torch.tensor([[0.9, -0.7, 0.2], [0.1, 0.5, -0.3]])
    tensor = quantized_tensor(torch.tensor([[2, 1, 0], [0, 2, 0]]), torch.tensor([-0.7, 0.7]))
    rule = nearest_rule(tensor, w)
    assert isinstance(rule, Nearest)
    assert rule.threshold == pytest.approx(0.4)
    index, values = rule.assign(w)
    assert torch.equal(torch.zeros(6).index_put((index,), values).view(2, 3), tensor.dense())
    index, _ = rule.assign(torch.tensor([[0.9, -0.35, 0.45], [0.1, 0.5, -0.3]]))
    assert index.tolist() == [0, 2, 4]  # one weight has come, one has gone


def test_where_magnitude_did_not_decide_the_support_stays() -> None:
    w = torch.tensor([[0.9, 0.1], [0.8, 0.7]])
    tensor = quantized_tensor(torch.tensor([[1, 1], [0, 0]]), torch.tensor([0.5]))  # a whole row went
    rule = nearest_rule(tensor, w)
    assert isinstance(rule, Nearest)
    assert rule.threshold is None
    assert rule.assign(10 * w)[0].tolist() == [0, 1]


def test_kernels_take_the_nearest_codeword() -> None:
    w = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    words = torch.randn(4, 9, generator=torch.Generator().manual_seed(3))
    tensor = kernel_tensor(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), words, (4, 2, 3, 3))
    rule = nearest_rule(tensor, w)
    assert isinstance(rule, NearestKernel)
    index, values = rule.assign(w)
    assert index.tolist() == list(range(72))
    expected = torch.cdist(w.view(8, 9), tensor.values).argmin(1)
    assert torch.equal(values.view(8, 9), tensor.values[expected])


@pytest.mark.parametrize("own", [True, False])
def test_the_state_round_trips(own: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 7, generator=generator)
    one, other = LazyProjection([w.clone()], 0.3), LazyProjection([torch.zeros(6, 7)], 0.3)
    found = project_to_bits(one.points(), 150)
    rules = fixed_tables(found.state, None, w.device) if own else None
    one.update(found.quantized, rules=rules)
    other.load_state_dict(one.state_dict(), rules)
    other.weights[0].copy_(one.weights[0])
    step = torch.randn(6, 7, generator=generator)
    for each in (one, other):
        each.weights[0].add_(0.2 * step)
        each.after_step(1.0)
        each.reassign()
    assert torch.equal(one.weights[0], other.weights[0])
    assert torch.equal(one.hidden[0], other.hidden[0])


def test_idle_weights_fade_and_come_back() -> None:
    w = torch.tensor([[1.0, 0.8, -0.6]])
    lazy = LazyProjection([w], 0.4, idle_decay=0.5, fading=[True])
    lazy.points()
    lazy.update([coded([[1.0, 0.8, 0.0]])])
    for gradient in ([1.0, 0.0, 0.0], [1.0, 0.0, -1e-9]):  # the second weight has none at all, the third one once
        w.grad = torch.tensor([gradient])
        lazy.after_step(1.0)
        lazy.reassign()
    torch.testing.assert_close(lazy.points()[0], torch.tensor([[1.0, 0.4, -0.6]]))
    torch.testing.assert_close(lazy.points()[0], torch.tensor([[1.0, 0.4, -0.6]]))  # asked again, nothing fades
    lazy.update([coded([[1.0, 0.4, 0.0]])])
    w.grad = torch.ones(1, 3)
    lazy.after_step(1.0)
    torch.testing.assert_close(lazy.points()[0], torch.tensor([[1.0, 0.4, -0.6]]))


def test_without_any_gradient_nothing_is_idle() -> None:
    w = torch.tensor([[1.0, 0.8, -0.6]])
    lazy = LazyProjection([w], 0.4, idle_decay=0.5, fading=[True])
    lazy.points()
    lazy.update([coded([[1.0, 0.8, 0.0]])])
    lazy.after_step(1.0)
    torch.testing.assert_close(lazy.points()[0], torch.tensor([[1.0, 0.8, -0.6]]))
