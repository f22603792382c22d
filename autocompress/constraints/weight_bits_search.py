"""The first bits of a weight-data projection: nonzeros and bits solved for together, with no bit-width to choose.

Candidates are, for prices per bit closing in on the budget by bisection, the bits with which each layer's
error + price * bits * nonzeros is least, and every uniform bit-width. Projections A and B alternate from the best one
until the error stops falling, so the start is never worse than the best uniform one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autocompress.numerics.kmeans import fit_codebook, fit_codebooks
from autocompress.numerics.knapsack import prune
from autocompress.numerics.multiple_choice_knapsack import Allocation, allocate
from autocompress.projection.ranked_weights import RankedWeights, rank_weights
from autocompress.projection.sorted_values import Codebook, prepare_sorted, sort_values

BIT_CHOICES = tuple(range(1, 9))
PRICE_ROUNDS = 12  # of the bisection: neighbouring prices then differ by less than their effect on the bits
CLOSE = 0.005  # share of the budget within which the price is found: projection A spends the rest
PRICE_CANDIDATES = 3  # prices nearest the budget whose bits are tried
ALTERNATIONS = 6  # at most, of A and B from one candidate; two or three are usual


@dataclass
class _Layer:
    """One layer during the search; codebooks are fitted once for each number of nonzeros."""

    flat: Tensor
    ranked: RankedWeights
    ordered: Tensor  # float64 [n], ascending
    fitted: dict[int, list[Codebook]] = field(default_factory=dict)
    latest: dict[int, Tensor] = field(default_factory=dict)  # bits -> centroids at the last price, for a warm start

    def codebooks(self, nonzeros: int) -> list[Codebook]:
        """Returns codebooks of 2^1 .. 2^8 values for the `nonzeros` largest magnitudes."""
        if nonzeros not in self.fitted:
            largest = self.flat[self.ranked.order[self.ranked.order.numel() - nonzeros :]]
            self.fitted[nonzeros] = fit_codebooks(sort_values(largest), [2**bit for bit in BIT_CHOICES])
        return self.fitted[nonzeros]

    def fit_tails(self, bit: int, below: int, above: int) -> Codebook:
        """Returns 2^bit values for the first `below` and the last `above` of the sorted weights, warm-started."""
        tails = torch.cat([self.ordered[:below], self.ordered[self.ordered.numel() - above :]])
        book = fit_codebook(prepare_sorted(tails), 2**bit, self.latest.get(bit))
        self.latest[bit] = book.centroids
        return book


def allocate_bits(books: Sequence[Sequence[Codebook]], nonzeros: Sequence[int], budget_bits: int) -> Allocation:
    """Returns the allocation (projection B) of one of `BIT_CHOICES` to each layer; choice 0 is one bit.

    Args:
        books: per layer, codebooks of 2^1 .. 2^8 values.
        nonzeros: weights kept per layer.
        budget_bits: capacity in weight-data bits.
    """
    costs = np.outer(np.asarray(nonzeros, dtype=np.int64), np.asarray(BIT_CHOICES, dtype=np.int64))
    errors = np.array([[book.squared_error for book in row] for row in books], dtype=np.float64)
    return allocate(costs, errors.reshape(costs.shape), budget_bits)


def joint_bits(targets: Sequence[Tensor], budget_bits: int) -> list[int]:
    """Returns the bits per layer from which projections A and B of `targets` give the least error found.

    Args:
        targets: one tensor with elements per layer, any shapes.
        budget_bits: at least one bit per layer.
    """
    flats = [target.detach().flatten() for target in targets]
    layers = [_Layer(flat, rank_weights(flat), flat.sort().values.double()) for flat in flats]
    starts = _priced_bits(layers, budget_bits)  # the best usually come first and spare the others their codebooks
    starts += [[bit] * len(layers) for bit in BIT_CHOICES if bit * len(layers) <= budget_bits]
    best, best_bits, next_bits = float("inf"), starts[0], starts[0]
    for bits in starts:
        error, after = _update(layers, bits, budget_bits, best)
        if error < best:
            best, best_bits, next_bits = error, bits, after
    for _ in range(ALTERNATIONS):
        bits = next_bits
        error, next_bits = _update(layers, bits, budget_bits, best * (1 - 1e-6))
        if error >= best * (1 - 1e-6):
            break
        best, best_bits = error, bits
    return best_bits


def _update(layers: Sequence[_Layer], bits: list[int], budget_bits: int, limit: float) -> tuple[float, list[int]]:
    """Returns (error, bits that B chose) of projections A at `bits` and B, or infinity if A alone errs by `limit`."""
    pruned = prune([layer.ranked for layer in layers], bits, budget_bits)
    if pruned.squared_error >= limit:
        return float("inf"), bits
    books = [layer.codebooks(count) for layer, count in zip(layers, pruned.nonzeros, strict=True)]
    allocation = allocate_bits(books, pruned.nonzeros, budget_bits)
    return pruned.squared_error + allocation.error, [BIT_CHOICES[choice] for choice in allocation.choices]


def _priced_bits(layers: Sequence[_Layer], budget_bits: int) -> list[list[int]]:
    """Returns the bits of the prices nearest the budget, each layer choosing its own least error + price * cost."""
    peak = max(float(layer.ranked.squares[-1]) for layer in layers)
    low, high = np.log(max(peak, 1e-300)) - 30, np.log(max(peak, 1e-300))
    seen: list[tuple[float, list[int]]] = []
    for _ in range(PRICE_ROUNDS):
        middle = (low + high) / 2
        choices = [_cheapest(layer, float(np.exp(middle))) for layer in layers]
        used_bits = sum(bit * count for bit, count in choices)
        bits = [bit for bit, _ in choices]
        if sum(bits) <= budget_bits and all(bits != other for _, other in seen):
            seen.append((abs(np.log(used_bits / budget_bits)), bits))
        if abs(used_bits - budget_bits) <= CLOSE * budget_bits:
            break
        low, high = (low, middle) if used_bits <= budget_bits else (middle, high)
    return [bits for _, bits in sorted(seen)[:PRICE_CANDIDATES]]


def _cheapest(layer: _Layer, price: float) -> tuple[int, int]:
    """Returns the (bits, nonzeros) of least error + price * bits * nonzeros, keeping w^2 > price * bits."""
    roots = (price * torch.tensor(BIT_CHOICES, dtype=torch.float64, device=layer.flat.device)).sqrt()
    below = torch.searchsorted(layer.ordered, -roots)
    above = layer.flat.numel() - torch.searchsorted(layer.ordered, roots, right=True)
    best = (layer.ranked.dropped_square(1) + price, 1, 1)
    for bit, low, high in zip(BIT_CHOICES, below.tolist(), above.tolist(), strict=True):
        count = low + high
        if count == 0 or (bit > 1 and count <= 2 ** (bit - 1)):
            break  # fewer bits already give every kept weight its own value
        error = layer.ranked.dropped_square(count) + layer.fit_tails(bit, low, high).squared_error
        best = min(best, (error + price * bit * count, bit, count))
    return best[1], best[2]
