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
KEPT_MARGIN = 0.15  # of the mean limit, by which less is asked of the elements that are kept, by row and by column
KEPT_PART = 0.1  # of all elements, at most
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
    """X_l as a matrix [R, C], whose elements of large magnitude are looked up."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._least, self._large = math.inf, np.zeros(0, np.float32)
        self._lowest: tuple[Floats, Floats] | None = None
        self._kept: Elements | None = None

    @cached_property
    def squares(self) -> Tensor:
        """Of the elements, [R, C]."""
        return self.matrix.square()

    @cached_property
    def square(self) -> float:
        """Sum of the squares."""
        return float(self.squares.sum(dtype=torch.float64))

    @cached_property
    def largest(self) -> Elements:
        """The element of largest magnitude."""
        return self._at(self.squares.argmax()[None])

    def above(self, rows: Floats, columns: Floats) -> Elements:
        """Returns the elements whose square is above the sum of what is given for their row [R] and column [C].

        The tables of one projection ask for much the same elements: more than the first do are kept, where few are.
        """
        if self._lowest is None:
            margin = KEPT_MARGIN * float(np.abs(rows).mean() + np.abs(columns).mean())
            self._lowest = rows - margin, columns - margin
            index = self._indices_above(*self._lowest)
            self._kept = self._at(index) if index.numel() < KEPT_PART * self.matrix.numel() else None
        kept = self._kept
        if kept is None or not ((rows >= self._lowest[0]).all() and (columns >= self._lowest[1]).all()):
            return self._at(self._indices_above(rows, columns))
        return kept[np.flatnonzero(np.square(kept.x) > rows[kept.row] + columns[kept.column])]

    def _indices_above(self, rows: Floats, columns: Floats) -> Tensor:
        if self.matrix.device.type == "cpu":  # numpy looks through them in a fifth of the time
            return torch.from_numpy(np.flatnonzero(self.squares.numpy() > rows[:, None] + columns))
        least = torch.from_numpy(rows).to(self.matrix)[:, None] + torch.from_numpy(columns).to(self.matrix)
        return (self.squares > least).flatten().nonzero().flatten()

    def beyond(self, magnitude: float) -> tuple[Floats, Floats]:
        """Returns the elements below `-magnitude` and those above `magnitude` >= 0, ascending; all there are at 0."""
        if magnitude < self._least:
            # The next tables and prices will ask for smaller ones: once more is cheaper than each time.
            self._least = magnitude / MAGNITUDE_MARGIN
            self._large = np.sort(self.matrix[self.matrix.abs() > self._least].cpu().numpy())
        x = self._large
        return x[: np.searchsorted(x, -magnitude, "left")], x[np.searchsorted(x, magnitude, "right") :]

    def _at(self, index: Tensor) -> Elements:
        x: Floats = self.matrix.flatten()[index].cpu().numpy()
        order = np.argsort(x)
        flat = index.cpu().numpy()[order]
        row = flat // self.matrix.shape[1]
        return Elements(flat, row, flat - row * self.matrix.shape[1], x[order])


class Kept:
    """The nonzeros of a layer, m of them. What a search for a price does not ask for is not gathered."""

    def __init__(self, elements: Elements, code: Integers, gain: Floats, bits: Floats, keep: Integers) -> None:
        """Takes those of some elements that are kept, with the code, gain and bits of all of them.

        Args:
            elements: n of them.
            code, gain, bits: [n], see below.
            keep: int64 [m], which are not zero.
        """
        self._elements, self._code, self._gain, self._bits, self._keep = elements, code, gain, bits, keep

    @cached_property
    def elements(self) -> Elements:
        """Where and what they are."""
        return self._elements[self._keep]

    @cached_property
    def row(self) -> Integers:
        """Int64 [m]."""
        return self._elements.row[self._keep]

    @cached_property
    def column(self) -> Integers:
        """Int64 [m]."""
        return self._elements.column[self._keep]

    @cached_property
    def code(self) -> Integers:
        """Int64 [m], in 0..K-1."""
        return self._code[self._keep]

    @cached_property
    def gain(self) -> Floats:
        """Float32 [m], what each takes off the squared error of the layer at zero."""
        return self._gain[self._keep]

    @cached_property
    def bits(self) -> Floats:
        """Float32 [m], what each costs more than a zero, under the layer's tables."""
        return self._bits[self._keep]

    @property
    def count(self) -> int:
        """m."""
        return self._keep.size


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
            least = price / CANDIDATE_MARGIN
            least_code = self._code_bits.min()
            elements = self.weights.above(least * (self._row_bits + least_code), least * self._column_bits)
            self._candidates = least, elements, self._position_bits(elements)
        return self._candidates[1:]

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
            nowhere = np.zeros(0, np.int64)
            return Kept(self.weights.largest[:0], nowhere, none, none, nowhere)
        best, thresholds = lower_envelope(self.values, price * self._code_bits)
        elements, position_bits = self.candidates(price)
        code, gain, bits = self._coded(elements, position_bits, best, thresholds)
        keep = _worth_keeping(self, gain, price * bits)
        if not keep.size:  # a layer does not go dead: its largest weight stays
            elements = self.weights.largest
            code, gain, bits = self._coded(elements, self._position_bits(elements), best, thresholds)
            keep = np.zeros(1, np.int64)
        return Kept(elements, code, gain, bits, keep)

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
    counts = Counts.of_elements(kept.row, kept.column, kept.code, layer.shape, layer.values.size)
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

    def fits_nearly(self, price: float, free: float) -> bool:
        """Tells whether the bits come close under the budget, or fit and would not at a hardly lower price."""
        return self.close(price) or (
            price > free and self.excess(price) <= 0 < self.excess(price / (1 + PRICE_TOLERANCE))
        )


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
    free, tried = _free_price(layers), _Tried(layers, budget_bits, bits_at)
    price = _first_fit(tried, max(start, free), free)
    while price > free and price < HIGHEST_PRICE and not tried.close(price):
        lower = max(price / (1 + PRICE_TOLERANCE), free)
        if tried.excess(lower) > 0:
            break
        price = lower
    return price


def price_is_far(layers: Sequence[Layer], budget_bits: float, start: float, factor: float) -> bool:
    """Tells whether the price that fits the budget, see `bits_of_assignment`, differs from a start by a factor."""
    free, tried = _free_price(layers), _Tried(layers, budget_bits, bits_of_assignment)
    start = max(start, free)
    over = tried.excess(start) > 0
    if tried.fits_nearly(start, free) or (start == free and not over):
        return False
    return over == (tried.excess(start * factor if over else start / factor) > 0)


def _free_price(layers: Sequence[Layer]) -> float:
    squares = sum(layer.weights.square for layer in layers)
    return LEAST_PRICE * squares / sum(layer.weights.matrix.numel() for layer in layers) + 1e-30


def _first_fit(tried: _Tried, start: float, free: float) -> float:
    """Returns a price that fits closely, or nearly the least that fits, or one above `HIGHEST_PRICE`."""
    if tried.fits_nearly(start, free):
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
