"""Assigning weights to codes under fixed code tables, and the price at which the assignment fits a budget.

With the tables held fixed the Lagrangian `error + price * bits` separates over weights, and the used bits fall as the
price rises; both steps here are exact. Where energy is limited, too, each nonzero also costs `energy price * energy`,
and the energy price is found outside (`energy_price`).

Cost: O(n) for the few weights worth a nonzero at prices near the one looked for; these are kept by magnitude, so that
every further price costs O(m) for the m of them and a search in K thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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

PRICE_TOLERANCE = 2e-3  # relative width of the bracket at which the search stops
BUDGET_TOLERANCE = 1e-3  # a price whose bits come this close under the budget is not moved
LEAST_PRICE = 1e-7  # of the mean square: below, bits are free and no price is looked for
HIGHEST_PRICE = 1e30
MAGNITUDE_MARGIN = 1.25  # by which smaller elements are looked up than asked for
CANDIDATE_MARGIN = 1.5  # by which the price may fall before a layer's elements are looked through again
PRICES_TRIED = 60  # at most, in one search

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

    @cached_property
    def square(self) -> float:
        """Sum of the squares."""
        return float(self.matrix.square().sum(dtype=torch.float64))

    @cached_property
    def largest(self) -> Elements:
        """The element of largest magnitude."""
        return self._at(self.matrix.abs().argmax()[None])

    def beyond(self, magnitude: float) -> tuple[Elements, Elements]:
        """Returns the elements below `-magnitude` and those above `magnitude` >= 0; all there are at 0."""
        if magnitude < self._least:
            # The next tables and prices will ask for smaller ones: once more is cheaper than each time.
            self._least = magnitude / MAGNITUDE_MARGIN
            large = self.matrix.abs() > self._least
            self._elements = self._at(large.flatten().nonzero().flatten())
        x = self._elements.x
        low, high = np.searchsorted(x, -magnitude, "left"), np.searchsorted(x, magnitude, "right")
        return self._elements[: int(low)], self._elements[int(high) :]

    def _at(self, index: Tensor) -> Elements:
        x: Floats = self.matrix.flatten()[index].cpu().numpy()
        order = np.argsort(x)
        flat = index.cpu().numpy()[order]
        return Elements(flat, *np.divmod(flat, self.matrix.shape[1]), x[order])


@dataclass(frozen=True)
class Kept:
    """The nonzeros of a layer, m of them.

    Attributes:
        elements: where and what they are.
        code: int64 [m], in 0..K-1.
        gain: float32 [m], what each takes off the squared error of the layer at zero.
        bits: float32 [m], what each costs more than a zero, under the layer's tables.
    """

    elements: Elements
    code: Integers
    gain: Floats
    bits: Floats

    @property
    def count(self) -> int:
        """m."""
        return self.code.size


class Layer:
    """X_l and its current tables.

    Attributes:
        energy: what its nonzeros cost in energy.
        energy_price: squared error per unit of energy; moved by the search for it.
    """

    def __init__(self, weights: Weights, tables: LayerTables, energy: WeightEnergy | None = None) -> None:
        self.weights, self.tables = weights, tables
        self.energy, self.energy_price = energy, 0.0
        self.values: Floats = tables.values.cpu().numpy()
        lengths = tables.lengths
        parts = (lengths.code_bits, lengths.row_bits, lengths.column_bits)
        self._code_bits, self._row_bits, self._column_bits = (part.cpu().numpy() for part in parts)
        self._candidates: tuple[float, Elements, Floats] | None = None
        self._last: tuple[tuple[float, float], Kept] | None = None

    def with_tables(self, tables: LayerTables) -> Layer:
        """Returns the same layer under other tables."""
        layer = Layer(self.weights, tables, self.energy)
        layer.energy_price = self.energy_price
        return layer

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weights.matrix.shape
        return rows, columns

    @cached_property
    def zero_bits(self) -> float:
        """Bits of the layer with nothing kept; the same at every price."""
        return self.tables.lengths.zero_bits()

    def candidates(self, price: float) -> tuple[Elements, Floats]:
        """Returns all elements [m] that can be worth a nonzero at a price, perhaps others, and their position bits [m].

        A search asks for many prices close together, so that those of a somewhat lower price are kept.
        """
        if self._candidates is None or price < self._candidates[0]:
            least, code_bits = price / CANDIDATE_MARGIN, float(self._code_bits.min())
            fewest = float(self._row_bits.min() + self._column_bits.min()) + code_bits
            parts = self.weights.beyond(math.sqrt(max(least * fewest, 0.0)))
            found = [self._worthwhile(part, least, code_bits) for part in parts]
            (low, low_bits), (high, high_bits) = found
            both = (np.concatenate(pair) for pair in zip(vars(low).values(), vars(high).values(), strict=True))
            self._candidates = least, Elements(*both), np.concatenate([low_bits, high_bits])
        return self._candidates[1:]

    def _worthwhile(self, elements: Elements, price: float, code_bits: float) -> tuple[Elements, Floats]:
        bits = self._position_bits(elements)
        worth = np.flatnonzero(np.square(elements.x) > price * (bits + code_bits))
        return elements[worth], bits[worth]

    def _position_bits(self, elements: Elements) -> Floats:
        bits: Floats = self._row_bits[elements.row] + self._column_bits[elements.column]
        return bits

    def assign(self, price: float) -> Kept:
        """Returns the nonzeros of least `error + price * bits` under the fixed tables; exact.

        The last answer is remembered: a search ends at a price that it has tried.
        """
        prices = (price, self.energy_price)
        if self._last is None or self._last[0] != prices:
            self._last = prices, self._assign(price)
        return self._last[1]

    def _assign(self, price: float) -> Kept:
        if not self.values.size:
            none = np.zeros(0, np.float32)
            return Kept(self.weights.largest[:0], np.zeros(0, np.int64), none, none)
        best, thresholds = lower_envelope(self.values, price * self._code_bits)
        elements, position_bits = self.candidates(price)
        code, gain, bits = self._coded(elements, position_bits, best, thresholds)
        keep = _worth_keeping(self, gain, price * bits)
        if not keep.size:  # a layer does not go dead: its largest weight stays
            elements = self.weights.largest
            code, gain, bits = self._coded(elements, self._position_bits(elements), best, thresholds)
            keep = np.zeros(1, np.int64)
        return Kept(elements[keep], code[keep], gain[keep], bits[keep])

    def _coded(
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
    if layer.energy is None or layer.energy_price == 0:
        return np.flatnonzero(gain > cost)
    worth = gain - cost - layer.energy_price * layer.energy.each
    keep = np.flatnonzero(worth > 0)
    if layer.energy.overflow and keep.size > WEIGHT_CACHE_WORDS:
        best = keep[np.argsort(-worth[keep], kind="stable")]
        beyond = worth[best[WEIGHT_CACHE_WORDS:]] > layer.energy_price * layer.energy.overflow
        keep = np.sort(best[: WEIGHT_CACHE_WORDS + int(beyond.sum())])
    return keep


def bits_under_tables(layers: Sequence[Layer], price: float) -> float:
    """Returns the bits of the assignment at a price as its fixed tables count them; never rises with the price."""
    fixed = sum(TENSOR_BITS + CODEBOOK_VALUE_BITS * layer.values.size + layer.zero_bits for layer in layers)
    return fixed + sum(float(layer.assign(price).bits.sum(dtype=np.float64)) for layer in layers)


def bits_of_assignment(layers: Sequence[Layer], price: float) -> float:
    """Returns the bits of the same assignment under the tables that fit it, without the values that nothing uses."""
    return sum(code_length(used_counts(layer, layer.assign(price))) for layer in layers)


def used_counts(layer: Layer, kept: Kept) -> Counts:
    """Returns the counts of an assignment, codes that nothing uses left out."""
    row, column = kept.elements.row, kept.elements.column
    counts = Counts.of_elements(row, column, kept.code, layer.shape, layer.values.size)
    return Counts(counts.rows, counts.columns, counts.codes[counts.codes > 0])


class _Tried:
    """The bits at the prices tried so far, and whether they fit."""

    def __init__(
        self, layers: Sequence[Layer], budget_bits: float, bits_at: Callable[[Sequence[Layer], float], float]
    ) -> None:
        self.layers, self.budget_bits, self.bits_at = layers, budget_bits, bits_at
        self._bits: dict[float, float] = {}

    def excess(self, price: float) -> float:
        """Returns the logarithm of the bits over the budget: at most 0 where they fit."""
        if price not in self._bits:
            self._bits[price] = self.bits_at(self.layers, price)
        bits = self._bits[price]
        if self.budget_bits <= 0:
            return math.inf if bits > self.budget_bits else 0.0
        return math.log(bits / self.budget_bits) if bits > 0 else -math.inf

    def close(self, price: float) -> bool:
        """Tells whether the bits come close under the budget."""
        return -BUDGET_TOLERANCE < self.excess(price) <= 0


def find_price(
    layers: Sequence[Layer],
    budget_bits: float,
    start: float,
    bits_at: Callable[[Sequence[Layer], float], float] = bits_under_tables,
) -> float:
    """Returns the least price, within a relative tolerance, at which `bits_at` the price are within the budget.

    A start that is such a price is returned as it is. Solved by false position (Illinois) on the logarithms of price
    and bits, about four prices from a good start. Above `HIGHEST_PRICE` nothing fits: the caller checks.
    """
    squares = sum(layer.weights.square for layer in layers)
    free = LEAST_PRICE * squares / sum(layer.weights.matrix.numel() for layer in layers) + 1e-30
    tried = _Tried(layers, budget_bits, bits_at)
    price = _first_fit(tried, max(start, free), free)
    while price > free and price < HIGHEST_PRICE and not tried.close(price):
        lower = max(price / (1 + PRICE_TOLERANCE), free)
        if tried.excess(lower) > 0:
            break
        price = lower
    return price


def _first_fit(tried: _Tried, start: float, free: float) -> float:
    """Returns a price that fits closely, or nearly the least that fits, or one above `HIGHEST_PRICE`."""
    if tried.close(start) or (start > free and tried.excess(start) <= 0 < tried.excess(start / (1 + PRICE_TOLERANCE))):
        return start
    low, high = _bracket(tried, start, free)
    if low == high or high >= HIGHEST_PRICE or tried.close(high):
        return high
    over, under = tried.excess(low), tried.excess(high)
    goal = 0.3 * BUDGET_TOLERANCE
    last = 0
    for _ in range(PRICES_TRIED):
        if math.log(high / low) < PRICE_TOLERANCE:
            break
        part = (over + goal) / (over - under) if under > -math.inf and over < math.inf else 0.5
        price = float(low * (high / low) ** min(max(part, 0.02), 0.98))
        excess = tried.excess(price)
        if tried.close(price):
            return price
        if excess > 0:
            low, over = price, excess
            under = under / 2 if last > 0 else under
            last = 1
        else:
            high, under = price, excess
            over = over / 2 if last < 0 else over
            last = -1
    return high


def _bracket(tried: _Tried, start: float, free: float) -> tuple[float, float]:
    """Returns (a price that does not fit, one that does); both the same where that is close or the free price."""
    excess, price, width = tried.excess(start), start, 1.05
    if excess > 0:
        while True:
            # Bits fall about with the square root of the price where weights thin out, more slowly near a codebook.
            width = max(width, math.exp(min(2 * excess, 1.5)))
            price, last = min(price * width, HIGHEST_PRICE), price
            excess = tried.excess(price)
            if excess <= 0 or price >= HIGHEST_PRICE:
                return last, price
            width = width**2
    while price > free:
        width = max(width, math.exp(min(-2 * excess, 1.5)))
        price, last = max(price / width, free), price
        excess = tried.excess(price)
        if excess > 0:
            return price, last
        if tried.close(price):
            break
        width = width**2
    return price, price


def energy_at(layers: Sequence[Layer], price: float) -> float:
    """Returns the energy of the nonzeros of the assignment at a price per bit and the layers' price of energy."""
    return sum(layer.energy.of(layer.assign(price).count) for layer in layers if layer.energy is not None)
