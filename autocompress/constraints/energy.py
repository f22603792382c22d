"""`Energy`: the weighted knapsack on a path of budgets; values as fine as a codebook of the file allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.energy.energy_budget import EnergyBudget, prune_to_energy
from autocompress.energy.network_energy import NetworkEnergy
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.methods.weights_alone import WeightsAlone
from autocompress.numerics.kmeans import encode, fit_codebook
from autocompress.projection.alternating import squared_error
from autocompress.projection.sorted_values import sort_values
from autocompress.solver.budget_path import energy_on_path
from autocompress.solver.constants import DEFAULTS, SolverConstants

# Values per layer: energy does not count them, and a byte each is fine enough not to be noticed.
FINEST_CODEBOOK = 256


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


class EnergyMethod(WeightsAlone):
    """Keeps the energy of a forward pass within a budget by zeroing weights; the file's size is free."""

    def __init__(
        self, network: Network, energy: NetworkEnergy, fraction: Fraction, constants: SolverConstants = DEFAULTS
    ) -> None:
        """Checks that the budget can be met.

        Raises:
            InvalidInputError, InfeasibleTargetError: see `energy_budget`.
        """
        super().__init__(network)
        self.budget, self.constants = energy_budget(network, energy, fraction), constants
        self.centroids: list[Tensor] | None = None

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V within the budget of this moment."""
        budget = energy_on_path(self.budget, [w.numel() for w in weights], fraction, self.constants)
        masks = prune_to_energy(targets, budget).masks
        return self._valued(targets, masks)

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the projection onto the target."""
        return self.project(weights, targets, 1.0)

    def _valued(self, targets: Sequence[Tensor], masks: Sequence[Tensor]) -> Projection:
        """Returns V: the kept weights at the nearest of the values fitted to them."""
        starts: Sequence[Tensor | None] = self.centroids or [None] * len(masks)
        self.centroids = [
            fit_codebook(sort_values(x[mask]), FINEST_CODEBOOK, start).centroids
            for x, mask, start in zip(targets, masks, starts, strict=True)
        ]
        coded = [encode(x, mask, values) for x, mask, values in zip(targets, masks, self.centroids, strict=True)]
        error = squared_error(coded, targets)
        return Projection(coded, None, error, relative_error(error, targets), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the warm start."""
        return {"centroids": self.centroids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.centroids = None if state["centroids"] is None else list(state["centroids"])
