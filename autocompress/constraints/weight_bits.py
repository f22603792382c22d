"""`WeightBits`: the two knapsacks of Yang et al. (2020), with W left dense or pruned in place as they do.

    A:  W <- the weights kept by a 0-1 knapsack at the present bits                (`knapsack`)
    B:  V <- W + U quantized where A kept weights, bits by a multiple-choice knapsack  (`multiple_choice_knapsack`)

W is the network in training, V its compressed twin, U the scaled dual variable. Before the first update there are no
bits; they are then found together with the nonzeros.

That search has no bit-width to choose. Candidates are, for multipliers per bit closing in on the budget by bisection,
the bits with which each layer's error + multiplier * bits * nonzeros is least, and every uniform bit-width. Projections
A and B alternate from the best one until the error stops falling: the start is never worse than the best uniform one.

The last projection of a run is improved at the bits that B chose:

    minimise  sum_l ||V_l - X_l||^2   subject to   sum_l b_l ||V_l||_0 <= budget_bits,   b_l fixed.

With codebooks fixed, weights are kept in the order of what their nearest value takes off the squared error, per bit,
while they fit; centroids are then re-estimated. A prunes by the weight's own square, as if it were kept exactly, which
is never better, so this is a descent from its result. Exact for fixed codebooks up to the last weight that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.constraints.file_writer import WeightsOnlyConstraint
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import (
    QuantizedTensor,
    WeightTensor,
    check_weight_data_budget,
    quantized_tensor,
    scalar_tensors,
    weight_data_bits,
)
from autocompress.numerics.kmeans import Codebook, encode, fit_codebook, fit_codebooks, prepare_sorted, sort_values
from autocompress.numerics.knapsack import RankedWeights, largest, prune, rank_weights
from autocompress.numerics.multiple_choice_knapsack import Allocation, allocate
from autocompress.solver.constants import DEFAULTS, SolverConstants, bits_on_path

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


def joint_bits(points: Sequence[Tensor], budget_bits: int) -> list[int]:
    """Returns the bits per layer from which projections A and B of `points` give the least error found.

    Args:
        points: one tensor with elements per layer, any shapes.
        budget_bits: at least one bit per layer.
    """
    flats = [target.detach().flatten() for target in points]
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
    points: Sequence[Tensor], start: Sequence[QuantizedTensor], budget_bits: int
) -> list[QuantizedTensor]:
    """Returns quantized tensors of no more weight data than the budget and no more error than the ones to start from.

    Args:
        points: X, one per layer, any shape.
        start: a feasible solution for them; its bits per layer are kept.
        budget_bits: most weight-data bits.
    """
    best, best_error = list(start), _error(points, start)
    values = [c.values for c in start]
    bits = [c.bits for c in start]
    for _ in range(ROUNDS):
        kept = _keep(points, values, bits, budget_bits)
        values = [_centroids(x, mask, v) for x, mask, v in zip(points, kept, values, strict=True)]
        quantized = [_encode(x, mask, v) for x, mask, v in zip(points, kept, values, strict=True)]
        error = _error(points, quantized)
        if error < best_error and sum(c.weight_data_bits for c in quantized) <= budget_bits:
            best, best_error = quantized, error
    return best


def _error(points: Sequence[Tensor], quantized: Sequence[QuantizedTensor]) -> float:
    return sum(float((c.dense() - x).double().square().sum()) for c, x in zip(quantized, points, strict=True))


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """Returns the index of the nearest value, int64 in the shape of x."""
    return torch.bucketize(x.contiguous(), 0.5 * (values[1:] + values[:-1]))


def _keep(points: Sequence[Tensor], values: Sequence[Tensor], bits: Sequence[int], budget_bits: int) -> list[Tensor]:
    """Returns masks of the weights kept: one per layer, then in the order of error saved per bit while they fit."""
    gains = []
    for x, v in zip(points, values, strict=True):
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
    return [part.view(x.shape) for part, x in zip(torch.split(mask, sizes), points, strict=True)]


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


SIZES = tuple(2**bit for bit in BIT_CHOICES)


@dataclass(frozen=True)
class WeightBitsState:
    """What an update hands to the next.

    Attributes:
        bits: of each layer, for projection A.
        centroids: of each layer, one codebook per size of `SIZES`, warm starts; empty for a cold start.
    """

    bits: list[int]
    centroids: list[list[Tensor]]


@dataclass(frozen=True)
class WeightBitsProjection:
    """The result of one update.

    Attributes:
        quantized: V, one per layer.
        pruned: W with the weights that A dropped set to zero, in W's dtype.
        bits: of each layer as V uses them.
        nonzeros: of each layer.
        used_bits: weight-data bits of V, at most the budget.
        squared_error: sum over all weights of (V - target)^2.
        exact: whether B's knapsack was solved exactly.
        state: for the next update.
    """

    quantized: list[QuantizedTensor]
    pruned: list[Tensor]
    bits: list[int]
    nonzeros: list[int]
    used_bits: int
    squared_error: float
    exact: bool
    state: WeightBitsState


def project_weight_bits(
    weights: Sequence[Tensor],
    points: Sequence[Tensor],
    budget_bits: int,
    previous: WeightBitsState | None = None,
) -> WeightBitsProjection:
    """Returns the projections of W and of W + U onto the networks of at most `budget_bits` of weight data.

    Args:
        weights: W, one floating tensor with elements per layer, any shapes, any device.
        points: W + U, the same shapes.
        budget_bits: most weight-data bits; each layer keeps at least one weight.
        previous: what the last update returned; without it, or where its bits no longer fit, start jointly.

    Raises:
        InfeasibleTargetError: the budget is below one bit per layer.
        InvalidInputError: shapes that differ, an empty tensor, or values that are not finite.
    """
    _check(weights, points, budget_bits)
    if not weights:
        return WeightBitsProjection([], [], [], [], 0, 0.0, True, WeightBitsState([], []))
    if previous is None or sum(previous.bits) > budget_bits:
        previous = WeightBitsState(joint_bits(points, budget_bits), [])
    ranked = [rank_weights(weight) for weight in weights]
    pruning = prune(ranked, previous.bits, budget_bits)
    masks = [
        rank.mask(count, weight.shape) for rank, count, weight in zip(ranked, pruning.nonzeros, weights, strict=True)
    ]
    starts: Sequence[list[Tensor] | None] = previous.centroids or [None] * len(masks)
    books = [
        fit_codebooks(sort_values(target[mask]), SIZES, start)
        for target, mask, start in zip(points, masks, starts, strict=True)
    ]
    allocation = allocate_bits(books, pruning.nonzeros, budget_bits)
    quantized = [
        encode(target, mask, book[choice].centroids)
        for target, mask, book, choice in zip(points, masks, books, allocation.choices, strict=True)
    ]
    return WeightBitsProjection(
        quantized=quantized,
        pruned=[weight.detach() * mask for weight, mask in zip(weights, masks, strict=True)],
        bits=[tensor.bits for tensor in quantized],
        nonzeros=pruning.nonzeros,
        used_bits=weight_data_bits(quantized),
        squared_error=squared_error(quantized, points),
        exact=allocation.exact,
        state=WeightBitsState(
            [tensor.bits for tensor in quantized], [[book.centroids for book in row] for row in books]
        ),
    )


def project_plan(tensor: Tensor, keep_fraction: float, codebook: int, start: Tensor | None = None) -> QuantizedTensor:
    """Returns `tensor` with its largest share kept, as at most `codebook` values fitted by k-means.

    Args:
        tensor: any shape, floating, with elements.
        keep_fraction: of the weights, in [0, 1]; at least one weight is kept.
        codebook: number of nonzero values, 1 to 256.
        start: values to begin from, where there are `codebook` of them.

    Raises:
        InvalidInputError: an argument out of its range.
    """
    if not 0 <= keep_fraction <= 1 or not 1 <= codebook <= SIZES[-1]:
        raise InvalidInputError(
            f"need a keep fraction in [0, 1] and 1 to {SIZES[-1]} values, got {keep_fraction} and {codebook}"
        )
    _check([tensor], [tensor], 1)
    mask = largest(tensor, max(1, round(keep_fraction * tensor.numel())))
    warm = start if start is not None and start.numel() == codebook else None
    return encode(tensor, mask, fit_codebook(sort_values(tensor.detach()[mask]), codebook, warm).centroids)


def squared_error(quantized: Sequence[WeightTensor], points: Sequence[Tensor]) -> float:
    """Returns the sum over all layers of squared differences between V and its target, in float64."""
    differences = (
        code.dense().double() - target.detach().double() for code, target in zip(quantized, points, strict=True)
    )
    return sum(float(difference.square().sum()) for difference in differences)


def _check(weights: Sequence[Tensor], points: Sequence[Tensor], budget_bits: int) -> None:
    shapes, target_shapes = [tuple(w.shape) for w in weights], [tuple(t.shape) for t in points]
    if shapes != target_shapes:
        raise InvalidInputError(f"weights and points need the same shapes, got {shapes} and {target_shapes}")
    for index, (weight, target) in enumerate(zip(weights, points, strict=True)):
        if not weight.numel():
            raise InvalidInputError(f"layer {index} has no elements (shape {tuple(weight.shape)}); leave it out")
        if not bool(torch.isfinite(weight).all() & torch.isfinite(target).all()):
            raise InvalidInputError(f"layer {index} (shape {tuple(weight.shape)}) holds values that are not finite")
    check_weight_data_budget(weights, budget_bits)


class WeightBitsConstraint(WeightsOnlyConstraint):
    """Keeps bits times nonzeros within a number of bits; positions, codebooks and biases are free.

    Both knapsacks are applied to the same point. The state is the warm start.
    """

    def __init__(self, network: Network, budget_bits: int, constants: SolverConstants = DEFAULTS) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the fewest bits.
        """
        check_weight_data_budget(network.weights, budget_bits)
        super().__init__(network)
        self.budget_bits, self.constants = budget_bits, constants

    def start(self) -> WeightBitsState | None:
        return None

    def budget(self, fraction: float) -> int:
        return bits_on_path(self.budget_bits, self.network.selection.compressible, fraction, self.constants)

    def project(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        """Returns V."""
        found = project_weight_bits(x, x, budget, state)
        return _projection(found, x), found.state

    def project_last(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        """Returns the projection, improved by a multiplier search at the same bits."""
        projection, state = self.project(x, budget, state)
        quantized = improve_weight_data(x, scalar_tensors(projection.quantized), budget)
        error = squared_error(quantized, x)
        return replace(projection, quantized=quantized, error=error, relative_error=relative_error(error, x)), state

    def to_plain(self, state: WeightBitsState | None) -> dict[str, Any]:
        return {"bits": None} if state is None else {"bits": state.bits, "centroids": state.centroids}

    def from_plain(self, saved: dict[str, Any]) -> WeightBitsState | None:
        if saved["bits"] is None:
            return None
        return WeightBitsState(list(saved["bits"]), [list(row) for row in saved["centroids"]])


class InPlaceWeightBitsConstraint(WeightBitsConstraint):
    """The algorithm as published: W is pruned in place, V shares its zeros, the budget is the target throughout."""

    def budget(self, fraction: float) -> int:
        return self.budget_bits

    def project(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        """Returns V and the pruned W."""
        found = project_weight_bits(x if w is None else w, x, budget, state)
        return replace(_projection(found, x), pruned=found.pruned), found.state

    def project_last(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        return self.project(x, budget, state, w)


def _projection(found: WeightBitsProjection, x: Sequence[Tensor]) -> Projection:
    error = found.squared_error
    return Projection(found.quantized, None, error, relative_error(error, x), 0.0, greedy=not found.exact)
