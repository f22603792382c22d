"""Projection A: which weights to keep when each layer's bits are fixed (a 0-1 knapsack).

    minimise  sum of the squares of the zeroed weights   subject to   sum_i bits_i * nonzeros_i <= budget,
              nonzeros_i >= 1 in every layer that has elements                     (Yang et al. 2020, the W step)

An item is a weight, its profit w^2, its size the bits of its layer. The greedy keeps the weights with
w^2 > multiplier * bits at the smallest multiplier that fits, then goes on past a weight that does not fit to later
ones that do. Sizes are small integers, so an optimum is near: it differs from the optimum of the linear relaxation in
at most 2 * max(bits) + 1 items (Eisenbrand & Weismantel 2018, theorem 3.1, one constraint), and dynamic programming
over that neighbourhood finds it exactly, at a cost that does not depend on the number of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autocompress.errors import InfeasibleTargetError


@dataclass(frozen=True)
class RankedWeights:
    """A layer's weights ordered by magnitude.

    Attributes:
        squares: float64 [n], ascending.
        order: int64 [n], flat position of each in the tensor.
        dropped: float64 [n + 1], sum of the smallest i squares at i.
    """

    squares: Tensor
    order: Tensor
    dropped: Tensor

    def mask(self, nonzeros: int, shape: torch.Size) -> Tensor:
        """Returns a bool tensor of `shape`, true at the `nonzeros` largest magnitudes."""
        kept = torch.zeros(self.order.numel(), dtype=torch.bool, device=self.order.device)
        kept[self.order[self.order.numel() - nonzeros :]] = True
        return kept.view(shape)

    def dropped_square(self, nonzeros: int) -> float:
        """Returns the squared error of keeping only the `nonzeros` largest magnitudes."""
        return float(self.dropped[self.order.numel() - nonzeros])


def rank_weights(weight: Tensor) -> RankedWeights:
    """Returns the elements of `weight` (any shape) ordered by magnitude; equal ones keep their order."""
    magnitudes, order = weight.detach().flatten().abs().sort(stable=True)
    squares = magnitudes.double().square()
    return RankedWeights(squares, order, torch.cat([squares.new_zeros(1), squares.cumsum(0)]))


def largest(weight: Tensor, count: int) -> Tensor:
    """Returns a bool tensor of `weight`'s shape, true at its `count` largest magnitudes: the mask of its ranking.

    Without a sort: of equal magnitudes at the threshold the last ones are kept, as there.
    """
    magnitudes = weight.detach().flatten().abs()
    if not 0 < count < magnitudes.numel():
        return torch.full(weight.shape, count > 0, dtype=torch.bool, device=weight.device)
    threshold = magnitudes.kthvalue(magnitudes.numel() - count + 1).values
    kept = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().flatten()
    kept[ties[ties.numel() - (count - int(kept.sum())) :]] = True
    return kept.view(weight.shape)


def _neighbours(
    layers: Sequence[RankedWeights], counts: Sequence[int], floor: Sequence[int], reach: int
) -> list[tuple[list[float], list[float]]]:
    """Returns for each layer the squares of its next weights, descending, and of its last kept ones, ascending."""
    windows = []
    for layer, count, least in zip(layers, counts, floor, strict=True):
        edge = layer.order.numel() - count
        next_ones = layer.squares[max(0, edge - reach) : edge].flip(0)
        last_ones = layer.squares[edge : min(edge + reach, layer.order.numel() - least)]
        windows.append((next_ones, last_ones))
    flat = torch.cat([part for window in windows for part in window]).tolist()  # one transfer from the device
    result = []
    for window in windows:
        parts = [[flat.pop(0) for _ in range(part.numel())] for part in window]
        result.append((parts[0], parts[1]))
    return result


def fill(
    layers: Sequence[RankedWeights], bits: Sequence[int], counts: Sequence[int], left: int
) -> tuple[list[int], float]:
    """Returns (counts, gained squares) after adding, by falling density, every weight that still fits."""
    filled, gain = list(counts), 0.0
    windows = _neighbours(layers, counts, [0] * len(layers), left // min(bits))  # more do not fit
    items = sorted(
        (
            (square / bit, -index, square)
            for index, bit in enumerate(bits)
            for square in windows[index][0]
            if square > 0
        ),
        reverse=True,
    )
    for _, negated, square in items:
        if bits[-negated] <= left:
            filled[-negated] += 1
            left -= bits[-negated]
            gain += square
    return filled, gain


def best_nearby(
    layers: Sequence[RankedWeights], bits: Sequence[int], counts: Sequence[int], floor: Sequence[int], left: int
) -> tuple[list[int], float]:
    """Returns (counts, gained squares) of an optimum, given the linear relaxation's counts and what they leave.

    best[u] = most gained by the layers with one of the sizes seen so far, for u bits used beyond `counts`.
    """
    reach = 2 * max(bits) + 2
    span = reach * max(bits)
    windows = _neighbours(layers, counts, floor, reach)
    best = np.full(2 * span + 1, -np.inf)
    best[span] = 0.0
    history: list[tuple[npt.NDArray[np.int64], list[tuple[float, int]], list[tuple[float, int]], int]] = []
    for bit in sorted(set(bits)):
        members = [index for index, other in enumerate(bits) if other == bit]
        added = sorted(((s, i) for i in members for s in windows[i][0]), key=lambda item: -item[0])[:reach]
        removed = sorted(((s, i) for i in members for s in windows[i][1]), key=lambda item: item[0])[:reach]
        gains = {0: 0.0}
        for step, (square, _) in enumerate(added, 1):
            gains[step] = gains[step - 1] + square
        for step, (square, _) in enumerate(removed, 1):
            gains[-step] = gains[1 - step] - square
        table = np.full((len(gains), best.size), -np.inf)
        changes = sorted(gains)
        for row, change in enumerate(changes):
            shift = change * bit
            source = best[max(0, -shift) : best.size - max(0, shift)]
            table[row, max(0, shift) : best.size + min(0, shift)] = source + gains[change]
        history.append((np.asarray(changes)[table.argmax(0)], added, removed, bit))
        best = table.max(0)
    used = int(best[: span + left + 1].argmax())
    gain, solution = float(best[used]), list(counts)
    for changes_at, added, removed, bit in reversed(history):
        change = int(changes_at[used])
        for _, index in added[: max(0, change)]:
            solution[index] += 1
        for _, index in removed[: max(0, -change)]:
            solution[index] -= 1
        used -= change * bit
    return solution, gain


PROBES = 64  # multipliers tried per round of the search; eleven rounds separate any two float64 numbers


@dataclass(frozen=True)
class Pruning:
    """A solution of the knapsack.

    Attributes:
        nonzeros: weights kept in each layer; always its largest.
        used_bits: what they cost.
        squared_error: sum of the squares of the others.
        greedy_squared_error: the same for the greedy's solution.
        bound: squared error of the linear relaxation, a lower bound of every solution's.
    """

    nonzeros: list[int]
    used_bits: int
    squared_error: float
    greedy_squared_error: float
    bound: float


def prune(
    layers: Sequence[RankedWeights],
    bits: Sequence[int],
    budget_bits: int,
    *,
    floor: Sequence[int] | None = None,
    exact: bool = True,
) -> Pruning:
    """Returns how many of each layer's largest weights to keep; an exact optimum unless `exact` is false.

    Args:
        layers: the weights of each layer.
        bits: size of one weight of each layer, at least 1.
        budget_bits: the capacity.
        floor: fewest weights kept in each layer; default: one, where it has any.
        exact: false returns the greedy's solution (prefix by density, then whatever still fits).

    Raises:
        InfeasibleTargetError: one weight per layer does not fit.
    """
    floor = [min(1, layer.order.numel()) for layer in layers] if floor is None else floor
    smallest = sum(bit * least for bit, least in zip(bits, floor, strict=True))
    if smallest > budget_bits:
        raise InfeasibleTargetError(
            f"the budget is {budget_bits} bits of weight data, but one weight per layer at {list(bits)} bits each "
            f"takes {smallest}",
            smallest,
        )
    counts, multiplier = _relaxed_counts(layers, bits, budget_bits, floor)
    left = budget_bits - sum(bit * count for bit, count in zip(bits, counts, strict=True))
    relaxed = sum(layer.dropped_square(count) for layer, count in zip(layers, counts, strict=True))
    if multiplier == 0:
        return Pruning(counts, budget_bits - left, relaxed, relaxed, relaxed)
    greedy, greedy_gain = fill(layers, bits, counts, left)
    solution, gain = greedy, greedy_gain
    if exact and len(set(bits)) > 1:
        better, better_gain = best_nearby(layers, bits, counts, floor, left)
        if better_gain > greedy_gain:
            solution, gain = better, better_gain
    used_bits = sum(bit * count for bit, count in zip(bits, solution, strict=True))
    # Rounding must not put the bound above a solution it bounds.
    bound = max(0.0, relaxed - max(multiplier * left, gain))
    return Pruning(solution, used_bits, relaxed - gain, relaxed - greedy_gain, bound)


def _relaxed_counts(
    layers: Sequence[RankedWeights], bits: Sequence[int], budget_bits: int, floor: Sequence[int]
) -> tuple[list[int], float]:
    """Returns (kept per layer, multiplier) of the linear relaxation without its one fractional weight.

    The multiplier is the density of the first weight that does not fit whole, 0 if every nonzero weight fits.
    Non-negative float64 numbers sort like their bit patterns, so the search halves the patterns and ends at
    neighbouring numbers.
    """
    device = layers[0].squares.device

    def count_kept(multipliers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        rows = []
        for layer, bit, least in zip(layers, bits, floor, strict=True):
            thresholds = torch.from_numpy(multipliers * bit).to(device)
            rows.append(
                (layer.order.numel() - torch.searchsorted(layer.squares, thresholds, right=True)).clamp_min(least)
            )
        return torch.stack(rows).cpu().numpy()

    sizes = np.asarray(bits, dtype=np.int64)
    everything = count_kept(np.zeros(1))[:, 0]
    if sizes @ everything <= budget_bits:
        return everything.tolist(), 0.0
    highest = max(
        float(layer.squares[-1]) / bit for layer, bit in zip(layers, bits, strict=True) if layer.order.numel()
    )
    low, high = 0, int(np.float64(2 * highest).view(np.int64))  # low does not fit, high does
    while high - low > 1:
        probes = np.unique(np.linspace(low, high, PROBES + 2).astype(np.int64).clip(low + 1, high - 1))
        fits = sizes @ count_kept(probes.view(np.float64)) <= budget_bits
        first = int(np.argmax(fits)) if fits.any() else len(probes)
        low, high = (int(probes[first - 1]) if first else low), (int(probes[first]) if first < len(probes) else high)
    multiplier = float(np.int64(high).view(np.float64))
    counts, upper = count_kept(np.array([low, high]).view(np.float64)).T[[1, 0]].tolist()
    left = budget_bits - int(sizes @ np.asarray(counts))
    for index, bit in enumerate(bits):  # weights of equal density, in order of the layers, until one does not fit
        added = min(upper[index] - counts[index], left // bit)
        counts[index] += added
        left -= added * bit
        if counts[index] < upper[index]:
            break
    return counts, multiplier
