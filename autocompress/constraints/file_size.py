"""`FileSize`: the rate-distortion projection inside, the real coder outside, and the loop between them.

With an energy beside it the same projection holds both: one more multiplier.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from autocompress.codec.weight_coder import Choice
from autocompress.constraints.constraint import Network, Projection, Rule, relative_error
from autocompress.constraints.file_writer import BudgetedFileWriter
from autocompress.constraints.rate_distortion.assignment import LayerTables
from autocompress.constraints.rate_distortion.error_feedback import Feedback, project_with_feedback
from autocompress.constraints.rate_distortion.projection import WarmStart, fixed_tables, project_to_bits
from autocompress.constraints.rate_distortion.rates import CodeLengths, Counts, as_matrix, code_length
from autocompress.energy.accelerator import EnergyBudget
from autocompress.network.compressed_tensors import QuantizedTensor, scalar_tensors
from autocompress.network.network_state import vector_tensors
from autocompress.network.selection import NonzeroPerSlice, with_nonzero_per_slice
from autocompress.solver.constants import DEFAULTS, Path, SolverConstants, budget_on_path, energy_on_path

logger = logging.getLogger(__name__)

# Real encodings per run that correct the static estimate, and rounds that close the loop on the file at the end.
CALIBRATIONS = 4
FINAL_ROUNDS = 8
# The last projection ends its search where the file is this close below the budget, as a part of it.
SLACK_FRACTION = 0.002
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
        target_moves: whether the target is another in each projection, as a constraint on the quality moves it.
    """

    target_bytes: int
    file_bytes: float
    energy: EnergyBudget | None
    fraction: float
    target_moves: bool


@dataclass(frozen=True)
class FileState:
    """What a projection leaves for the next: file bits = other_bits + ratio * estimated bits of the quantized tensors.

    Attributes:
        file: writes the file of the last projection.
        other_bits: all but the quantized tensors.
        ratio: of the real coder to the estimate.
        next_calibration: part of the run at which both are measured anew.
        warm_start: tables and multipliers; None before the first projection.
    """

    file: BudgetedFileWriter
    other_bits: float
    ratio: float = 1.0
    next_calibration: float = 1 / CALIBRATIONS
    warm_start: WarmStart | None = None

    def estimated_bits(self, file_bytes: float) -> float:
        """Returns what the quantized tensors may take, by the estimate, in a file of so many bytes."""
        return max((8 * file_bytes - self.other_bits) / self.ratio, 0.0)

    def projected(self, warm_start: WarmStart | None, error: float, least_multiplier: float = 0.0) -> FileState:
        """Returns the state after a projection with a relative error: biases are rounded at its multiplier or above."""
        multiplier = None if warm_start is None else max(warm_start.multiplier, least_multiplier)
        return replace(
            self, warm_start=warm_start, file=replace(self.file, multiplier=multiplier, relative_error=error)
        )


class FileSizeConstraint:
    """Keeps the written file within a number of bytes and, where it is limited, the energy within its budget.

    Attributes:
        feedback: of each layer, where errors are counted and made up for in its outputs; empty = in its weights.
    """

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
        self.file = BudgetedFileWriter(network, budget_bytes, energy)
        self.ceiling_bytes = constants.path_ceiling * original_bytes
        self.feedback: Sequence[Feedback | None] = ()

    def start(self) -> FileState:
        return FileState(self.file, 8.0 * self.file.smallest)

    def budget(self, fraction: float, target_bytes: int | None = None) -> FileBudget:
        """Returns the bytes of this moment on the way to the target, or to another one."""
        target_moves, target = target_bytes is not None, self.budget_bytes if target_bytes is None else target_bytes
        energy = self.energy
        if energy is not None:
            energy = energy_on_path(energy, [w.numel() for w in self.network.weights], fraction, self.constants)
        return FileBudget(
            target, self.path(target, self.ceiling_bytes, fraction, self.constants), energy, fraction, target_moves
        )

    def with_target(self, state: FileState, target_bytes: int) -> FileState:
        """Returns the state for another target; what was rounded more coarsely to meet the last one is not any more."""
        return replace(state, file=replace(state.file, budget_bytes=target_bytes, vector_factor=1.0))

    def project(
        self, x: Sequence[Tensor], budget: FileBudget, state: FileState, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, FileState]:
        """Returns V for the budget of this moment; corrects the estimate by a real encoding now and then."""
        if budget.target_moves:
            state = self.with_target(state, budget.target_bytes)
        projection, state = self._projected(x, state.estimated_bits(budget.file_bytes), budget.energy, state)
        if budget.fraction >= state.next_calibration:
            _, state = self._corrected(scalar_tensors(projection.quantized), state)
            state = replace(state, next_calibration=budget.fraction + 1 / CALIBRATIONS)
        return replace(projection, file_bytes=budget.file_bytes), state

    def with_feedback(self, layers: Sequence[tuple[Tensor | None, Tensor | None] | None]) -> FileSizeConstraint:
        """Returns the constraint with errors counted and made up for in layers' outputs.

        Args:
            layers: of each E[x x^T] of its inputs, [groups, n, n], and what errors in its rows count, [R]; None = not
                known. Only the proportions of the latter matter, among all layers.
        """
        constraint = copy.copy(self)
        known = [each[1].log() for each in layers if each is not None and each[1] is not None]
        middle = sum(float(each.sum()) for each in known) / max(sum(each.numel() for each in known), 1)
        constraint.feedback = [
            None if each is None else Feedback.of(each[0], None if each[1] is None else each[1] / math.exp(middle))
            for each in layers
        ]
        return constraint

    @property
    def takes_feedback(self) -> bool:
        """Whether errors can be made up for: not where energy is limited, nor where weights are divided by a norm."""
        return self.energy is None and not self.network.selection.normalized

    def writer(self, state: FileState) -> BudgetedFileWriter:
        """Returns what writes the file, with biases rounded at the multiplier of the last projection."""
        return state.file

    def rules(self, state: FileState) -> Sequence[Rule] | None:
        """Returns how V follows W between two projections, by the last one's tables and multiplier."""
        if state.warm_start is None:
            return None
        dims = self.network.selection.normalized
        fixed = fixed_tables(state.warm_start, self.energy, self.network.weights[0].device)
        return [
            NonzeroPerSlice(rule.assign, weight.shape, dims[name], rule.smallest) if name in dims else rule
            for rule, (name, weight) in zip(fixed, self.network.selection.weights, strict=True)
        ]

    def _projected(
        self,
        x: Sequence[Tensor],
        bits: float,
        energy: EnergyBudget | None,
        state: FileState,
        least_multiplier: float = 0.0,
    ) -> tuple[Projection, FileState]:
        if self.feedback:
            found = project_with_feedback(x, bits, self.feedback, state.warm_start)
        else:
            found = project_to_bits(x, bits, state.warm_start, energy)
        error = relative_error(found.error, x)
        selection = self.network.selection
        quantized = with_nonzero_per_slice(
            found.quantized, x, [name for name, _ in selection.weights], selection.normalized
        )
        return Projection(quantized, None, found.error, error, found.state.multiplier), state.projected(
            found.state, error, least_multiplier
        )

    def _corrected(
        self, quantized: Sequence[QuantizedTensor], state: FileState, choices: dict[str, Choice] | None = None
    ) -> tuple[int, FileState]:
        """Measures what the estimate leaves out; returns the bytes of the real file too, with the coder's choices."""
        vectors = vector_tensors(self.network.selection)
        other_bytes, file = state.file.bytes_without_weights(vectors)
        other_bits, ratio = 8.0 * other_bytes, state.ratio
        size = len(file.encode(quantized, vectors, choices)[1])
        estimate = sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in quantized)
        if estimate > 0:
            low, high = RATIO_RANGE
            ratio = min(max((8.0 * size - other_bits) / estimate, low), high)
        logger.debug("calibrated: %d bytes, other %.0f bits, ratio %.3f", size, other_bits, ratio)
        return size, replace(state, file=file, other_bits=other_bits, ratio=ratio)

    def project_last(
        self, x: Sequence[Tensor], budget: FileBudget, state: FileState, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, FileState]:
        """Returns the projection of least error found whose real file fits; bits are added while they help.

        The estimated bits at which the file has the allowed size are looked for from both sides: by proportion until
        one file is too large and one is not, then by interpolation between the two. Biases are not rounded more
        finely than at the multiplier of the last update: where W is close to V it falls without end as the bits rise,
        and they would take all that the weights leave.
        """
        if budget.target_moves:
            state = self.with_target(state, budget.target_bytes)
        allowed = state.file.allowed_bytes
        slack = max(2, int(SLACK_FRACTION * allowed))
        bits = state.estimated_bits(allowed)
        fits: tuple[float, int] | None = None
        exceeds: tuple[float, int] | None = None
        best, kept, size = None, state.warm_start, -1
        choices: dict[str, Choice] = {}
        least = 0.0 if budget.target_moves else state.file.multiplier or 0.0
        for _ in range(FINAL_ROUNDS):
            projection, state = self._projected(x, bits, self.energy, state, least)
            before = size
            size, state = self._corrected(scalar_tensors(projection.quantized), state, choices)
            projection = replace(projection, file_bytes=float(size))
            logger.debug("last projection: %.0f estimated bits, file %d, allowed %d", bits, size, allowed)
            if size <= allowed:
                if best is None or projection.error < best.error:
                    best, kept = projection, state.warm_start
                if size >= allowed - slack or size == before:  # filled, or more bits change nothing
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
        return best, state.projected(kept, best.relative_error, least)

    def to_plain(self, state: FileState) -> dict[str, Any]:
        warm_start, file = state.warm_start, state.file
        tables = [] if warm_start is None else warm_start.tables
        return {
            "price": None if warm_start is None else warm_start.multiplier,
            "energy_multiplier": 0.0 if warm_start is None else warm_start.energy_multiplier,
            "tables": [[t.values, t.lengths.code_bits, t.lengths.row_bits, t.lengths.column_bits] for t in tables],
            "numbers": [state.ratio, state.other_bits, state.next_calibration],
            "file": [file.relative_error, file.vector_factor, file.budget_bytes, file.multiplier],
        }

    def from_plain(self, saved: dict[str, Any]) -> FileState:
        ratio, other_bits, next_calibration = saved["numbers"]
        error, vector_factor, budget_bytes, multiplier = saved["file"]
        tables = [LayerTables(v, CodeLengths(c, r, k)) for v, c, r, k in saved["tables"]]
        warm_start = None if saved["price"] is None else WarmStart(saved["price"], tables, saved["energy_multiplier"])
        file = replace(self.file, vector_factor=vector_factor, budget_bytes=budget_bytes)
        return FileState(file, other_bits, ratio, next_calibration).projected(warm_start, error, multiplier or 0.0)
