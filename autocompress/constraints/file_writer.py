"""A file within a number of bytes, for any assignment of codes: how finely biases are rounded, and what is given up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from autocompress.codec.file import encode_state
from autocompress.codec.state_coder import code_length as stream_length
from autocompress.codec.weight_coder import Choice
from autocompress.constraints.constraint import Network
from autocompress.constraints.rate_distortion.assignment import LayerTables
from autocompress.constraints.rate_distortion.projection import WarmStart, project_to_bits
from autocompress.constraints.rate_distortion.rates import Counts, as_matrix, code_length, estimate_code_lengths
from autocompress.energy.accelerator import EnergyBudget
from autocompress.errors import InfeasibleTargetError
from autocompress.network.compressed_tensors import (
    CompressedState,
    QuantizedTensor,
    VectorGrid,
    WeightTensor,
    scalar_tensors,
)
from autocompress.network.network_state import (
    build_state,
    empty_state,
    norm_parameters,
    vector_grids,
    zero_state,
)
from autocompress.network.selection import with_nonzero_per_slice

# Left free at the start of finishing: values that move may cost a few bytes more in the end.
RESERVE_FRACTION = 0.002
RESERVE_BYTES = 2
# The one-dimensional tensors may take at most this part of the file before they are rounded more coarsely.
VECTORS_FRACTION = 0.3
COARSENING = 1.5
COARSENINGS = 12
# Tensors named that fill the smallest file.
PARTS_SHOWN = 3


def largest_parts(state: CompressedState) -> str:
    """Returns what takes most of a file that holds nothing compressed, for a message; empty where nothing stands out.

    Args:
        state: as `empty_state` returns it.
    """
    sizes: dict[str, float] = defaultdict(float)
    for (_, name), bits in stream_length(state).items():
        sizes[name] += bits / 8
    largest = sorted(((size, name) for name, size in sizes.items() if name in state.raw and size >= 1), reverse=True)
    shown = [f"{name} {list(state.raw[name].shape)} ({size:,.0f} bytes)" for size, name in largest[:PARTS_SHOWN]]
    more = f" and {len(largest) - PARTS_SHOWN} more" if len(largest) > PARTS_SHOWN else ""
    part = "most of it" if 2 * sum(size for size, _ in largest) > len(encode_state(state)) else "a part of it"
    return f"; {part} is what is kept as it is: {', '.join(shown)}{more}" if shown else ""


def smallest_file(network: Network) -> int:
    """Returns the bytes of the smallest file that can hold this network: everything zero that may be."""
    return len(encode_state(empty_state(network.model, network.selection)))


@dataclass(frozen=True)
class BudgetedFileWriter:
    """Writes assignments into files of at most a number of bytes.

    Attributes:
        network: whose file.
        budget_bytes: the limit.
        energy: what is projected again stays within it.
        multiplier: squared error per bit at which the weights were projected; biases are rounded at the same. None =
            not yet projected: biases on their finest grid.
        relative_error: ||V - X|| / ||X|| of that projection.
        vector_factor: factor on the steps of all grids.
        smallest: bytes of the smallest file; 0 = to be found out, and the budget checked against it.

    Raises:
        InfeasibleTargetError: naming the smallest file.
    """

    network: Network
    budget_bytes: int
    energy: EnergyBudget | None = None
    multiplier: float | None = None
    relative_error: float = 1.0
    vector_factor: float = 1.0
    smallest: int = 0

    def __post_init__(self) -> None:
        if self.smallest:
            return
        object.__setattr__(self, "smallest", smallest_file(self.network))
        if self.budget_bytes < self.smallest:
            empty = empty_state(self.network.model, self.network.selection)
            raise InfeasibleTargetError(
                f"the target is {self.budget_bytes} bytes, but the smallest file for this model is {self.smallest} "
                f"bytes, and that with every weight at zero{largest_parts(empty)}",
                self.smallest,
            )

    @cached_property
    def norms(self) -> set[str]:
        """Names of the parameters of normalization layers."""
        return norm_parameters(self.network.model)

    @property
    def allowed_bytes(self) -> int:
        """The budget less the reserve for values that move in finishing."""
        return self.allowed(self.budget_bytes)

    @staticmethod
    def allowed(budget_bytes: int) -> int:
        """Returns a budget less its reserve."""
        return budget_bytes - RESERVE_BYTES - int(budget_bytes * RESERVE_FRACTION)

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        """Returns the grids at the multiplier of the last projection."""
        return vector_grids(vectors, self.norms, self.multiplier or 0.0, self.relative_error, self.vector_factor)

    def encode(
        self,
        quantized: Sequence[QuantizedTensor],
        vectors: Mapping[str, Tensor],
        choices: dict[str, Choice] | None = None,
    ) -> tuple[CompressedState, bytes]:
        """Returns the state and its file, whatever its size; with the coder's choices for one much like it."""
        grids = self.vector_grids(vectors)
        quantized = self._with_parts(quantized)
        state = build_state(self.network.model, self.network.selection, quantized, vectors, grids)
        return state, encode_state(state, choices=choices)

    def _with_parts(self, quantized: Sequence[QuantizedTensor]) -> Sequence[QuantizedTensor]:
        """Returns the tensors with no part empty that is divided by its norm."""
        selection = self.network.selection
        if not selection.normalized:
            return quantized
        names = [name for name, _ in selection.weights]
        return scalar_tensors(with_nonzero_per_slice(quantized, self.network.weights, names, selection.normalized))

    def bytes_without_weights(self, vectors: Mapping[str, Tensor]) -> tuple[int, BudgetedFileWriter]:
        """Returns the bytes of the file with all weights at zero, the vectors rounded until they take their share.

        And the writer that rounds them so.
        """
        weights, file = self.network.weights, self
        empty = [QuantizedTensor(torch.zeros(w.shape, dtype=torch.int16), torch.zeros(0)) for w in weights]
        state, without_weights = file.encode(empty, vectors)
        nothing = len(encode_state(zero_state(state)))
        for _ in range(COARSENINGS):
            if len(without_weights) - nothing <= VECTORS_FRACTION * self.budget_bytes:
                break
            file = file.coarser(COARSENING)
            without_weights = file.encode(empty, vectors)[1]
        return len(without_weights), file

    def coarser(self, factor: float) -> BudgetedFileWriter:
        """Returns the writer that rounds all one-dimensional tensors more coarsely."""
        return replace(self, vector_factor=self.vector_factor * factor)

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns a state and a file within the budget, always.

        What is over is first taken from the weights, projected again onto ever smaller budgets, then from everything:
        the empty network fits.

        Raises:
            InfeasibleTargetError: not even that, because whole numbers that are kept as they are have changed.
        """
        quantized = scalar_tensors(quantized)
        choices: dict[str, Choice] = {}
        file = self
        state, data = file.encode(quantized, vectors, choices)
        dense = [c.dense() for c in quantized]
        estimate = sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in quantized)
        warm = self._tables(quantized)
        for attempt in range(24):
            if len(data) <= self.budget_bytes:
                return state, data
            estimate -= 1.1 * 8 * (len(data) - self.budget_bytes) + 8
            if estimate <= 0:
                break
            tightened = project_to_bits(dense, estimate, warm if attempt < 4 else None, self.energy).quantized
            if attempt >= 8:
                file = file.coarser(COARSENING)
            state, data = file.encode(tightened, vectors, choices)
        while len(data) > self.budget_bytes and any(bool(g.levels.any()) for g in state.grid.values()):
            file = file.coarser(2)
            empty = [QuantizedTensor(torch.zeros_like(c.codes), c.values[:0]) for c in quantized]
            state, data = file.encode(empty, vectors)
        if len(data) > self.budget_bytes and not self.network.selection.normalized:
            state = zero_state(state)
            data = encode_state(state)
        if len(data) > self.budget_bytes:
            raise InfeasibleTargetError(
                f"the target is {self.budget_bytes} bytes, but the tensors that are kept as they are have changed "
                f"since the start and the smallest file is {len(data)} bytes now",
                len(data),
            )
        return state, data

    def _tables(self, quantized: Sequence[QuantizedTensor]) -> WarmStart | None:
        """Returns the last multiplier with the finished codebooks."""
        if self.multiplier is None or any(not c.values.numel() for c in quantized):
            return None
        tables = [
            LayerTables(c.values, estimate_code_lengths(Counts.of_codes(as_matrix(c.codes), c.values.numel())))
            for c in quantized
        ]
        return WarmStart(self.multiplier, tables)


class WeightsOnlyConstraint:
    """The part of a constraint that leaves the size of the file free, and its writer.

    Biases and norms, which are not counted, are on their finest grids.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.norms = norm_parameters(network.model)

    def writer(self, state: object) -> WeightsOnlyConstraint:
        """Returns itself: the file does not depend on a state."""
        return self

    def rules(self, state: object) -> None:
        """Returns nothing: V follows W by magnitude."""
        return None

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        """Returns the finest grids: what is not counted is not rounded away."""
        return vector_grids(vectors, self.norms, 0.0, 0.0)

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and its file; finishing changes values, not how many there are."""
        state = build_state(self.network.model, self.network.selection, quantized, vectors, self.vector_grids(vectors))
        return state, encode_state(state)
