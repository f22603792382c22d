"""Optimal scalar codebooks by dynamic programming, and near-optimal starts for k-means.

The exact solver is the oracle of the tests. Over `CELLS` cells of neighbouring values the same recursion gives k-means
its start, which is the exact optimum where there are no more distinct values than cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.projection.sorted_values import Codebook, SortedValues, interval_errors

CELLS = 256  # of the start's recursion, whose cost grows with the square; k-means then ends within 4 % of the optimum
EXACT_SIZE = 64  # largest codebook that starts from the recursion; larger ones start from point density
EXACT_LIMIT = 4096  # distinct values that `exact_codebook` takes: its memory grows with the square
SAMPLE = 4096  # values from which the density is estimated


def exact_codebook(data: SortedValues, k: int) -> Codebook:
    """Returns an optimal codebook of k values, exactly, in O(k d^2) time and O(d^2) memory for d distinct values.

    Raises:
        InvalidInputError: no data, k below 1, or more distinct values than `EXACT_LIMIT`.
    """
    distinct = data.distinct(EXACT_LIMIT)
    if distinct is None or not distinct.numel() or k < 1:
        raise InvalidInputError(f"the exact solver takes 1 to {EXACT_LIMIT} distinct values and k >= 1, got k = {k}")
    edges = torch.searchsorted(data.values, distinct)
    return _optimal_codebooks(data, torch.cat([edges, edges.new_tensor([data.values.numel()])]), [k])[0]


def cold_starts(data: SortedValues, sizes: Sequence[int]) -> list[Tensor]:
    """Returns starting centroids [size] for each size: optimal over cells if small, else by point density.

    The density of an optimal quantizer's points goes with the cube root of the data's (Panter & Dite 1951), so equal
    shares of the sum of spacing^(2/3) between sorted values hold one point each.
    """
    count = data.values.numel()
    picks = torch.linspace(0, count - 1, min(count, SAMPLE), device=data.values.device, dtype=torch.float64).long()
    sample = data.values[picks]
    share = torch.cat([sample.new_zeros(1), sample.diff().pow(2 / 3).cumsum(0)])
    share = share / share[-1].clamp_min(1e-300)

    def at(fractions: Tensor) -> Tensor:
        return sample[torch.searchsorted(share, fractions).clamp_max(sample.numel() - 1)]

    small = [size for size in sizes if size <= EXACT_SIZE]
    starts: list[Tensor] = []
    if small:
        distinct = data.distinct(CELLS)
        if distinct is None:
            distinct = torch.unique(at(torch.arange(CELLS, device=share.device, dtype=share.dtype) / CELLS))
        edges = torch.searchsorted(data.values, distinct)
        edges[0] = 0
        edges = torch.cat([edges, edges.new_tensor([count])])
        starts = [book.centroids for book in _optimal_codebooks(data, edges, small)]
    for size in sizes[len(small) :]:
        starts.append(at((torch.arange(size, device=share.device, dtype=share.dtype) + 0.5) / size))
    return starts


def _optimal_codebooks(data: SortedValues, edges: Tensor, sizes: Sequence[int]) -> list[Codebook]:
    """Returns for each size the best codebook whose clusters begin at `edges` (indices, 0 to n), by recursion.

    best(k, j) = min over i < j of best(k - 1, i) + error of the values between edges i and j.
    """
    means, errors = interval_errors(data, edges[:, None], edges[None, :])
    below = torch.ones_like(errors, dtype=torch.bool).tril()
    errors = errors.masked_fill(below, torch.inf)
    last = edges.numel() - 1
    best, choices = errors[0], []
    totals = {1: float(best[last])}
    for size in range(2, min(max(sizes), last) + 1):
        best, choice = (best[:, None] + errors).min(0)
        choices.append(choice)
        totals[size] = float(best[last])
    table = torch.stack(choices).tolist() if choices else []
    books = []
    for size in (min(size, last) for size in sizes):
        cuts = [last]
        for row in reversed(table[: size - 1]):
            cuts.append(row[cuts[-1]])
        cuts = [0, *reversed(cuts)]
        books.append(Codebook(means[cuts[:-1], cuts[1:]], totals[size]))
    return books
