"""Code bits: all that says what the weights are, in codes of fixed length.

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

from torch import Tensor

from autocompress.errors import InfeasibleTargetError
from autocompress.network.compressed_tensors import NARROW_CODEBOOK, QuantizedTensor, WeightTensor
from autocompress.network.kernel_tensor import index_bits

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
