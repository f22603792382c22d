"""What the code of a layer may be: how many weights at how many values, or a codebook of kernels, each with its cost.

The scalar choices are the largest m weights at K values, for m on a geometric grid and K in 2^0 .. 2^8; the kernel
choices are codebooks of K vectors, K in 2^1 .. 2^12. Every one is fitted, so its squared error is known and a
multiple-choice knapsack over the layers (`allocation`) can decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autocompress.network.compressed_tensors import QuantizedTensor, WeightTensor
from autocompress.network.kernel_tensor import MAX_CODEWORDS, KernelTensor, kernel_code_bits, vector_lengths
from autocompress.network.tensor_sizes import scalar_code_bits
from autocompress.numerics.kmeans import encode, fit_codebooks, prepare_sorted
from autocompress.numerics.knapsack import RankedWeights, rank_weights
from autocompress.numerics.vector_kmeans import KernelBook, encode_kernels, fit_kernels

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

    def encode(self, target: Tensor, *, closing: bool) -> WeightTensor:
        """Returns the layer in this code; `closing` takes more care."""


@dataclass(frozen=True)
class ScalarChoice:
    """The largest `nonzeros` weights at the values of `centroids` [K]."""

    cost_bits: int
    squared_error: float
    nonzeros: int
    centroids: Tensor
    ranked: RankedWeights

    def encode(self, target: Tensor, *, closing: bool) -> QuantizedTensor:
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

    def encode(self, target: Tensor, *, closing: bool) -> KernelTensor:
        """Returns the layer in this code."""
        return encode_kernels(target, self.book.values, FINAL_ITERATIONS if closing else 0)


@dataclass(frozen=True)
class WarmStart:
    """The centroids of a layer's choices.

    Attributes:
        scalars: centroids [at most K] by number of kept weights, then by K.
        kernels: centroids [at most K, d] by d, then by K.
    """

    scalars: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    kernels: dict[int, dict[int, Tensor]] = field(default_factory=dict)


def code_choices(
    target: Tensor, room_bits: int, start: WarmStart | None = None, kinds: int = EITHER
) -> tuple[list[CodeChoice], WarmStart]:
    """Returns the choices that a layer has in so many bits, the cheapest first, and what to start from next time.

    Args:
        target: the weights, any shape, with elements.
        room_bits: most that a choice may cost; one weight of one value is always among them.
        start: what the last update returned.
        kinds: SCALARS, KERNELS or EITHER.
    """
    start, after = start or WarmStart(), WarmStart()
    choices: list[CodeChoice] = []
    if kinds & KERNELS:
        choices += _kernel_choices(target, room_bits, start.kernels, after.kernels)
    if kinds & SCALARS or not choices:
        choices += _scalar_choices(target, room_bits, start.scalars, after.scalars)
    return _not_dominated(choices), after


def _kernel_choices(
    target: Tensor,
    room_bits: int,
    start: Mapping[int, Mapping[int, Tensor]],
    after: dict[int, dict[int, Tensor]],
) -> list[KernelChoice]:
    """Returns the codebooks of kernels that fit; one of more than half as many codewords as vectors saves nothing."""
    found = []
    for length in vector_lengths(tuple(target.shape)):
        vectors = target.detach().reshape(-1, length)
        n = len(vectors)
        sizes = [size for size in CODEWORDS if 2 * size <= n and kernel_code_bits(n, size, length) <= room_bits]
        books = fit_kernels(vectors, sizes, start.get(length))
        after[length] = {size: book.centroids for size, book in zip(sizes, books, strict=True)}
        found += [KernelChoice(book) for book in books]
    return found


def _scalar_choices(
    target: Tensor,
    room_bits: int,
    start: Mapping[int, Mapping[int, Tensor]],
    after: dict[int, dict[int, Tensor]],
) -> list[ScalarChoice]:
    """Returns the choices of the largest weights that fit."""
    flat = target.detach().flatten()
    n, ranked, ordered = flat.numel(), rank_weights(flat), flat.sort().values
    negative = torch.cat([ordered.new_zeros(1), (flat[ranked.order].flip(0) < 0).to(ordered).cumsum(0)])
    found = []
    for kept in _kept_weights(n):
        sizes = [size for size in VALUES if scalar_code_bits(n, kept, size) <= room_bits and (size < 2 * kept)]
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
