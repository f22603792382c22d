"""`FileSize`: the priced projection inside, the real coder outside, and the loop between them.

With an energy beside it the same projection holds both: one more price.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from autocompress.network.compressed_tensors import CodedTensor, scalar_tensors
from autocompress.network.network_state import side_tensors
from autocompress.network.reparametrized import KeepsParts, keep_all_parts
from autocompress.solver.constants import DEFAULTS, Path, SolverConstants, budget_on_path, energy_on_path

logger = logging.getLogger(__name__)

# Real encodings that correct the static estimate: at these parts of a run, when files are no longer large; and rounds
# that close the loop on the file at the end.
FIRST_CALIBRATION, NEXT_CALIBRATION = 0.25, 0.4
CLOSING_ROUNDS = 8
# The last projection ends its search where the file is this close below the budget, as a part of it.
CLOSING_SLACK = 0.002
# What the real coder may need for the weights, as a part of the estimate; outside, the estimate says nothing.
RATIO_RANGE = (0.25, 4.0)


@dataclass(frozen=True)
class FileBudget:
    """What the file may take at a moment of the run.

    Attributes:
        target_bytes: in the end.
        file_bytes: now.
        energy: of the nonzeros now, where that is limited, too.
        fraction: of the run before fine-tuning that is over, in [0, 1].
        moved: whether something outside moves the target from one projection to the next.
    """

    target_bytes: int
    file_bytes: float
    energy: EnergyBudget | None
    fraction: float
    moved: bool


@dataclass(frozen=True)
class FileState:
    """What a projection leaves for the next: file bits = other_bits + ratio * estimated bits of the coded tensors.

    Attributes:
        file: writes the file of the last projection.
        other_bits: all but the coded tensors.
        ratio: of the real coder to the estimate.
        next_calibration: part of the run at which both are measured anew.
        priced: tables and prices; None before the first projection.
    """

    file: FileFit
    other_bits: float
    ratio: float = 1.0
    next_calibration: float = FIRST_CALIBRATION
    priced: PricedState | None = None

    def estimated_bits(self, file_bytes: float) -> float:
        """Returns what the coded tensors may take, by the estimate, in a file of so many bytes."""
        return max((8 * file_bytes - self.other_bits) / self.ratio, 0.0)

    def projected(self, priced: PricedState | None, error: float) -> FileState:
        """Returns the state after a projection with a relative error: biases are rounded at its price."""
        price = None if priced is None else priced.price
        return replace(self, priced=priced, file=replace(self.file, price=price, relative_error=error))


class FileSizeConstraint:
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

    def start(self) -> FileState:
        return FileState(self.file, 8.0 * self.file.smallest)

    def budget(self, fraction: float, target_bytes: int | None = None) -> FileBudget:
        """Returns the bytes of this moment on the way to the target, or to another one."""
        moved, target = target_bytes is not None, self.budget_bytes if target_bytes is None else target_bytes
        energy = self.energy
        if energy is not None:
            energy = energy_on_path(energy, [w.numel() for w in self.network.weights], fraction, self.constants)
        return FileBudget(
            target, self.path(target, self.ceiling_bytes, fraction, self.constants), energy, fraction, moved
        )

    def aimed(self, state: FileState, target_bytes: int) -> FileState:
        """Returns the state for another target; what was rounded more coarsely to meet the last one is not any more."""
        return replace(state, file=replace(state.file, budget_bytes=target_bytes, side_factor=1.0))

    def project(
        self, x: Sequence[Tensor], budget: FileBudget, state: FileState, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, FileState]:
        """Returns V for the budget of this moment; corrects the estimate by a real encoding now and then."""
        if budget.moved:
            state = self.aimed(state, budget.target_bytes)
        first = state.priced is None
        projection, state = self._priced(x, state.estimated_bits(budget.file_bytes), budget.energy, state)
        if first:
            state = self._without_weights(state)
        elif budget.fraction >= state.next_calibration:
            _, state = self._calibrated(scalar_tensors(projection.coded), state)
            state = replace(state, next_calibration=budget.fraction + NEXT_CALIBRATION)
        return projection, state

    def writer(self, state: FileState) -> FileFit:
        """Returns what writes the file, with biases rounded at the price of the last projection."""
        return state.file

    def rules(self, state: FileState) -> Sequence[Rule] | None:
        """Returns how V follows W between two projections, by the last one's tables and price."""
        if state.priced is None:
            return None
        dims = self.network.selection.normalized
        fixed = fixed_tables(state.priced, self.energy, self.network.weights[0].device)
        return [
            KeepsParts(rule.assign, weight.shape, dims[name], rule.smallest) if name in dims else rule
            for rule, (name, weight) in zip(fixed, self.network.selection.weights, strict=True)
        ]

    def _priced(
        self, x: Sequence[Tensor], bits: float, energy: EnergyBudget | None, state: FileState
    ) -> tuple[Projection, FileState]:
        found = project_priced(x, bits, state.priced, energy)
        error = relative_error(found.error, x)
        selection = self.network.selection
        coded = keep_all_parts(found.coded, x, [name for name, _ in selection.weights], selection.normalized)
        return Projection(coded, None, found.error, error, found.state.price), state.projected(found.state, error)

    def _without_weights(self, state: FileState) -> FileState:
        """Measures what the estimate leaves out; biases are rounded until they take their share."""
        other_bytes, file = state.file.bytes_without_weights(side_tensors(self.network.selection))
        return replace(state, file=file, other_bits=8.0 * other_bytes)

    def _calibrated(
        self, coded: Sequence[CodedTensor], state: FileState, choices: dict[str, Choice] | None = None
    ) -> tuple[int, FileState]:
        """Measures the estimate, too; returns the bytes of the real file as well, with the coder's choices."""
        state = self._without_weights(state)
        size, ratio = len(state.file.encode(coded, side_tensors(self.network.selection), choices)[1]), state.ratio
        estimate = sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in coded)
        if estimate > 0:
            low, high = RATIO_RANGE
            ratio = min(max((8.0 * size - state.other_bits) / estimate, low), high)
        logger.debug("calibrated: %d bytes, other %.0f bits, ratio %.3f", size, state.other_bits, ratio)
        return size, replace(state, ratio=ratio)

    def project_last(
        self, x: Sequence[Tensor], budget: FileBudget, state: FileState, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, FileState]:
        """Returns the projection of least error found whose real file fits and, where the weights want it, fills it.

        The estimated bits at which the file has the allowed size are looked for from both sides: by proportion until
        one file is too large and one is not, then by interpolation between the two.
        """
        if budget.moved:
            state = self.aimed(state, budget.target_bytes)
        allowed = state.file.allowed_bytes
        slack = max(2, int(CLOSING_SLACK * allowed))
        bits = state.estimated_bits(allowed)
        fits: tuple[float, int] | None = None
        exceeds: tuple[float, int] | None = None
        best, kept, size = None, state.priced, -1
        choices: dict[str, Choice] = {}
        for _ in range(CLOSING_ROUNDS):
            projection, state = self._priced(x, bits, self.energy, state)
            before = size
            size, state = self._calibrated(scalar_tensors(projection.coded), state, choices)
            logger.debug("last projection: %.0f estimated bits, file %d, allowed %d", bits, size, allowed)
            if size <= allowed:
                if best is None or projection.error < best.error:
                    best, kept = projection, state.priced
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
                bits *= max(8 * goal - state.other_bits, 0.0) / max(8 * size - state.other_bits, 1.0)
        if best is None:
            return projection, state  # the writer tightens what is over
        return best, state.projected(kept, best.relative_error)

    def to_plain(self, state: FileState) -> dict[str, Any]:
        priced, file = state.priced, state.file
        tables = [] if priced is None else priced.tables
        return {
            "price": None if priced is None else priced.price,
            "energy_price": 0.0 if priced is None else priced.energy_price,
            "tables": [[t.values, t.lengths.code_bits, t.lengths.row_bits, t.lengths.column_bits] for t in tables],
            "numbers": [state.ratio, state.other_bits, state.next_calibration],
            "file": [file.relative_error, file.side_factor, file.budget_bytes],
        }

    def from_plain(self, saved: dict[str, Any]) -> FileState:
        ratio, other_bits, next_calibration = saved["numbers"]
        error, side_factor, budget_bytes = saved["file"]
        tables = [LayerTables(v, CodeLengths(c, r, k)) for v, c, r, k in saved["tables"]]
        priced = None if saved["price"] is None else PricedState(saved["price"], tables, saved["energy_price"])
        file = replace(self.file, side_factor=side_factor, budget_bytes=budget_bytes)
        return FileState(file, other_bits, ratio, next_calibration).projected(priced, error)
