"""Which weights to keep within an energy: a 0-1 knapsack whose items have the energy of a weight of their layer.

    minimise  sum of the squares of the zeroed weights   subject to   sum_l E_l(nonzeros_l) <= limit,
              nonzeros_l >= 1,      E_l(k) = each_l k + overflow_l max(0, k - cache)       (Yang et al. 2019, ICLR)

E_l is convex and a layer's k largest weights are its best, so the layer splits into two of one cost each: its `cache`
largest weights, and the rest, which are smaller and cost more and are therefore never kept before them. At a price the
greedy (keep w iff w^2 > price * cost) is an exact optimum for the energy it uses. What is left of the limit is filled
with the next weights that fit; the error is above the optimum by at most one weight's square, and `bound` is a lower
bound of it. Cost: one sort per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autocompress.energy.accelerator import WEIGHT_CACHE_WORDS, WeightEnergy
from autocompress.errors import InfeasibleTargetError
from autocompress.numerics.knapsack import prune
from autocompress.projection.ranked_weights import RankedWeights, rank_weights


@dataclass(frozen=True)
class EnergyBudget:
    """What the nonzeros of some tensors may cost together.

    Attributes:
        costs: of each tensor.
        limit: most energy of all.
    """

    costs: tuple[WeightEnergy, ...]
    limit: float

    def used(self, nonzeros: Sequence[int]) -> float:
        """Returns the energy of these numbers of nonzeros."""
        return sum(cost.of(count) for cost, count in zip(self.costs, nonzeros, strict=True))

    def holds(self, nonzeros: Sequence[int]) -> bool:
        """Tells whether they are within the limit."""
        return self.used(nonzeros) <= self.limit

    def at(self, limit: float) -> EnergyBudget:
        """Returns the same with another limit."""
        return replace(self, limit=limit)


@dataclass(frozen=True)
class EnergyPruning:
    """A solution.

    Attributes:
        masks: bool, one per tensor, true where a weight is kept.
        used: energy of the kept weights, at most the limit.
        squared_error: sum of the squares of the others.
        bound: a lower bound of every solution's.
    """

    masks: list[Tensor]
    used: float
    squared_error: float
    bound: float


def prune_to_energy(targets: Sequence[Tensor], budget: EnergyBudget) -> EnergyPruning:
    """Returns which weights to keep so that their energy is within the budget.

    Args:
        targets: any shapes, each with elements.
        budget: with a cost per tensor.

    Raises:
        InfeasibleTargetError: one weight per tensor does not fit.
    """
    smallest = budget.used([1] * len(targets))
    if smallest > budget.limit:
        raise InfeasibleTargetError(
            f"the weights may take an energy of {budget.limit:.6g}, but one weight per tensor takes {smallest:.6g}",
            smallest,
        )
    ranked = [rank_weights(x) for x in targets]
    parts = [part for layer in ranked for part in _split(layer, WEIGHT_CACHE_WORDS)]
    # Energies are whole numbers of register accesses: the knapsack's integer sizes.
    sizes = [round(e) for cost in budget.costs for e in (cost.each, cost.each + cost.overflow)]
    found = prune(parts, sizes, int(budget.limit), floor=[1, 0] * len(ranked), exact=False)
    counts = [a + b for a, b in zip(found.nonzeros[::2], found.nonzeros[1::2], strict=True)]
    masks = [layer.mask(count, x.shape) for layer, count, x in zip(ranked, counts, targets, strict=True)]
    return EnergyPruning(masks, budget.used(counts), found.squared_error, found.bound)


def _split(layer: RankedWeights, count: int) -> tuple[RankedWeights, RankedWeights]:
    """Returns a layer's `count` largest weights, and the others."""
    edge = max(0, layer.order.numel() - count)
    return _part(layer, edge, layer.order.numel()), _part(layer, 0, edge)


def _part(layer: RankedWeights, low: int, high: int) -> RankedWeights:
    squares = layer.squares[low:high]
    return RankedWeights(squares, layer.order[low:high], torch.cat([squares.new_zeros(1), squares.cumsum(0)]))
