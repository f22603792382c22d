"""`FileSize`: the priced projection inside, the real coder outside, and the loop between them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.artifact import encode_state
from autocompress.assemble import build_state, empty_state, norm_parameters, side_grids, side_tensors, zero_state
from autocompress.codebooks import CodedTensor, CompressedState, SideGrid
from autocompress.costs.code_length import CodeLengths, as_matrix, code_length, estimate_code_lengths
from autocompress.errors import InfeasibleTargetError
from autocompress.methods.base import Network, Projection, relative_error
from autocompress.methods.path import PATH_CEILING, budget_on_path
from autocompress.projection.priced import PricedState, project_priced
from autocompress.projection.priced_assignment import LayerTables

logger = logging.getLogger(__name__)

# Real encodings per run that correct the static estimate, and rounds that close the loop on the file at the end.
CALIBRATIONS = 8
CLOSING_ROUNDS = 6
# Left free at the start of finishing: values that move may cost a few bytes more in the end.
RESERVE_FRACTION = 0.002
RESERVE_BYTES = 2
# The one-dimensional tensors may take at most this part of the file before they are rounded more coarsely.
SIDE_SHARE = 0.3
COARSENING = 1.5
COARSENINGS = 12
# What the real coder may need for the weights, as a part of the estimate; outside, the estimate says nothing.
RATIO_RANGE = (0.25, 4.0)


def smallest_file(network: Network) -> int:
    """Returns the bytes of the smallest file that can hold this network: everything zero that may be."""
    return len(encode_state(empty_state(network.model, network.selection)))


class FileSizeMethod:
    """Keeps the written file within a number of bytes."""

    def __init__(self, network: Network, budget_bytes: int, original_bytes: int) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the smallest file.
        """
        self.network, self.budget_bytes = network, budget_bytes
        smallest = smallest_file(network)
        if budget_bytes < smallest:
            raise InfeasibleTargetError(
                f"the target is {budget_bytes} bytes, but the smallest file for this model is {smallest} bytes, "
                "and that with every weight at zero",
                smallest,
            )
        self.ceiling_bytes = PATH_CEILING * original_bytes
        self.norms = norm_parameters(network.model)
        self.state: PricedState | None = None
        self.relative_error = 1.0
        self.side_factor = 1.0
        # file bits = other_bits + ratio * estimated bits of the coded tensors
        self.ratio, self.other_bits = 1.0, 8.0 * smallest
        self.next_calibration = 0.0

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V for the budget of this moment; corrects the estimate by a real encoding now and then."""
        projection = self._project(targets, budget_on_path(self.budget_bytes, self.ceiling_bytes, fraction))
        if fraction >= self.next_calibration:
            self._calibrate(projection.coded)
            self.next_calibration = fraction + 1 / CALIBRATIONS
        return projection

    def _project(self, targets: Sequence[Tensor], size_bytes: float) -> Projection:
        bits = max((8 * size_bytes - self.other_bits) / self.ratio, 0.0)
        found = project_priced(targets, bits, self.state)
        self.state = found.state
        self.relative_error = relative_error(found.error, targets)
        return Projection(found.coded, None, found.error, self.relative_error, found.state.price)

    def side_grids(self, sides: Mapping[str, Tensor]) -> dict[str, SideGrid]:
        """Returns the grids at the price of the last projection."""
        price = self.state.price if self.state is not None else 0.0
        return side_grids(sides, self.norms, price, self.relative_error, self.side_factor)

    def _encode(self, coded: Sequence[CodedTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        grids = self.side_grids(sides)
        state = build_state(self.network.model, self.network.selection, coded, sides, grids)
        return state, encode_state(state)

    def _calibrate(self, coded: Sequence[CodedTensor]) -> int:
        """Measures what the estimate leaves out; returns the bytes of the real file."""
        sides = side_tensors(self.network.selection)
        empty = [CodedTensor(torch.zeros_like(c.codes), c.values[:0]) for c in coded]
        state, without_weights = self._encode(empty, sides)
        nothing = len(encode_state(zero_state(state)))
        for _ in range(COARSENINGS):
            if len(without_weights) - nothing <= SIDE_SHARE * self.budget_bytes:
                break
            self.side_factor *= COARSENING
            without_weights = self._encode(empty, sides)[1]
        size = len(self._encode(coded, sides)[1])
        estimate = sum(code_length(as_matrix(c.codes), c.values.numel()) for c in coded)
        self.other_bits = 8.0 * len(without_weights)
        if estimate > 0:
            low, high = RATIO_RANGE
            self.ratio = min(max((8.0 * size - self.other_bits) / estimate, low), high)
        logger.debug("calibrated: %d bytes, other %.0f bits, ratio %.3f", size, self.other_bits, self.ratio)
        return size

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the projection of least error whose real file fits: projects, writes, corrects, again."""
        allowed = self.budget_bytes - RESERVE_BYTES - int(self.budget_bytes * RESERVE_FRACTION)
        aim = float(allowed)
        best: Projection | None = None
        kept = self.state
        size = -1
        for _ in range(CLOSING_ROUNDS):
            projection = self._project(targets, aim)
            before, size = size, self._calibrate(projection.coded)
            logger.debug("closing: aimed at %.0f bytes, file %d, allowed %d", aim, size, allowed)
            if size <= allowed and (best is None or projection.error < best.error):
                best, kept = projection, self.state
                if size >= allowed - max(2, allowed // 500):
                    break
            if before == size <= allowed:
                break  # there is room that the weights do not want
            if size > allowed:
                aim -= 0.9 * (size - allowed)
        if best is None:
            best = projection  # `fit` tightens what is over
        else:
            self.state = kept
        return best

    def fit(self, coded: Sequence[CodedTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns a state and a file within the budget, always.

        What is over after finishing is first taken from the weights, projected again onto ever smaller budgets, then
        from everything: the empty network fits.

        Raises:
            InfeasibleTargetError: not even that, because whole numbers that are kept as they are have changed.
        """
        state, data = self._encode(coded, sides)
        dense = [c.dense() for c in coded]
        estimate = sum(code_length(as_matrix(c.codes), c.values.numel()) for c in coded)
        warm = self._tables(coded)
        for attempt in range(24):
            if len(data) <= self.budget_bytes:
                return state, data
            estimate -= 1.1 * 8 * (len(data) - self.budget_bytes) + 8
            if estimate <= 0:
                break
            tightened = project_priced(dense, estimate, warm if attempt < 4 else None).coded
            if attempt >= 8:
                self.side_factor *= COARSENING
            state, data = self._encode(tightened, sides)
        while len(data) > self.budget_bytes and any(bool(g.levels.any()) for g in state.grid.values()):
            self.side_factor *= 2
            empty = [CodedTensor(torch.zeros_like(c.codes), c.values[:0]) for c in coded]
            state, data = self._encode(empty, sides)
        if len(data) > self.budget_bytes:
            state = zero_state(state)
            data = encode_state(state)
        if len(data) > self.budget_bytes:
            raise InfeasibleTargetError(
                f"the target is {self.budget_bytes} bytes, but the tensors that are kept as they are have changed "
                f"since the start and the smallest file is {len(data)} bytes now",
                len(data),
            )
        return state, data

    def _tables(self, coded: Sequence[CodedTensor]) -> PricedState | None:
        """Returns the last price with the finished codebooks."""
        if self.state is None or any(not c.values.numel() for c in coded):
            return None
        tables = [LayerTables(c.values, estimate_code_lengths(as_matrix(c.codes), c.values.numel())) for c in coded]
        return PricedState(self.state.price, tables)

    def state_dict(self) -> dict[str, Any]:
        """Returns the warm start and the calibration."""
        tables = (
            []
            if self.state is None
            else [[t.values, t.lengths.code_bits, t.lengths.row_bits, t.lengths.column_bits] for t in self.state.tables]
        )
        return {
            "price": None if self.state is None else self.state.price,
            "tables": tables,
            "numbers": [self.ratio, self.other_bits, self.next_calibration, self.relative_error, self.side_factor],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if state["price"] is not None:
            tables = [LayerTables(v, CodeLengths(c, r, k)) for v, c, r, k in state["tables"]]
            self.state = PricedState(state["price"], tables)
        self.ratio, self.other_bits, self.next_calibration, self.relative_error, self.side_factor = state["numbers"]
