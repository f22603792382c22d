"""`CodeBits`: scalar codebooks or codebooks of kernels, whichever has less error for its bits in each layer.

    minimise  sum_l ||V_l - X_l||^2   subject to   sum_l code_bits(V_l) <= budget

Every layer has a list of choices (`code_choices`), each fitted by k-means; the multiple-choice knapsack over them is
solved exactly where `multiple_choice_knapsack` finishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.codebook_kinds import EITHER, KINDS, CodeChoice, WarmStart, code_choices
from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.constraints.file_writer import WeightsOnlyConstraint
from autocompress.constraints.weight_bits import squared_error
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import WeightTensor
from autocompress.network.tensor_sizes import check_code_bits_budget, code_bits, scalar_code_bits
from autocompress.numerics.multiple_choice_knapsack import Allocation, allocate
from autocompress.solver.constants import DEFAULTS, SolverConstants, bits_on_path


@dataclass(frozen=True)
class CodeBitsProjection:
    """The result of one update.

    Attributes:
        quantized: V, one per layer.
        used_bits: its code bits, at most the budget.
        squared_error: ||V - X||^2.
        allocation: of the choices.
        starts: for the next update.
    """

    quantized: list[WeightTensor]
    used_bits: int
    squared_error: float
    allocation: Allocation
    starts: list[WarmStart]


def project_code_bits(
    targets: Sequence[Tensor],
    budget_bits: int,
    starts: Sequence[WarmStart] | None = None,
    *,
    kinds: int = EITHER,
    closing: bool = False,
) -> CodeBitsProjection:
    """Returns the projection of X onto the networks of at most `budget_bits` of codes.

    Args:
        targets: X, one floating tensor with elements per layer, any shapes, any device.
        budget_bits: most code bits.
        starts: what the last update returned.
        kinds: SCALARS, KERNELS or EITHER of `codebook_kinds`.
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
    quantized = [
        row[choice].encode(target, closing=closing)
        for row, choice, target in zip(choices, allocation.choices, targets, strict=True)
    ]
    error = squared_error(quantized, targets)
    return CodeBitsProjection(quantized, code_bits(quantized), error, allocation, [start for _, start in layers])


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
    found = allocate(costs, errors, budget_bits)
    # a padded column costs what the last choice costs, so the solver may return either
    chosen = [min(choice, len(row) - 1) for choice, row in zip(found.choices, choices, strict=True)]
    return replace(found, choices=chosen)


class CodeBitsConstraint(WeightsOnlyConstraint):
    """Keeps positions, codes and codebooks within a number of bits. Its state is the warm start."""

    def __init__(self, network: Network, budget_bits: int, constants: SolverConstants = DEFAULTS) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the fewest bits.
        """
        check_code_bits_budget(network.weights, budget_bits)
        super().__init__(network)
        self.budget_bits, self.constants = budget_bits, constants

    def start(self) -> list[WarmStart] | None:
        return None

    def budget(self, fraction: float) -> int:
        return bits_on_path(self.budget_bits, self.network.selection.compressible, fraction, self.constants)

    def project(
        self,
        x: Sequence[Tensor],
        budget: int,
        state: list[WarmStart] | None,
        w: Sequence[Tensor] | None = None,
        *,
        last: bool = False,
    ) -> tuple[Projection, list[WarmStart] | None]:
        """Returns V; with `last` codebooks of kernels are fitted to all vectors."""
        found = project_code_bits(x, budget, state, closing=last, kinds=KINDS[self.constants.codebooks])
        error, greedy = found.squared_error, not found.allocation.exact
        return Projection(found.quantized, None, error, relative_error(error, x), 0.0, greedy=greedy), found.starts

    def project_last(
        self, x: Sequence[Tensor], budget: int, state: list[WarmStart] | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, list[WarmStart] | None]:
        return self.project(x, budget, state, last=True)

    def to_plain(self, state: list[WarmStart] | None) -> dict[str, Any]:
        return {"starts": None if state is None else [[start.scalars, start.kernels] for start in state]}

    def from_plain(self, saved: dict[str, Any]) -> list[WarmStart] | None:
        starts = saved["starts"]
        return None if starts is None else [WarmStart(scalars, kernels) for scalars, kernels in starts]
