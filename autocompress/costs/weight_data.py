"""Weight data: bits times nonzeros, summed over the compressed tensors.

The literature's count (Yang et al. 2020, section 3; Ye et al. 2018): a layer whose nonzero weights take K distinct
values costs max(1, ceil(log2 K)) bits for each nonzero. Zeros, positions, codebooks, biases and norms are free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from autocompress.errors import InfeasibleTargetError
from autocompress.network.compressed_tensors import WeightTensor

DENSE_BITS = 32  # of a weight before compression: float32


def weight_data_bits(coded: Iterable[WeightTensor]) -> int:
    """Returns the weight-data bits of some coded tensors."""
    return sum(tensor.weight_data_bits for tensor in coded)


def weight_data_factor(coded: Sequence[WeightTensor]) -> float:
    """Returns 32 bits times all weights, divided by the weight-data bits; infinite where no weight is kept."""
    used_bits = weight_data_bits(coded)
    dense_bits = DENSE_BITS * sum(math.prod(tensor.shape) for tensor in coded)
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
