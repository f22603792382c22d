"""What a compressed tensor is: codes into a small codebook, or integer levels on a uniform grid.

`QuantizedTensor` or `KernelTensor` holds a weight tensor (two or more dimensions), `GridTensor` a bias or norm
parameter (one dimension), `CompressedState` a whole network. These are what projections return, what finishing trains
and what the artifact writes; their values are always exactly those that the file reproduces.

Code bits: all that says what the weights are, in codes of fixed length.

Weight data leaves out positions and codebooks, so it cannot compare kinds of codebook: a codebook of kernels spends its
bits on just that. Here a tensor of n weights costs

    scalar    ceil(log2 binomial(n, m)) + m ceil(log2 K) + 8 K    m nonzeros of K values, and where they are
    kernels   N ceil(log2 K) + 6 K d                              N = n / d vectors of d weights (Yu et al. 2020)

16 bits a value where K > 127, as in the file. Nothing is entropy-coded; one step and the numbers m and K are free,
as are biases and norms.

Weight data: bits times nonzeros, summed over the compressed tensors.

The literature's count (Yang et al. 2020, section 3; Ye et al. 2018): a layer whose nonzero weights take K distinct
values costs max(1, ceil(log2 K)) bits for each nonzero. Zeros, positions, codebooks, biases and norms are free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.kernel_tensor import KernelTensor, index_bits, round_to_bfloat16

# Codebook values are written as integers times one step per tensor: 8 bits each up to this many values, else 16.
NARROW_CODEBOOK = 127


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor whose elements are zero or one of the K values of its codebook.

    Attributes:
        codes: int16, in the shape of the parameter. 0 stands for zero, k > 0 for `values[k - 1]`.
        values: float32 [K], ascending, none zero; already rounded by `round_codebook`.
    """

    codes: Tensor
    values: Tensor

    def dense(self) -> Tensor:
        """Returns the tensor itself, float32, in the shape of `codes`."""
        table = torch.cat([self.values.new_zeros(1), self.values])
        return table[self.codes.long()]

    def cpu(self) -> QuantizedTensor:
        return QuantizedTensor(self.codes.cpu(), self.values.cpu())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def nonzeros(self) -> int:
        return int(torch.count_nonzero(self.codes))

    @property
    def bits(self) -> int:
        """Index width of a nonzero: max(1, ceil(log2(distinct nonzero values in use)))."""
        used = int(torch.count_nonzero(torch.bincount(self.codes.flatten().long(), minlength=1)[1:]))
        return max(1, math.ceil(math.log2(used))) if used else 1

    @property
    def weight_data_bits(self) -> int:
        """Bits times nonzeros, the literature's weight data (Yang et al. 2020, section 3)."""
        return self.bits * self.nonzeros


# One code per weight, or one per kernel.
WeightTensor = QuantizedTensor | KernelTensor


@dataclass(frozen=True)
class GridTensor:
    """A tensor on a uniform grid: `levels * step`.

    Attributes:
        levels: int32, in the shape of the parameter, each in [-32767, 32767].
        step: float32 scalar exactly representable in bfloat16, > 0.
    """

    levels: Tensor
    step: float

    def dense(self) -> Tensor:
        """Returns the tensor itself, float32."""
        return self.levels.to(torch.float32) * self.step


@dataclass(frozen=True)
class CompressedState:
    """Every tensor of a network's state_dict, shared storage once.

    Attributes:
        quantized: compressed weight tensors by state_dict name.
        grid: one-dimensional float tensors by name.
        raw: all others (ignored layers, integer buffers), kept bit for bit.
        aliases: name of a shared tensor -> the name that holds it.
    """

    quantized: dict[str, WeightTensor] = field(default_factory=dict)
    grid: dict[str, GridTensor] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def dense(self) -> dict[str, Tensor]:
        """Returns a plain state_dict, aliases included."""
        state = {name: tensor.dense() for name, tensor in self.quantized.items()}
        state |= {name: tensor.dense() for name, tensor in self.grid.items()}
        state |= self.raw
        return state | {name: state[target] for name, target in self.aliases.items()}

    @property
    def weight_data_bits(self) -> int:
        return sum(tensor.weight_data_bits for tensor in self.quantized.values())


def codebook_step(values: Tensor) -> tuple[float, int]:
    """Returns (step, largest integer) of the grid on which a codebook is written.

    The largest magnitude lands on the largest integer, so that rounding twice is rounding once.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    if values.numel() <= NARROW_CODEBOOK:
        return round_to_bfloat16(largest / 127), 127
    return max(float(torch.tensor(largest / 32767, dtype=torch.float32)), 2.0**-126), 32767


def round_codebook(values: Tensor) -> Tensor:
    """Returns the values as the file will reproduce them: integers times one step. Shape [K], never zero."""
    step, top = codebook_step(values)
    integers = (values / step).round().clamp(-top, top)
    away_from_zero = torch.where(values < 0, -1.0, 1.0).to(integers)
    return torch.where(integers == 0, away_from_zero, integers) * step


def quantized_tensor(codes: Tensor, values: Tensor) -> QuantizedTensor:
    """Returns a quantized tensor of any codes and values: values rounded, put in order, equal and unused ones closed
    up.

    Args:
        codes: integers in any shape, 0 for zero and k for `values[k - 1]`.
        values: float [K], in any order.
    """
    used = torch.bincount(codes.flatten().long(), minlength=values.numel() + 1)[1:] > 0
    rounded = round_codebook(values[used].float())
    distinct = torch.unique(rounded)  # ascending
    if distinct.numel() <= NARROW_CODEBOOK < rounded.numel():
        # With equal values closed up it has become a codebook of the kind that is written on a coarser grid.
        rounded = round_codebook(distinct)[torch.searchsorted(distinct, rounded)]
        distinct = torch.unique(rounded)
    place = torch.zeros(values.numel() + 1, dtype=torch.int16, device=values.device)
    place[1:][used] = (torch.searchsorted(distinct, rounded) + 1).to(torch.int16)
    return QuantizedTensor(place[codes.long()], distinct)


def scalar_tensors(quantized: Sequence[WeightTensor]) -> list[QuantizedTensor]:
    """Returns the same tensors, none of which has a codebook of kernels.

    Raises:
        InvalidInputError: one has.
    """
    scalar = [tensor for tensor in quantized if isinstance(tensor, QuantizedTensor)]
    if len(scalar) < len(quantized):
        raise InvalidInputError("codebooks of kernels are for codes: targets; this one takes one code per weight")
    return scalar


def to_grid(values: Tensor, step: float, dead_zone: float = 0.0) -> GridTensor:
    """Returns `values` (any shape) rounded to a grid of `step`, widened where a level would not fit 16 bits.

    Magnitudes below `dead_zone` become zero, also where rounding alone would not take them there.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    step = round_to_bfloat16(max(step, largest / 32000))
    levels = (values.float() / step).round().to(torch.int32)
    return GridTensor(torch.where(values.abs() < dead_zone, 0, levels), step)


@dataclass(frozen=True)
class VectorGrid:
    """How a one-dimensional tensor is rounded.

    Attributes:
        step: distance of the levels, > 0.
        dead_zone: magnitudes below it become zero.
    """

    step: float
    dead_zone: float = 0.0

    def round(self, values: Tensor) -> GridTensor:
        """Returns the values on the grid."""
        return to_grid(values, self.step, self.dead_zone)


DENSE_BITS = 32  # of a weight before compression: float32


def weight_data_bits(quantized: Iterable[WeightTensor]) -> int:
    """Returns the weight-data bits of some quantized tensors."""
    return sum(tensor.weight_data_bits for tensor in quantized)


def weight_data_factor(quantized: Sequence[WeightTensor]) -> float:
    """Returns 32 bits times all weights, divided by the weight-data bits; infinite where no weight is kept."""
    used_bits = weight_data_bits(quantized)
    dense_bits = DENSE_BITS * sum(math.prod(tensor.shape) for tensor in quantized)
    return dense_bits / used_bits if used_bits else float("inf")


def smallest_weight_data_bits(weights: Iterable[Tensor]) -> int:
    """Returns the smallest budget: one weight of one bit in every tensor that has elements, so that no layer dies."""
    return sum(1 for weight in weights if weight.numel())


def check_weight_data_budget(weights: Sequence[Tensor], budget_bits: int) -> None:
    """Checks that a budget in weight-data bits can be met.

    Raises:
        InfeasibleTargetError: the budget is below one bit per tensor.
    """
    smallest = smallest_weight_data_bits(weights)
    if budget_bits < smallest:
        dense_bits = DENSE_BITS * sum(weight.numel() for weight in weights)
        raise InfeasibleTargetError(
            f"the budget is {budget_bits} bits of weight data, but the smallest is {smallest}: one weight of one bit "
            f"in each of {smallest} tensors (a factor of {dense_bits / smallest:.0f})",
            smallest,
        )


def scalar_code_bits(elements: int, nonzeros: int, values: int) -> int:
    """Returns the bits of `nonzeros` weights of `values` distinct values among `elements`."""
    entry_bits = 8 if values <= NARROW_CODEBOOK else 16
    return position_bits(elements, nonzeros) + nonzeros * index_bits(values) + entry_bits * values


def position_bits(elements: int, nonzeros: int) -> int:
    """Returns ceil(log2 binomial(elements, nonzeros)), by the logarithm of the gamma function: O(1)."""
    if nonzeros in (0, elements):
        return 0
    parts = math.lgamma(elements + 1), math.lgamma(nonzeros + 1), math.lgamma(elements - nonzeros + 1)
    return math.ceil((parts[0] - parts[1] - parts[2]) / math.log(2) - 1e-6)


def code_bits(quantized: Iterable[WeightTensor]) -> int:
    """Returns the code bits of some compressed tensors."""
    return sum(
        scalar_code_bits(tensor.codes.numel(), tensor.nonzeros, tensor.values.numel())
        if isinstance(tensor, QuantizedTensor)
        else tensor.weight_data_bits
        for tensor in quantized
    )


def check_code_bits_budget(weights: Sequence[Tensor], budget_bits: int) -> None:
    """Checks that a budget in code bits can be met.

    Raises:
        InfeasibleTargetError: the budget is below one weight of one value in each tensor.
    """
    smallest = sum(scalar_code_bits(weight.numel(), 1, 1) for weight in weights)
    if budget_bits < smallest:
        dense_bits = DENSE_BITS * sum(weight.numel() for weight in weights)
        raise InfeasibleTargetError(
            f"the budget is {budget_bits} bits of codes, but the smallest is {smallest}: one weight in each of "
            f"{len(weights)} tensors (a factor of {dense_bits / smallest:.0f})",
            smallest,
        )
