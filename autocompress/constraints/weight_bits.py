"""`WeightBits`: the two knapsacks of Yang et al. (2020), with W left dense or pruned in place as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.costs.weight_data import check_weight_data_budget
from autocompress.methods.weights_alone import WeightsAlone
from autocompress.network.compressed_tensors import scalar_tensors
from autocompress.projection.alternating import (
    WeightBitsProjection,
    WeightBitsState,
    project_weight_bits,
    squared_error,
)
from autocompress.projection.priced_weight_data import improve_weight_data
from autocompress.solver.budget_path import bits_on_path
from autocompress.solver.constants import DEFAULTS, SolverConstants


class WeightBitsMethod(WeightsAlone):
    """Keeps bits times nonzeros within a number of bits; positions, codebooks and biases are free.

    Both knapsacks are applied to the same point, and the budget falls to the target on the path of `budget_path`.
    """

    def __init__(self, network: Network, budget_bits: int, constants: SolverConstants = DEFAULTS) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the fewest bits.
        """
        check_weight_data_budget(network.weights, budget_bits)
        super().__init__(network)
        self.budget_bits, self.constants = budget_bits, constants
        self.state: WeightBitsState | None = None

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V within the budget of this moment."""
        budget = bits_on_path(self.budget_bits, self.network.selection.compressible, fraction, self.constants)
        return self._taken(project_weight_bits(targets, targets, budget, self.state), targets)

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the projection onto the target, improved by the priced mode at the same bits."""
        projection = self.project(weights, targets, 1.0)
        coded = improve_weight_data(targets, scalar_tensors(projection.coded), self.budget_bits)
        error = squared_error(coded, targets)
        return replace(projection, coded=coded, error=error, relative_error=relative_error(error, targets))

    def _taken(self, found: WeightBitsProjection, targets: Sequence[Tensor]) -> Projection:
        """Keeps the warm start; returns V."""
        self.state = found.state
        error = found.squared_error
        return Projection(found.coded, None, error, relative_error(error, targets), 0.0, greedy=not found.exact)

    def state_dict(self) -> dict[str, Any]:
        """Returns the warm start."""
        if self.state is None:
            return {"bits": None}
        return {"bits": self.state.bits, "centroids": self.state.centroids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if state["bits"] is not None:
            self.state = WeightBitsState(list(state["bits"]), [list(row) for row in state["centroids"]])


class InPlaceWeightBitsMethod(WeightBitsMethod):
    """The algorithm as published: W is pruned in place, V shares its zeros, the budget is the target throughout."""

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V and the pruned W."""
        found = project_weight_bits(weights, targets, self.budget_bits, self.state)
        return replace(self._taken(found, targets), pruned=found.pruned)

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the last projection."""
        return self.project(weights, targets, 1.0)
