"""`Energy`: the weighted knapsack on a path of budgets; values as fine as a codebook of the file allows.

A 0-1 knapsack whose items have the energy of a weight of their layer.

    minimise  sum of the squares of the zeroed weights   subject to   sum_l E_l(nonzeros_l) <= limit,
              nonzeros_l >= 1,      E_l(k) = each_l k + overflow_l max(0, k - cache)       (Yang et al. 2019, ICLR)

E_l is convex and a layer's k largest weights are its best, so the layer splits into two of one cost each: its `cache`
largest weights, and the rest, which are smaller and cost more and are therefore never kept before them. At a multiplier
the greedy (keep w iff w^2 > multiplier * cost) is an exact optimum for the energy it uses. What is left of the limit is
filled with the next weights that fit; the error is above the optimum by at most one weight's square, and `bound` is a
lower bound of it. Cost: one sort per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.constraints.file_writer import WeightsOnlyConstraint
from autocompress.constraints.weight_bits import squared_error
from autocompress.energy.accelerator import WEIGHT_CACHE_WORDS, EnergyBudget
from autocompress.energy.network_energy import NetworkEnergy
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.numerics.kmeans import encode, fit_codebook, sort_values
from autocompress.numerics.knapsack import RankedWeights, prune, rank_weights
from autocompress.solver.constants import DEFAULTS, SolverConstants, energy_on_path

# Values per layer: energy does not count them, and a byte each is fine enough not to be noticed.
FINEST_CODEBOOK = 256


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


def prune_to_energy(points: Sequence[Tensor], budget: EnergyBudget) -> EnergyPruning:
    """Returns which weights to keep so that their energy is within the budget.

    Args:
        points: any shapes, each with elements.
        budget: with a cost per tensor.

    Raises:
        InfeasibleTargetError: one weight per tensor does not fit.
    """
    smallest = budget.used([1] * len(points))
    if smallest > budget.limit:
        raise InfeasibleTargetError(
            f"the weights may take an energy of {budget.limit:.6g}, but one weight per tensor takes {smallest:.6g}",
            smallest,
        )
    ranked = [rank_weights(x) for x in points]
    parts = [part for layer in ranked for part in _split(layer, WEIGHT_CACHE_WORDS)]
    # Energies are whole numbers of register accesses: the knapsack's integer sizes.
    sizes = [round(e) for cost in budget.costs for e in (cost.each, cost.each + cost.overflow)]
    found = prune(parts, sizes, int(budget.limit), floor=[1, 0] * len(ranked), exact=False)
    counts = [a + b for a, b in zip(found.nonzeros[::2], found.nonzeros[1::2], strict=True)]
    masks = [layer.mask(count, x.shape) for layer, count, x in zip(ranked, counts, points, strict=True)]
    return EnergyPruning(masks, budget.used(counts), found.squared_error, found.bound)


def _split(layer: RankedWeights, count: int) -> tuple[RankedWeights, RankedWeights]:
    """Returns a layer's `count` largest weights, and the others."""
    edge = max(0, layer.order.numel() - count)
    return _part(layer, edge, layer.order.numel()), _part(layer, 0, edge)


def _part(layer: RankedWeights, low: int, high: int) -> RankedWeights:
    squares = layer.squares[low:high]
    return RankedWeights(squares, layer.order[low:high], torch.cat([squares.new_zeros(1), squares.cumsum(0)]))


def energy_budget(network: Network, energy: NetworkEnergy, fraction: Fraction) -> EnergyBudget:
    """Returns what the compressed weights may cost, so that the whole network takes a fraction of its dense energy.

    Raises:
        InvalidInputError: a tensor to be compressed belongs to a layer that the energy model cannot count.
        InfeasibleTargetError: naming the smallest fraction, in percent.
    """
    names = [name for name, _ in network.selection.weights]
    for name in names:
        if name not in energy.weights:
            kind = energy.uncounted.get(name, "a layer that the example does not go through")
            raise InvalidInputError(
                f"an energy target cannot count {name} ({kind}): convolutions and linear layers can be counted; "
                f"leave it out with ignore={name!r}"
            )
    costs = tuple(energy.weights[name] for name in names)
    rest = energy.used(dict.fromkeys(names, 0))
    limit = float(fraction) * energy.dense - rest
    smallest = sum(cost.of(1) for cost in costs)
    if smallest > limit:
        percent = math.ceil(1e4 * (rest + smallest) / energy.dense) / 100
        raise InfeasibleTargetError(
            f"the target is {float(100 * fraction):g}% of the dense energy, but the smallest is {percent}%: inputs and "
            "outputs, layers that are ignored, and one weight per tensor",
            percent,
        )
    return EnergyBudget(costs, limit)


class ValuedMasks(WeightsOnlyConstraint):
    """What both energies share: the kept weights take the nearest of the values fitted to them.

    The state is the values of the last projection, a start for the next.
    """

    def start(self) -> list[Tensor] | None:
        return None

    def valued(
        self, x: Sequence[Tensor], masks: Sequence[Tensor], state: list[Tensor] | None
    ) -> tuple[Projection, list[Tensor] | None]:
        """Returns V with these nonzeros."""
        starts: Sequence[Tensor | None] = state or [None] * len(masks)
        centroids = [
            fit_codebook(sort_values(each[mask]), FINEST_CODEBOOK, start).centroids
            for each, mask, start in zip(x, masks, starts, strict=True)
        ]
        quantized = [encode(each, mask, values) for each, mask, values in zip(x, masks, centroids, strict=True)]
        error = squared_error(quantized, x)
        return Projection(quantized, None, error, relative_error(error, x), 0.0), centroids

    def to_plain(self, state: list[Tensor] | None) -> dict[str, Any]:
        return {"centroids": state}

    def from_plain(self, saved: dict[str, Any]) -> list[Tensor] | None:
        return None if saved["centroids"] is None else list(saved["centroids"])


class EnergyConstraint(ValuedMasks):
    """Keeps the energy of a forward pass within a budget by zeroing weights; the file's size is free."""

    def __init__(
        self, network: Network, energy: NetworkEnergy, fraction: Fraction, constants: SolverConstants = DEFAULTS
    ) -> None:
        """Checks that the budget can be met.

        Raises:
            InvalidInputError, InfeasibleTargetError: see `energy_budget`.
        """
        super().__init__(network)
        self.limit, self.constants = energy_budget(network, energy, fraction), constants

    def budget(self, fraction: float) -> EnergyBudget:
        return energy_on_path(self.limit, [w.numel() for w in self.network.weights], fraction, self.constants)

    def project(
        self, x: Sequence[Tensor], budget: EnergyBudget, state: list[Tensor] | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, list[Tensor] | None]:
        """Returns V."""
        return self.valued(x, prune_to_energy(x, budget).masks, state)

    project_last = project
