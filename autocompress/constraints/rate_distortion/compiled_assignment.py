"""What is compiled of projections: the assignment of `assignment` for large networks, and the pass of `error_feedback`.

`assignment.Layer` keeps the weights that may be worth a nonzero, sorted, some 50 bytes for each. Here numba looks at
every weight each time, in little more than the time that it takes to read it, and keeps the counts and sums that the
search asks for. Decisions are made by the same float32 operations, so that the assignments are the same; sums may
differ in their last digits, as the weights come in another order. The pass of error feedback is compiled for networks
of any size: it goes from column to column, which numpy and PyTorch do one call at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autocompress.codec.compiled_coder import kernel
from autocompress.constraints.rate_distortion.assignment import (
    BUDGET_TOLERANCE,
    Assignment,
    Flags,
    Layer,
    LayerTables,
    Tails,
    Weights,
    bits_of_assignment,
    bits_under_tables,
    find_multiplier,
    fixed_bits,
    lower_envelope,
)
from autocompress.constraints.rate_distortion.rates import Counts, Floats, Integers
from autocompress.energy.accelerator import WeightEnergy

CELLS = 2048
# Weights of a layer by which the search tells multipliers apart, and how often it looks at all of them meanwhile.
SAMPLED = 8192
SEARCHES = 3
# How much too small the cost of the cheapest nonzero is taken to be, so that no rounding hides one that is worth it.
_SLACK = np.float32(1e-5)


class _Rule(NamedTuple):
    """What an assignment follows, float32 unless said.

    Attributes:
        multiplier: error per bit.
        values: [K].
        code_bits: [K].
        row_bits, column_bits: [R], [C].
        best: int64 [k], the values that are best somewhere.
        thresholds: [k], between these, and infinity.
        cells: int64 [CELLS + 1], how many thresholds are surely below the weights of each cell; cells of equal width
            lie between the first threshold and the last.
        scale: cells per unit.
    """

    multiplier: np.float32
    values: Floats
    code_bits: Floats
    row_bits: Floats
    column_bits: Floats
    best: Integers
    thresholds: Floats
    cells: Integers
    scale: np.float32


@kernel
def _visit(
    x: Any,
    rule: Any,
    what: int,
    kept: Any,
    magnitude: Any,
    rows: Any,
    columns: Any,
    by_code: Any,
    totals: Any,
    codes: Any,
) -> None:
    """Goes through the nonzeros of a layer x [R, C].

    Args:
        x: float32.
        rule: see `_Rule`.
        what: 0 counts and sums, 1 the counts of rows and columns, 2 the sums on either side, 3 the codes.
        kept: bool [K]; for 1.
        magnitude: beyond which elements are summed; for 2.
        rows, columns: int64 [R], [C], counts; for 0 and 1.
        by_code: float64 [K, 3], how many, the sum of x and of its square by code; for 0.
        totals: float64 [4], how many below and above, and their sums; for 2.
        codes: int16 [R, C]; for 3.
    """
    multiplier, values, code_bits, row_bits, column_bits, best, thresholds, cells, scale = rule
    listed = np.empty(x.shape[1] + 1, np.int32)
    # What a nonzero of the cheapest code costs at least, less its part of the column.
    cheapest, widest = code_bits[0], np.float32(0)
    for k in range(len(code_bits)):
        cheapest = min(cheapest, code_bits[k])
    for c in range(len(column_bits)):
        widest = max(widest, abs(column_bits[c]))
    for r in range(x.shape[0]):
        row = row_bits[r]
        least = row + cheapest - _SLACK * (abs(row) + widest + abs(cheapest))
        # Listed without a branch, as no processor foresees which they are.
        candidates = 0
        for c in range(x.shape[1]):
            listed[candidates] = c
            candidates += x[r, c] * x[r, c] > multiplier * (least + column_bits[c])
        count = 0
        for candidate in range(candidates):
            c = listed[candidate]
            weight = x[r, c]
            place = (weight - thresholds[0]) * scale
            # Bounded before it is made whole: a float beyond 64 bits would become any place in memory.
            at = cells[np.int64(min(place, np.float32(CELLS)))] if place > 0 else 0
            at += thresholds[at] <= weight
            while thresholds[at] <= weight:
                at += 1
            code = best[at]
            value = values[code]
            gain = value * (np.float32(2) * weight - value)
            bits = code_bits[code] + (row + column_bits[c])
            if not gain > multiplier * bits:
                continue
            if what == 0:
                count += 1
                columns[c] += 1
                by_code[code, 0] += 1
                by_code[code, 1] += weight
                by_code[code, 2] += np.float64(weight) * weight
            elif what == 1:
                if kept[code]:
                    count += 1
                    columns[c] += 1
            elif what == 2:
                if weight < -magnitude:
                    totals[0] += 1
                    totals[2] += weight
                elif weight > magnitude:
                    totals[1] += 1
                    totals[3] += weight
            else:
                codes[r, c] = code + 1
        if what < 2:
            rows[r] = count


def _cells(thresholds: Floats) -> tuple[Integers, np.float32]:
    """Returns cells and their scale, as in `_Rule`."""
    width = thresholds[-1] - thresholds[0] if len(thresholds) > 1 else np.float32(0)
    scale = np.float32(CELLS / width) if width > CELLS * np.finfo(np.float32).tiny else np.float32(0)
    # A threshold in an earlier cell is below every weight of this one, as the rounding of cells keeps their order.
    of_thresholds = np.minimum(((thresholds - thresholds[:1]) * scale).astype(np.int64), CELLS)
    return np.searchsorted(of_thresholds, np.arange(CELLS + 1)), scale


class LargeWeights(Weights):
    """X_l as a matrix [R, C] on the CPU, of which nothing is kept."""

    @staticmethod
    def find_multiplier(
        layers: Sequence[Layer], budget_bits: float, start: float, bits_at: Callable[[Sequence[Layer], float], float]
    ) -> float:
        """See `Weights.find_multiplier`; where the bits under fixed tables are asked for, a sample's will do."""
        compiled = [layer for layer in layers if isinstance(layer, CompiledLayer)]
        if bits_at is bits_under_tables:
            return find_multiplier(compiled, budget_bits, start, bits_of_sample)
        return find_multiplier(layers, budget_bits, near_multiplier(compiled, budget_bits, start), bits_at)

    def layer(self, tables: LayerTables, energy: WeightEnergy | None = None) -> Layer:
        return CompiledLayer(self, tables, energy)

    @cached_property
    def numpy(self) -> Floats:
        """The same memory."""
        return self.matrix.contiguous().numpy()

    @cached_property
    def sample(self) -> tuple[Floats, Integers, Integers]:
        """Some of the weights: float32 [1, S], and their rows and columns, int64 [S]; always the same ones."""
        places = np.arange(self.matrix.numel())
        if len(places) > SAMPLED:
            places = np.sort(np.random.default_rng(0).integers(0, len(places), SAMPLED))
        return self.numpy.reshape(1, -1)[:, places], *np.divmod(places, self.matrix.shape[1])

    def tails(self, magnitude: float) -> Tails:
        """See `Weights.tails`."""
        low, high = (self.matrix[beyond] for beyond in (self.matrix < -magnitude, self.matrix > magnitude))
        return tuple((side.numel(), float(side.sum(dtype=torch.float64))) for side in (low, high))  # type: ignore[return-value]


class CompiledAssignment:
    """See `Assignment`; counts and sums were taken in one pass, the rest takes one each."""

    def __init__(self, layer: CompiledLayer, rule: _Rule) -> None:
        self._layer, self._rule = layer, rule
        (rows, columns), size = layer.shape, layer.values.size
        row_counts, column_counts = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
        by_code = np.zeros((size, 3))
        self._visit(0, rows=row_counts, columns=column_counts, by_code=by_code)
        self.counts = Counts(row_counts, column_counts, by_code[:, 0].astype(np.int64))
        self.sums, values = by_code[:, 1], layer.values.astype(np.float64)
        gains = values * (2 * self.sums - values * self.counts.codes)
        self.squared_errors = np.maximum(by_code[:, 2] - gains, 0.0)
        self.gain = float(gains.sum())

    @property
    def bits(self) -> float:
        counts, rule = self.counts, self._rule
        pairs = ((counts.codes, rule.code_bits), (counts.rows, rule.row_bits), (counts.columns, rule.column_bits))
        return sum(float(count @ bits.astype(np.float64)) for count, bits in pairs)

    def _visit(self, what: int, **arrays: Any) -> None:
        given = _NOTHING | arrays
        _visit(self._layer.weights.numpy, self._rule, what, *given.values())

    def counts_with(self, kept: Flags) -> Counts:
        rows, columns = (np.zeros(size, np.int64) for size in self._layer.shape)
        self._visit(1, kept=kept, rows=rows, columns=columns)
        return Counts(rows, columns, self.counts.codes)

    def tails(self, magnitude: float) -> Tails:
        totals = np.zeros(4)
        self._visit(2, magnitude=np.float32(magnitude), totals=totals)
        return (int(totals[0]), float(totals[2])), (int(totals[1]), float(totals[3]))

    def codes(self) -> Tensor:
        codes = np.zeros(self._layer.shape, np.int16)
        self._visit(3, codes=codes)
        return torch.from_numpy(codes)


_NOTHING = {
    "kept": np.zeros(0, np.bool_),
    "magnitude": np.float32(0),
    "rows": np.zeros(0, np.int64),
    "columns": np.zeros(0, np.int64),
    "by_code": np.zeros((0, 0)),
    "totals": np.zeros(0),
    "codes": np.zeros((0, 0), np.int16),
}


class CompiledLayer(Layer):
    """X_l and its current tables; without a limit of energy."""

    weights: LargeWeights

    def _assign(self, multiplier: float) -> Assignment:
        if not self.values.size:
            return super()._assign(multiplier)
        best, thresholds = lower_envelope(self.values, multiplier * self._code_bits)
        rule = self._rule(multiplier, self._row_bits, self._column_bits, best, thresholds)
        assigned = CompiledAssignment(self, rule)
        if assigned.counts.nonzeros:
            return assigned
        return self._largest(best, thresholds)

    def _rule(
        self, multiplier: float, row_bits: Floats, column_bits: Floats, best: Integers, thresholds: Floats
    ) -> _Rule:
        ends = np.append(thresholds, np.float32(np.inf))
        parts = (self.values, self._code_bits, row_bits, column_bits, best, ends, *_cells(thresholds))
        return _Rule(np.float32(multiplier), *parts)

    @cached_property
    def _sample_bits(self) -> Floats:
        """Bits of the positions of the sample, float32 [S]."""
        _, row, column = self.weights.sample
        bits: Floats = self._row_bits[row] + self._column_bits[column]
        return bits

    def sampled_bits(self, multiplier: float) -> float:
        """Returns about what the bits of the assignment are, by those of a sample."""
        if not self.values.size:
            return 0.0
        x = self.weights.sample[0]
        best, thresholds = lower_envelope(self.values, multiplier * self._code_bits)
        rule = self._rule(multiplier, np.zeros(1, np.float32), self._sample_bits, best, thresholds)
        rows, columns, by_code = np.zeros(1, np.int64), np.zeros(x.size, np.int64), np.zeros((self.values.size, 3))
        _visit(x, rule, 0, *(_NOTHING | {"rows": rows, "columns": columns, "by_code": by_code}).values())
        bits = float(by_code[:, 0] @ self._code_bits) + float(columns @ self._sample_bits.astype(np.float64))
        return bits * self.weights.matrix.numel() / x.size


def bits_of_sample(layers: Sequence[CompiledLayer], multiplier: float) -> float:
    """Returns about what `bits_under_tables` does; never rises with the multiplier either."""
    return fixed_bits(layers) + sum(layer.sampled_bits(multiplier) for layer in layers)


def near_multiplier(layers: Sequence[CompiledLayer], budget_bits: float, start: float) -> float:
    """Returns a multiplier at which the bits of the assignment come close to the budget, mostly by looking at samples.

    The bits of the whole assignment at a start say by which factor those of the sample are off.
    """
    multiplier = start
    for _ in range(SEARCHES):
        bits = bits_of_assignment(layers, multiplier)
        if -BUDGET_TOLERANCE < math.log(max(bits, 1.0) / max(budget_bits, 1.0)) <= 0:
            break
        goal = budget_bits * (1 - 0.5 * BUDGET_TOLERANCE) * bits_of_sample(layers, multiplier) / bits
        multiplier = find_multiplier(layers, goal, multiplier, bits_of_sample)
    return multiplier


@kernel
def _visit_columns(
    w: Any,
    factor: Any,
    mixes: bool,
    per_bit: Any,
    code_bits: Any,
    row_bits: Any,
    column_bits: Any,
    values: Any,
    codes: Any,
    errors: Any,
) -> None:
    """Quantizes w [R, n] column by column, each one's errors made up for by those to its right, in place.

    Args:
        w: float32; what each column was made before it was quantized is left in it.
        factor: float32 [n, n], upper triangular.
        mixes: whether there is more in the factor than its diagonal.
        per_bit: float32 [R], what a bit costs in each row.
        code_bits, row_bits, column_bits: float32 [K], [R], [n].
        values: float32 [K].
        codes: int16 [R, n], 0 for zero; filled in.
        errors: float32 [R, n], over the diagonal of the factor; filled in.
    """
    columns = w.shape[1]
    cheapest = code_bits.min()
    for r in range(w.shape[0]):
        price = per_bit[r]
        for j in range(columns):
            x, scale, position = w[r, j], factor[j, j], (row_bits[r] + column_bits[j]) * price
            code, error = 0, x / scale
            least = error * error
            if cheapest * price + position < least:  # else it is not worth a look at the values
                for k in range(len(values)):
                    off = (x - values[k]) / scale
                    cost = off * off + code_bits[k] * price + position
                    if cost < least:
                        least, code, error = cost, k + 1, off
            codes[r, j], errors[r, j] = code, error
            if mixes:
                for i in range(j + 1, columns):
                    w[r, i] -= error * factor[j, i]


def assign_columns(
    w: Tensor, factor: Tensor | None, tables: LayerTables, rows: slice, columns: slice, per_bit: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns codes, int16 [R, n], and errors over the factor's diagonal [R, n] of some columns; see `error_feedback`.

    Args:
        w: float32 [R, n], contiguous; changed, see `_visit_columns`.
        factor: float32 [n, n], of these columns; None = each weight stands for itself.
        tables: of the layer.
        rows, columns: which of the layer these are.
        per_bit: error per bit in each row, float32 [R].
    """
    lengths = tables.lengths
    square = (torch.eye(w.shape[1]) if factor is None else factor).contiguous()
    parts = (per_bit, lengths.code_bits, lengths.row_bits[rows], lengths.column_bits[columns], tables.values)
    price, code_bits, row_bits, column_bits, values = (part.numpy().astype(np.float32, copy=False) for part in parts)
    codes, errors = np.empty(w.shape, np.int16), np.empty(w.shape, np.float32)
    given = (w.numpy(), square.numpy(), factor is not None, price, code_bits, row_bits, column_bits, values)
    _visit_columns(*given, codes, errors)
    return torch.from_numpy(codes), torch.from_numpy(errors)
