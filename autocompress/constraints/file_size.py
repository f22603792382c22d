"""`FileSize`: the priced projection inside, the real coder outside, and the loop between them.

With an energy beside it the same projection holds both: one more price.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from autocompress.codec.weight_coder import Choice
from autocompress.constraints.constraint import Network, Projection, Rule, relative_error
from autocompress.constraints.file_writer import FileFit
from autocompress.constraints.rate_distortion.assignment import LayerTables
from autocompress.constraints.rate_distortion.fixed_tables import fixed_tables
from autocompress.constraints.rate_distortion.projection import PricedState, project_priced
from autocompress.constraints.rate_distortion.rates import CodeLengths, Counts, as_matrix, code_length
from autocompress.energy.accelerator import EnergyBudget
from autocompress.network.compressed_tensors import CodedTensor, CompressedState, SideGrid, WeightTensor, scalar_tensors
from autocompress.network.network_state import side_tensors
from autocompress.network.reparametrized import KeepsParts, keep_all_parts
from autocompress.solver.constants import DEFAULTS, Path, SolverConstants, budget_on_path, energy_on_path

logger = logging.getLogger(__name__)

# Real encodings per run that correct the static estimate, and rounds that close the loop on the file at the end.
CALIBRATIONS = 4
CLOSING_ROUNDS = 8
# The last projection ends its search where the file is this close below the budget, as a part of it.
CLOSING_SLACK = 0.002
# What the real coder may need for the weights, as a part of the estimate; outside, the estimate says nothing.
RATIO_RANGE = (0.25, 4.0)


class FileSizeMethod:
    """Keeps the written file within a number of bytes and, where it is limited, the energy within its budget."""

    def __init__(
        self,
        network: Network,
        budget_bytes: int,
        original_bytes: int,
        path: Path = budget_on_path,
        energy: EnergyBudget | None = None,
        constants: SolverConstants = DEFAULTS,
    ) -> None:
        """Checks that the budget can be met.

        Args:
            network: what is compressed.
            budget_bytes: the target.
            original_bytes: of the network, 4 bytes per floating-point element.
            path: of the budget.
            energy: what the nonzeros may cost, where that is limited, too.
            constants: of the path.

        Raises:
            InfeasibleTargetError: naming the smallest file.
        """
        self.network, self.budget_bytes, self.path, self.energy = network, budget_bytes, path, energy
        self.constants = constants
        self.file = FileFit(network, budget_bytes, energy)
        self.ceiling_bytes = constants.path_ceiling * original_bytes
        self.state: PricedState | None = None
        # file bits = other_bits + ratio * estimated bits of the coded tensors
        self.ratio, self.other_bits = 1.0, 8.0 * self.file.smallest
        self.next_calibration = 0.0

    def aim(self, budget_bytes: int) -> None:
        """Moves the target; what was rounded more coarsely to meet the last one is not any more."""
        self.budget_bytes = self.file.budget_bytes = budget_bytes
        self.file.side_factor = 1.0

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V for the budget of this moment; corrects the estimate by a real encoding now and then."""
        size_bytes = self.path(self.budget_bytes, self.ceiling_bytes, fraction, self.constants)
        energy = self.energy
        if energy is not None:
            energy = energy_on_path(energy, [w.numel() for w in weights], fraction, self.constants)
        projection = self._project(targets, self._estimated_bits(size_bytes), energy)
        if fraction >= self.next_calibration:
            self._calibrate(scalar_tensors(projection.coded))
            self.next_calibration = fraction + 1 / CALIBRATIONS
        return projection

    def rules(self) -> Sequence[Rule] | None:
        """Returns how V follows W between two projections, by the last one's tables and price."""
        if self.state is None:
            return None
        dims = self.network.selection.normalized
        fixed = fixed_tables(self.state, self.energy, self.network.weights[0].device)
        return [
            KeepsParts(rule.assign, weight.shape, dims[name], rule.smallest) if name in dims else rule
            for rule, (name, weight) in zip(fixed, self.network.selection.weights, strict=True)
        ]

    def _estimated_bits(self, size_bytes: float) -> float:
        """Returns what the coded tensors may take, by the estimate, in a file of so many bytes."""
        return max((8 * size_bytes - self.other_bits) / self.ratio, 0.0)

    def _project(self, targets: Sequence[Tensor], bits: float, energy: EnergyBudget | None) -> Projection:
        found = project_priced(targets, bits, self.state, energy)
        error = relative_error(found.error, targets)
        self._remember(found.state, error)
        selection = self.network.selection
        coded = keep_all_parts(found.coded, targets, [name for name, _ in selection.weights], selection.normalized)
        return Projection(coded, None, found.error, error, found.state.price)

    def _remember(self, state: PricedState | None, error: float) -> None:
        """Keeps the warm start; the biases are rounded at its price."""
        self.state, self.file.relative_error = state, error
        self.file.price = None if state is None else state.price

    def side_grids(self, sides: Mapping[str, Tensor]) -> dict[str, SideGrid]:
        """Returns the grids at the price of the last projection."""
        return self.file.side_grids(sides)

    def _calibrate(self, coded: Sequence[CodedTensor], choices: dict[str, Choice] | None = None) -> int:
        """Measures what the estimate leaves out; returns the bytes of the real file, with the coder's choices."""
        sides = side_tensors(self.network.selection)
        self.other_bits = 8.0 * self.file.bytes_without_weights(sides)
        size = len(self.file.encode(coded, sides, choices)[1])
        estimate = sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in coded)
        if estimate > 0:
            low, high = RATIO_RANGE
            self.ratio = min(max((8.0 * size - self.other_bits) / estimate, low), high)
        logger.debug("calibrated: %d bytes, other %.0f bits, ratio %.3f", size, self.other_bits, self.ratio)
        return size

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the projection of least error found whose real file fits and, where the weights want it, fills it.

        The estimated bits at which the file has the allowed size are looked for from both sides: by proportion until
        one file is too large and one is not, then by interpolation between the two.
        """
        allowed = self.file.allowed_bytes
        slack = max(2, int(CLOSING_SLACK * allowed))
        bits = self._estimated_bits(allowed)
        fits: tuple[float, int] | None = None
        exceeds: tuple[float, int] | None = None
        best, kept, size = None, self.state, -1
        choices: dict[str, Choice] = {}
        for _ in range(CLOSING_ROUNDS):
            projection = self._project(targets, bits, self.energy)
            before, size = size, self._calibrate(scalar_tensors(projection.coded), choices)
            logger.debug("closing: %.0f estimated bits, file %d, allowed %d", bits, size, allowed)
            if size <= allowed:
                if best is None or projection.error < best.error:
                    best, kept = projection, self.state
                if size >= allowed - slack or size == before:  # filled, or there is room that the weights do not want
                    break
                fits = (bits, size)
            else:
                exceeds = (bits, size)
            goal = allowed - slack / 2
            if fits is not None and exceeds is not None and fits[1] < exceeds[1]:
                share = (goal - fits[1]) / (exceeds[1] - fits[1])
                bits = fits[0] + min(max(share, 0.05), 0.95) * (exceeds[0] - fits[0])
            else:
                bits *= max(8 * goal - self.other_bits, 0.0) / max(8 * size - self.other_bits, 1.0)
        if best is None:
            best = projection  # `fit` tightens what is over
        else:
            self._remember(kept, best.relative_error)
        return best

    def fit(self, coded: Sequence[WeightTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns a state and a file within the budget, always.

        Raises:
            InfeasibleTargetError: whole numbers that are kept as they are have changed and take too much.
        """
        return self.file.fit(coded, sides)

    def state_dict(self) -> dict[str, Any]:
        """Returns the warm start and the calibration."""
        tables = (
            []
            if self.state is None
            else [[t.values, t.lengths.code_bits, t.lengths.row_bits, t.lengths.column_bits] for t in self.state.tables]
        )
        return {
            "price": None if self.state is None else self.state.price,
            "energy_price": 0.0 if self.state is None else self.state.energy_price,
            "tables": tables,
            "numbers": [
                self.ratio,
                self.other_bits,
                self.next_calibration,
                self.file.relative_error,
                self.file.side_factor,
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.ratio, self.other_bits, self.next_calibration, error, self.file.side_factor = state["numbers"]
        tables = [LayerTables(v, CodeLengths(c, r, k)) for v, c, r, k in state["tables"]]
        found = None if state["price"] is None else PricedState(state["price"], tables, state["energy_price"])
        self._remember(found, error)
