"""`CodeBits`: scalar codebooks or codebooks of kernels, whichever has less error for its bits in each layer.

    minimise  sum_l ||V_l - X_l||^2   subject to   sum_l code_bits(V_l) <= budget

Every layer has a list of choices (`code_choices`), each fitted by k-means; the multiple-choice knapsack over them is
solved exactly where `multiple_choice_knapsack` finishes.

The scalar choices are the largest m weights at K values, for m on a geometric grid and K in 2^0 .. 2^8; the kernel
choices are codebooks of K vectors, K in 2^1 .. 2^12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.constraint import Network, Projection, relative_error
from autocompress.constraints.file_writer import WeightsOnlyConstraint
from autocompress.constraints.weight_bits import squared_error
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import (
    QuantizedTensor,
    WeightTensor,
    check_code_bits_budget,
    code_bits,
    scalar_code_bits,
)
from autocompress.network.kernel_tensor import MAX_CODEWORDS, KernelTensor, kernel_code_bits, vector_lengths
from autocompress.numerics.kmeans import encode, fit_codebooks, prepare_sorted
from autocompress.numerics.knapsack import RankedWeights, rank_weights
from autocompress.numerics.multiple_choice_knapsack import Allocation, allocate
from autocompress.numerics.vector_kmeans import KernelBook, encode_kernels, fit_kernels
from autocompress.solver.constants import DEFAULTS, SolverConstants, bits_on_path

# What may be chosen: scalar codebooks, those of kernels (where a layer has vectors that fit), or either.
SCALARS, KERNELS = 1, 2
EITHER = SCALARS | KERNELS
# by `SolverConstants.codebooks`
KINDS = {"both": EITHER, "scalar": SCALARS, "kernel": KERNELS}
# Kept weights are this part of those kept in the choice before.
KEEP_RATIO = 2**-0.5
VALUES = tuple(2**bit for bit in range(9))
CODEWORDS = tuple(2**bit for bit in range(1, MAX_CODEWORDS.bit_length()))
# Lloyd's iterations of the last projection, on all vectors.
FINAL_ITERATIONS = 20


class CodeChoice(Protocol):
    """One way to code a layer."""

    @property
    def cost_bits(self) -> int:
        """Code bits, at most."""

    @property
    def squared_error(self) -> float:
        """Of all weights."""

    def encode(self, target: Tensor, *, last: bool) -> WeightTensor:
        """Returns the layer in this code; `last` takes more care."""


@dataclass(frozen=True)
class ScalarChoice:
    """The largest `nonzeros` weights at the values of `centroids` [K]."""

    cost_bits: int
    squared_error: float
    nonzeros: int
    centroids: Tensor
    ranked: RankedWeights

    def encode(self, target: Tensor, *, last: bool) -> QuantizedTensor:
        """Returns the layer in this code."""
        return encode(target, self.ranked.mask(self.nonzeros, target.shape), self.centroids)


@dataclass(frozen=True)
class KernelChoice:
    """The codewords of `book`."""

    book: KernelBook

    @property
    def cost_bits(self) -> int:
        """Code bits."""
        return self.book.cost_bits

    @property
    def squared_error(self) -> float:
        """Of all weights."""
        return self.book.squared_error

    def encode(self, target: Tensor, *, last: bool) -> KernelTensor:
        """Returns the layer in this code."""
        return encode_kernels(target, self.book.values, FINAL_ITERATIONS if last else 0)


@dataclass(frozen=True)
class LayerCentroids:
    """The centroids of a layer's choices, from which the next are found.

    Attributes:
        scalars: centroids [at most K] by number of kept weights, then by K.
        kernels: centroids [at most K, d] by d, then by K.
    """

    scalars: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    kernels: dict[int, dict[int, Tensor]] = field(default_factory=dict)


def code_choices(
    target: Tensor, max_bits: int, start: LayerCentroids | None = None, kinds: int = EITHER
) -> tuple[list[CodeChoice], LayerCentroids]:
    """Returns the choices that a layer has in so many bits, the cheapest first, and what to start from next time.

    Args:
        target: the weights, any shape, with elements.
        max_bits: most that a choice may cost; one weight of one value is always among them.
        start: what the last update returned.
        kinds: SCALARS, KERNELS or EITHER.
    """
    start, after = start or LayerCentroids(), LayerCentroids()
    choices: list[CodeChoice] = []
    if kinds & KERNELS:
        choices += _kernel_choices(target, max_bits, start.kernels, after.kernels)
    if kinds & SCALARS or not choices:
        choices += _scalar_choices(target, max_bits, start.scalars, after.scalars)
    return _not_dominated(choices), after


def _kernel_choices(
    target: Tensor,
    max_bits: int,
    start: Mapping[int, Mapping[int, Tensor]],
    after: dict[int, dict[int, Tensor]],
) -> list[KernelChoice]:
    """Returns the codebooks of kernels that fit; one of more than half as many codewords as vectors saves nothing."""
    found = []
    for length in vector_lengths(tuple(target.shape)):
        vectors = target.detach().reshape(-1, length)
        n = len(vectors)
        sizes = [size for size in CODEWORDS if 2 * size <= n and kernel_code_bits(n, size, length) <= max_bits]
        books = fit_kernels(vectors, sizes, start.get(length))
        after[length] = {size: book.centroids for size, book in zip(sizes, books, strict=True)}
        found += [KernelChoice(book) for book in books]
    return found


def _scalar_choices(
    target: Tensor,
    max_bits: int,
    start: Mapping[int, Mapping[int, Tensor]],
    after: dict[int, dict[int, Tensor]],
) -> list[ScalarChoice]:
    """Returns the choices of the largest weights that fit."""
    flat = target.detach().flatten()
    n, ranked, ordered = flat.numel(), rank_weights(flat), flat.sort().values
    negative = torch.cat([ordered.new_zeros(1), (flat[ranked.order].flip(0) < 0).to(ordered).cumsum(0)])
    found = []
    for kept in _kept_weights(n):
        sizes = [size for size in VALUES if scalar_code_bits(n, kept, size) <= max_bits and (size < 2 * kept)]
        if not sizes:
            continue
        below = int(negative[kept])
        tails = prepare_sorted(torch.cat([ordered[:below], ordered[n - kept + below :]]))
        warm = start.get(kept, {})
        books = fit_codebooks(tails, sizes, [warm[size] for size in sizes] if set(sizes) <= set(warm) else None)
        after[kept] = {size: book.centroids for size, book in zip(sizes, books, strict=True)}
        dropped = ranked.dropped_square(kept)
        for book in books:
            cost_bits = scalar_code_bits(n, kept, book.centroids.numel())
            found.append(ScalarChoice(cost_bits, dropped + book.squared_error, kept, book.centroids, ranked))
    return found


def _kept_weights(n: int) -> list[int]:
    """Returns the numbers of weights that may be kept, from all to one."""
    steps = math.ceil(math.log(n) / -math.log(KEEP_RATIO)) if n > 1 else 0
    return sorted({max(1, round(n * KEEP_RATIO**step)) for step in range(steps + 1)} | {1}, reverse=True)


def _not_dominated(choices: Sequence[CodeChoice]) -> list[CodeChoice]:
    """Returns the choices that err less than every cheaper one, the cheapest first."""
    ordered = sorted(choices, key=lambda choice: (choice.cost_bits, choice.squared_error))
    errors = np.array([choice.squared_error for choice in ordered])
    least = np.minimum.accumulate(np.append(np.inf, errors[:-1]))
    return [choice for choice, better in zip(ordered, errors < least, strict=True) if better]


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
    starts: list[LayerCentroids]


def project_code_bits(
    points: Sequence[Tensor],
    budget_bits: int,
    starts: Sequence[LayerCentroids] | None = None,
    *,
    kinds: int = EITHER,
    last: bool = False,
) -> CodeBitsProjection:
    """Returns the projection of X onto the networks of at most `budget_bits` of codes.

    Args:
        points: X, one floating tensor with elements per layer, any shapes, any device.
        budget_bits: most code bits.
        starts: what the last update returned.
        kinds: SCALARS, KERNELS or EITHER.
        last: take more care with the codebooks chosen.

    Raises:
        InfeasibleTargetError: the budget is below one weight per layer.
        InvalidInputError: an empty tensor, or values that are not finite.
    """
    for index, target in enumerate(points):
        if not target.numel() or not bool(torch.isfinite(target).all()):
            raise InvalidInputError(f"layer {index} (shape {tuple(target.shape)}) is empty or holds values not finite")
    check_code_bits_budget(points, budget_bits)
    least = [scalar_code_bits(target.numel(), 1, 1) for target in points]
    room = budget_bits - sum(least)
    layers = [
        code_choices(target, room + own, start, kinds)
        for target, own, start in zip(points, least, starts or [LayerCentroids()] * len(points), strict=True)
    ]
    choices = [found for found, _ in layers]
    allocation = allocate_choices(choices, budget_bits)
    quantized = [
        row[choice].encode(target, last=last)
        for row, choice, target in zip(choices, allocation.choices, points, strict=True)
    ]
    error = squared_error(quantized, points)
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

    def start(self) -> list[LayerCentroids] | None:
        return None

    def budget(self, fraction: float) -> int:
        return bits_on_path(self.budget_bits, self.network.selection.compressible, fraction, self.constants)

    def project(
        self,
        x: Sequence[Tensor],
        budget: int,
        state: list[LayerCentroids] | None,
        w: Sequence[Tensor] | None = None,
        *,
        last: bool = False,
    ) -> tuple[Projection, list[LayerCentroids] | None]:
        """Returns V; with `last` codebooks of kernels are fitted to all vectors."""
        found = project_code_bits(x, budget, state, last=last, kinds=KINDS[self.constants.codebooks])
        error, greedy = found.squared_error, not found.allocation.exact
        return Projection(found.quantized, None, error, relative_error(error, x), 0.0, greedy=greedy), found.starts

    def project_last(
        self, x: Sequence[Tensor], budget: int, state: list[LayerCentroids] | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, list[LayerCentroids] | None]:
        return self.project(x, budget, state, last=True)

    def to_plain(self, state: list[LayerCentroids] | None) -> dict[str, Any]:
        return {"starts": None if state is None else [[start.scalars, start.kernels] for start in state]}

    def from_plain(self, saved: dict[str, Any]) -> list[LayerCentroids] | None:
        starts = saved["starts"]
        return None if starts is None else [LayerCentroids(scalars, kernels) for scalars, kernels in starts]
