"""The projection onto the networks of at most so many code bits: the kind and size of each layer's codebook.

    minimise  sum_l ||V_l - X_l||^2   subject to   sum_l code_bits(V_l) <= budget

Every layer has a list of choices (`code_choices`), each fitted by k-means; the multiple-choice knapsack over them is
solved exactly where `allocation` finishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.codebook_choices import CodeChoice, WarmStart, code_choices
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import WeightTensor
from autocompress.network.tensor_sizes import check_code_bits_budget, code_bits, scalar_code_bits
from autocompress.numerics.multiple_choice_knapsack import Allocation, allocate
from autocompress.projection.alternating import squared_error


@dataclass(frozen=True)
class CodeBitsProjection:
    """The result of one update.

    Attributes:
        coded: V, one per layer.
        used_bits: its code bits, at most the budget.
        squared_error: ||V - X||^2.
        allocation: of the choices.
        starts: for the next update.
    """

    coded: list[WeightTensor]
    used_bits: int
    squared_error: float
    allocation: Allocation
    starts: list[WarmStart]


def project_code_bits(
    targets: Sequence[Tensor],
    budget_bits: int,
    starts: Sequence[WarmStart] | None = None,
    *,
    kinds: int | None = None,
    closing: bool = False,
) -> CodeBitsProjection:
    """Returns the projection of X onto the networks of at most `budget_bits` of codes.

    Args:
        targets: X, one floating tensor with elements per layer, any shapes, any device.
        budget_bits: most code bits.
        starts: what the last update returned.
        kinds: see `code_choices.KINDS`, its default.
        closing: take more care with the codebooks chosen.

    Raises:
        InfeasibleTargetError: the budget is below one weight per layer.
        InvalidInputError: an empty tensor, or values that are not finite.
    """
    for index, target in enumerate(targets):
        if not target.numel() or not bool(torch.isfinite(target).all()):
            raise InvalidInputError(f"layer {index} (shape {tuple(target.shape)}) is empty or holds values not finite")
    check_code_bits_budget(targets, budget_bits)
    least = [scalar_code_bits(target.numel(), 1, 1) for target in targets]
    room = budget_bits - sum(least)
    layers = [
        code_choices(target, room + own, start, kinds)
        for target, own, start in zip(targets, least, starts or [WarmStart()] * len(targets), strict=True)
    ]
    choices = [found for found, _ in layers]
    allocation = allocate_choices(choices, budget_bits)
    coded = [
        row[choice].encode(target, closing=closing)
        for row, choice, target in zip(choices, allocation.choices, targets, strict=True)
    ]
    error = squared_error(coded, targets)
    return CodeBitsProjection(coded, code_bits(coded), error, allocation, [start for _, start in layers])


def allocate_choices(choices: Sequence[Sequence[CodeChoice]], budget_bits: int) -> Allocation:
    """Returns the allocation of one of its choices to each layer.

    Args:
        choices: of each layer, any numbers of them, the cheapest first.
        budget_bits: capacity in code bits.
    """
    width = max(len(row) for row in choices)
    padded = [[*row, *[row[-1]] * (width - len(row))] for row in choices]
    costs = np.array([[choice.cost_bits for choice in row] for row in padded], dtype=np.int64)
    errors = np.array([[choice.squared_error for choice in row] for row in padded], dtype=np.float64)
    return allocate(costs, errors, budget_bits)
