"""`WeightBits`: the two knapsacks of Yang et al. (2020), with W left dense or pruned in place as they do.

    A:  W <- the weights kept by a 0-1 knapsack at the present bits                (`knapsack`)
    B:  V <- W + U quantized where A kept weights, bits by a multiple-choice knapsack  (`multiple_choice_knapsack`)

W is the network in training, V its compressed twin, U the scaled dual variable. Before the first update there are no
bits; they are then found together with the nonzeros (`weight_bits_search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.constraints.file_writer import WeightsOnlyConstraint
from autocompress.constraints.weight_bits_search import BIT_CHOICES, allocate_bits, improve_weight_data, joint_bits
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor, WeightTensor, scalar_tensors
from autocompress.network.tensor_sizes import check_weight_data_budget, weight_data_bits
from autocompress.numerics.kmeans import encode, fit_codebook, fit_codebooks, sort_values
from autocompress.numerics.knapsack import prune, rank_weights
from autocompress.solver.constants import DEFAULTS, SolverConstants, bits_on_path

SIZES = tuple(2**bit for bit in BIT_CHOICES)


@dataclass(frozen=True)
class WeightBitsState:
    """What an update hands to the next.

    Attributes:
        bits: of each layer, for projection A.
        centroids: of each layer, one codebook per size of `SIZES`, warm starts; empty for a cold start.
    """

    bits: list[int]
    centroids: list[list[Tensor]]


@dataclass(frozen=True)
class WeightBitsProjection:
    """The result of one update.

    Attributes:
        quantized: V, one per layer.
        pruned: W with the weights that A dropped set to zero, in W's dtype.
        bits: of each layer as V uses them.
        nonzeros: of each layer.
        used_bits: weight-data bits of V, at most the budget.
        squared_error: sum over all weights of (V - target)^2.
        exact: whether B's knapsack was solved exactly.
        state: for the next update.
    """

    quantized: list[QuantizedTensor]
    pruned: list[Tensor]
    bits: list[int]
    nonzeros: list[int]
    used_bits: int
    squared_error: float
    exact: bool
    state: WeightBitsState


def project_weight_bits(
    weights: Sequence[Tensor],
    targets: Sequence[Tensor],
    budget_bits: int,
    previous: WeightBitsState | None = None,
) -> WeightBitsProjection:
    """Returns the projections of W and of W + U onto the networks of at most `budget_bits` of weight data.

    Args:
        weights: W, one floating tensor with elements per layer, any shapes, any device.
        targets: W + U, the same shapes.
        budget_bits: most weight-data bits; each layer keeps at least one weight.
        previous: what the last update returned; without it, or where its bits no longer fit, start jointly.

    Raises:
        InfeasibleTargetError: the budget is below one bit per layer.
        InvalidInputError: shapes that differ, an empty tensor, or values that are not finite.
    """
    _check(weights, targets, budget_bits)
    if not weights:
        return WeightBitsProjection([], [], [], [], 0, 0.0, True, WeightBitsState([], []))
    if previous is None or sum(previous.bits) > budget_bits:
        previous = WeightBitsState(joint_bits(targets, budget_bits), [])
    ranked = [rank_weights(weight) for weight in weights]
    pruning = prune(ranked, previous.bits, budget_bits)
    masks = [
        rank.mask(count, weight.shape) for rank, count, weight in zip(ranked, pruning.nonzeros, weights, strict=True)
    ]
    starts: Sequence[list[Tensor] | None] = previous.centroids or [None] * len(masks)
    books = [
        fit_codebooks(sort_values(target[mask]), SIZES, start)
        for target, mask, start in zip(targets, masks, starts, strict=True)
    ]
    allocation = allocate_bits(books, pruning.nonzeros, budget_bits)
    quantized = [
        encode(target, mask, book[choice].centroids)
        for target, mask, book, choice in zip(targets, masks, books, allocation.choices, strict=True)
    ]
    return WeightBitsProjection(
        quantized=quantized,
        pruned=[weight.detach() * mask for weight, mask in zip(weights, masks, strict=True)],
        bits=[tensor.bits for tensor in quantized],
        nonzeros=pruning.nonzeros,
        used_bits=weight_data_bits(quantized),
        squared_error=squared_error(quantized, targets),
        exact=allocation.exact,
        state=WeightBitsState(
            [tensor.bits for tensor in quantized], [[book.centroids for book in row] for row in books]
        ),
    )


def project_plan(tensor: Tensor, keep_fraction: float, codebook: int, start: Tensor | None = None) -> QuantizedTensor:
    """Returns `tensor` with its largest share kept, as at most `codebook` values fitted by k-means.

    Args:
        tensor: any shape, floating, with elements.
        keep_fraction: of the weights, in [0, 1]; at least one weight is kept.
        codebook: number of nonzero values, 1 to 256.
        start: values to begin from, where there are `codebook` of them.

    Raises:
        InvalidInputError: an argument out of its range.
    """
    if not 0 <= keep_fraction <= 1 or not 1 <= codebook <= SIZES[-1]:
        raise InvalidInputError(
            f"need a keep fraction in [0, 1] and 1 to {SIZES[-1]} values, got {keep_fraction} and {codebook}"
        )
    _check([tensor], [tensor], 1)
    mask = rank_weights(tensor).mask(max(1, round(keep_fraction * tensor.numel())), tensor.shape)
    warm = start if start is not None and start.numel() == codebook else None
    return encode(tensor, mask, fit_codebook(sort_values(tensor.detach()[mask]), codebook, warm).centroids)


def squared_error(quantized: Sequence[WeightTensor], targets: Sequence[Tensor]) -> float:
    """Returns the sum over all layers of squared differences between V and its target, in float64."""
    differences = (
        code.dense().double() - target.detach().double() for code, target in zip(quantized, targets, strict=True)
    )
    return sum(float(difference.square().sum()) for difference in differences)


def _check(weights: Sequence[Tensor], targets: Sequence[Tensor], budget_bits: int) -> None:
    shapes, target_shapes = [tuple(w.shape) for w in weights], [tuple(t.shape) for t in targets]
    if shapes != target_shapes:
        raise InvalidInputError(f"weights and targets need the same shapes, got {shapes} and {target_shapes}")
    for index, (weight, target) in enumerate(zip(weights, targets, strict=True)):
        if not weight.numel():
            raise InvalidInputError(f"layer {index} has no elements (shape {tuple(weight.shape)}); leave it out")
        if not bool(torch.isfinite(weight).all() & torch.isfinite(target).all()):
            raise InvalidInputError(f"layer {index} (shape {tuple(weight.shape)}) holds values that are not finite")
    check_weight_data_budget(weights, budget_bits)


class WeightBitsConstraint(WeightsOnlyConstraint):
    """Keeps bits times nonzeros within a number of bits; positions, codebooks and biases are free.

    Both knapsacks are applied to the same point. The state is the warm start.
    """

    def __init__(self, network: Network, budget_bits: int, constants: SolverConstants = DEFAULTS) -> None:
        """Checks that the budget can be met.

        Raises:
            InfeasibleTargetError: naming the fewest bits.
        """
        check_weight_data_budget(network.weights, budget_bits)
        super().__init__(network)
        self.budget_bits, self.constants = budget_bits, constants

    def start(self) -> WeightBitsState | None:
        return None

    def budget(self, fraction: float) -> int:
        return bits_on_path(self.budget_bits, self.network.selection.compressible, fraction, self.constants)

    def project(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        """Returns V."""
        found = project_weight_bits(x, x, budget, state)
        return _projection(found, x), found.state

    def project_last(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        """Returns the projection, improved by a multiplier search at the same bits."""
        projection, state = self.project(x, budget, state)
        quantized = improve_weight_data(x, scalar_tensors(projection.quantized), budget)
        error = squared_error(quantized, x)
        return replace(projection, quantized=quantized, error=error, relative_error=relative_error(error, x)), state

    def to_plain(self, state: WeightBitsState | None) -> dict[str, Any]:
        return {"bits": None} if state is None else {"bits": state.bits, "centroids": state.centroids}

    def from_plain(self, saved: dict[str, Any]) -> WeightBitsState | None:
        if saved["bits"] is None:
            return None
        return WeightBitsState(list(saved["bits"]), [list(row) for row in saved["centroids"]])


class InPlaceWeightBitsConstraint(WeightBitsConstraint):
    """The algorithm as published: W is pruned in place, V shares its zeros, the budget is the target throughout."""

    def budget(self, fraction: float) -> int:
        return self.budget_bits

    def project(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        """Returns V and the pruned W."""
        found = project_weight_bits(x if w is None else w, x, budget, state)
        return replace(_projection(found, x), pruned=found.pruned), found.state

    def project_last(
        self, x: Sequence[Tensor], budget: int, state: WeightBitsState | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, WeightBitsState | None]:
        return self.project(x, budget, state, w)


def _projection(found: WeightBitsProjection, x: Sequence[Tensor]) -> Projection:
    error = found.squared_error
    return Projection(found.quantized, None, error, relative_error(error, x), 0.0, greedy=not found.exact)
