"""Assigning weights to codes under fixed code tables, and the multiplier at which the assignment fits a budget.

With the tables held fixed the Lagrangian `error + multiplier * bits` separates over weights, and the used bits fall as
the multiplier rises; both steps here are exact. Where energy is limited, too, each nonzero also costs `energy
multiplier * energy`, and the energy multiplier is found outside (`energy_multiplier`).

Cost: O(n) for the few weights worth a nonzero at multipliers near the one looked for; these are kept by magnitude, so
that every further multiplier costs O(m) for the m of them and a search in K thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.constraints.rate_distortion.rates import (
    CODEBOOK_VALUE_BITS,
    TENSOR_BITS,
    CodeLengths,
    Counts,
    Floats,
    Integers,
    code_length,
)
from autocompress.energy.accelerator import WEIGHT_CACHE_WORDS, WeightEnergy

MULTIPLIER_TOLERANCE = 2e-3  # relative width of the bracket at which the search stops
BUDGET_TOLERANCE = 1e-3  # a multiplier whose bits come this close under the budget is not moved
MIN_MULTIPLIER = 1e-7  # of the mean square: below, bits are free and no multiplier is looked for
MAX_MULTIPLIER = 1e30
MAGNITUDE_MARGIN = 1.25  # by which smaller elements are looked up than asked for
CANDIDATE_MARGIN = 1.5  # by which the multiplier may fall before a layer's elements are looked through again
MULTIPLIERS_TRIED = 60  # at most, in one search

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class LayerTables:
    """What is known of a layer's code between two projections.

    Attributes:
        values: float32 [K], ascending codebook values, none zero.
        lengths: the code lengths for those values.
    """

    values: Tensor
    lengths: CodeLengths


@dataclass(frozen=True)
class Elements:
    """Some of a layer's elements, ascending by weight.

    Attributes:
        index: int64 [m], flat.
        row, column: int64 [m].
        x: float32 [m], the weights.
    """

    index: Integers
    row: Integers
    column: Integers
    x: Floats

    def __getitem__(self, chosen: slice | Integers | Flags) -> Elements:
        """Returns those chosen."""
        return Elements(self.index[chosen], self.row[chosen], self.column[chosen], self.x[chosen])


class Weights:
    """X_l as a matrix [R, C], of which the elements of large magnitude are looked up, put in order and kept."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._least = math.inf
        self._elements = self._at(torch.zeros(0, dtype=torch.int64, device=matrix.device))

    @staticmethod
    def find_multiplier(
        layers: Sequence[Layer], budget_bits: float, start: float, bits_at: Callable[[Sequence[Layer], float], float]
    ) -> float:
        """Returns what the module's function of this name returns."""
        return find_multiplier(layers, budget_bits, start, bits_at)

    def layer(self, tables: LayerTables, energy: WeightEnergy | None = None) -> Layer:
        """Returns the layer under these tables."""
        return Layer(self, tables, energy)

    @cached_property
    def square(self) -> float:
        """Sum of the squares."""
        return float(self.matrix.square().sum(dtype=torch.float64))

    @cached_property
    def largest(self) -> Elements:
        """The element of largest magnitude."""
        return self._at(self.matrix.abs().argmax()[None])

    def elements_beyond(self, magnitude: float) -> tuple[Elements, Elements]:
        """Returns the elements below `-magnitude` and those above `magnitude` >= 0; all there are at 0."""
        if magnitude < self._least:
            # The next tables and multipliers will ask for smaller ones: once more is cheaper than each time.
            self._least = magnitude / MAGNITUDE_MARGIN
            large = self.matrix.abs() > self._least
            self._elements = self._at(large.flatten().nonzero().flatten())
        x = self._elements.x
        low, high = np.searchsorted(x, -magnitude, "left"), np.searchsorted(x, magnitude, "right")
        return self._elements[: int(low)], self._elements[int(high) :]

    def tails(self, magnitude: float) -> Tails:
        """Returns how many elements are below `-magnitude` and above `magnitude` >= 0, and their sums."""
        low, high = self.elements_beyond(magnitude)
        return _tails(low.x, high.x)

    def _at(self, index: Tensor) -> Elements:
        x: Floats = self.matrix.flatten()[index].cpu().numpy()
        order = np.argsort(x)
        flat = index.cpu().numpy()[order]
        return Elements(flat, *np.divmod(flat, self.matrix.shape[1]), x[order])


class Assignment(Protocol):
    """The nonzeros of a layer of shape [R, C] and K codes: what the search, the tables and the file ask of them."""

    @property
    def counts(self) -> Counts:
        """How many there are in each row, in each column and of each code, unused ones included."""

    @property
    def gain(self) -> float:
        """What they take off the squared error of the layer at zero."""

    @property
    def bits(self) -> float:
        """What they cost more than zeros, under the layer's tables."""

    @property
    def sums(self) -> Floats:
        """Their weights, summed by code: float64 [K]."""

    @property
    def squared_errors(self) -> Floats:
        """Their squared errors, summed by code: float64 [K]."""

    def counts_with(self, kept: Flags) -> Counts:
        """Returns the counts of rows and columns without the codes that are not kept [K]; codes as they are."""

    def tails(self, magnitude: float) -> Tails:
        """Returns how many there are below `-magnitude` and above `magnitude`, and their sums."""

    def codes(self) -> Tensor:
        """Returns the codes of all elements, int16 [R, C]: 0 for zero, from 1 for a value."""


# The elements beyond a magnitude, on the negative and on the positive side: (count, sum) of each.
Tails = tuple[tuple[int, float], tuple[int, float]]


@dataclass(frozen=True)
class ListedAssignment:
    """The nonzeros of a layer, m of them, listed.

    Attributes:
        layer: whose.
        elements: where and what they are.
        code: int64 [m], in 0..K-1.
        each_gain: float32 [m], what each takes off the squared error of the layer at zero.
        each_bits: float32 [m], what each costs more than a zero, under the layer's tables.
    """

    layer: Layer
    elements: Elements
    code: Integers
    each_gain: Floats
    each_bits: Floats

    @cached_property
    def counts(self) -> Counts:
        return self._counts(self.elements, self.code)

    def _counts(self, elements: Elements, code: Integers) -> Counts:
        return Counts.of_elements(elements.row, elements.column, code, self.layer.shape, self.layer.values.size)

    @cached_property
    def gain(self) -> float:
        return float(self.each_gain.sum(dtype=np.float64))

    @cached_property
    def bits(self) -> float:
        return float(self.each_bits.sum(dtype=np.float64))

    @property
    def sums(self) -> Floats:
        return self._by_code(self.elements.x)

    @property
    def squared_errors(self) -> Floats:
        off = (self.elements.x - self.layer.values[self.code]).astype(np.float64)
        return self._by_code(off**2)

    def _by_code(self, each: Floats) -> Floats:
        return np.bincount(self.code, each, self.layer.values.size).astype(np.float64, copy=False)

    def counts_with(self, kept: Flags) -> Counts:
        chosen = kept[self.code]
        return self._counts(self.elements[chosen], self.code[chosen])

    def tails(self, magnitude: float) -> Tails:
        x = self.elements.x
        return _tails(x[x < -magnitude], x[x > magnitude])

    def codes(self) -> Tensor:
        matrix = self.layer.weights.matrix
        codes = torch.zeros_like(matrix, dtype=torch.int16).flatten()
        codes[torch.from_numpy(self.elements.index).to(codes.device)] = torch.from_numpy(self.code + 1).to(codes)
        return codes.view(matrix.shape)


def _tails(low: Floats, high: Floats) -> Tails:
    return (low.size, float(low.sum(dtype=np.float64))), (high.size, float(high.sum(dtype=np.float64)))


class Layer:
    """X_l and its current tables.

    Attributes:
        energy: what its nonzeros cost in energy.
        energy_multiplier: squared error per unit of energy; moved by the search for it.
    """

    def __init__(self, weights: Weights, tables: LayerTables, energy: WeightEnergy | None = None) -> None:
        self.weights, self.tables = weights, tables
        self.energy, self.energy_multiplier = energy, 0.0
        self.values: Floats = tables.values.cpu().numpy()
        lengths = tables.lengths
        parts = (lengths.code_bits, lengths.row_bits, lengths.column_bits)
        self._code_bits, self._row_bits, self._column_bits = (part.cpu().numpy() for part in parts)
        self._candidates: tuple[float, Elements, Floats] | None = None
        self._last: tuple[tuple[float, float], Assignment] | None = None

    def with_tables(self, tables: LayerTables) -> Layer:
        """Returns the same layer under other tables."""
        layer = type(self)(self.weights, tables, self.energy)
        layer.energy_multiplier = self.energy_multiplier
        return layer

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weights.matrix.shape
        return rows, columns

    @cached_property
    def zero_bits(self) -> float:
        """Bits of the layer with nothing kept; the same at every multiplier."""
        return self.tables.lengths.zero_bits()

    def candidates(self, multiplier: float) -> tuple[Elements, Floats]:
        """Returns the elements [m] that may be worth a nonzero at a multiplier, perhaps more, and their position bits.

        A search asks for many multipliers close together, so that those of a somewhat lower multiplier are kept.
        """
        if self._candidates is None or multiplier < self._candidates[0]:
            least, code_bits = multiplier / CANDIDATE_MARGIN, float(self._code_bits.min())
            fewest = float(self._row_bits.min() + self._column_bits.min()) + code_bits
            parts = self.weights.elements_beyond(math.sqrt(max(least * fewest, 0.0)))
            found = [self._worthwhile(part, least, code_bits) for part in parts]
            (low, low_bits), (high, high_bits) = found
            both = (np.concatenate(pair) for pair in zip(vars(low).values(), vars(high).values(), strict=True))
            self._candidates = least, Elements(*both), np.concatenate([low_bits, high_bits])
        return self._candidates[1:]

    def _worthwhile(self, elements: Elements, multiplier: float, code_bits: float) -> tuple[Elements, Floats]:
        bits = self._position_bits(elements)
        worth = np.flatnonzero(np.square(elements.x) > multiplier * (bits + code_bits))
        return elements[worth], bits[worth]

    def _position_bits(self, elements: Elements) -> Floats:
        bits: Floats = self._row_bits[elements.row] + self._column_bits[elements.column]
        return bits

    def assign(self, multiplier: float) -> Assignment:
        """Returns the nonzeros of least `error + multiplier * bits` under the fixed tables; exact.

        The last answer is remembered: a search ends at a multiplier that it has tried.
        """
        multipliers = (multiplier, self.energy_multiplier)
        if self._last is None or self._last[0] != multipliers:
            self._last = multipliers, self._assign(multiplier)
        return self._last[1]

    def _assign(self, multiplier: float) -> Assignment:
        if not self.values.size:
            none = np.zeros(0, np.float32)
            return ListedAssignment(self, self.weights.largest[:0], np.zeros(0, np.int64), none, none)
        best, thresholds = lower_envelope(self.values, multiplier * self._code_bits)
        elements, position_bits = self.candidates(multiplier)
        code, gain, bits = self._quantized(elements, position_bits, best, thresholds)
        keep = _worth_keeping(self, gain, multiplier * bits)
        if not keep.size:
            return self._largest(best, thresholds)
        return ListedAssignment(self, elements[keep], code[keep], gain[keep], bits[keep])

    def _largest(self, best: Integers, thresholds: Floats) -> ListedAssignment:
        """Returns the largest weight alone: no layer is all zero."""
        elements = self.weights.largest
        return ListedAssignment(
            self, elements, *self._quantized(elements, self._position_bits(elements), best, thresholds)
        )

    def _quantized(
        self, elements: Elements, position_bits: Floats, best: Integers, thresholds: Floats
    ) -> tuple[Integers, Floats, Floats]:
        """Returns of each element [m] its code, what the code takes off its squared error, and its bits."""
        ends = np.concatenate([[0], np.searchsorted(elements.x, thresholds), [elements.x.size]])
        members = np.diff(ends)
        value = np.repeat(self.values[best], members)
        gain = value * (2 * elements.x - value)
        return np.repeat(best, members), gain, np.repeat(self._code_bits[best], members) + position_bits


def lower_envelope(values: Floats, offsets: Floats) -> tuple[Integers, Floats]:
    """Returns which values are best somewhere, and the thresholds between them.

    A scalar x goes to the value minimising (x - value)^2 + offset. All parabolas have one curvature, so each value owns
    an interval or nothing; exact, O(K).

    Args:
        values: [K] ascending.
        offsets: [K].

    Returns:
        indices int64 [k] into `values`, ascending, and thresholds [k - 1] between neighbours.
    """
    steps = np.diff(values)
    if (steps > 0).all():
        thresholds: Floats = 0.5 * (values[1:] + values[:-1]) + np.diff(offsets) / (2 * steps)
        if (np.diff(thresholds) > 0).all():  # nearly always: every value is best somewhere
            return np.arange(values.size), thresholds
    kept: list[int] = []
    starts: list[float] = []
    v, o = values.tolist(), offsets.tolist()
    for i in range(len(v)):
        start = -math.inf
        while kept:
            j = kept[-1]
            start = 0.5 * (v[i] + v[j]) + (o[i] - o[j]) / (2 * (v[i] - v[j])) if v[i] > v[j] else math.nan
            if math.isnan(start):  # two equal values: the cheaper one stays
                start = -math.inf if o[i] < o[j] else math.inf
            if start > starts[-1]:
                break
            kept.pop()
            starts.pop()
            start = -math.inf
        if start < math.inf:
            kept.append(i)
            starts.append(start)
    return np.array(kept, np.int64), np.array(starts[1:], values.dtype)


def _worth_keeping(layer: Layer, gain: Floats, cost: Floats) -> Integers:
    """Returns which elements [m] gain more than their bits and their energy cost, ascending.

    A layer's energy is convex in its nonzeros: those beyond the cache have to gain more, and the best come first.
    """
    if layer.energy is None or layer.energy_multiplier == 0:
        return np.flatnonzero(gain > cost)
    worth = gain - cost - layer.energy_multiplier * layer.energy.each
    keep = np.flatnonzero(worth > 0)
    if layer.energy.overflow and keep.size > WEIGHT_CACHE_WORDS:
        best = keep[np.argsort(-worth[keep], kind="stable")]
        beyond = worth[best[WEIGHT_CACHE_WORDS:]] > layer.energy_multiplier * layer.energy.overflow
        keep = np.sort(best[: WEIGHT_CACHE_WORDS + int(beyond.sum())])
    return keep


def bits_under_tables(layers: Sequence[Layer], multiplier: float) -> float:
    """Returns the bits of the assignment as its fixed tables count them; never rises with the multiplier."""
    return fixed_bits(layers) + sum(layer.assign(multiplier).bits for layer in layers)


def fixed_bits(layers: Sequence[Layer]) -> float:
    """Returns the bits of the layers with nothing kept, whatever the multiplier."""
    return sum(TENSOR_BITS + CODEBOOK_VALUE_BITS * layer.values.size + layer.zero_bits for layer in layers)


def bits_of_assignment(layers: Sequence[Layer], multiplier: float) -> float:
    """Returns the bits of the same assignment under the tables that fit it, without the values that nothing uses."""
    return sum(used_length(layer.assign(multiplier)) for layer in layers)


def used_length(assigned: Assignment) -> float:
    """Returns the bits of an assignment under the tables that fit it, codes that nothing uses left out."""
    counts = assigned.counts
    return code_length(Counts(counts.rows, counts.columns, counts.codes[counts.codes > 0]))


SomeLayer = TypeVar("SomeLayer", bound=Layer)


class _Tried(Generic[SomeLayer]):
    """The bits at the multipliers tried so far, and whether they fit."""

    def __init__(
        self, layers: Sequence[SomeLayer], budget_bits: float, bits_at: Callable[[Sequence[SomeLayer], float], float]
    ) -> None:
        self.layers, self.budget_bits, self.bits_at = layers, budget_bits, bits_at
        self._bits: dict[float, float] = {}

    def excess(self, multiplier: float) -> float:
        """Returns the logarithm of the bits over the budget: at most 0 where they fit."""
        if multiplier not in self._bits:
            self._bits[multiplier] = self.bits_at(self.layers, multiplier)
        bits = self._bits[multiplier]
        if self.budget_bits <= 0:
            return math.inf if bits > self.budget_bits else 0.0
        return math.log(bits / self.budget_bits) if bits > 0 else -math.inf

    def close(self, multiplier: float) -> bool:
        """Tells whether the bits come close under the budget."""
        return -BUDGET_TOLERANCE < self.excess(multiplier) <= 0


def find_multiplier(
    layers: Sequence[SomeLayer],
    budget_bits: float,
    start: float,
    bits_at: Callable[[Sequence[SomeLayer], float], float] = bits_under_tables,
) -> float:
    """Returns the minimum multiplier, within a relative tolerance, at which `bits_at` it are within the budget.

    A start that is such a multiplier is returned as it is. Solved by false position (Illinois) on the logarithms of
    multiplier and bits, about four multipliers from a good start. Above `MAX_MULTIPLIER` nothing fits: the caller
    checks.
    """
    squares = sum(layer.weights.square for layer in layers)
    free = MIN_MULTIPLIER * squares / sum(layer.weights.matrix.numel() for layer in layers) + 1e-30
    tried = _Tried(layers, budget_bits, bits_at)
    multiplier = _first_fit(tried, max(start, free), free)
    while multiplier > free and multiplier < MAX_MULTIPLIER and not tried.close(multiplier):
        lower = max(multiplier / (1 + MULTIPLIER_TOLERANCE), free)
        if tried.excess(lower) > 0:
            break
        multiplier = lower
    return multiplier


def _first_fit(tried: _Tried[SomeLayer], start: float, free: float) -> float:
    """Returns a multiplier that fits closely, or nearly the least that fits, or one above `MAX_MULTIPLIER`."""
    if tried.close(start) or (
        start > free and tried.excess(start) <= 0 < tried.excess(start / (1 + MULTIPLIER_TOLERANCE))
    ):
        return start
    low, high = _bracket(tried, start, free)
    if low == high or high >= MAX_MULTIPLIER or tried.close(high):
        return high
    over, under = tried.excess(low), tried.excess(high)
    goal = 0.3 * BUDGET_TOLERANCE
    last = 0
    for _ in range(MULTIPLIERS_TRIED):
        if math.log(high / low) < MULTIPLIER_TOLERANCE:
            break
        part = (over + goal) / (over - under) if under > -math.inf and over < math.inf else 0.5
        multiplier = float(low * (high / low) ** min(max(part, 0.02), 0.98))
        excess = tried.excess(multiplier)
        if tried.close(multiplier):
            return multiplier
        if excess > 0:
            low, over = multiplier, excess
            under = under / 2 if last > 0 else under
            last = 1
        else:
            high, under = multiplier, excess
            over = over / 2 if last < 0 else over
            last = -1
    return high


def _bracket(tried: _Tried[SomeLayer], start: float, free: float) -> tuple[float, float]:
    """Returns (a multiplier that does not fit, one that does); both the same where that is close or bits are free."""
    excess, multiplier, width = tried.excess(start), start, 1.05
    if excess > 0:
        while True:
            # Bits fall about with the square root of the multiplier where weights thin out, less near a codebook.
            width = max(width, math.exp(min(2 * excess, 1.5)))
            multiplier, last = min(multiplier * width, MAX_MULTIPLIER), multiplier
            excess = tried.excess(multiplier)
            if excess <= 0 or multiplier >= MAX_MULTIPLIER:
                return last, multiplier
            width = width**2
    while multiplier > free:
        width = max(width, math.exp(min(-2 * excess, 1.5)))
        multiplier, last = max(multiplier / width, free), multiplier
        excess = tried.excess(multiplier)
        if excess > 0:
            return multiplier, last
        if tried.close(multiplier):
            break
        width = width**2
    return multiplier, multiplier


def energy_at(layers: Sequence[Layer], multiplier: float) -> float:
    """Returns the energy of the nonzeros of the assignment at a multiplier and the layers' multiplier of energy."""
    return sum(y.energy.of(y.assign(multiplier).counts.nonzeros) for y in layers if y.energy is not None)
