"""The first bits of a weight-data projection: nonzeros and bits solved for together, with no bit-width to choose.

Candidates are, for multipliers per bit closing in on the budget by bisection, the bits with which each layer's
error + multiplier * bits * nonzeros is least, and every uniform bit-width. Projections A and B alternate from the best
one until the error stops falling, so the start is never worse than the best uniform one.

Its last projection is a rate-distortion one: one multiplier for bits times nonzeros, positions free.

Problem:  minimise  sum_l ||V_l - X_l||^2   subject to   sum_l b_l ||V_l||_0 <= budget_bits,   b_l fixed.

With codebooks fixed a weight is kept iff what its nearest value takes off its squared error is worth b_l at the
multiplier; what the bisection leaves of the budget is filled with the weights next in line, and centroids are
re-estimated. The alternating mode (`weight_bits`) prunes by the weight's own square, as if it were kept exactly, which
is never better; started from its result this is therefore a descent. Exact for fixed codebooks up to the last weight
that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autocompress.network.compressed_tensors import QuantizedTensor, quantized_tensor
from autocompress.numerics.kmeans import Codebook, fit_codebook, fit_codebooks, prepare_sorted, sort_values
from autocompress.numerics.knapsack import RankedWeights, prune, rank_weights
from autocompress.numerics.multiple_choice_knapsack import Allocation, allocate

BIT_CHOICES = tuple(range(1, 9))
MULTIPLIER_ROUNDS = 12  # of the bisection: neighbouring multipliers then differ by less than their effect on the bits
BUDGET_TOLERANCE = 0.005  # share of the budget within which the multiplier is found: projection A spends the rest
MULTIPLIER_CANDIDATES = 3  # multipliers nearest the budget whose bits are tried
ALTERNATIONS = 6  # at most, of A and B from one candidate; two or three are usual


@dataclass
class _Layer:
    """One layer during the search; codebooks are fitted once for each number of nonzeros."""

    flat: Tensor
    ranked: RankedWeights
    ordered: Tensor  # float64 [n], ascending
    fitted: dict[int, list[Codebook]] = field(default_factory=dict)
    latest: dict[int, Tensor] = field(
        default_factory=dict
    )  # bits -> centroids at the last multiplier, for a warm start

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
    starts = _bits_at_multiplier(
        layers, budget_bits
    )  # the best usually come first and spare the others their codebooks
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


def _bits_at_multiplier(layers: Sequence[_Layer], budget_bits: int) -> list[list[int]]:
    """Returns the bits at the multipliers nearest the budget, each layer's of least error + multiplier * cost."""
    peak = max(float(layer.ranked.squares[-1]) for layer in layers)
    low, high = np.log(max(peak, 1e-300)) - 30, np.log(max(peak, 1e-300))
    seen: list[tuple[float, list[int]]] = []
    for _ in range(MULTIPLIER_ROUNDS):
        middle = (low + high) / 2
        choices = [_cheapest(layer, float(np.exp(middle))) for layer in layers]
        used_bits = sum(bit * count for bit, count in choices)
        bits = [bit for bit, _ in choices]
        if sum(bits) <= budget_bits and all(bits != other for _, other in seen):
            seen.append((abs(np.log(used_bits / budget_bits)), bits))
        if abs(used_bits - budget_bits) <= BUDGET_TOLERANCE * budget_bits:
            break
        low, high = (low, middle) if used_bits <= budget_bits else (middle, high)
    return [bits for _, bits in sorted(seen)[:MULTIPLIER_CANDIDATES]]


def _cheapest(layer: _Layer, multiplier: float) -> tuple[int, int]:
    """Returns the (bits, nonzeros) of least error + multiplier * bits * nonzeros, keeping w^2 > multiplier * bits."""
    roots = (multiplier * torch.tensor(BIT_CHOICES, dtype=torch.float64, device=layer.flat.device)).sqrt()
    below = torch.searchsorted(layer.ordered, -roots)
    above = layer.flat.numel() - torch.searchsorted(layer.ordered, roots, right=True)
    best = (layer.ranked.dropped_square(1) + multiplier, 1, 1)
    for bit, low, high in zip(BIT_CHOICES, below.tolist(), above.tolist(), strict=True):
        count = low + high
        if count == 0 or (bit > 1 and count <= 2 ** (bit - 1)):
            break  # fewer bits already give every kept weight its own value
        error = layer.ranked.dropped_square(count) + layer.fit_tails(bit, low, high).squared_error
        best = min(best, (error + multiplier * bit * count, bit, count))
    return best[1], best[2]


ROUNDS = 4


def improve_weight_data(
    targets: Sequence[Tensor], start: Sequence[QuantizedTensor], budget_bits: int
) -> list[QuantizedTensor]:
    """Returns quantized tensors of no more weight data than the budget and no more error than the ones to start from.

    Args:
        targets: X, one per layer, any shape.
        start: a feasible solution for them; its bits per layer are kept.
        budget_bits: most weight-data bits.
    """
    best, best_error = list(start), _error(targets, start)
    values = [c.values for c in start]
    bits = [c.bits for c in start]
    for _ in range(ROUNDS):
        kept = _keep(targets, values, bits, budget_bits)
        values = [_centroids(x, mask, v) for x, mask, v in zip(targets, kept, values, strict=True)]
        quantized = [_encode(x, mask, v) for x, mask, v in zip(targets, kept, values, strict=True)]
        error = _error(targets, quantized)
        if error < best_error and sum(c.weight_data_bits for c in quantized) <= budget_bits:
            best, best_error = quantized, error
    return best


def _error(targets: Sequence[Tensor], quantized: Sequence[QuantizedTensor]) -> float:
    return sum(float((c.dense() - x).double().square().sum()) for c, x in zip(quantized, targets, strict=True))


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """Returns the index of the nearest value, int64 in the shape of x."""
    return torch.bucketize(x.contiguous(), 0.5 * (values[1:] + values[:-1]))


def _keep(targets: Sequence[Tensor], values: Sequence[Tensor], bits: Sequence[int], budget_bits: int) -> list[Tensor]:
    """Returns masks of the weights kept: one per layer, then in the order of error saved per bit while they fit."""
    gains = []
    for x, v in zip(targets, values, strict=True):
        value = v[_nearest(x, v)]
        gains.append((value * (2 * x - value)).flatten().double())
    cost = torch.cat([torch.full_like(gain, b) for gain, b in zip(gains, bits, strict=True)])
    worth = torch.cat([gain / b for gain, b in zip(gains, bits, strict=True)])
    starts = torch.tensor([0, *(gain.numel() for gain in gains)]).cumsum(0)
    for begin, gain in zip(starts.tolist(), gains, strict=False):
        worth[begin + int(gain.argmax())] = torch.inf
    order = worth.argsort(descending=True)
    order = order[worth[order] > 0]
    fits = cost[order].cumsum(0) <= budget_bits
    mask = torch.zeros_like(worth, dtype=torch.bool)
    mask[order[fits]] = True
    sizes = [gain.numel() for gain in gains]
    return [part.view(x.shape) for part, x in zip(torch.split(mask, sizes), targets, strict=True)]


def _centroids(x: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Returns the means of the kept weights by nearest value, ascending; a value that nothing uses stays."""
    kept = x[mask].double()
    code = _nearest(kept.to(values), values)
    count = torch.bincount(code, minlength=values.numel())
    total = torch.zeros(values.numel(), dtype=torch.float64, device=x.device).scatter_add_(0, code, kept)
    return torch.where(count > 0, total / count.clamp(min=1), values.double()).float().sort().values


def _encode(x: Tensor, mask: Tensor, values: Tensor) -> QuantizedTensor:
    codes = torch.where(mask, _nearest(x, values) + 1, 0)
    return quantized_tensor(codes, values)
