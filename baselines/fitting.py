"""What a target asks of a proposal: its true size and the writer of its file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from autocompress.constraints.constraint import FileWriter, Method, Network, Projector, relative_error
from autocompress.constraints.file_size import FileSizeConstraint
from autocompress.constraints.file_writer import BudgetedFileWriter
from autocompress.constraints.weight_bits import WeightBitsConstraint, squared_error
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import CompressedState, QuantizedTensor, weight_data_bits
from autocompress.network.network_state import vector_tensors
from autocompress.network.selection import original_bytes
from autocompress.solver.constants import SolverConstants
from autocompress.targets import FileSize, Target, WeightBits
from baselines.plan import Plan


@dataclass(frozen=True)
class Fitted:
    """A proposal that meets the target.

    Attributes:
        quantized: the weights under it, one per compressed tensor.
        plan: what they follow, after the repair.
        size: what the target counts: bytes of the file, or bits of weight data.
        writer: writes the file, also after training has moved the values; None where the size is an estimate.
        place: of the plan on the path of its proposal, see `repair`.
    """

    quantized: list[QuantizedTensor]
    plan: Plan
    size: int
    writer: FileWriter | None
    place: float = 0.0


class FileBudget:
    """`FileSize`: the file as the real coder writes it, everything in it.

    Attributes:
        limit: bytes that a proposal may take.
        unit: of the limit.
        positions_count: where the nonzeros are has to be written, too.
        fixed: what a file takes without any weight.
    """

    def __init__(self, network: Network, target: FileSize) -> None:
        """Raises InfeasibleTargetError for a target below the smallest file."""
        self.network = network
        self.original_bytes = original_bytes(network.model)
        self.budget_bytes = target.resolve(self.original_bytes, network.selection.compressible)
        self.file = BudgetedFileWriter(network, self.budget_bytes)
        self.limit, self.unit, self.positions_count = self.file.allowed_bytes, "bytes", True
        self.fixed = float(self.file.smallest)
        self._vectors_fit = False

    @property
    def asked(self) -> int:
        """The target in its unit."""
        return self.budget_bytes

    def target_for(self, size: int) -> int:
        """Returns the smallest target whose limit has room for `size` bytes."""
        target = size
        while BudgetedFileWriter.allowed(target) < size:
            target += 1
        return target

    def measure(self, quantized: Sequence[QuantizedTensor]) -> tuple[int, FileWriter]:
        """Returns (bytes of the file, its writer): the biases are rounded at the weights' own price per bit."""
        weights = [weight.detach() for weight in self.network.weights]
        error = relative_error(squared_error(quantized, weights), weights)
        file = replace(self.file, multiplier=marginal_multiplier(quantized, weights), relative_error=error)
        vectors = vector_tensors(self.network.selection)
        if not self._vectors_fit:  # rounds the biases until they take no more than their share
            _, file = file.bytes_without_weights(vectors)
            self.file, self._vectors_fit = replace(self.file, vector_factor=file.vector_factor), True
        return len(file.encode(quantized, vectors)[1]), file

    def size_of(self, state: CompressedState, data: bytes) -> int:
        """Returns what the target counts of a finished network."""
        return len(data)

    def method(self, constants: SolverConstants) -> Method:
        return Projector(FileSizeConstraint(self.network, self.budget_bytes, self.original_bytes, constants=constants))

    def writer_state(self, writer: FileWriter) -> list[float | None]:
        """Returns what `writer_of` makes the same writer from."""
        assert isinstance(writer, BudgetedFileWriter)
        return [writer.multiplier, writer.relative_error, writer.vector_factor]

    def writer_of(self, state: Sequence[Any]) -> FileWriter:
        price, error, vector_factor = state
        return replace(self.file, multiplier=price, relative_error=error, vector_factor=vector_factor)


class WeightDataBudget:
    """`WeightBits`: bits times nonzeros; positions, codebooks and biases are free. Attributes as of `FileBudget`."""

    def __init__(self, network: Network, target: WeightBits) -> None:
        """Raises InfeasibleTargetError for a target below one bit per layer."""
        self.network, self.unit, self.positions_count, self.fixed = network, "bits", False, 0.0
        self.limit = target.resolve(original_bytes(network.model), network.selection.compressible)
        self.writer = WeightBitsConstraint(network, self.limit)

    @property
    def asked(self) -> int:
        return self.limit

    def target_for(self, size: int) -> int:
        return size

    def measure(self, quantized: Sequence[QuantizedTensor]) -> tuple[int, FileWriter]:
        return weight_data_bits(quantized), self.writer

    def size_of(self, state: CompressedState, data: bytes) -> int:
        return state.weight_data_bits

    def method(self, constants: SolverConstants) -> Method:
        return Projector(WeightBitsConstraint(self.network, self.limit, constants))

    def writer_state(self, writer: FileWriter) -> list[float | None]:
        return []

    def writer_of(self, state: Sequence[Any]) -> FileWriter:
        return self.writer


Budget = FileBudget | WeightDataBudget


def make_budget(network: Network, target: Target) -> Budget:
    """Returns what a target asks of this network.

    Raises:
        InvalidInputError: it is neither a file size nor weight data.
        InfeasibleTargetError: no network meets it.
    """
    if isinstance(target, FileSize):
        return FileBudget(network, target)
    if isinstance(target, WeightBits):
        return WeightDataBudget(network, target)
    raise InvalidInputError(f"the target {target} is none that a search can fit plans to; give a file size or weights:")


def marginal_multiplier(quantized: Sequence[QuantizedTensor], weights: Sequence[Tensor]) -> float:
    """Returns the squared error per bit at which a plan would grow: what its next few bits would buy.

    If every layer kept a little more, in proportion, each further weight would save about the square of the smallest
    that is kept, and cost its position, log2((1 - p) / p) bits, and its code.
    """
    error, bits = 0.0, 0.0
    for tensor, weight in zip(quantized, weights, strict=True):
        kept = weight.detach()[tensor.codes != 0]
        if not kept.numel():
            continue
        p = min(tensor.nonzeros / weight.numel(), 0.5)
        code_bits = math.log2(len(tensor.values)) + math.log2((1 - p) / p)
        error += tensor.nonzeros * float(kept.abs().min()) ** 2
        bits += tensor.nonzeros * max(code_bits, 1.0)
    return error / bits if bits else 0.0
