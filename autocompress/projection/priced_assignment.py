"""Assigning weights to codes under fixed code tables, and the price at which the assignment fits a budget.

With the tables held fixed the Lagrangian `error + price * bits` separates over weights, and the used bits fall as the
price rises; both steps here are exact. Where energy is limited, too, each nonzero also costs `energy price * energy`,
and the energy price is found outside (`energy_price`). Cost: O(n) per price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from autocompress.costs.accelerator import WEIGHT_CACHE_WORDS, WeightEnergy
from autocompress.costs.code_length import CODEBOOK_VALUE_BITS, TENSOR_BITS, CodeLengths, Counts, code_length

BISECTIONS = 30
PRICE_TOLERANCE = 2e-3  # relative width of the price bracket at which the bisection stops
BUDGET_TOLERANCE = 2e-3  # a bisection that lands this close under its budget stops early
LEAST_PRICE = 1e-7  # of the mean square: below, bits are free and no price is looked for
CANDIDATE_MARGIN = 1.5  # by which the price may fall before a layer's elements are looked through again


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
    """Some of a layer's elements.

    Attributes:
        least_price: down to this price no other element is worth a nonzero.
        index: int64 [m], flat and ascending.
        x: [m], the weights.
        position_bits: [m], what each as a nonzero costs more than a zero, its code apart.
    """

    least_price: float
    index: Tensor
    x: Tensor
    position_bits: Tensor


class Layer:
    """X_l as a matrix [R, C] and its current tables.

    Attributes:
        energy: what its nonzeros cost in energy.
        energy_price: squared error per unit of energy; moved by the search for it.
    """

    def __init__(self, matrix: Tensor, tables: LayerTables, energy: WeightEnergy | None = None) -> None:
        self.matrix, self.tables = matrix, tables
        self.energy, self.energy_price = energy, 0.0
        self._candidates: Elements | None = None

    @cached_property
    def zero_bits(self) -> float:
        """Bits of the layer with nothing kept; the same at every price."""
        return self.tables.lengths.zero_bits()

    @cached_property
    def _highest_price(self) -> Tensor:
        """[R * C]: the price from which on no value in reach of the weight is worth a nonzero."""
        lengths = self.tables.lengths
        least_bits = (lengths.position_bits() + lengths.code_bits.min()).flatten()
        squares = self.matrix.flatten().square()
        return torch.where(least_bits > 0, squares / least_bits, math.inf)

    def candidates(self, price: float) -> Elements:
        """Returns all elements that can be worth a nonzero at a price, and perhaps others.

        A bisection asks for many prices close together, so that those of a somewhat lower price are kept.
        """
        if self._candidates is None or price < self._candidates.least_price:
            least = price / CANDIDATE_MARGIN
            self._candidates = self._elements(least, (self._highest_price > least).nonzero().flatten())
        return self._candidates

    def largest(self) -> Elements:
        """Returns the element of largest magnitude."""
        return self._elements(math.inf, self.matrix.abs().argmax()[None])

    def _elements(self, price: float, index: Tensor) -> Elements:
        lengths, columns = self.tables.lengths, self.matrix.shape[1]
        bits = lengths.row_bits[index // columns] + lengths.column_bits[index % columns]
        return Elements(price, index, self.matrix.flatten()[index], bits)


def lower_envelope(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which values are best somewhere, and the thresholds between them.

    A scalar x goes to the value minimising (x - value)^2 + offset. All parabolas have one curvature, so each value owns
    an interval or nothing; exact, O(K).

    Args:
        values: [K] ascending, distinct.
        offsets: [K].

    Returns:
        indices int64 [k] into `values`, ascending, and thresholds [k - 1] between neighbours.
    """
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
    thresholds = torch.tensor(starts[1:], dtype=values.dtype, device=values.device)
    return torch.tensor(kept, dtype=torch.int64, device=values.device), thresholds


def assign(layer: Layer, price: float) -> tuple[Tensor, Tensor, float]:
    """Returns the nonzero elements of least `error + price * bits` and what they cost under fixed tables.

    Returns:
        flat indices int64 [m] of the kept elements, their codes int64 [m] in 0..K-1, and the bits of the layer.
    """
    values, lengths = layer.tables.values, layer.tables.lengths
    if not values.numel():
        nothing = torch.zeros(0, dtype=torch.int64, device=layer.matrix.device)
        return nothing, nothing, layer.zero_bits
    kept_values, thresholds = lower_envelope(values, price * lengths.code_bits)

    def coded(elements: Elements) -> tuple[Tensor, Tensor]:
        code = kept_values[torch.bucketize(elements.x, thresholds)]
        return code, lengths.code_bits[code] + elements.position_bits

    elements = layer.candidates(price)
    code, bits = coded(elements)
    value = values[code]
    keep = _worth_keeping(layer, value * (2 * elements.x - value), price * bits)
    if not keep.numel():  # a layer does not go dead: its largest weight stays
        elements = layer.largest()
        code, bits = coded(elements)
        keep = torch.zeros(1, dtype=torch.int64, device=code.device)
    return elements.index[keep], code[keep], layer.zero_bits + float(bits[keep].sum())


def _worth_keeping(layer: Layer, gain: Tensor, cost: Tensor) -> Tensor:
    """Returns which elements [m] gain more than their bits and their energy cost, ascending.

    A layer's energy is convex in its nonzeros: those beyond the cache have to gain more, and the best come first.
    """
    if layer.energy is None or layer.energy_price == 0:
        return (gain > cost).nonzero().flatten()
    worth = gain - cost - layer.energy_price * layer.energy.each
    keep = (worth > 0).nonzero().flatten()
    if layer.energy.overflow and keep.numel() > WEIGHT_CACHE_WORDS:
        best = keep[worth[keep].argsort(descending=True)]
        beyond = worth[best[WEIGHT_CACHE_WORDS:]] > layer.energy_price * layer.energy.overflow
        keep = best[: WEIGHT_CACHE_WORDS + int(beyond.sum())].sort().values
    return keep


def bits_under_tables(layers: Sequence[Layer], price: float) -> float:
    """Returns the bits of the assignment at a price as its fixed tables count them; never rises with the price."""
    fixed = sum(TENSOR_BITS + CODEBOOK_VALUE_BITS * layer.tables.values.numel() for layer in layers)
    return fixed + sum(assign(layer, price)[2] for layer in layers)


def bits_of_assignment(layers: Sequence[Layer], price: float) -> float:
    """Returns the bits of the same assignment under the tables that fit it."""
    return sum(code_length(_counts_at(layer, price)) for layer in layers)


def _counts_at(layer: Layer, price: float) -> Counts:
    index, code, _ = assign(layer, price)
    return Counts.of_elements(index, code, layer.matrix.shape, layer.tables.values.numel())


def find_price(
    layers: Sequence[Layer],
    budget_bits: float,
    start: float,
    bits_at: Callable[[Sequence[Layer], float], float] = bits_under_tables,
) -> float:
    """Returns the least price, within a relative tolerance, at which `bits_at` the price are within the budget."""
    squares = sum(float(layer.matrix.square().sum()) for layer in layers)
    free = LEAST_PRICE * squares / sum(layer.matrix.numel() for layer in layers) + 1e-30
    start = max(start, free)
    low, high = start / 1.3, start * 1.3
    while bits_at(layers, high) > budget_bits:
        low, high = high, high * (high / low) ** 2
        if high > 1e30:
            return high  # the floor of one nonzero per layer does not fit: the caller checks feasibility
    while low > free and bits_at(layers, low) <= budget_bits:
        low, high = max(low / (high / low) ** 2, free), low
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        bits = bits_at(layers, middle)
        low, high = (low, middle) if bits <= budget_bits else (middle, high)
        if high / low < 1 + PRICE_TOLERANCE or 0 <= budget_bits - bits < BUDGET_TOLERANCE * budget_bits:
            break
    return high


def energy_at(layers: Sequence[Layer], price: float) -> float:
    """Returns the energy of the nonzeros of the assignment at a price per bit and the layers' price of energy."""
    return sum(layer.energy.of(assign(layer, price)[0].numel()) for layer in layers if layer.energy is not None)


def codes_at(layer: Layer, price: float) -> Tensor:
    """Returns int16 codes [R, C] of the best assignment at a price, 0 for zero."""
    index, code, _ = assign(layer, price)
    codes = torch.zeros(layer.matrix.numel(), dtype=torch.int16, device=layer.matrix.device)
    codes[index] = (code + 1).to(torch.int16)
    return codes.view(layer.matrix.shape)
