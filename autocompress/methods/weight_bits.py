"""`WeightBits`: the paper's two alternating knapsacks (Yang et al. 2020), W pruned in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from autocompress.artifact import encode_state
from autocompress.assemble import build_state, norm_parameters, side_grids
from autocompress.codebooks import CodedTensor, CompressedState, SideGrid
from autocompress.costs.weight_data import check_weight_data_budget
from autocompress.methods.base import Network, Projection, relative_error
from autocompress.projection.alternating import WeightBitsProjection, WeightBitsState, project_weight_bits


class WeightBitsMethod:
    """Keeps bits times nonzeros within a number of bits; positions, codebooks and biases are free."""

    def __init__(self, network: Network, budget_bits: int) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the fewest bits.
        """
        check_weight_data_budget(network.weights, budget_bits)
        self.network, self.budget_bits = network, budget_bits
        self.norms = norm_parameters(network.model)
        self.state: WeightBitsState | None = None
        self.gaps: list[tuple[float, float]] = []

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V and the pruned W. The budget is the target throughout: tightening it measured worse."""
        found = self._project(weights, targets)
        return Projection(
            found.coded, found.pruned, found.squared_error, relative_error(found.squared_error, targets), 0.0
        )

    def _project(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> WeightBitsProjection:
        found = project_weight_bits(list(weights), list(targets), self.budget_bits, self.state)
        self.state = found.state
        self.gaps.append((found.pruning_gap, found.allocation_gap))
        return found

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the last projection."""
        return self.project(weights, targets, 1.0)

    def side_grids(self, sides: Mapping[str, Tensor]) -> dict[str, SideGrid]:
        """Returns the finest grids: what is not counted is not rounded away."""
        return side_grids(sides, self.norms, 0.0, 0.0)

    def fit(self, coded: Sequence[CodedTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and its file; finishing changes values, not how many there are."""
        state = build_state(self.network.model, self.network.selection, coded, sides, self.side_grids(sides))
        return state, encode_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Returns the warm start."""
        if self.state is None:
            return {"bits": None}
        return {"bits": self.state.bits, "centroids": self.state.centroids, "gaps": self.gaps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if state["bits"] is not None:
            self.state = WeightBitsState(list(state["bits"]), [list(row) for row in state["centroids"]])
            self.gaps = [(float(a), float(b)) for a, b in state["gaps"]]
