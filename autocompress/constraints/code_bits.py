"""`CodeBits`: scalar codebooks or codebooks of kernels, whichever errs less for its bits in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from autocompress.constraints.codebook_choices import WarmStart
from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.methods.weights_alone import WeightsAlone
from autocompress.network.tensor_sizes import check_code_bits_budget
from autocompress.projection.code_bits import project_code_bits
from autocompress.solver.budget_path import bits_on_path
from autocompress.solver.constants import DEFAULTS, SolverConstants


class CodeBitsMethod(WeightsAlone):
    """Keeps positions, codes and codebooks within a number of bits, on the path of `path`."""

    def __init__(self, network: Network, budget_bits: int, constants: SolverConstants = DEFAULTS) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the fewest bits.
        """
        check_code_bits_budget(network.weights, budget_bits)
        super().__init__(network)
        self.budget_bits, self.constants = budget_bits, constants
        self.starts: list[WarmStart] | None = None

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V within the budget of this moment."""
        budget = bits_on_path(self.budget_bits, self.network.selection.compressible, fraction, self.constants)
        return self._projected(targets, budget, closing=False)

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the projection onto the target, its codebooks of kernels fitted to all vectors."""
        return self._projected(targets, self.budget_bits, closing=True)

    def _projected(self, targets: Sequence[Tensor], budget_bits: int, *, closing: bool) -> Projection:
        found = project_code_bits(targets, budget_bits, self.starts, closing=closing)
        self.starts = found.starts
        error = found.squared_error
        return Projection(
            found.coded, None, error, relative_error(error, targets), 0.0, greedy=not found.allocation.exact
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the warm start."""
        starts = self.starts
        return {"starts": None if starts is None else [[start.scalars, start.kernels] for start in starts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        starts = state["starts"]
        self.starts = None if starts is None else [WarmStart(scalars, kernels) for scalars, kernels in starts]
