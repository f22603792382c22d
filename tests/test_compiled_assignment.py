"""The compiled assignment: the choices of the other one, and projections as good, without keeping any weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autocompress.constraints.rate_distortion import error_feedback, projection
from autocompress.constraints.rate_distortion.assignment import LayerTables, Weights
from autocompress.constraints.rate_distortion.error_feedback import (
    Feedback,
    _assigned,
    _Layer,
    project_with_feedback,
)
from autocompress.constraints.rate_distortion.projection import project_to_bits
from autocompress.constraints.rate_distortion.rates import CodeLengths, as_matrix

pytest.importorskip("numba")
from autocompress.constraints.rate_distortion import compiled_assignment
from autocompress.constraints.rate_distortion.compiled_assignment import LargeWeights, bits_of_sample


def tables_of(rows, columns, size, generator, equal=False):
    """Returns random tables; with some values so dear that they own no interval, or some as good as equal."""
    values = torch.sort(torch.randn(size, generator=generator)).values
    if equal and size > 1:
        values[1] = values[0]
    lengths = CodeLengths(
        6 * torch.rand(size, generator=generator),
        4 * torch.rand(rows, generator=generator) - 1,
        4 * torch.rand(columns, generator=generator) - 1,
    )
    return LayerTables(values, lengths)


@pytest.mark.parametrize("seed", range(12))
def test_the_choices_are_those_of_the_other_assignment(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = [(40, 70), (1, 300), (300, 1), (17, 33)][seed % 4]
    size = [1, 2, 9, 120][seed % 4]
    matrix = torch.randn(rows, columns, generator=generator)
    matrix[0, 0] = 0.0
    tables = tables_of(rows, columns, size, generator, equal=seed > 7)
    plain, compiled = Weights(matrix).layer(tables), LargeWeights(matrix).layer(tables)
    for multiplier in (0.0, 1e-6, 1e-3, 0.05, 0.3, 2.0, 1e6):
        one, other = plain.assign(multiplier), compiled.assign(multiplier)
        assert torch.equal(one.codes(), other.codes())
        for part in ("rows", "columns", "codes"):
            assert np.array_equal(getattr(one.counts, part), getattr(other.counts, part))
        assert other.gain == pytest.approx(one.gain, rel=1e-5, abs=1e-5)
        assert other.bits == pytest.approx(one.bits, rel=1e-5, abs=1e-4)
        assert other.sums == pytest.approx(one.sums, rel=1e-5, abs=1e-5)
        assert other.squared_errors == pytest.approx(one.squared_errors, rel=1e-4, abs=1e-4)
        kept = np.arange(size) % 2 == 0
        for part in ("rows", "columns"):
            assert np.array_equal(getattr(one.counts_with(kept), part), getattr(other.counts_with(kept), part))
        for magnitude in (0.0, 0.5, 1.5):
            assert np.array(other.tails(magnitude)) == pytest.approx(np.array(one.tails(magnitude)), rel=1e-5)
    for magnitude in (0.0, 0.5, 1.5):
        expected = Weights(matrix).tails(magnitude)
        assert np.array(LargeWeights(matrix).tails(magnitude)) == pytest.approx(np.array(expected), rel=1e-5)


def test_a_layer_without_values_is_zero():
    tables = tables_of(4, 5, 0, torch.Generator())
    compiled = LargeWeights(torch.ones(4, 5)).layer(tables)
    assert compiled.assign(0.1).counts.nonzeros == 0
    assert bits_of_sample([compiled], 0.1) == pytest.approx(compiled.zero_bits + 48)


def test_a_sample_tells_how_the_bits_fall():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 200, generator=generator)
    layer = LargeWeights(matrix).layer(tables_of(300, 200, 9, generator))
    multipliers = np.geomspace(1e-3, 1, 12)
    sampled = [bits_of_sample([layer], multiplier) for multiplier in multipliers]
    whole = [48 + 8 * 9 + layer.zero_bits + layer.assign(multiplier).bits for multiplier in multipliers]
    assert (np.diff(sampled) <= 0).all()
    assert sampled == pytest.approx(whole, rel=0.03)
    small = LargeWeights(matrix[:20]).layer(tables_of(20, 200, 9, generator))  # no more than are sampled
    assert bits_of_sample([small], 0.01) == pytest.approx(48 + 8 * 9 + small.zero_bits + small.assign(0.01).bits)


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(64, 3, 3, 3), (96, 64, 3, 3), (200, 96), (10, 200)]
    return [torch.randn(s, generator=generator) * torch.rand(s[0], generator=generator).view(-1, *[1] * (len(s) - 1)) for s in shapes]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("ratio", [8, 20, 60])
def test_projections_are_as_good(monkeypatch, ratio):
    weights = network()
    budget = 32 * sum(w.numel() for w in weights) / ratio
    plain = project_to_bits(weights, budget)
    monkeypatch.setattr(projection, "COMPILED_FROM", 0)
    compiled = project_to_bits(weights, budget)
    assert 0.995 * budget < compiled.bits <= budget
    assert compiled.error == pytest.approx(sum(float((q.dense() - w).square().sum()) for q, w in zip(compiled.quantized, weights, strict=True)))  # fmt: skip  # noqa: E501
    assert compiled.error < 1.02 * plain.error
    again = project_to_bits(weights, budget, compiled.state)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(again.quantized, compiled.quantized, strict=True))
    assert again.state.multiplier == compiled.state.multiplier
    back = project_to_bits([q.dense() for q in compiled.quantized], budget, compiled.state)  # V itself
    assert back.error == pytest.approx(0, abs=1e-9)


def test_a_budget_with_no_room_leaves_nothing(monkeypatch):
    monkeypatch.setattr(projection, "COMPILED_FROM", 0)
    found = project_to_bits(network(), 10.0)
    assert all(not q.codes.any() for q in found.quantized)
    assert math.isfinite(found.error)


def second_moments(columns, generator, groups=1):
    inputs = torch.randn(groups, 3 * columns, columns, generator=generator)
    inputs = inputs @ torch.randn(groups, columns, columns, generator=generator)
    return inputs.mT @ inputs / (3 * columns)


@pytest.mark.parametrize(("shape", "groups"), [((20, 70), 1), ((24, 3, 3, 3), 2), ((9, 200), 1), ((30, 40), 0)])
def test_columns_are_quantized_alike(shape, groups):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    matrix = as_matrix(x)
    feedback = Feedback.of(second_moments(matrix.shape[1], generator, groups)) if groups else None
    tables = tables_of(*matrix.shape, 11, generator)
    for multiplier in (0.0, 0.01, 0.2):
        found = [
            _assigned(_Layer.of(x, feedback, compiled), tables, tuple(matrix.shape), multiplier)
            for compiled in (False, True)
        ]
        (codes, made), (compiled_codes, compiled_made) = found
        if groups:  # alone, each layer keeps at least one weight
            assert torch.equal(compiled_codes, codes)
        assert (compiled_codes == codes).float().mean() > 0.99
        torch.testing.assert_close(compiled_made, made)
        assert len(codes.unique()) > 2


@pytest.mark.any_file
@pytest.mark.parametrize("ratio", [8, 30])
def test_projections_with_feedback_are_as_good(monkeypatch, ratio):
    weights, generator = network(), torch.Generator().manual_seed(0)
    feedback = [Feedback.of(second_moments(as_matrix(w).shape[1], generator)) for w in weights[:3]] + [None]
    budget = 32 * sum(w.numel() for w in weights) / ratio
    compiled = project_with_feedback(weights, budget, feedback)
    monkeypatch.setattr(error_feedback, "compiles", lambda _: False)
    plain = project_with_feedback(weights, budget, feedback)
    assert compiled.bits <= budget
    assert compiled.error < 1.03 * plain.error


@pytest.mark.any_file
def test_where_the_disk_is_full_numpy_goes_on(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    weights = network()
    budget = 32 * sum(w.numel() for w in weights) / 20
    feedback = [Feedback.of(second_moments(27, torch.Generator().manual_seed(0))), None, None, None]
    with monkeypatch.context() as patch:
        patch.setattr(error_feedback, "compiles", lambda _: False)
        plain, calibrated = project_to_bits(weights, budget), project_with_feedback(weights, budget, feedback)
    monkeypatch.setattr(projection, "COMPILED_FROM", 0)
    monkeypatch.setattr(compiled_assignment, "_visit", full)
    monkeypatch.setattr(compiled_assignment, "_visit_columns", full)
    assert project_to_bits(weights, budget).error == plain.error
    assert project_with_feedback(weights, budget, feedback).error == calibrated.error


def test_weights_beyond_every_cell_are_assigned_alike():
    matrix = torch.tensor([[1e-30, 2e-30, -3e-30, 1e18, -1e18, 1e15, 0.0, 4e-30]])
    lengths = CodeLengths(torch.ones(3), torch.zeros(1), torch.zeros(8))
    tables = LayerTables(torch.tensor([-2e-30, 1e-30, 3e-30]), lengths)
    for multiplier in (0.0, 1e-10):
        plain, compiled = (kind(matrix).layer(tables).assign(multiplier) for kind in (Weights, LargeWeights))
        assert torch.equal(compiled.codes(), plain.codes())


def test_columns_of_a_layer_without_values_are_zero():
    generator = torch.Generator().manual_seed(0)
    x, feedback = torch.randn(6, 9, generator=generator), Feedback.of(second_moments(9, generator))
    found = [_assigned(_Layer.of(x, feedback, c), tables_of(6, 9, 0, generator), (6, 9), 0.1) for c in (False, True)]
    assert all(not codes.any() and torch.equal(made, found[0][1]) for codes, made in found)
